"""Figures of `admarket reproduce iamfm`; bands and bars are 95 % intervals over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from experiments.bootstrap import Estimate, mean_of
from experiments.iamfm.curves import crossings
from experiments.iamfm.market import MECHANISMS, TOTALS, bids_by_advertiser, by_replication
from experiments.iamfm.searches import CONTENDERS, ELIMINATION, INSTANTIATIONS, MODEL
from experiments.plots import COLOURS, DASHES, FAINT, WIDTH, bid_trajectories, style
from experiments.reproduce.iamfm import FEW, Study
from experiments.reproduce.iamfm_conclusions import (
    HALF,
    YARDSTICKS,
    against_best,
    curve,
    ratios,
    samples,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

LOOKS = {
    "successive halving": (COLOURS["iamfm-elimination"], "o"),
    "confidence elimination": ("#332288", "D"),
    "model-based": ("#0072b2", "s"),
    "random search": ("#999999", "v"),
    "uniform allocation": ("#e69f00", "^"),
    "single-fidelity GP": ("#d55e00", "X"),
    "aco": ("#009e73", "o"),
    "naive": ("#d55e00", "s"),
    "none": ("#555555", ""),
}
WAYS = {"aco": "ACO", "naive": "running again, n searches", "none": "no extra tokens"}
RIVALS = ("#0072b2", "#d55e00", "#009e73")
CAPTIONS = {
    "welfare": (
        "(a) Welfare of the configuration that a search would play, at its true outcomes, against "
        "tokens spent on the search. Top: mean regret against the best configuration (both axes "
        "logarithmic; points are shifted sideways to be told apart). Bottom: welfare less that of "
        "the best single-fidelity baseline at the same budget, paired; above 0 the instantiation "
        "of IAMFM is ahead."
    ),
    "trade_off": (
        "(b) Welfare of elimination less that of the model-based method, paired, against tokens. "
        "Dotted: where the mean difference changes sign."
    ),
    "payments": (
        "(c) Left, middle: mean error of a payment against tokens spent beyond those of the "
        "allocation; compared with exact VCG, and with the true externality of the configuration "
        "that is played. Right: tokens that ACO needs for the error of running n searches again, "
        "each with as many tokens as the allocation had, as a share of theirs (dashed: a half; "
        "percentile bootstrap over problems)."
    ),
    "incentives": (
        "(d, e) Left: gain from a misreport against the measured optimisation error of the two "
        "runs; a dot is a random problem, the line the bound 2 epsilon. Larger losses are not "
        "drawn. Right: gains as a share of the bound (below -1.5: at -1.5); problems without error "
        "left out."
    ),
    "steering": (
        "(g) Share of replies that show an ad of the request, against its strength, its rivals all "
        "at one strength; bars are over requests."
    ),
    "market": (
        "(h) Revenue, welfare and user satisfaction over the last quarter of rounds (intervals "
        "over replications), and bids relative to the truthful one (over advertisers; 1 is "
        "truthful), on the same requests."
    ),
    "bids": (
        "(h) Bids relative to the truthful one, averaged over logarithmically spaced windows of "
        "rounds. Bands: 95 % t-interval of the mean over advertisers."
    ),
}


def draw(study: Study) -> dict[str, Figure]:
    """All figures, by name."""
    return {
        "welfare": welfare(study),
        "trade_off": trade_off(study),
        "payments": payments(study),
        "incentives": incentives(study.misreports),
        "steering": steering(study.exposure),
        "market": market(study),
        "bids": bid_trajectories(study.market.advertisers),
    }


def welfare(study: Study) -> Figure:
    """A column for each world: regret, and leads over the best baseline."""
    figure, axes = _figure(2, len(study.worlds), 6.4, sharex="col")
    with style():
        for (top, bottom), world in zip(axes.T, study.worlds, strict=True):
            budgets, regrets = samples(study.welfare, world, "regret")
            spread = np.linspace(-1, 1, len(regrets))
            for shift, (name, table) in zip(spread, regrets.items(), strict=True):
                found = [mean_of(column) for column in table.T]
                _bars(top, budgets * 1.1**shift, found, name, joined=True)
            means = np.array([table.mean(axis=0) for table in regrets.values()])
            top.set(title=_title(world), ylabel="regret, money per request", yscale="log")
            if (means > 0).any():  # intervals may reach below 0, where a logarithm has no end
                top.set_ylim(bottom=0.4 * means[means > 0].min())
            _plain(top.yaxis, "{x:g}")
            _, found = samples(study.welfare, world, "welfare")
            for k, name in enumerate(INSTANTIATIONS):
                _, leads = against_best(found, name)
                _bars(bottom, budgets * 1.04 ** (k - 1), leads, name)
            bottom.axhline(0, color=FAINT, linewidth=1)
            bottom.set(ylabel="lead, money per request", xlabel="tokens of a search")
            _tokens(bottom, budgets)
        _legend(figure, axes[0][0], columns=3)
    return figure


def trade_off(study: Study) -> Figure:
    """Elimination less model-based, a panel for each world."""
    figure, axes = _figure(1, len(study.worlds), 3.4)
    (model,) = (name for name, each in CONTENDERS.items() if each.kind == MODEL)
    with style():
        for ax, world in zip(axes[0], study.worlds, strict=True):
            budgets, found = samples(study.welfare, world, "welfare")
            for name in (key for key, each in CONTENDERS.items() if each.kind == ELIMINATION):
                lead = found[name] - found[model]
                _line(ax, budgets, [mean_of(column) for column in lead.T], name)
                for point in crossings(budgets, lead.mean(axis=0)):
                    ax.axvline(point, color=LOOKS[name][0], linewidth=1, linestyle=":")
            ax.axhline(0, color=FAINT, linewidth=1)
            ax.set(title=_title(world), xlabel="tokens of a search")
            ax.set_ylabel(f"welfare less {model},\nmoney per request")
            _tokens(ax, budgets)
        _legend(figure, axes[0][0])
    return figure


def payments(study: Study) -> Figure:
    """Errors against tokens at n = `FEW` by both yardsticks, and the token ratio against n."""
    figure, axes = _figure(1, 3, 3.6)
    (*lefts, right) = axes[0]
    with style():
        for ax, (error, against) in zip(lefts, YARDSTICKS.items(), strict=True):
            for way, label in WAYS.items():
                found = curve(study.payments, FEW, way, error=error)
                estimates = [mean_of(column) for column in found.errors.T]
                if way == "none":
                    (mean, low, high), (colour, _) = estimates[0], LOOKS[way]
                    ax.axhline(mean, color=colour, linestyle=DASHES, label=label)
                    ax.axhspan(low, high, color=colour, alpha=0.12, linewidth=0)
                else:
                    _line(ax, found.tokens.mean(axis=0), estimates, way, label=label)
            ax.set(title=f"n = {FEW}, against\n{against}", xlabel="extra tokens")
            ax.set_ylim(bottom=0)
            _tokens(ax, curve(study.payments, FEW, "naive").tokens.mean(axis=0).round(-2))
        lefts[0].set_ylabel("mean error of a payment,\nmoney per request")
        numbers = sorted(study.sizes.advertisers)
        for k, error in enumerate(YARDSTICKS):
            found = [ratios(study, n, error)[-1] for n in numbers]
            look = ("#009e73", "o") if error == "error" else ("#332288", "D")
            label = f"right: against {YARDSTICKS[error]}"
            _bars(right, np.array(numbers) + 0.2 * (k - 0.5), found, "", look=look, label=label)
        right.axhline(HALF, color=FAINT, linestyle=DASHES, linewidth=1)
        right.set(title="Tokens of ACO / of running\nagain, at its last error")
        right.set(xlabel="advertisers n", xticks=numbers)
        right.set_ylim(0, max(1.2 * HALF, right.get_ylim()[1]))
        right.annotate("a half", (numbers[-1], HALF), (0, 3), textcoords="offset points")
        _legend(figure, lefts[0], right, columns=3)
    return figure


def incentives(frame: pl.DataFrame) -> Figure:
    """Gains against the bound."""
    import seaborn as sns

    figure, axes = _figure(1, 2, 3.8, width_ratios=(1.4, 1))
    left, right = axes[0]
    error, gain = frame["epsilon"].to_numpy(), frame["gain"].to_numpy()
    most = float(error.max())
    with style():
        sns.scatterplot(x=error, y=gain, ax=left, s=12, alpha=0.5, color="#0072b2", linewidth=0)
        left.plot([0, most], [0, 2 * most], color="#a33b00", label="2 epsilon")
        left.axhline(0, color=FAINT, linewidth=1)
        left.set(xlabel="measured optimisation error epsilon, money per request")
        left.set(ylabel="gain, money per request", title=f"{frame.height:,} random misreports")
        left.set(xlim=(-0.02 * most, 1.02 * most), ylim=(-2.1 * most, 2.1 * most))
        left.legend(loc="lower left")
        used = gain[error > 0] / (2 * error[error > 0])
        right.hist(used.clip(-1.5, 1.5), bins=np.linspace(-1.5, 1.5, 61), color="#0072b2")
        right.axvline(1, color="#a33b00")
        right.set(xlabel="gain / 2 epsilon", ylabel="problems (logarithmic)", yscale="log")
        right.set(title="Use of the bound", xlim=(-1.55, 1.55))
        _plain(right.yaxis)
    return figure


def steering(frame: pl.DataFrame) -> Figure:
    """Exposure by strength, a panel for each way of steering."""
    ways = frame["way"].unique(maintain_order=True).to_list()
    figure, axes = _figure(1, len(ways), 3.4, sharey=True)
    with style():
        for ax, way in zip(axes[0], ways, strict=True):
            part = frame.filter(pl.col("way") == way)
            rivals = part["others"].unique(maintain_order=True).sort().to_list()
            for k, others in enumerate(rivals):
                some = part.filter(pl.col("others") == others)
                levels = np.sort(some["strength"].unique().to_numpy())
                found = [
                    mean_of(some.filter(pl.col("strength") == level)["exposure"].to_numpy())
                    for level in levels
                ]
                _bars(
                    ax, levels + 0.05 * (k - (len(rivals) - 1) / 2), found, "",
                    look=(RIVALS[k], "os^"[k]), label=f"rivals at strength {others}", joined=True,
                )  # fmt: skip
            ax.set(title=way, xlabel="strength", xticks=levels)
        axes[0][0].set_ylabel("share of replies with the ad")
        axes[0][0].set_ylim(bottom=0)
        _legend(figure, axes[0][0])
    return figure


def market(study: Study) -> Figure:
    """Totals and bids by mechanism."""
    totals, bids = by_replication(study.market), bids_by_advertiser(study.market)
    kinds = [("utility", "UM bids", "bid / value"), ("value", "VM bids", "bid × target / value")]
    figure, axes = _figure(1, len(TOTALS) + len(kinds), 2.9, sharey=True)
    units = ("money per request", "money per request", "per reply, 0 to 1")
    with style():
        panels = [
            (each.replace("_", " ").capitalize(), unit, totals, each)
            for each, unit in zip(TOTALS, units, strict=True)
        ]
        for ax, (title, unit, frame, column) in zip(axes[0], panels, strict=False):
            _mechanisms(ax, frame, column)
            ax.set(title=title, xlabel=unit)
        for ax, (kind, title, label) in zip(axes[0][len(TOTALS) :], kinds, strict=True):
            _mechanisms(ax, bids.filter(pl.col("objective") == kind), "bid")
            ax.axvline(1, color=FAINT, linestyle=DASHES, linewidth=1)
            ax.set(title=title, xlabel=label)
        axes[0][0].set_yticks(range(len(MECHANISMS)), MECHANISMS)
        axes[0][0].set_ylim(len(MECHANISMS) - 0.5, -0.5)
    return figure


def _mechanisms(ax: Axes, frame: pl.DataFrame, column: str) -> None:
    for at, name in enumerate(MECHANISMS):
        ours = frame.filter(pl.col("mechanism") == name)[column].to_numpy()
        if len(ours):
            mean, low, high = mean_of(ours)
            reach = np.nan_to_num([[mean - low], [high - mean]], posinf=0.0)
            ax.errorbar(mean, at, xerr=reach, fmt="o", color=COLOURS[name], capsize=2.5)


def _title(world: str) -> str:
    return {"synthetic": "Synthetic truth", "recorded": "Recorded replies of the LLM"}[world]


def _figure(rows: int, columns: int, height: float, **grid: Any) -> tuple[Figure, np.ndarray]:
    """Axes as an array (rows, columns)."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **grid)
    return figure, axes


