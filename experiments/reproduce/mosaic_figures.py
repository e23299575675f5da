"""Figures of `admarket reproduce mosaic`; bands are 95 % bootstrap intervals over requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from experiments.bootstrap import interval
from experiments.plots import DASHES, FAINT, WIDTH, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUMS = pl.col("payment", "value", "utility").sum()
Statistic = Callable[[pl.DataFrame], tuple[float, float, float]]

LOOKS = {
    "reference": ("#555555", "o", "reference LLM"),
    "guided": ("#0072b2", "s", "guided insertion"),
    "context": ("#d55e00", "^", "context-aware"),
    "mixture": ("#009e73", "D", "mixture"),
    "log-ratio": ("#a6548a", "v", "guided, scored for\nevery advertiser"),
}
WELFARE = {"clicks": "share of the optimum's", "log-ratio": "less the optimum's, money"}
CAPTIONS = {
    "convergence": (
        "(a) Allocation over M candidates against the optimal reply distribution, for which a "
        "larger recording stands. Left: regularised welfare; "
        "middle: total variation over which ads are shown; right: mean log-probability of the "
        "reply shown under the optimal distribution, less that of replies drawn from it (the "
        "paper's measure; above 0: replies more typical than the optimum's own)."
    ),
    "offset": (
        "(b) Left: what the platform is paid and advertisers get, per request. Middle, right: "
        "utility of an advertiser against its contribution to welfare (change in everybody's value "
        "when it takes part), each divided by the mean contribution; a dot is an ad of a request."
    ),
    "temperature": "(c) User satisfaction, advertisers' value and revenue against tau.",
    "misreports": (
        "(d) Loss from misreporting, as a share of the advertisers' value under truth; every "
        "advertiser by itself. Scalar: a bid of so many times the value. Vector: noise of so many "
        "standard deviations of its rewards on what is reported of every reply."
    ),
    "tokens": "(e) LLM tokens of one auction: prompts, replies written, and replies scored.",
}


def ratio_of_sums(
    frame: pl.DataFrame, over: str, under: str | None, seed: int = 0
) -> tuple[float, float, float]:
    """Σ over / Σ under (or the mean of `over`) with its interval, rows being requests."""
    top = frame[over].to_numpy()
    if under is None:
        return interval(top, np.random.default_rng(seed))
    bottom = frame[under].to_numpy()
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(top), np.full(len(top), 1 / len(top)), size=4000)
    low, high = np.quantile((counts @ top) / (counts @ bottom), [0.025, 0.975])
    return float(top.sum() / bottom.sum()), float(low), float(high)


def welfare(frame: pl.DataFrame) -> tuple[float, float, float]:
    """Regularised welfare: a share of the optimum's for clicks; less the optimum's for log-ratios.

    The optimum's is positive for rewards that are, and else may be 0, of which there are no shares.
    """
    if frame["reward"][0] == "clicks":
        return ratio_of_sums(frame, "welfare", "most")
    return ratio_of_sums(frame.with_columns(gap=pl.col("welfare") - pl.col("most")), "gap", None)


def convergence(frame: pl.DataFrame) -> Figure:
    """Three panels against M, a row for each form of reward."""
    panels: list[tuple[str, str, Statistic]] = [
        ("Welfare", "", lambda f: welfare(f)),
        ("Distance", "total variation, ads shown", lambda f: ratio_of_sums(f, "distance", None)),
        ("Log-probability", "nats above optimum's", lambda f: ratio_of_sums(f, "likelihood", None)),
    ]
    figure, axes = _figure(2, 3, 5.6)
    sizes = sorted(frame["M"].unique())
    with style():
        for row, reward in zip(axes, ("clicks", "log-ratio"), strict=True):
            some = frame.filter(pl.col("reward") == reward)
            for ax, (title, label, statistic) in zip(row, panels, strict=True):
                for way, part in some.group_by("way", maintain_order=True):
                    _line(ax, part, "M", statistic, *LOOKS[str(way[0])])
                name = "clicks" if reward == "clicks" else "log-ratios"
                ax.set(title=f"{title}, {name}", ylabel=label or WELFARE[reward])
                ax.set_xscale("log", base=2)
                ax.set_xticks(sizes, [str(size) for size in sizes])
                ax.minorticks_off()
            row[0].axhline(float(reward == "clicks"), color=FAINT, dashes=DASHES[1], linewidth=1)
            row[1].set_ylim(bottom=0)
            row[2].axhline(0, color=FAINT, dashes=DASHES[1], linewidth=1)
        for ax in axes[1]:
            ax.set_xlabel("candidate replies M")
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
            sums = (
                clicks.filter(pl.col("offset") == which)
                .group_by("request", maintain_order=True)
                .agg(SUMS)
            )
            for k, column in enumerate(measured):
                mean, low, high = ratio_of_sums(sums, column, None)
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
    """Three panels against tau."""
    panels = (
        ("satisfaction", "User satisfaction", "per reply, from 0 to 1", "#009e73"),
        ("value", "Advertisers' value", "money per request", "#0072b2"),
        ("revenue", "Revenue", "money per request", "#d55e00"),
    )
    figure, axes = _figure(1, 3, 3.1)
    with style():
        for ax, (column, title, label, colour) in zip(axes, panels, strict=True):
            _line(
                ax, frame, "tau", lambda f, c=column: ratio_of_sums(f, c, None), colour, "o", title
            )
            ax.set_xscale("log")
            ax.set(title=title, ylabel=label, xlabel="tau, money per nat")
            ax.set_xticks([0.02, 0.1, 0.5, 2], ["0.02", "0.1", "0.5", "2"])
            ax.minorticks_off()
    return figure


def misreports(frame: pl.DataFrame) -> Figure:
    """Loss against the size of the lie, scalar and vector."""
    figure, axes = _figure(1, 2, 3.3)
    with style():
        kinds = (("scalar", "Scalar: bid / value"), ("noise", "Vector: noise / sd of rewards"))
        for ax, (kind, label) in zip(axes, kinds, strict=True):
            some = frame.filter(pl.col("kind") == kind)
            by = some.group_by("size", "request", maintain_order=True).agg(
                -pl.col("gain").sum(), pl.col("value").sum()
            )
            _line(ax, by, "size", lambda f: ratio_of_sums(f, "gain", "value"), "#0072b2", "o", kind)
            ax.axhline(0, color=FAINT, dashes=DASHES[1], linewidth=1)
            ax.set(title=label.split(":")[0], xlabel=label.split(": ")[1], ylabel="loss / value")
        axes[1].set_xscale("log")
    return figure


def tokens(frame: pl.DataFrame) -> Figure:
    """Tokens against M and against n."""
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


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
