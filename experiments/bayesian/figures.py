"""Figures of equilibrium bid functions, in the house's style (`experiments.plots`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.bayesian.closed_forms import symmetric_first_price, utility_against_value
from experiments.bayesian.solve import BayesianReport
from experiments.plots import FAINT, INK, WIDTH, style
from mechanisms.pool import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# line styles differ as well as colours, for prints in grey
LOOKS = (
    {"color": "#0072b2", "linestyle": "-"},
    {"color": "#d55e00", "linestyle": (0, (6, 2))},
    {"color": "#009e73", "linestyle": (0, (1.2, 1.4))},
    {"color": "#a6548a", "linestyle": (0, (6, 2, 1.2, 2))},
    {"color": "#8c6d31", "linestyle": (0, (3, 1.5, 1, 1.5, 1, 1.5))},
)
KNOWN = {"color": INK, "linestyle": "none", "marker": "o", "markersize": 4.2, "fillstyle": "none"}
CAPTIONS = {
    "first_price": (
        "Learned equilibrium bid functions of the single-slot first-price auction, values uniform "
        "on [0, 1], against (n − 1)v/n. L2: root mean square distance over values. Loss: relative "
        "utility loss of the bid function in the continuous game, and of the strategy on the "
        "learner's grid where it has one."
    ),
    "utility_against_value": (
        "Learned bid functions of one utility and one value maximizer in the single-slot "
        "first-price auction, values uniform on [0, 1], against the closed form. Target: the value "
        "maximizer's return on investment, over all its values; bids are not scaled to meet it. "
        "Loss: relative utility loss of the bid function in the continuous game, and of the "
        "strategy on the learner's grid."
    ),
    "bids": ("Learned bid functions, values redrawn each round. Thin line: the value itself."),
}


def first_price(reports: Mapping[str, Mapping[int, BayesianReport]]) -> Figure:
    """A panel for each number of bidders: learned bid functions and `(n − 1)v/n`.

    Args:
        reports: by learner, then by number of bidders, the same for all learners.
    """
    numbers = list(next(iter(reports.values())))
    with style():
        figure, axes = _panels(len(numbers))
        for ax, n in zip(axes, numbers, strict=True):
            said = []
            for look, (learner, found) in zip(LOOKS, reports.items(), strict=False):
                values = _draw(ax, found[n], 0, look, learner)
                apart = found[n].bid_function(values)[0] - symmetric_first_price(values, n)
                said.append(f"{learner}: L2 {np.sqrt((apart**2).mean()):.4f}, {_lost(found[n])}")
            _dots(ax, lambda v, n=n: symmetric_first_price(v, n), "(n − 1)v/n")
            _head(ax, f"{n} bidders", said)
            ax.set(xlabel="value per click", xlim=(0, 1), ylim=(0, 1))
        axes[0].set_ylabel("bid per click")
        _key(figure, axes[0])
    return figure


def utility_maximizer_against_value_maximizer(reports: Mapping[float, BayesianReport]) -> Figure:
    """A panel for each target ROI: both learned bid functions and the closed form.

    Args:
        reports: by target; advertiser 0 maximises utility and 1 value.
    """
    with style():
        figure, axes = _panels(len(reports))
        for ax, (roi, report) in zip(axes, reports.items(), strict=True):
            *known, _ = utility_against_value(roi)
            names = ("utility maximizer", "value maximizer")
            for i, (look, name) in enumerate(zip(LOOKS, names, strict=False)):
                _draw(ax, report, i, look, name)
            for exact, label in zip(known, ("closed form", None), strict=True):
                _dots(ax, exact, label)
            lines = [f"{who}: {_lost(report, i)}" for i, who in enumerate(("UM", "VM"))]
            _head(ax, f"Target ROI {roi:g}", lines)
            ax.set(xlabel="value per click", xlim=(0, 1), ylim=0)
        axes[0].set_ylabel("bid per click")
        _key(figure, axes[0])
    return figure


def bid_functions(report: BayesianReport, names: Sequence[str] | None = None) -> Figure:
    """Bid functions of all advertisers, at most five a panel, and the truthful bids.

    Args:
        report: what was learned.
        names: of the advertisers; default "advertiser i".
    """
    n = len(report.bids)
    names = [f"advertiser {i}" for i in range(n)] if names is None else list(names)
    each = len(LOOKS)
    groups = [range(start, min(start + each, n)) for start in range(0, n, each)]
    with style():
        figure, axes = _panels(len(groups))
        for ax, group in zip(axes, groups, strict=True):
            for i, look in zip(group, LOOKS, strict=False):
                _draw(ax, report, i, look, names[i])
            top = max(report.priors[i].high for i in group)
            ax.plot((0, top), (0, top), color=FAINT, linewidth=1, zorder=1, label="bid = value")
            ax.set(xlabel="value per click", xlim=(0, top), ylim=0)
            ax.legend(loc="upper left")
        rest = "Equilibrium bids" if report.status == "converged" else "Bids, no equilibrium"
        said = [f"NashConv {report.exploitability:.1e} money per request"]
        capped = [names[i] for i in np.flatnonzero(report.at_cap)]
        if capped:
            said.append(f"at the highest bid considered: {', '.join(capped)}")
        _head(axes[0], f"{rest}: {report.status}", said)
        axes[0].set_ylabel("bid per click")
    return figure


def _lost(report: BayesianReport, i: int = 0) -> str:
    continuous = f"loss {report.continuous_loss[i]:.0e}"
    return (
        continuous if report.grid_loss is None else f"{continuous}, grid {report.grid_loss[i]:.0e}"
    )


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = min(count, 2)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, 0.7 + 3.5 * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.remove()
    return figure, list(axes[:count])


def _draw(ax: Axes, report: BayesianReport, i: int, look: dict, label: str) -> Floats:
    values = report.priors[i].means(400)
    ax.plot(values, report.bid_function(values)[i], label=label, **look)
    return values


def _dots(ax: Axes, known: Callable[[Floats], Floats], label: str | None) -> None:
    values = np.linspace(0.05, 0.95, 10)
    ax.plot(values, known(values), label=label, zorder=4, **KNOWN)


def _head(ax: Axes, title: str, said: Sequence[str]) -> None:
    ax.set_title(title, pad=7 + 13 * len(said))
    words = ax.annotate(
        "\n".join(said), (0, 1), xycoords="axes fraction", xytext=(0, 6),
        textcoords="offset points", fontsize=9.5, color="#555555", va="bottom",
    )  # fmt: skip
    words.set_in_layout(False)


def _key(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