def _line(
    ax: Axes,
    x: np.ndarray,
    found: Sequence[Estimate],
    name: str,
    *,
    label: str | None = None,
) -> None:
    """A line with its band."""
    colour, marker = LOOKS[name]
    mean, low, high = np.array(found).T
    ax.plot(x, mean, color=colour, marker=marker, markersize=4.5, label=label or name)
    ax.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)


def _bars(
    ax: Axes,
    x: np.ndarray,
    found: Sequence[Estimate],
    name: str,
    *,
    look: tuple[str, str] | None = None,
    label: str | None = None,
    joined: bool = False,
) -> None:
    """Points with error bars; an end that is not known, or infinite, is left out."""
    colour, marker = look or LOOKS[name]
    mean, low, high = np.array(found).T
    told = np.isfinite(mean)
    reach = np.nan_to_num([mean - low, high - mean], nan=0.0, posinf=0.0)[:, told]
    ax.errorbar(
        x[told], mean[told], yerr=reach, fmt=marker, color=colour, capsize=2.5, markersize=5,
        linestyle="-" if joined else "none", linewidth=1.2, label=label or name,
    )  # fmt: skip


def _tokens(ax: Axes, budgets: np.ndarray) -> None:
    ax.set_xscale("log")
    ax.set_xticks(budgets, [f"{each:,.0f}" for each in budgets])
    ax.minorticks_off()


def _plain(axis: Axis, form: str = "{x:,.0f}") -> None:
    """Plain numbers on a logarithmic axis."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    axis.set_major_formatter(StrMethodFormatter(form))
    axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, *some: Axes, columns: int | None = None) -> None:
    handles, labels = zip(*(pair for ax in some for pair in _labelled(ax)), strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns or len(labels))


def _labelled(ax: Axes) -> Iterator[tuple[Artist, str]]:
    return zip(*ax.get_legend_handles_labels(), strict=True)
