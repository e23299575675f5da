"""Figures of a comparison: heat maps, lines over the share, and differences to the baseline.

All take a table of `Comparison`, one learner's rows of it. Colours run from light to dark, so that
grey print keeps their order, and every cell has its number; cells are hatched in which learning did
not converge with every population. Lines differ by dash and marker as well as by colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import polars as pl

from experiments.colours import COLOURS, colours
from experiments.equilibrium.diagnosis import EXPLOITABILITY
from experiments.plots import DASHES, FAINT, MARKERS, WIDTH, style
from mechanisms.pool import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Panels: TypeAlias = Mapping[str, tuple[str, str, float]]
PANELS: Panels = {
    "revenue": ("Revenue", "money per request", 1.0),
    "welfare": ("Welfare", "money per request", 1.0),
    "user_satisfaction": ("User satisfaction", "per reply, from 0 to 1", 1.0),
    "price_of_anarchy": ("Price of anarchy", "first best / welfare", 1.0),
    "exploitability": ("Exploitability", "% of value attained", 100.0),
}
"""Title, unit, and what a measure is multiplied by."""
DIFFERENCES: Panels = {
    "revenue": PANELS["revenue"],
    "advertisers_value": ("Advertisers' value", "money per request", 1.0),
    "user_satisfaction": PANELS["user_satisfaction"],
    "welfare": PANELS["welfare"],
    "liquid_welfare": ("Liquid welfare", "money per request", 1.0),
}
SHARE = "share of value maximizers"
SMALLEST = 1e-3  # % of value; smaller exploitabilities are all the same colour
HATCH = "#00000038"  # seen on light and dark, and read through
LINES = ("-", (0, (5, 2)), (0, (1, 1.2)), "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)))


def heat_maps(table: pl.DataFrame) -> Figure:
    """Mechanism by share of value maximizers, a panel for each measure; one learner's rows."""
    with style():
        figure, axes = _panels(1.9 + 1.0 * table["mechanism"].n_unique())
        for k, (ax, name) in enumerate(zip(axes, PANELS, strict=False)):
            _heat_map(ax, table, name, labelled=k % 3 == 0)
        _heat_legend(axes[-1], table)
    return figure


def lines(table: pl.DataFrame) -> Figure:
    """The same over the share, a line for each mechanism with its band."""
    return _lines(table, PANELS)


def differences(table: pl.DataFrame, baseline: str) -> Figure:
    """`Comparison.differences` over the share: what a mechanism changes, population by population.

    Bands are narrower than those of `lines`, since populations differ more than mechanisms do.
    """
    figure = _lines(table, DIFFERENCES, baseline)
    for ax in figure.axes[: len(DIFFERENCES)]:
        ax.axhline(0, color=colours([baseline])[baseline], linewidth=1.2, zorder=1)
    return figure


def _lines(table: pl.DataFrame, panels: Panels, baseline: str | None = None) -> Figure:
    labels = table["mechanism"].unique(maintain_order=True).to_list()
    looks = _looks(labels)
    with style():
        figure, axes = _panels(6.4)
        for ax, (name, (what, unit, scale)) in zip(axes, panels.items(), strict=False):
            for label in labels:
                ours = table.filter(pl.col("mechanism") == label).sort("share")
                _line(ax, ours, name, scale, looks[label])
            ax.set_title(what)
            ax.set(xlabel=SHARE, ylabel=unit)
            ax.set_xticks(sorted(table["share"].unique()))
            ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            if name == "exploitability":
                _logarithmic(ax)
        for ax in axes[len(panels) :]:
            ax.axis("off")
        _line_legend(axes[len(panels)], looks, int(table["draws"].max()), baseline)
    return figure


def _panels(height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.08)
    return figure, list(figure.subplots(2, 3).ravel())


def _heat_map(ax: Axes, table: pl.DataFrame, name: str, *, labelled: bool) -> None:
    import seaborn as sns
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    title, unit, scale = PANELS[name]
    mechanisms = table["mechanism"].unique(maintain_order=True).to_list()
    shares = sorted(table["share"].unique())
    mean, low = (scale * _grid(table, column) for column in (name, f"{name}_low"))
    logarithmic = name == "exploitability"
    shown = np.where(np.isfinite(mean), mean, np.nan)
    norm = None
    if logarithmic:
        shown = np.maximum(shown, SMALLEST)
        norm = LogNorm(SMALLEST, np.nanmax(shown, initial=10 * SMALLEST), clip=True)
    sns.heatmap(
        shown,
        ax=ax, norm=norm, cmap=_colours(), cbar=False, linewidths=1.2, linecolor="white",
        annot=_annotations(mean, mean - low), fmt="", annot_kws={"fontsize": 7.2},
        xticklabels=[f"{share:g}" for share in shares],
        yticklabels=mechanisms if labelled else False,
    )  # fmt: skip
    for row, column in np.argwhere(np.isinf(mean)):  # left blank by seaborn
        ax.text(column + 0.5, row + 0.5, "∞", ha="center", va="center", fontsize=9)
    open_ = _grid(table, "converged") < _grid(table, "draws")
    for row, column in np.argwhere(open_):
        corner = (column + 0.01, row + 0.01)
        ax.add_patch(Rectangle(corner, 0.98, 0.98, fill=False, hatch="///", edgecolor=HATCH, lw=0))
    ax.set_title(title, pad=18)
    ax.annotate(
        unit, (0, 1), xycoords="axes fraction", xytext=(0, 4), textcoords="offset points",
        fontsize=9, color="#555555",
    ).set_in_layout(False)  # fmt: skip
    ax.set(xlabel=SHARE, ylabel="")
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)
    ax.grid(False)


