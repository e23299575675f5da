"""Figures of a run, or of several side by side, from the frames of a `Result`.

Every function takes polars frames with a column `mechanism` and returns a matplotlib `Figure` that
no global state knows of: nothing is shown, nothing has to be closed, no backend is chosen. Figures
are 9 inches wide, made to be read at 900 pixels. Long runs are binned before anything is drawn.

Bands and error bars are 95 % t-intervals of a mean, as in `Result.summary`; figures say over what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from scipy.special import stdtrit

from experiments.colours import colours
from experiments.measures import MEASURES, OBJECTIVES
from experiments.tables import best_means, binned, by_advertiser, last_quarter, trajectory
from mechanisms.pool import Floats

if TYPE_CHECKING:  # drawing takes a second to import and most commands draw nothing
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

WIDTH = 9.0  # inches
INK, FAINT = "#222222", "#8a8a8a"
MARKERS = "osD^vPX<>*p"
DASHES = (0, (5, 3))
TURN = 6.0  # widths of a line that are seen of each of several that coincide
COINCIDING = 0.005  # of the height of a panel, about half the width of a line
PANELS = ("revenue", "welfare", "user_satisfaction")
"""What is drawn of the market as a whole, by the names of `experiments.measures`."""
# By the names under which figures are saved.
CAPTIONS = {
    "bids": (
        "Bids relative to the truthful bid (1), averaged over logarithmically spaced windows of "
        "rounds. Bands: 95 % t-interval of the mean over advertisers. "
        "Dashed: the independent best response where it converged, mean over advertisers. "
        "Where lines coincide, their colours alternate."
    ),
    "market": (
        "Market totals per request, averaged over consecutive windows of rounds. Welfare: "
        f"{MEASURES['welfare'].meaning}. Bands: 95 % t-interval of the mean over replications. "
        "Where lines coincide, their colours alternate."
    ),
    "advertisers": (
        "Expected payment and return on investment of each advertiser over the last quarter of the "
        "rounds. Error bars: 95 % t-interval of the mean over replications. Black ticks: "
        "target ROI of value maximizers."
    ),
}


@contextmanager
def style() -> Iterator[None]:
    """The look all figures share, for the duration of a `with` block."""
    import matplotlib as mpl
    import seaborn as sns

    look = {
        **sns.axes_style("ticks"),
        **sns.plotting_context("notebook", font_scale=0.85),
        "font.family": "DejaVu Sans",
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": "#555555",
        "axes.titlelocation": "left",
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.labelsize": 10,
        "xtick.labelsize": 9.5,
        "ytick.labelsize": 9.5,
        "legend.fontsize": 9.5,
        "legend.title_fontsize": 9.5,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
    }
    with mpl.rc_context(look):
        yield


def save(figure: Figure, path: str | Path, dpi: int = 200) -> Path:
    """Write `figure` as PNG, without a date, so that equal figures give equal bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with style():
        figure.savefig(path, dpi=dpi, metadata={"Software": None})
    return path


