"""Figures of audits: who gains by which deviation, and how much at most, mechanism by mechanism."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.audit.findings import THRESHOLD
from experiments.audit.report import AuditReport
from experiments.colours import colours
from experiments.plots import FAINT, INK, MARKERS, WIDTH, style
from mechanisms.pool import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TICKS = (0.0, 0.1, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 3.0, 5.0, 10.0)
HEAT_CAPTION = (
    "Gain over truthful bidding, of each advertiser and multiple of its truthful bid (v for "
    "utility maximizers, UM; v / target ROI for value maximizers, VM), as a fraction of the value "
    "it attains under truth; the others bid {others}. Exact over the {requests} requests of the "
    "pool. Hatched: gains; dot: the greatest of the row; grey with crosses: the target ROI would "
    "be missed. Numbers: the greatest gain, with finer multiples than the columns, and what truth "
    "owes where it misses the target."
)
REGRET_CAPTION = (
    "Regret: the greatest gain from one multiple of the truthful bid for all requests, as a "
    "fraction of the value attained under truth. Bars: 95 % over {requests} requests; the lower "
    "end is of deviations chosen on other requests. Arrows: the bar goes on. {coverage}"
)


def heat_map(report: AuditReport, names: Sequence[str]) -> Figure:
    """Advertisers by multiples of the truthful bid: what a deviation gains or loses.

    Args:
        report: of one mechanism.
        names: (N,) titles of the advertisers.
    """
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    order = _order(report)
    table = report.table
    multiples = table["multiple"].unique().sort().to_numpy()
    gains = table["regret"].cast(float).fill_null(np.nan).to_numpy().reshape(-1, len(multiples))
    gains = gains[order]
    greatest = float(np.nan_to_num(gains, nan=-np.inf).max())
    limit = float(np.clip(greatest, 0.1, 1.0))
    with style():
        figure = Figure(figsize=(WIDTH, 1.9 + 0.3 * len(order)), layout="constrained")
        ax = figure.subplots()
        image = ax.pcolormesh(
            np.clip(gains, -limit, limit),
            norm=TwoSlopeNorm(0.0, -limit, limit),
            cmap=_colours(),
            edgecolors="white",
            linewidth=0.3,
        )
        _mark(ax, gains)
        ax.axvline(np.searchsorted(multiples, 1.0) + 0.5, color=INK, linewidth=1.2)
        ax.set_yticks(np.arange(len(order)) + 0.5, [_name(report, names, i) for i in order])
        ax.set_ylim(len(order), 0)
        at = [int(np.abs(multiples - tick).argmin()) for tick in TICKS]
        shown = sorted({k: multiples[k] for k in at}.items())
        ax.set_xticks(
            [k + 0.5 for k, _ in shown],
            [f"{m:.2g}" if m < 0.5 or m > 2 else f"{m:.3g}" for _, m in shown],
        )
        ax.tick_params(length=0)
        ax.grid(False)
        ax.set_xlabel("bid, in multiples of the truthful bid (line: truth)")
        ax.set_title(f"{report.mechanism}: {_headline(report)}", pad=8)
        _greatest(ax, report, order)
        bar = figure.colorbar(image, ax=ax, pad=0.09, shrink=0.85, aspect=18)
        bar.set_label("gain, % of the value attained under truth", fontsize=9)
        ticks = np.linspace(-limit, limit, 5)
        ends = ("≤ ", "", "", "", "≥ " if greatest > limit else "")
        labels = [f"{end}{100 * t:+.3g}" for end, t in zip(ends, ticks, strict=True)]
        bar.set_ticks(ticks, labels=labels)
        bar.outline.set_visible(False)
    return figure


def regrets(reports: Mapping[str, AuditReport], names: Sequence[str]) -> Figure:
    """Regret of each advertiser with its interval, mechanisms side by side, a panel an objective.

    Args:
        reports: by mechanism, of the same advertisers.
        names: (N,) titles of the advertisers.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    first = next(iter(reports.values()))
    vm = first.people.value_maximizer
    groups = [(kind, np.flatnonzero(vm == flag)) for kind, flag in (("utility", 0), ("value", 1))]
    groups = [(kind, who) for kind, who in groups if len(who)]
    labels = list(reports)
    each = 0.2 + 0.09 * len(labels)
    with style():
        figure = Figure(figsize=(WIDTH, 1.7 + each * max(len(who) for _, who in groups)))
        figure.set_layout_engine("constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
        axes = figure.subplots(1, len(groups), squeeze=False)[0]
        for ax, (kind, who) in zip(axes, groups, strict=True):
            _panel(ax, reports, who)
            ax.set_yticks(np.arange(len(who)), [_short(names[i]) for i in who])
            ax.set_title({"utility": "Utility maximizers", "value": "Value maximizers"}[kind])
        figure.supxlabel("regret, % of the value attained under truth", fontsize=10)
        handles = [
            Line2D([], [], color=colour, marker=marker, linestyle="none", label=label)
            for (label, colour), marker in zip(colours(labels).items(), MARKERS, strict=False)
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 6))
    return figure


