"""Figures of `admarket reproduce iamfm`; bands and bars are 95 % intervals over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from experiments.bootstrap import Estimate, mean_of
from experiments.colours import COLOURS
from experiments.iamfm.curves import crossings
from experiments.iamfm.searches import CONTENDERS, ELIMINATION, INSTANTIATIONS, MODEL
from experiments.iamfm.shading import EXACT
from experiments.plots import DASHES, FAINT, WIDTH, style
from experiments.reproduce.iamfm import SYNTHETIC, Study
from experiments.reproduce.iamfm_conclusions import (
    against_best,
    samples,
)
from experiments.reproduce.iamfm_incentives import small_gains
from experiments.reproduce.iamfm_market_figures import CAPTIONS as OF_MARKETS
from experiments.reproduce.iamfm_market_figures import bids, market
from experiments.reproduce.iamfm_payments import (
    HALF,
    WAYS,
    YARDSTICKS,
    curve,
    problems,
    savings,
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
    "halving, full only": ("#88ccaa", "P"),
    "aco": ("#009e73", "o"),
    "naive": ("#d55e00", "s"),
    "naive-common": ("#e69f00", "D"),
    "none": ("#555555", ""),
}
RIVALS = ("#0072b2", "#d55e00", "#009e73")
MOST_RATIO = 1.25
"""Of tokens: what is drawn. Above 1 it hardly goes on: ACO is not given more."""
SHADING = (-0.75, 0.75)
"""Gains that are drawn, over the utility of the truthful."""
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
        "(c) Mean error of a payment, in money per request, against tokens spent beyond those of "
        "the allocation: compared with exact VCG, which what the allocation missed sets off from "
        "any payment, and with the externality of the configuration that is played, its range "
        "where it does or does not include what was missed. Bottom right: tokens that ACO needs "
        "for the error of running n searches again, each with as many tokens as the allocation had "
        "and by the better of the two ways, as a share of theirs. Hollow: running again is not "
        "clearly better than no extra tokens, and there is nothing to save. Arrow: the interval "
        "goes on. Dashed: a half. Percentile bootstrap over problems."
    ),
    "incentives": (
        "(d) Left: gain from a misreport against the measured optimisation error of the two runs, "
        "both as shares of the largest value at stake in the problem; a dot is a random problem, "
        "the line the bound 2 epsilon. Right: gains as a share of the "
        "bound (below -1.5: at -1.5); problems without error left out."
    ),
    "shading": (
        "(d) Mean gain from bidding a little off the value, the others being truthful, as a share "
        "of the mean utility of the truthful, against bid over value; larger losses are not drawn. "
        "Under exact VCG no gain is above 0. Bars of a method hold together (Bonferroni)."
    ),
    "steering": (
        "(g) Share of replies that show an ad of the request, against its strength, its rivals all "
        "at one strength; bars are over requests."
    ),
} | OF_MARKETS


def draw(study: Study) -> dict[str, Figure]:
    """All figures, by name."""
    return {
        "welfare": welfare(study),
        "trade_off": trade_off(study),
        "payments": payments(study),
        "incentives": incentives(study.misreports),
        "shading": shading(study.small_misreports),
        "steering": steering(study.exposure),
        "market": market(study),
        "bids": bids(study),
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
    """Errors against tokens at one n of each world, and the token ratio against n."""
    first, *others = problems(study)
    cases = [(*first, error) for error in YARDSTICKS]
    cases += [(*each, "range_error") for each in others]
    rows = len(cases) // 2 + 1
    figure, axes = _figure(rows, 2, 3.3 * rows)
    *panels, right = axes.ravel()
    with style():
        for ax in panels[len(cases) :]:
            ax.set_axis_off()
        for ax, (world, n, error) in zip(panels, cases, strict=False):
            _payment_errors(ax, study, world, n, error)
        _token_ratios(right, study)
        _legend(figure, panels[0], right, columns=4)
    return figure


def _payment_errors(ax: Axes, study: Study, world: str, n: int, error: str) -> None:
    """Error of each way against extra tokens; points at a budget are shifted sideways."""
    for k, (way, label) in enumerate(WAYS.items()):
        found = curve(study, world, n, way, error=error)
        estimates = [mean_of(column) for column in found.errors.T]
        if way == "none":
            (mean, low, high), (colour, _) = estimates[0], LOOKS[way]
            ax.axhline(mean, color=colour, linestyle=DASHES, label=label)
            ax.axhspan(low, high, color=colour, alpha=0.1, linewidth=0)
        else:
            at = found.tokens.mean(axis=0) * 1.06 ** (k - 1)
            _bars(ax, at, estimates, way, label=label, joined=True)
    tokens = curve(study, world, n, "aco").tokens.mean(axis=0)
    ax.set(xscale="log", xlabel="extra tokens", ylabel="mean error of a payment")
    ax.set_xticks(tokens, [f"{each / 1e3:.0f}k" for each in tokens])
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    ax.set_title(f"{_title(world)}, n = {n},\nagainst {YARDSTICKS[error]}")


def _token_ratios(ax: Axes, study: Study) -> None:
    """Tokens of ACO at the last error of running again, against n."""
    numbers = sorted(study.sizes.advertisers)
    looks = zip(YARDSTICKS, ((-0.12, "#0072b2", "o"), (0.12, "#332288", "D")), strict=True)
    for error, (shift, colour, marker) in looks:
        found = [savings(study, SYNTHETIC, n, error)[-1] for n in numbers]
        ax.plot([], [], marker, color=colour, label=f"against {YARDSTICKS[error]}")
        for n, each in zip(numbers, found, strict=True):
            mean, low, high = np.minimum(each.ratio, MOST_RATIO)
            fill = colour if each.tells else "white"
            ax.plot([n + shift] * 2, [low, high], color=colour, linewidth=1.2)
            ax.plot(n + shift, mean, marker, color=colour, markerfacecolor=fill, markersize=5)
            if each.ratio.high > MOST_RATIO:
                ax.plot(n + shift, MOST_RATIO, "^", color=colour, markersize=4, clip_on=False)
    ax.axhline(HALF, color=FAINT, linestyle=DASHES, linewidth=1)
    ax.set(xlabel="advertisers n", xticks=numbers, ylabel="ACO's tokens / theirs")
    ax.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
    ax.set_ylim(0, MOST_RATIO)
    ax.set_title("Tokens that ACO needs for the\nerror of n searches run again")


def incentives(frame: pl.DataFrame) -> Figure:
    """Gains against the bound."""
    figure, axes = _figure(1, 2, 3.8, width_ratios=(1.4, 1))
    left, right = axes[0]
    error, gain = ((frame[name] / frame["scale"]).to_numpy() for name in ("epsilon", "gain"))
    most = float(error.max())
    with style():
        groups = frame.group_by("world", "kind").len().sort("len", descending=True)
        for k, (world, kind, count) in enumerate(groups.rows()):
            ours = ((frame["world"] == world) & (frame["kind"] == kind)).to_numpy()
            left.scatter(
                error[ours], gain[ours], s=12, alpha=0.5, color=RIVALS[k % len(RIVALS)],
                linewidth=0, label=f"{kind}, {world}: {count:,}",
            )  # fmt: skip
        left.plot([0, most], [0, 2 * most], color="#555555", label="2 epsilon")
        left.axhline(0, color=FAINT, linewidth=1)
        left.set(xlabel="measured optimisation error epsilon / value at stake")
        left.set(ylabel="gain / value at stake", title=f"{frame.height:,} random misreports")
        reach = 1.1 * max(float(np.abs(gain).max()), 1e-9)
        left.set(xlim=(-0.02 * most, 1.02 * most), ylim=(-reach, reach))
        used = gain[error > 0] / (2 * error[error > 0])
        right.hist(used.clip(-1.5, 1.5), bins=np.linspace(-1.5, 1.5, 61), color="#0072b2")
        right.axvline(1, color="#a33b00")
        right.set(xlabel="gain / 2 epsilon", ylabel="problems (logarithmic)", yscale="log")
        right.set(title="Use of the bound", xlim=(-1.55, 1.55))
        _plain(right.yaxis)
        _legend(figure, left)
    return figure


def shading(frame: pl.DataFrame) -> Figure:
    """Mean gains of small misreports, a panel for each world."""
    worlds = frame["world"].unique().sort(descending=True).to_list()
    figure, axes = _figure(1, len(worlds), 3.4, sharey=True)
    factors = frame["factor"].unique().sort().to_numpy()
    methods = frame["method"].unique(maintain_order=True).to_list()
    with style():
        for ax, world in zip(axes[0], worlds, strict=True):
            for k, method in enumerate(methods):
                ours = frame.filter((pl.col("world") == world) & (pl.col("method") == method))
                if not ours.height:
                    continue
                some, gains, _ = small_gains(ours)
                at = np.searchsorted(factors, some) + 0.2 * (k - (len(methods) - 1) / 2)
                look = ("#555555", "_") if method == EXACT else LOOKS[method]
                _bars(ax, at, gains, method, look=look)
            ax.axhline(0, color=FAINT, linewidth=1)
            ax.set(title=_title(world), xlabel="bid / value")
            ax.set_xticks(range(len(factors)), [f"{factor:g}" for factor in factors])
        axes[0][0].set(ylabel="mean gain / utility of the truthful", ylim=SHADING)
        _legend(figure, axes[0][0])
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