def bid_trajectories(
    advertisers: pl.DataFrame, best: pl.DataFrame | None = None, *, bins: int = 60
) -> Figure:
    """Bids over rounds on a logarithmic axis, relative to truthful, a panel per objective.

    Args:
        advertisers: `Result.advertisers`, several mechanisms stacked.
        best: `BestResponse.labelled` frames stacked; drawn as a dashed line at the mean over the
            advertisers that could be shown at all.
        bins: windows of rounds, at most.
    """
    labels = _labels(advertisers)
    kinds = [kind for kind in OBJECTIVES if kind in advertisers["objective"].unique()]
    with style():
        figure, axes = _figure(4.5, ncols=len(kinds))
        for ax, kind in zip(axes, kinds, strict=True):
            final, lines = {}, []
            for label in labels:
                centres, table, last = trajectory(advertisers, label, kind, bins)
                if table is None:
                    continue
                final[label] = last
                lines.append(_line(ax, centres, table, label, labels))
            best_lines = _best_lines(ax, best, kind, labels)
            ax.axhline(1, color=FAINT, linewidth=1, zorder=1)
            ax.annotate(
                "truthful", (1, 1), xycoords=("axes fraction", "data"), color=FAINT, fontsize=9,
                xytext=(-2, 3), textcoords="offset points", ha="right",
            ).set_in_layout(False)  # fmt: skip
            ax.set_xscale("log")
            _plain_log(ax.xaxis)
            ax.set_ylim(0, max(1.15, 1.08 * ax.dataLim.y1))
            _alternate(ax, lines, TURN)
            _alternate(ax, best_lines, *DASHES[1])
            ax.set(xlabel="round (logarithmic)", ylabel=MEASURES[f"bid_{kind}"].unit)
            _title(ax, OBJECTIVES[kind], "last quarter: " + _extremes(final))
        extra = [] if best is None else [_dashed()]
        _legend(figure, labels, band="advertisers", extra=extra)
    return figure


def market_over_rounds(rounds: pl.DataFrame, *, window: int | None = None) -> Figure:
    """Revenue, welfare and user satisfaction over rounds, a panel each.

    Args:
        rounds: `Result.rounds`, several mechanisms stacked.
        window: rounds averaged into one point; default a fiftieth of the longest run.
    """
    labels = _labels(rounds)
    total = int(rounds["round"].max()) + 1
    window = max(1, total // 50) if window is None else window
    with style():
        figure, axes = _figure(4.1, ncols=len(PANELS))
        final: dict[str, dict[str, float]] = {name: {} for name in PANELS}
        lines: dict[str, list[Line2D]] = {name: [] for name in PANELS}
        for label in labels:
            ours = rounds.filter(pl.col("mechanism") == label)
            last = int(ours["round"].max()) + 1
            edges = np.arange(0, last, window)
            late = last_quarter(ours).select(*PANELS).mean().row(0, named=True)
            means = binned(ours, edges, ["replication"], [pl.col(name) for name in PANELS])
            centres = np.minimum(edges + window / 2, (edges + last) / 2)
            for ax, name in zip(axes, PANELS, strict=True):
                table = means[name].to_numpy().reshape(-1, len(edges))
                final[name][label] = late[name]
                lines[name].append(_line(ax, centres, table, label, labels))
        for ax, name in zip(axes, PANELS, strict=True):
            _alternate(ax, lines[name], TURN)
            ax.set(xlabel="round", ylabel=MEASURES[name].unit, xlim=(0, total))
            ax.xaxis.get_major_locator().set_params(nbins=4, integer=True)
            ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}")
            _title(ax, MEASURES[name].label, _extremes(final[name]))
        points = f"mean of {window} rounds" if window > 1 else "one round"
        note = f"Each point: {points}. Numbers under titles: mean of the last quarter of rounds."
        _legend(figure, labels, band="replications", note=note)
    return figure


