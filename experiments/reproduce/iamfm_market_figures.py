"""Figures of part (h) of `admarket reproduce iamfm`: markets of learning advertisers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from experiments.bootstrap import mean_of
from experiments.colours import COLOURS
from experiments.iamfm.market import (
    ARMS,
    EQUAL,
    LONG,
    TOTALS,
    Arm,
    bids_by_advertiser,
    by_replication,
    steps_of,
)
from experiments.plots import DASHES, FAINT, WIDTH, bid_trajectories, style
from experiments.reproduce.iamfm import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXACT = "#332288"
"""Colour of IAMFM with outcomes known."""
UNITS = dict(
    zip(TOTALS, ("money per request", "money per request", "per reply, 0 to 1"), strict=True)
)
KINDS = (("utility", "UM bids", "bid / value"), ("value", "VM bids", "bid × target / value"))
CAPTIONS = {
    "market": (
        "(h) Revenue, welfare and user satisfaction over the last quarter of learning steps "
        "(intervals over replications), and bids relative to the truthful one (over advertisers; 1 "
        "is truthful), by how many steps there were. “Exact”: outcomes known, no tokens spent."
    ),
    "bids": (
        "(h) Bids relative to the truthful one against learning steps, averaged over "
        "logarithmically spaced windows. Bands: 95 % t-interval of the mean over advertisers. "
        "IAMFM by elimination ends early: each of its steps costs a search."
    ),
}


def market(study: Study) -> Figure:
    """Totals and bids by mechanism, in groups of equally many learning steps."""
    from matplotlib.figure import Figure

    totals, bids = by_replication(study.market), bids_by_advertiser(study.market)
    places, ticks = _places(steps_of(study.market))
    with style():
        figure = Figure(figsize=(WIDTH, 1.2 + 0.23 * len(ticks)), layout="constrained")
        axes = figure.subplots(1, len(TOTALS) + len(KINDS), sharey=True)
        for ax, (column, unit) in zip(axes, UNITS.items(), strict=False):
            _points(ax, places, totals, column)
            ax.set(title=column.replace("_", " ").capitalize(), xlabel=unit)
        for ax, (kind, title, unit) in zip(axes[len(TOTALS) :], KINDS, strict=True):
            _points(ax, places, bids.filter(pl.col("objective") == kind), "bid")
            ax.axvline(1, color=FAINT, linestyle=DASHES, linewidth=1)
            ax.set(title=title, xlabel=unit)
        axes[0].set_yticks(range(len(ticks)), ticks)
        axes[0].set_ylim(len(ticks) - 0.5, -0.5)
        headings = set(range(len(ticks))) - set(places.values())
        for at, label in enumerate(axes[0].get_yticklabels()):
            label.set_fontweight("bold" if at in headings else "normal")
        for ax in axes:
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", length=0)
    return figure


def bids(study: Study) -> Figure:
    """Bids over learning steps: the longest market of each mechanism."""
    people = study.market.advertisers
    longest = {arm.key: arm.label for arm in ARMS.values() if _longest(arm)}
    ours = people.filter(pl.col("mechanism").is_in(list(longest)))
    figure = bid_trajectories(ours.with_columns(pl.col("mechanism").replace(longest)))
    for ax in figure.axes:
        ax.set_xlabel("learning step (logarithmic)")
    return figure


def _longest(arm: Arm) -> bool:
    """Whether it is the longest market of its label; short ones are not looked at."""
    lengths = {each.length for each in ARMS.values() if each.label == arm.label}
    return arm.length == (LONG if LONG in lengths else EQUAL)


def _places(sizes: dict[str, tuple[int, int]]) -> tuple[dict[str, int], list[str]]:
    """Rows by key of `ARMS`, and the labels of all rows, a heading over each length."""
    places: dict[str, int] = {}
    ticks: list[str] = []
    length = None
    for key, arm in ARMS.items():
        if arm.length != length:
            length = arm.length
            ticks.append(f"{sizes[key][0]:,} steps")
        places[key] = len(ticks)
        ticks.append(arm.label)
    return places, ticks


def _points(ax: Axes, places: dict[str, int], frame: pl.DataFrame, column: str) -> None:
    """Means with intervals, a row for each market."""
    for key, at in places.items():
        ours = frame.filter(pl.col("mechanism") == key)[column].to_numpy()
        if len(ours):
            mean, low, high = mean_of(ours)
            reach = np.nan_to_num([[mean - low], [high - mean]], posinf=0.0)
            colour = EXACT if ARMS[key].exact else COLOURS[ARMS[key].name]
            ax.errorbar(mean, at, xerr=reach, fmt="o", color=colour, capsize=2.5)
