"""What a run tells of the periods of mechanisms that plan: tokens, configurations, their welfare.

A row of `plans` is a period and replication (`Platform.plans`), with the columns that the plans
themselves record; those of IAMFM are `mechanisms.iamfm.mechanism.Sponsorship.record`. Means are
over the periods that begin in the last quarter of the rounds, intervals over replications.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from experiments.colours import colours
from experiments.plots import FAINT, INK, WIDTH, style
from market.result import TAIL, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PURPOSES = {"allocation": "for the allocation", "payments": "for payments"}
MEASURES = {
    "tokens_allocation": ("Tokens for the allocation", "per period"),
    "tokens_payments": ("Tokens for payments", "per period"),
    "tokens_limit": ("Token budget", "per period, never exceeded"),
    "strength": ("Sponsorship strength", "mean over advertisers"),
    "sponsored": ("Advertisers sponsored", "strength above 0"),
    "welfare": ("Welfare as reported", "money per request, of the configuration, by the pool"),
    "lost": ("Welfare lost by the search", "to the best of the design, money per request"),
}
CAPTION = (
    "Periods. Left: tokens spent on evaluations in each period, by purpose, mean over "
    "replications; dashed: the budget, a hard limit. Right: the strength at which each advertiser "
    "is sponsored, mean over replications; advertisers by value per click, highest on top."
)


def plans_frame(plans: Mapping[str, Sequence[Mapping[str, Any]]]) -> pl.DataFrame | None:
    """Rows of all mechanisms that have any, with their name; None if none has.

    Args:
        plans: `Platform.plans` by mechanism.
    """
    rows = [{"mechanism": name, **row} for name, found in plans.items() for row in found]
    return pl.DataFrame(rows, infer_schema_length=None) if rows else None


def measured(plans: pl.DataFrame, rounds: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What was measured, its unit, and an interval by mechanism (`market.result.interval`)."""
    strengths = pl.col("strengths")
    late = plans.with_columns(
        strength=strengths.list.mean(),
        sponsored=strengths.list.eval((pl.element() > 0).cast(pl.Int64)).list.sum(),
        lost=pl.col("best_welfare") - pl.col("welfare"),
    ).filter(pl.col("round") >= min(TAIL * rounds, plans["round"].max()))
    names = plans["mechanism"].unique(maintain_order=True)
    for column, (what, unit) in MEASURES.items():
        found = {}
        for name in names:
            by_replication = (
                late.filter(pl.col("mechanism") == name)
                .group_by("replication")
                .agg(pl.col(column).cast(pl.Float64).mean())
                .sort("replication")[column]
            )
            found[name] = interval(by_replication.fill_null(np.nan).to_numpy())
        if any(each["mean"] is not None for each in found.values()):
            yield what, unit, found


def over_periods(plans: pl.DataFrame, titles: Sequence[str], values: Sequence[float]) -> Figure:
    """Tokens by purpose, and strengths by advertiser, over periods; a row for each mechanism.

    Args:
        plans: of `plans_frame`.
        titles: (N,) of the ads.
        values: (N,) per click, by which advertisers are ordered.
    """
    from matplotlib.figure import Figure

    names = plans["mechanism"].unique(maintain_order=True).to_list()
    order = np.argsort(-np.asarray(values), kind="stable")
    with style():
        figure = Figure(figsize=(WIDTH, 0.6 + 3.4 * len(names)), layout="constrained")
        axes = figure.subplots(len(names), 2, squeeze=False, width_ratios=(1, 1.35))
        for (left, right), name in zip(axes, names, strict=True):
            ours = plans.filter(pl.col("mechanism") == name)
            _tokens(left, ours, colours(names)[name])
            _strengths(right, ours, [titles[i] for i in order], order)
            left.set_title(name)
    return figure


def _tokens(ax: Axes, plans: pl.DataFrame, colour: str) -> None:
    columns = [f"tokens_{purpose}" for purpose in PURPOSES]
    means = plans.group_by("period").agg(pl.col(*columns, "tokens_limit").mean()).sort("period")
    start = plans.group_by("period").agg(pl.col("round").first()).sort("period")["round"]
    below = np.zeros(len(means))
    for (purpose, words), shade in zip(PURPOSES.items(), (0.75, 0.35), strict=True):
        above = below + means[f"tokens_{purpose}"].to_numpy()
        ax.fill_between(
            start, below, above, color=colour, alpha=shade, linewidth=0, label=words, step="post"
        )
        below = above
    limit = means["tokens_limit"].drop_nulls()
    if len(limit):
        ax.axhline(limit[0], color=INK, linestyle="--", linewidth=1.4, label="budget")
    ax.set(xlabel="first round of the period", ylabel="tokens", ylim=(0, None))
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.get_major_locator().set_params(nbins=4, integer=True)
    ax.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")


def _strengths(ax: Axes, plans: pl.DataFrame, titles: Sequence[str], order: Sequence[int]) -> None:
    by_period = plans.sort("period", "replication").group_by("period", maintain_order=True)
    means = np.array([np.mean(rows["strengths"].to_list(), axis=0) for _, rows in by_period])
    starts = plans["round"].unique().sort().to_numpy()
    most = max(1, int(np.ceil(means.max())))
    end = starts[-1] + (starts[-1] - starts[-2] if len(starts) > 1 else 1)
    drawn = ax.imshow(
        means.T[list(order)], aspect="auto", cmap="viridis", vmin=0, vmax=most,
        interpolation="nearest", extent=(starts[0], end, len(titles) - 0.5, -0.5),
    )  # fmt: skip
    ax.set_yticks(range(len(titles)), [_short(title) for title in titles], fontsize=8)
    ax.tick_params(axis="y", length=0)
    ax.grid(False)
    ax.set(xlabel="first round of the period")
    ax.xaxis.get_major_locator().set_params(nbins=5, integer=True)
    bar = ax.figure.colorbar(drawn, ax=ax, ticks=range(most + 1), shrink=0.8, pad=0.02)
    bar.set_label("strength", color=INK)
    bar.outline.set_edgecolor(FAINT)


def _short(title: str, length: int = 22) -> str:
    """A title for an axis, with nothing that matplotlib would read as mathematics."""
    title = " ".join(title.split()).replace("$", r"\$")
    return title if len(title) <= length else title[: length - 1] + "…"