def payments_and_roi(advertisers: pl.DataFrame) -> Figure:
    """Expected payment and ROI by advertiser over the last quarter, mechanisms side by side."""
    table = by_advertiser(advertisers)
    labels = _labels(table)
    people = table.unique("advertiser", maintain_order=True).sort("objective", "advertiser")
    place = {i: k for k, i in enumerate(people["advertiser"])}
    with style():
        figure, axes = _figure(1.6 + (0.34 + 0.06 * len(labels)) * len(place), ncols=2, sharey=True)
        spread = 0.64 * (np.arange(len(labels)) - (len(labels) - 1) / 2) / max(len(labels), 2)
        for k, label in enumerate(labels):
            ours = table.filter(pl.col("mechanism") == label)
            at = np.array([place[i] for i in ours["advertiser"]]) + spread[k]
            for ax, name in zip(axes, ("payment_per_1000", "roi"), strict=True):
                mean, low, high = (
                    ours[f"{name}{end}"].cast(pl.Float64).to_numpy()
                    for end in ("", "_low", "_high")
                )
                ax.errorbar(
                    mean, at, xerr=np.nan_to_num([mean - low, high - mean]).clip(0), fmt=" ",
                    color=colours(labels)[label], elinewidth=1.6, marker=MARKERS[k % len(MARKERS)],
                    markersize=5.5, label=label,
                )  # fmt: skip
        targets = people.filter(pl.col("objective") == "value")
        rows = [place[i] for i in targets["advertiser"]]
        ticks = axes[1].vlines(
            targets["target_roi"], np.array(rows) - 0.4, np.array(rows) + 0.4, color="black",
            linewidth=2, label="target ROI", zorder=1,
        )  # fmt: skip
        axes[0].set(xlabel="money per 1,000 requests competed in")
        axes[0].set_xlim(left=min(0.0, axes[0].get_xlim()[0]))
        axes[0].set_title("Expected payment")
        axes[1].set(xlabel="value per unit of money paid (logarithmic)", xscale="log")
        axes[1].set_title("Return on investment")
        _plain_log(axes[1].xaxis)
        axes[1].tick_params(axis="y", length=0)
        names = [f"{_short(p['title'])} ({p['objective'][0].upper()}M)" for p in people.to_dicts()]
        axes[0].set_yticks(list(place.values()), names)
        axes[0].set_ylim(len(place) - 0.4, -0.6)
        extra = [ticks] if len(rows) else []
        note = "Means over the last quarter of rounds."
        _legend(figure, labels, band="replications", note=note, extra=extra, markers=True)
    return figure


def ends(found: Mapping[str, float], show: Callable[[float], str]) -> list[tuple[str, list[str]]]:
    """The least and the greatest as they read, and whose they are; one where all read the same."""
    order = sorted(found, key=lambda label: found[label])
    return [
        (end, [label for label in order if show(found[label]) == end])
        for end in dict.fromkeys((show(found[order[0]]), show(found[order[-1]])))
    ]


def _labels(frame: pl.DataFrame) -> list[str]:
    return frame["mechanism"].unique(maintain_order=True).to_list()


def _figure(height: float, *, ncols: int, **grid: Any) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
    return figure, list(figure.subplots(1, ncols, squeeze=False, **grid)[0])


def _line(ax: Axes, x: Floats, table: Floats, label: str, labels: Sequence[str]) -> Line2D:
    """The mean of `table` (clusters, points) with its band."""
    colour = colours(labels)[label]
    mark = "o" if len(x) == 1 else None
    mean = table.mean(axis=0)
    (line,) = ax.plot(x, mean, color=colour, marker=mark, label=label)
    if len(table) > 1:
        C = len(table)
        reach = stdtrit(C - 1, 0.975) * table.std(axis=0, ddof=1) / np.sqrt(C)
        low, high = mean - reach, mean + reach
        alpha = 0.2 if len(labels) < 4 else 0.12
        ax.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)
    return line


def _best_lines(
    ax: Axes, best: pl.DataFrame | None, kind: str, labels: Sequence[str]
) -> list[Line2D]:
    if best is None:
        return []
    if "converged" in best.columns:
        best = best.filter("converged")
    means = {label: best_means(best, label, kind) for label in labels}
    return [
        ax.axhline(mean, color=colours(labels)[label], linewidth=1.4, linestyle=DASHES)
        for label, mean in means.items()
        if mean is not None
    ]


def _alternate(ax: Axes, lines: Sequence[Line2D], on: float, off: float = 0.0) -> None:
    """Have lines that coincide (on average) take turns: each `on` widths long, then a gap."""
    near = COINCIDING * np.ptp(ax.get_ylim())
    groups: list[list[Line2D]] = []
    for line in lines:
        x, y = line.get_data()
        for group in groups:
            at, mean = group[0].get_data()
            if np.array_equal(x, at) and np.abs(np.subtract(y, mean)).mean() <= near:
                group.append(line)
                break
        else:
            groups.append([line])
    for group in (each for each in groups if len(each) > 1):
        period = len(group) * (on + off)
        for k, line in enumerate(group):
            line.set_linestyle((period - k * (on + off), (on, period - on)))


