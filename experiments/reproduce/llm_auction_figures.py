"""Figures of `admarket reproduce llm-auction`; bands and bars are 95 % intervals over requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from experiments.ad_llm.clicks import VIEWERS
from experiments.ad_llm.curves import Curve
from experiments.ad_llm.stages import correlations, times
from experiments.pctr_figures import LEARNING_CAPTION, RELIABILITY_CAPTION, learning, reliability
from experiments.plots import FAINT, INK, WIDTH, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from experiments.ad_llm.evaluation import Answers
    from experiments.ad_llm.stages import Stage
    from experiments.reproduce.llm_auction import Study

BEFORE, AFTER, RULE = "#999999", "#e69f00", "#0072b2"
CAPTIONS = {
    "rows": (
        "(a), (c), (e) Every way of writing on the same held-out requests and bids. Revenue: what "
        "the platform is paid; reward: the bids' expected value less penalties for broken or "
        "surplus mentions. Orange: trained; grey: before; blue: rules over recorded candidates, "
        "written by guided insertion. Tokens are those written to serve a request. MOSAIC without "
        "offset is in the table only."
    ),
    "curves": (
        "(b) One ad's bid is moved, everything else stays. Left: expected clicks on it in sampled "
        "replies, others' bids drawn anew and common to all levels. Middle: the same bids; "
        "probability of its mention among those of all ads, at the point where a reply mentions "
        "one (1/n dotted). Right: after training, the others' bids fixed at 50, finer levels."
    ),
    "responses": (
        "(d) Best bids at first price against the curve in the middle above, before and after "
        "training. Where clicks do not rise with the bid there is no reason to bid: 0."
    ),
    "training": (
        "Training. Left: wall time by phase. Right: correlation of the click model with the users' "
        "own probabilities on each deployment of IRPO, before and after it has learned from it."
    ),
    "click_model": LEARNING_CAPTION,
    "reliability": (
        f"{RELIABILITY_CAPTION} Replies are those of the trained Ad-LLM, written after the click "
        f"model was, each seen by {VIEWERS} users."
    ),
}


def draw(study: Study) -> dict[str, Figure]:
    """All figures that there is data for, by name."""
    n = study.trials.bids.shape[2]
    found = {
        "rows": rows(study.rows, study.trained),
        "curves": curves(study.answers, study.before, study.trained, n, study.seed),
        "responses": responses(study.best, study.before, study.trained),
    }
    if study.stages:
        found["training"] = training(study.stages)
    if history := _click_history(study):
        found["click_model"] = learning(history, "pass over the clicks")
    if study.clicks is not None:
        found["reliability"] = reliability(*study.clicks)
    return found


def rows(table: pl.DataFrame, trained: str) -> Figure:
    """A line per way of writing: revenue, reward, format, tokens."""
    panels = (
        ("revenue", "Revenue", "money per request"),
        ("reward", "Reward", "money per request"),
        ("compliant", "In the format", "share of replies"),
        ("written", "Tokens written", "per request"),
    )
    table = table.filter(~pl.col("name").str.contains("without offset"))
    names = table["name"].to_list()
    figure, axes = _figure(4, 1.3 + 0.3 * len(names))
    at = np.arange(len(names))
    with style():
        for ax, (measure, title, unit) in zip(axes, panels, strict=True):
            mean, low, high = _cells(table, measure)
            for y, name, x, left, right in zip(at, names, mean, low, high, strict=True):
                colour = _colour(name, trained)
                ax.plot([left, right], [y, y], color=colour, linewidth=2)
                ax.plot(x, y, "o", color=colour, markersize=6)
            if measure == "written":
                ax.set_xscale("log")
                ax.set_xticks([30, 100, 300, 1000], ["30", "100", "300", "1,000"])
                ax.minorticks_off()
            elif measure == "compliant":
                ax.set_xlim(-0.04, 1.04)
            else:
                ax.axvline(0, color=FAINT, linewidth=1)
            ax.set(title=title, xlabel=unit, ylim=(len(names) - 0.5, -0.5))
            ax.set_yticks(at, names if ax is axes[0] else [""] * len(names))
            ax.tick_params(axis="y", length=0)
            ax.grid(axis="y", visible=False)
        for label, name in zip(axes[0].get_yticklabels(), names, strict=True):
            label.set_fontweight("bold" if name == trained else "normal")
    return figure


def curves(answers: dict[str, Answers], before: str, trained: str, n: int, seed: int = 0) -> Figure:
    """Clicks, choice shares, and choice shares on a fine grid; before and after."""
    titles = ("Clicks", "Choice share", "Choice share, others at 50")
    figure, axes = _figure(3, 3.5)
    with style():
        for name, colour, marker in ((before, BEFORE, "s"), (trained, AFTER, "o")):
            each = answers[name]
            for ax, curve in zip(axes, (each.clicks, each.shares, each.fixed), strict=True):
                if curve is not None:
                    _curve(ax, curve, colour, marker if curve is not each.fixed else "", name, seed)
        for ax, title in zip(axes, titles, strict=True):
            ax.set(title=title, xlabel="bid of the ad", ylim=(0, None))
            if ax is not axes[0]:
                ax.axhline(1 / n, color=FAINT, linestyle=":", linewidth=1.2)
        axes[0].set_ylabel("expected clicks per request")
        axes[1].set_ylabel("probability")
        _legend(figure, axes[0])
    return figure


def responses(best: pl.DataFrame, before: str, trained: str) -> Figure:
    """Ratios of best bids, a panel per objective."""
    figure, axes = _figure(2, 3.3)
    panels = (
        ("value", "Value maximizers", "best bid × target ROI / value"),
        ("utility", "Utility maximizers", "best bid / value"),
    )
    with style():
        for ax, (objective, title, label) in zip(axes, panels, strict=True):
            some = best.filter(pl.col("objective") == objective)
            looks = [(before, BEFORE, "s", -1), (trained, AFTER, "o", 1)]
            for name, colour, marker, side in looks:
                mine = some.filter(pl.col("name") == name)
                for k, (target, part) in enumerate(
                    mine.group_by("target_roi", maintain_order=True)
                ):
                    mean, low, high = _cells(part, "ratio")
                    x = part["value"].to_numpy() + side * (1.2 + 1.6 * k)
                    ax.errorbar(
                        x, mean, [mean - low, high - mean], fmt=marker, color=colour,
                        markersize=5.5, elinewidth=1.5,
                        fillstyle="full" if k == 0 else "none", label=_who(name, target[0]),
                    )  # fmt: skip
            ax.axhline(1, color=FAINT, linewidth=1)
            ax.set(title=title, xlabel="value per click", ylabel=label, ylim=(-0.04, 1.12))
            ax.set_xticks(sorted(some["value"].unique()))
        _legend(figure, axes[0])
    return figure


def training(stages: Sequence[Stage]) -> Figure:
    """Wall time by phase; what the click model knows, by epoch."""
    spent, known = times(stages), correlations(stages)
    figure, axes = _figure(2 if known.height else 1, 1.6 + 0.35 * len(stages))
    with style():
        _wall_time(axes[0], spent)
        if known.height:
            _click_model(axes[1], known)
    return figure


def _click_history(study: Study) -> list[Mapping[str, Any]]:
    """Passes of the click model over clicks: in the IRPO on trial, else in the first there is."""
    ours = sorted(study.stages, key=lambda stage: not study.trained.endswith(stage.label))
    histories = ([row for epoch in stage.epochs for row in epoch.get("pctr", ())] for stage in ours)
    return next(filter(None, histories), [])


def _wall_time(ax: Axes, spent: pl.DataFrame) -> None:
    """Stacked bars of minutes."""
    import seaborn as sns

    names, phases = (list(dict.fromkeys(spent[column])) for column in ("stage", "phase"))
    palette = sns.color_palette("colorblind", len(phases))
    left = np.zeros(len(names))
    for phase, colour in zip(phases, palette, strict=True):
        part = dict(spent.filter(pl.col("phase") == phase).select("stage", "seconds").rows())
        width = np.array([part.get(name, 0.0) for name in names]) / 60
        ax.barh(names, width, left=left, color=colour, label=phase, height=0.6)
        left += width
    ax.set(title="Wall time", xlabel="minutes", ylim=(len(names) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)


def _click_model(ax: Axes, known: pl.DataFrame) -> None:
    """From before to after, a line per epoch of a stage."""
    names = [f"{stage}, epoch {epoch}" for stage, epoch in known.select("stage", "epoch").rows()]
    at = np.arange(len(names))
    before, after = (known[when].to_numpy() for when in ("before", "after"))
    ax.hlines(at, before, after, color=FAINT, linewidth=1.6)
    ax.plot(before, at, "s", color=BEFORE, label="before it has learned from them")
    ax.plot(after, at, "o", color=AFTER, label="after")
    ax.set_yticks(at, names)
    ax.set(title="Click model", xlabel="correlation with users", ylim=(len(names) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=1)


def _colour(name: str, trained: str) -> str:
    if name == trained:
        return AFTER
    over_candidates = name.endswith("candidates")
    return RULE if over_candidates else BEFORE if name.startswith("pre-trained") else INK


def _who(name: str, target: float | None) -> str:
    return name if target is None else f"{name}, target ROI {target:g}"


def _curve(ax: Axes, curve: Curve, colour: str, marker: str, label: str, seed: int) -> None:
    band = curve.band(seed)
    ax.plot(curve.levels, curve.mean, color=colour, marker=marker, markersize=4.5, label=label)
    ax.fill_between(curve.levels, band.low, band.high, color=colour, alpha=0.2, linewidth=0)


def _cells(frame: pl.DataFrame, name: str) -> list[np.ndarray]:
    """Mean, low and high; NaN for what is not known."""
    columns = (frame[f"{name}{end}"].cast(pl.Float64) for end in ("", "_low", "_high"))
    return [column.fill_null(float("nan")).to_numpy() for column in columns]


def _figure(columns: int, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)
    return figure, list(axes[0])


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