def _panel(ax: Axes, reports: Mapping[str, AuditReport], who: Floats) -> None:
    """Points and bars of the advertisers `who`, one below the other."""
    labels = list(reports)
    spread = 0.7 * (np.arange(len(labels)) - (len(labels) - 1) / 2) / max(len(labels), 2)
    greatest = max(float(report.regret[who].max()) for report in reports.values())
    right = 100 * max(1.6 * greatest, 0.01)
    for k, (label, report) in enumerate(reports.items()):
        mean, low, high = (
            100 * x[who] for x in (report.regret, report.regrets.low, report.regrets.high)
        )
        at = np.arange(len(who)) + spread[k]
        colour = colours(labels)[label]
        ax.hlines(at, low, np.minimum(high, right), color=colour, linewidth=1.4)
        beyond = high > right
        ax.plot(np.full(beyond.sum(), 0.985 * right), at[beyond], ">", color=colour, markersize=5)
        ax.plot(mean, at, MARKERS[k % len(MARKERS)], color=colour, markersize=5.5)
    ax.axvline(0, color=FAINT, linewidth=1, zorder=1)
    for row in range(1, len(who)):
        ax.axhline(row - 0.5, color="#e6e6e6", linewidth=0.8, zorder=0)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(-0.03 * right, right)
    ax.set_ylim(len(who) - 0.5, -0.5)


def _mark(ax: Axes, gains: Floats) -> None:
    """Hatches over gains, crosses where a target is missed, a dot at the best of each row."""
    from matplotlib.patches import Rectangle

    for row, column in np.argwhere(gains >= THRESHOLD):
        ax.add_patch(
            Rectangle((column, row), 1, 1, fill=False, hatch="////", edgecolor="#00000066", lw=0)
        )
    for row, column in np.argwhere(np.isnan(gains)):
        ax.add_patch(
            Rectangle(
                (column, row), 1, 1, facecolor="#ececec", hatch="xx", edgecolor="#bbbbbb", lw=0
            )
        )
    for row in range(len(gains)):
        best = int(np.nan_to_num(gains[row], nan=-np.inf).argmax())
        if gains[row, best] >= THRESHOLD:
            ax.plot(best + 0.5, row + 0.5, "o", color=INK, markersize=5, markeredgecolor="white")


def _greatest(ax: Axes, report: AuditReport, order: Sequence[int]) -> None:
    """The greatest gain of each row, to its right."""
    right = ax.get_xlim()[1]
    for row, i in enumerate(order):
        regret = report.regret[i]
        words = f"+{100 * regret:.3g} %" if regret >= THRESHOLD else "none"
        ax.text(
            right, row + 0.5, f"  {words}", va="center", fontsize=9,
            color=INK if regret >= THRESHOLD else FAINT,
        )  # fmt: skip
    ax.text(right, -0.25, "  greatest", va="bottom", fontsize=9, color="#555555")


def _headline(report: AuditReport) -> str:
    """The greatest regret by objective."""
    vm = report.people.value_maximizer
    told = []
    for who, flag in (("UM", False), ("VM", True)):
        if (vm == flag).any():
            worst = float(report.regret[vm == flag].max())
            gain = f"gain up to {100 * worst:.3g} %" if worst >= THRESHOLD else "gain nothing"
            told.append(f"{who} {gain}")
    return ", ".join(told)


def _colours() -> Any:
    """Brown for losses, violet for gains, without the ends on which hatches would be lost."""
    import matplotlib as mpl
    from matplotlib.colors import ListedColormap

    return ListedColormap(mpl.colormaps["PuOr"](np.linspace(0.1, 0.9, 257)))


def _order(report: AuditReport) -> list[int]:
    """Utility maximizers first, by index."""
    return sorted(range(len(report.regret)), key=lambda i: (report.people.value_maximizer[i], i))


def _name(report: AuditReport, names: Sequence[str], index: int) -> str:
    return f"{_short(names[index])} ({'VM' if report.people.value_maximizer[index] else 'UM'})"


def _short(title: Any, length: int = 26) -> str:
    """A title for an axis: short, and with nothing that matplotlib would read as mathematics."""
    title = " ".join(str(title).split()).replace("$", r"\$")
    return title if len(title) <= length else title[: length - 1] + "…"