def _dashed() -> Any:
    from matplotlib.lines import Line2D

    words = "best response, mean (where converged)"
    return Line2D([], [], color=FAINT, linestyle=DASHES, label=words)


def _extremes(final: dict[str, float]) -> str:
    """The finding in a few words: the lowest and the highest mean, and whose they are."""
    told = ends(final, _figures)
    if len(told) == 1 and len(final) > 1:
        return f"{told[0][0]}\nunder {'both' if len(final) == 2 else 'all'}"
    return "\nto ".join(f"{text} {_whose(who)}" for text, who in told)


def _whose(labels: Sequence[str], length: int = 24) -> str:
    """All of them where they fit under a title, else the first."""
    words = ", ".join(labels)
    return _short(words if len(words) <= length else labels[0], length)


def _figures(x: float) -> str:
    """Three figures, also where they are zeros."""
    return f"{x:#.3g}".rstrip(".") if 1e-3 <= abs(x) < 1e3 else f"{x:,.0f}"


def _title(ax: Axes, title: str, finding: str) -> None:
    ax.set_title(title, pad=7 + 13 * (1 + finding.count("\n")))
    words = ax.annotate(
        finding, (0, 1), xycoords="axes fraction", xytext=(0, 6), textcoords="offset points",
        fontsize=9.5, color="#555555", va="bottom",
    )  # fmt: skip
    words.set_in_layout(False)  # the title's padding makes room; long words must not move panels


def _plain_log(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis, and few of them where it spans less than two decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axis.get_view_interval()
    steps = (1, 1.5, 2, 3, 5, 7) if high / low < 20 else (1, 2, 5) if high / low < 500 else (1,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.3g}" if x < 1000 else f"{x:,.0f}"))
    axis.set_minor_formatter(NullFormatter())
    if len(steps) > 3:
        axis.set_minor_locator(NullLocator())


def _short(title: str, length: int = 26) -> str:
    """A title for an axis: short, and with nothing that matplotlib would read as mathematics."""
    title = " ".join(title.split()).replace("$", r"\$")
    return title if len(title) <= length else title[: length - 1] + "…"


def _legend(
    figure: Figure,
    labels: Sequence[str],
    *,
    band: str,
    note: str = "",
    markers: bool = False,
    extra: Sequence[Any] = (),
) -> None:
    """Mechanisms above the panels; what bands and dashes are below, under a note."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    look = {"linestyle": "none", "markersize": 6} if markers else {"linewidth": 2.4}
    who = [
        Line2D([], [], color=colour, label=label, marker=marker if markers else "", **look)
        for (label, colour), marker in zip(colours(labels).items(), cycle(MARKERS), strict=False)
    ]
    words = f"95 % t-interval of the mean over {band}"
    line = Line2D([], [], color=FAINT, linewidth=1.6, label=words)
    how = [line if markers else Patch(color=FAINT, alpha=0.35, label=words), *extra]
    length = sum(len(str(handle.get_label())) + 6 for handle in how)
    columns = len(how) if length < 115 else 1
    figure.legend(handles=who, loc="outside upper center", ncols=_columns(labels))
    figure.legend(
        handles=how, title=note, loc="outside lower center", ncols=columns, columnspacing=1.6
    )


def _columns(labels: Sequence[str]) -> int:
    """Of a legend that is no wider than the figure, its rows as even as can be."""
    fit = max(1, min(5, 125 // (6 + max(len(label) for label in labels))))
    rows = -(-len(labels) // fit)
    return -(-len(labels) // rows)
