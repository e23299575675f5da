"""Figures of `admarket reproduce mosaic`; bands are 95 % intervals over requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from experiments.bootstrap import Estimate
from experiments.plots import DASHES, FAINT, WIDTH, style
from experiments.reproduce.mosaic_measures import against_optimum, average, by_request, ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from experiments.reproduce.mosaic import Study

Statistic = Callable[[pl.DataFrame], Estimate]

LOOKS = {
    "reference": ("#555555", "o", "reference LLM"),
    "guided": ("#0072b2", "s", "guided insertion"),
    "context": ("#d55e00", "^", "context-aware"),
    "mixture": ("#009e73", "D", "mixture"),
    "log-ratio": ("#a6548a", "v", "guided, scored for\nevery advertiser"),
}
FORMS = {"clicks": ("clicks", "#0072b2", "o"), "log-ratio": ("log-ratios", "#a6548a", "v")}
LEAST_SHARE = -2.0
CAPTIONS = {
    "convergence": (
        "(a) Allocation over M candidates against the optimal reply distribution, for which a "
        "larger recording stands (what is said of it is an estimate too). From the left: the "
        "advertisers' value; mean tau log Z, a lower bound on the regularised welfare of replies "
        "so drawn, which grows with M for any candidates; total variation over which ads are "
        "shown (dashed: when nobody bids); mean log-probability of the reply shown under the "
        "optimal distribution, less that of replies drawn from it (the paper's measure; above 0: "
        "replies more typical than the optimum's own). Top: rewards are clicks, and amounts shares "
        "of the optimum's (below -2 not drawn). Bottom: log-ratios, less the optimum's. Subsets "
        "hold their share of each condition of the recording."
    ),
    "offset": (
        "(b) Left: what the platform is paid and advertisers get, per request. Middle, right: "
        "utility of an advertiser against its contribution to welfare (change in everybody's value "
        "when it takes part), each divided by the mean absolute contribution; a dot is an ad of a "
        "request."
    ),
    "temperature": (
        "(c) Against tau: divergence of the allocation from the reference LLM, advertisers' value, "
        "revenue, and user satisfaction."
    ),
    "misreports": (
        "(d) Loss from misreporting, as a share of the mean absolute reward under truth (for "
        "clicks: of value); every advertiser by itself. Scalar: a bid of so many times the truth. "
        "Vector: noise of so many standard deviations of its rewards on what is reported of every "
        "reply."
    ),
    "tokens": (
        "(e) LLM tokens of one auction: prompts, replies written, and replies scored. Both axes "
        "are logarithmic."
    ),
}


def draw(study: Study) -> dict[str, Figure]:
    """All figures, by name."""
    return {
        "convergence": convergence(study.convergence, study.seed),
        "offset": offset(study.offsets),
        "temperature": temperature(study.temperatures),
        "misreports": misreports(study.misreports, study.seed),
        "tokens": tokens(study.tokens),
    }


def convergence(frame: pl.DataFrame, seed: int = 0) -> Figure:
    """Four panels against M, a row for each form of reward."""
    panels: list[tuple[str, Statistic]] = [
        ("Value {} optimum's", lambda f: against_optimum(f, "value", "optimum", seed)),
        ("tau log Z {} optimum's", lambda f: against_optimum(f, "welfare", "most", seed)),
        ("Distance", lambda f: average(f, "distance")),
        ("Log-probability", lambda f: average(f, "likelihood")),
    ]
    figure, axes = _figure(2, 4, 5.4)
    sizes = sorted(frame["M"].unique())
    with style():
        for row, (reward, (name, *_)) in zip(axes, FORMS.items(), strict=True):
            some = frame.filter(pl.col("reward") == reward)
            for ax, (title, statistic) in zip(row, panels, strict=True):
                for way, part in some.group_by("way", maintain_order=True):
                    _line(ax, part, "M", statistic, *LOOKS[str(way[0])])
                ax.set_title(title.format("/" if reward == "clicks" else "−"))
                ax.set_xscale("log", base=2)
                ax.set_xticks(sizes, _thinned(sizes))
                ax.minorticks_off()
            row[0].set_ylabel(f"Rewards: {name}", fontweight="bold")
            levels = (float(reward == "clicks"),) * 2 + (average(some, "unbid").mean, 0.0)
            for ax, level in zip(row, levels, strict=True):
                ax.axhline(level, color=FAINT, dashes=DASHES[1], linewidth=1)
            row[2].set_ylim(bottom=0)
        # Candidates without weight go down to many times the optimum, and would hide the others.
        axes[0][1].set_ylim(bottom=max(axes[0][1].get_ylim()[0], LEAST_SHARE))
        for ax in axes[1]:
            ax.set_xlabel("candidates M")
        _legend(figure, axes[0][0])
    return figure


def offset(frame: pl.DataFrame) -> Figure:
    """Revenue, value and utility with and without; utility against contribution."""
    import seaborn as sns

    clicks = frame.filter(pl.col("reward") == "clicks")
    figure, axes = _figure(1, 3, 3.4, width_ratios=(1.15, 1, 1))
    colours = {True: "#0072b2", False: "#d55e00"}
    names = {True: "with offset", False: "without"}
    with style():
        measured = ("payment", "value", "utility")
        for at, which in enumerate((True, False)):
            sums = by_request(clicks.filter(pl.col("offset") == which), *measured)
            for k, column in enumerate(measured):
                mean, low, high = average(sums, column)
                x = k + 0.36 * (at - 0.5)
                axes[0].bar(
                    x, mean, 0.34, color=colours[which], label=names[which] if not k else None
                )
                axes[0].errorbar(x, mean, [[mean - low], [high - mean]], color="#222222", capsize=2)
        axes[0].axhline(0, color="#555555", linewidth=0.8)
        axes[0].set_xticks(range(3), ["revenue", "advertisers'\nvalue", "advertisers'\nutility"])
        axes[0].set(title="Clicks as rewards", ylabel="money per request")
        axes[0].legend(loc="upper left")
        for ax, reward in zip(axes[1:], ("clicks", "log-ratio"), strict=True):
            part = frame.filter(pl.col("reward") == reward)
            scale = part.filter(pl.col("offset"))["contribution"].abs().mean()
            for which in (True, False):
                some = part.filter(pl.col("offset") == which)
                sns.scatterplot(
                    x=some["contribution"].to_numpy() / scale,
                    y=some["utility"].to_numpy() / scale,
                    ax=ax,
                    s=16,
                    alpha=0.7,
                    color=colours[which],
                    marker="o" if which else "X",
                    linewidth=0,
                    label=names[which],
                    legend=False,
                )
            name = "clicks" if reward == "clicks" else "log-ratios"
            ax.set(title=f"Rewards: {name}", xlabel="contribution to welfare", ylabel="utility")
    return figure


def temperature(frame: pl.DataFrame) -> Figure:
    """Four panels against tau."""
    panels = (
        ("kl", "From the reference", "KL divergence, nats", "#555555"),
        ("value", "Advertisers' value", "money per request", "#0072b2"),
        ("revenue", "Revenue", "money per request", "#d55e00"),
        ("satisfaction", "User satisfaction", "per reply, from 0 to 1", "#009e73"),
    )
    figure, axes = _figure(1, 4, 2.9)
    with style():
        for ax, (column, title, label, colour) in zip(axes, panels, strict=True):
            _line(ax, frame, "tau", lambda f, c=column: average(f, c), colour, "o", title)
            ax.set_xscale("log")
            ax.set(title=title, ylabel=label, xlabel="tau, money per nat")
            ax.set_xticks([0.02, 0.1, 0.5, 2], ["0.02", "0.1", "0.5", "2"])
            ax.minorticks_off()
    return figure


def misreports(frame: pl.DataFrame, seed: int = 0) -> Figure:
    """Loss against the size of the lie, scalar and vector."""
    figure, axes = _figure(1, 2, 3.5)
    kinds = (
        ("scalar", "Scalar misreports", "bid / truth"),
        ("noise", "Vector misreports", "noise / standard deviation of rewards"),
    )
    with style():
        for ax, (kind, title, label) in zip(axes, kinds, strict=True):
            some = frame.filter(pl.col("kind") == kind).with_columns(loss=-pl.col("gain"))
            for reward, (name, colour, marker) in FORMS.items():
                sums = by_request(
                    some.filter(pl.col("reward") == reward), "loss", "stake", by=("size",)
                )
                _line(
                    ax,
                    sums,
                    "size",
                    lambda f: ratio(f, "loss", "stake", seed),
                    colour,
                    marker,
                    f"rewards: {name}",
                )
            ax.axhline(0, color=FAINT, dashes=DASHES[1], linewidth=1)
            ax.set(title=title, xlabel=label, ylabel="loss / mean absolute reward")
        axes[1].set_xscale("log")
        _legend(figure, axes[0])
    return figure


def tokens(frame: pl.DataFrame) -> Figure:
    """Tokens against M and against n."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    figure, axes = _figure(1, 2, 3.3)
    n, M = 4, 20
    with style():
        for ax, x, fixed, value in ((axes[0], "M", "n", n), (axes[1], "n", "M", M)):
            for way, part in frame.filter(pl.col(fixed) == value).group_by(
                "way", maintain_order=True
            ):
                colour, marker, label = LOOKS[str(way[0])]
                ax.plot(part[x], part["tokens"], color=colour, marker=marker, label=label)
            what = "candidate replies M" if x == "M" else "candidate ads n"
            ax.set(xlabel=what, ylabel="tokens per auction", title=f"{fixed} = {value}")
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            ax.set_xscale("log", base=2)
            at = sorted(frame[x].unique())
            ax.set_xticks(at, [str(each) for each in at])
            ax.minorticks_off()
        _legend(figure, axes[0])
    return figure


def _figure(rows: int, columns: int, height: float, **grid) -> tuple[Figure, list]:
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(rows, columns, gridspec_kw=grid or None)
    return figure, list(axes)


def _line(
    ax: Axes,
    frame: pl.DataFrame,
    x: str,
    statistic: Statistic,
    colour: str,
    marker: str,
    label: str,
) -> None:
    """A line of a statistic by `x`, with its band."""
    at = sorted(frame[x].unique())
    found = np.array([statistic(frame.filter(pl.col(x) == each)) for each in at])
    ax.plot(at, found[:, 0], color=colour, marker=marker, markersize=4.5, label=label)
    ax.fill_between(at, found[:, 1], found[:, 2], color=colour, alpha=0.15, linewidth=0)


def _thinned(sizes: list[int]) -> list[str]:
    """Every other label from the last, where there are many."""
    step = 2 if len(sizes) > 6 else 1
    return [str(size) if (len(sizes) - 1 - k) % step == 0 else "" for k, size in enumerate(sizes)]


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