def _grid(table: pl.DataFrame, column: str) -> Floats:
    """(mechanisms, shares) of one measure; mechanisms in their order, shares ascending."""
    wide = table.sort("share", maintain_order=True).pivot(
        "share", index="mechanism", values=column, sort_columns=False
    )
    order = table["mechanism"].unique(maintain_order=True).to_list()
    rows = {row[0]: row[1:] for row in wide.iter_rows()}
    return np.array([rows[label] for label in order], dtype=np.float64)


def _annotations(mean: Floats, reach: Floats) -> Any:
    """Means with half-widths below; without where there is a single population."""

    def words(m: float, r: float) -> str:
        digits = 3 - min(3, len(f"{abs(m):.0f}")) if abs(m) >= 1 else 3
        plus = f"\n±{r:.{digits}f}".replace("±0.", "±.") if np.isfinite(r) else ""
        return f"{m:.{digits}f}{plus}"

    return np.vectorize(words)(mean, reach)


def _colours() -> Any:
    """Light to dark, without the darkest end, on which hatches would be lost."""
    import matplotlib as mpl
    from matplotlib.colors import ListedColormap

    return ListedColormap(mpl.colormaps["YlGnBu"](np.linspace(0.02, 0.85, 256)))


def _heat_legend(ax: Axes, table: pl.DataFrame) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ax.axis("off")
    words = f"±: half of the 95 % t-interval of\nthe mean over {table['draws'].max()} populations"
    missed = "learning did not converge\nwith every population"
    handles = [
        Patch(facecolor=_colours()(0.0), label="least of the panel"),
        Patch(facecolor=_colours()(1.0), label="greatest of the panel"),
        Patch(facecolor="white", edgecolor="#555555", hatch="///", linewidth=0.5, label=missed),
        Line2D([], [], linestyle="none", label=words),
    ]
    ax.legend(handles=handles, loc="upper left", borderaxespad=0)


def _looks(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, dash and marker of each mechanism; a known one always has the same."""
    names = [*COLOURS, *(label for label in labels if label not in COLOURS)]
    dashes, markers = cycle(LINES), cycle(MARKERS)
    looks = {
        name: {"linestyle": dash, "marker": marker}
        for name, dash, marker in zip(names, dashes, markers, strict=False)
    }
    return {label: {"color": colours(labels)[label], **looks[label]} for label in labels}


def _line(ax: Axes, rows: pl.DataFrame, name: str, scale: float, look: dict[str, Any]) -> None:
    x = rows["share"].to_numpy()
    mean, low, high = (
        scale * rows[f"{name}{end}"].cast(pl.Float64).to_numpy() for end in ("", "_low", "_high")
    )
    if name == "exploitability":
        mean, low, high = (np.maximum(y, SMALLEST) for y in (mean, low, high))
    ax.plot(x, mean, markersize=4.5, linewidth=1.6, **look)
    ax.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0)


def _logarithmic(ax: Axes) -> None:
    from matplotlib.ticker import NullLocator

    ax.set_yscale("log")
    ax.set_ylim(bottom=SMALLEST * 0.8)
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    ax.yaxis.set_minor_locator(NullLocator())
    settled = 100 * EXPLOITABILITY
    ax.axhline(settled, color=FAINT, linewidth=1, linestyle=DASHES)
    ax.annotate(
        f"{settled:g} %", (0, settled), xycoords=("axes fraction", "data"), color=FAINT,
        xytext=(2, 2), textcoords="offset points", ha="left", fontsize=8.5,
    ).set_in_layout(False)  # fmt: skip


def _line_legend(
    ax: Axes, looks: dict[str, dict[str, Any]], draws: int, baseline: str | None
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], markersize=4.5, label=label, **look) for label, look in looks.items()
    ]
    if baseline is not None:
        colour = colours([baseline])[baseline]
        handles.append(Line2D([], [], color=colour, linewidth=1.2, label=f"0: {baseline}"))
    words = f"95 % t-interval of the\nmean over {draws} populations"
    handles.append(Patch(color=FAINT, alpha=0.35, label=words))
    ax.legend(handles=handles, loc="upper left", borderaxespad=0, handlelength=3.2)
