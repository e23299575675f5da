"""Figures of equilibria; matplotlib `Figure`s in the look of `experiments.plots`, by mechanism.

Lines differ in style and marks in shape as well as in colour, so that print in grey tells them
apart. Bands are ranges over starting points, from the lowest to the highest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.equilibrium.diagnosis import EXPLOITABILITY
from experiments.equilibrium.empirical import EmpiricalGame, Nash
from experiments.equilibrium.externality import Portrait
from experiments.equilibrium.solver import EquilibriumReport
from experiments.measures import MEASURES, OBJECTIVES
from experiments.plots import (
    FAINT,
    INK,
    WIDTH,
    _short,
    colours,
    style,
)
from mechanisms.pool import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (9, 3)))
POINTS = 120  # of a trajectory drawn
LOWEST = 1e-6  # exploitability drawn: less is drawn as this

CAPTIONS = {
    "bids": (
        "Mean bids of the learners' strategies over rounds, relative to the truthful bid (1), mean "
        "over advertisers. Bands: from the lowest to the highest start. The first start is at the "
        "truthful bids, the others at random multiples of them; learners that keep mixtures begin "
        "with half their weight there and the rest spread over their grid."
    ),
    "exploitability": (
        "Exploitability (what all advertisers could gain by other fixed bids, and what value "
        "maximizers owe to their targets, as a fraction of the value attained) of the last "
        "strategies' mean bids and of bids averaged over the second half of the rounds so far. "
        f"Lines: median start; bands: all starts. Less than {LOWEST:g} is drawn as {LOWEST:g}. "
        "Diamond: the product of the average mixtures, of the start shown, with 95 % interval. "
        "Cross: median over starts of the profile by which the learners are judged."
    ),
    "portrait": (
        "Two advertisers, the others at the fixed bids named below the tables' titles. Arrows: "
        "from a pair of bids towards the best replies to it. Black: best reply of the one on the "
        "horizontal axis; dashed: of the one on the vertical axis, joined from point to point "
        "where they jump; where they meet (star: the fixed bids) neither gains. "
        "Thin lines: learned mean bids from all starts, in the full game, so that the others move "
        "as well; dots: where they began."
    ),
    "deviations": (
        "The deviation graph of the role-symmetric game: all utility maximizers play one strategy, "
        "all value maximizers another; each arrow points to the strategy that is best for a single "
        "member of a role that deviates alone (a mean over its members). Filled: sink components; "
        "at a single square nobody gains on average over a role's members, several joined ones are "
        "a cycle. Circled: no single member gains, an equilibrium among these strategies."
    ),
    "pair": (
        "The deviation graph of two advertisers, the others at the fixed bids. Arrows, squares "
        "as above; diamonds: strategies in the support of a mixed Nash equilibrium."
    ),
    "externality": (
        "Which ad crowds out which, at the fixed bids: the arrow from i to j says which share "
        "of its clicks ad j loses because ad i bids (j's clicks against those with i's bid at 0). "
        "Only the strongest are drawn, wider for more; the strongest are labelled. Circles: "
        "utility maximizers, squares: value maximizers; size by clicks."
    ),
}


def trajectories(reports: Mapping[str, EquilibriumReport]) -> Figure:
    """Bids over rounds, a panel per objective, a line per mechanism."""
    first = next(iter(reports.values()))
    vm = first.game.people.value_maximizer
    kinds = [kind for kind, there in (("utility", ~vm), ("value", vm)) if there.any()]
    with style():
        figure, axes = _panels(len(kinds), len(kinds), 4.6)
        for ax, kind in zip(axes, kinds, strict=True):
            for (name, report), line in zip(reports.items(), cycle(LINES), strict=False):
                who = vm == (kind == "value")
                bids = report.play.bids[:, :, who] / report.game.people.truthful_bids[who]
                mean = bids.mean(axis=2)
                at = _thinned(len(mean))
                colour = colours(list(reports))[name]
                low, high = mean[at].min(axis=1), mean[at].max(axis=1)
                ax.fill_between(at + 1, low, high, color=colour, alpha=0.15, lw=0)
                ax.plot(at + 1, mean[at].mean(axis=1), color=colour, linestyle=line, label=name)
            ax.axhline(1.0, color=FAINT, linewidth=0.9, zorder=0)
            ax.set(xscale="log", xlabel="round (logarithmic)", ylabel=MEASURES[f"bid_{kind}"].unit)
            ax.set_xlim(1, len(first.play.bids))
            ax.set_ylim(bottom=0)
            ax.set_title(OBJECTIVES[kind])
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(6, len(labels)))
        _below(figure, "lines: mean over starts; bands: lowest to highest start")
    return figure


def exploitability(reports: Mapping[str, EquilibriumReport]) -> Figure:
    """Exploitability over rounds on logarithmic axes, a panel per mechanism."""
    with style():
        figure, axes = _panels(len(reports), 3, 2.7, sharey=True)
        looks = (("last strategies", "-", 0.18), ("averages", (0, (5, 2)), 0.1))
        for ax, (name, report) in zip(axes, reports.items(), strict=True):
            colour = colours(list(reports))[name]
            for k, (label, line, alpha) in enumerate(looks):
                runs = np.maximum(report.trajectory[:, k], LOWEST)
                ax.fill_between(
                    report.snapshots, runs.min(axis=1), runs.max(axis=1), color=colour, alpha=alpha,
                    lw=0,
                )  # fmt: skip
                ax.plot(
                    report.snapshots, np.median(runs, axis=1), color=colour, linestyle=line,
                    label=label,
                )  # fmt: skip
            mean, low, high = report.mixture.exploitability
            if np.isfinite(mean) and mean > 0:
                reach = [[max(0.0, mean - max(low, LOWEST))], [high - mean]]
                ax.errorbar(
                    report.snapshots[-1], max(mean, LOWEST), yerr=reach, fmt="D", color=INK,
                    markersize=4.5, clip_on=False,
                )  # fmt: skip
            ax.plot(
                report.snapshots[-1], max(report.exploitability, LOWEST), "x", color=INK,
                markersize=8, clip_on=False,
            )  # fmt: skip
            ax.axhline(EXPLOITABILITY, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
            ax.set(xscale="log", yscale="log", xlabel="round")
            ax.set_title(f"{name}: {report.status}")
        figure.supylabel("fraction of the value attained", fontsize=10)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2)
        words = f"dotted: {100 * EXPLOITABILITY:g} %; diamond: average mixtures; cross: as judged"
        _below(figure, words + "; bands: all starts")
    return figure


def portraits(portraits: Mapping[str, Portrait], names: Sequence[str]) -> Figure:
    """Phase portraits of two advertisers, a panel per mechanism, `names` their titles."""
    with style():
        figure, axes = _panels(len(portraits), 3, 3.3)
        for ax, (mechanism, each) in zip(axes, portraits.items(), strict=True):
            _portrait(ax, each)
            ax.set_title(mechanism)
            i, j = each.pair
            ax.set_xlabel(f"{_short(names[i], 20)}, bid / truthful", fontsize=8.5)
            ax.set_ylabel(f"{_short(names[j], 20)}, bid / truthful", fontsize=8.5)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def _portrait(ax: Axes, each: Portrait) -> None:
    x, y = each.axes
    # the first's replies are by the second's bid, and the reverse; arrows on a coarser grid
    step = max(1, len(x) // 12)
    some = np.arange(step // 2, len(x), step)
    dx = each.replies[0][some][:, None] - x[some][None, :]
    dy = each.replies[1][some][None, :] - y[some][:, None]
    length = np.hypot(dx / x[-1], dy / y[-1])
    shrink = np.where(length > 0, np.minimum(1, 0.06 / np.maximum(length, 1e-12)), 0)
    ax.quiver(
        *np.meshgrid(x[some], y[some]), dx * shrink, dy * shrink, color="#b5b5b5", angles="xy",
        scale_units="xy", scale=1, width=0.006, headwidth=4,
    )  # fmt: skip
    ax.plot(each.replies[0], y, color=INK, label="best reply, horizontal")
    ax.plot(x, each.replies[1], color=INK, linestyle=(0, (5, 2)), label="best reply, vertical")
    for r, path in enumerate(np.moveaxis(each.paths, 1, 0)):
        label = "learned, from each start" if r == 0 else None
        ax.plot(*path.T, color="#0072b2", linewidth=0.9, alpha=0.8, label=label)
        ax.plot(*path[0], "o", color="#0072b2", markersize=3)
    ax.plot(*each.found, "*", color="#d55e00", markersize=12, markeredgecolor="white")
    ax.set(xlim=(0, x[-1]), ylim=(0, y[-1]))


def deviation_graphs(
    games: Mapping[str, EmpiricalGame], nash: Mapping[str, Sequence[Nash]] | None = None
) -> Figure:
    """Deviation graphs, a panel per mechanism; strategies of the first role to the right.

    Args:
        games: of one or two roles.
        nash: equilibria, of which mixed ones are marked by their supports.
    """
    with style():
        figure, axes = _panels(len(games), 3, 3.2)
        for ax, (mechanism, game) in zip(axes, games.items(), strict=True):
            _deviations(ax, game)
            for each in nash[mechanism] if nash else ():
                _mixed(ax, each)
            ax.set_title(mechanism)
        words = "arrows: best deviations; filled squares: sinks; circled: equilibria"
        _below(figure, words + ("; diamonds: support of mixed equilibria" if nash else ""))
    return figure


def _deviations(ax: Axes, game: EmpiricalGame) -> None:
    graph = game.graph()
    places = game.profiles if len(game.roles) == 2 else np.c_[game.profiles, 0 * game.profiles]
    places = places.astype(float)
    sink = np.array([graph.nodes[p]["sink"] is not None for p in range(len(places))])
    ax.plot(*places[~sink].T, "o", color="#bbbbbb", markersize=4)
    ax.plot(*places[sink].T, "s", color=INK, markersize=9)
    ax.plot(*places[game.equilibria].T, "o", color=INK, markersize=15, markerfacecolor="none")
    for p, q, edge in graph.edges(data=True):
        if not edge["best"]:
            continue
        inside = sink[p] and sink[q]
        way = places[q] - places[p]
        end = places[p] + (way if inside else 0.42 * way / np.abs(way).max())
        ax.annotate(
            "", end, places[p],
            arrowprops={
                "arrowstyle": "-|>", "color": INK if inside else "#777777",
                "linewidth": 1.6 if inside else 0.9, "shrinkA": 3, "shrinkB": 5 if inside else 0,
                "connectionstyle": "arc3,rad=0.15" if inside else "arc3",
            },
        )  # fmt: skip
    across, *up = game.roles
    ax.set_xticks(range(len(across.names)), across.names, rotation=45, ha="right", fontsize=8)
    ax.set_xlabel(across.name, fontsize=8.5)
    if up:
        ax.set_yticks(range(len(up[0].names)), up[0].names, fontsize=8)
        ax.set_ylabel(up[0].name, fontsize=8.5)
    else:
        ax.set_yticks([])
    ax.margins(0.1)
    ax.grid(False)


def _mixed(ax: Axes, nash: Nash) -> None:
    if not nash.pure:
        inside = [np.flatnonzero(mixture > 1e-9) for mixture in nash.mixtures]
        at = np.array(np.meshgrid(*inside)).reshape(2, -1)
        ax.plot(*at, "D", markersize=11, markerfacecolor="none", markeredgecolor="#d55e00")


def externality_graphs(
    found: Mapping[str, tuple[Floats, Floats]],
    names: Sequence[str],
    value_maximizer: Sequence[bool],
    *,
    strongest: int = 12,
) -> Figure:
    """Who crowds out whom: by mechanism, shares lost (N, N) and clicks (N,)."""
    import networkx as nx

    N = len(names)
    angle = np.pi / 2 - 2 * np.pi * np.arange(N) / N
    place = {i: (np.cos(a), np.sin(a)) for i, a in enumerate(angle)}
    with style():
        figure, axes = _panels(len(found), 2, 4.3)
        for ax, (mechanism, (lost, clicks)) in zip(axes, found.items(), strict=True):
            graph = nx.DiGraph()
            graph.add_nodes_from(range(N))
            ranked = np.dstack(np.unravel_index(np.argsort(-lost, axis=None), lost.shape))[0]
            drawn = [(int(i), int(j)) for i, j in ranked[:strongest] if lost[i, j] > 0.005]
            colour = colours(list(found))[mechanism]
            graph.add_edges_from(drawn)
            size = 25 + 200 * clicks / max(clicks.max(), np.finfo(float).tiny)
            for kind, shape in ((False, "o"), (True, "s")):
                nodes = [i for i in range(N) if bool(value_maximizer[i]) == kind]
                nx.draw_networkx_nodes(
                    graph, place, nodelist=nodes, node_shape=shape, ax=ax, node_size=size[nodes],
                    node_color="#e8e8e8", edgecolors=INK, linewidths=0.8,
                )  # fmt: skip
            nx.draw_networkx_edges(
                graph, place, edgelist=drawn, ax=ax, arrowsize=10, node_size=180,
                width=[0.4 + 3 * lost[edge] for edge in drawn], edge_color=colour,
                connectionstyle="arc3,rad=0.12",
            )  # fmt: skip
            nx.draw_networkx_edge_labels(
                graph, place, {edge: f"{100 * lost[edge]:.0f} %" for edge in drawn[:4]}, ax=ax,
                font_size=7.5, connectionstyle="arc3,rad=0.12", label_pos=0.5, rotate=False,
                bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none"},
            )  # fmt: skip
            for i, (x, y) in place.items():
                side = "left" if x > 0.1 else "right" if x < -0.1 else "center"
                ax.annotate(
                    _short(names[i], 16), (1.1 * x, 1.14 * y), ha=side, va="center", fontsize=8,
                    annotation_clip=False,
                )  # fmt: skip
            ax.set(xlim=(-1.75, 1.75), ylim=(-1.25, 1.25))
            ax.set_axis_off()
            ax.set_title(mechanism)
        _below(figure, "circle: utility maximizer, square: value maximizer; size: clicks")
    return figure


def _panels(count: int, most: int, height: float, **grid: Any) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, at most so many beside each other, rows `height` inches."""
    from matplotlib.figure import Figure

    columns = min(count, most)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, rows * height + 0.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    axes = list(figure.subplots(rows, columns, squeeze=False, **grid).ravel())
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def _below(figure: Figure, words: str) -> None:
    from matplotlib.lines import Line2D

    nothing = Line2D([], [], linestyle="none", label=words)
    figure.legend(handles=[nothing], loc="outside lower center")


def _thinned(rounds: int) -> Any:
    return np.unique(np.geomspace(1, rounds, POINTS).astype(int)) - 1


def drawn(**parts: Any) -> Iterator[tuple[str, tuple[Figure, str]]]:
    """Name, figure and caption of each of `parts`."""
    for name, figure in parts.items():
        yield name, (figure, CAPTIONS[name])
