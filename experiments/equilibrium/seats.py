"""Who learns with what: styles, the learner objects of a play, and their average strategies.

Advertisers of the same style whose grids reach equally high share a learner object: a seat.

Shapes: replications R, advertisers N, grid bids G, bids of an average strategy K.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agents.learners.base import Learner, Population
from agents.learners.registry import LEARNERS, make_learner
from experiments.game import Game
from mechanisms.pool import Floats, Ints

YARDSTICK = 61  # fixed bids that a play is compared with where its learner has no grid
BEYOND = 12  # fixed bids above a learner's grid, up to the highest deviation
GRID = 121  # bids of learners with full feedback, if not asked for otherwise: precision is cheap
POINTS = 128  # of an average strategy, where the learner has no fixed grid


@dataclass(frozen=True)
class Style:
    """How an advertiser learns: a learner's name and parameters."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def reaches(self) -> bool:
        """Whether it bids on a grid whose reach is left to us."""
        return self._takes("grid_size", "max_multiple") and "max_multiple" not in self.parameters

    @property
    def sees_all(self) -> bool:
        """Whether it learns the outcome of every bid of its grid."""
        return self._takes("grid_size") and LEARNERS[self.name].feedback == "full"

    @property
    def starts(self) -> bool:
        """Whether it can be told where to begin."""
        return LEARNERS[self.name].start_at is not Learner.start_at

    def _takes(self, *parameters: str) -> bool:
        return set(parameters) <= set(inspect.signature(LEARNERS[self.name]).parameters)


@dataclass(frozen=True, eq=False)
class Seats:
    """Advertisers that share a learner object, and the fixed bids they are compared with."""

    members: Ints
    learner: Learner
    grid: Floats
    mixes: bool  # whether the learner's strategies are mixtures,
    fixed: bool  # and that over the first bids of `grid`, which are the learner's own
    own: int  # bids of `grid` that are the learner's


class AverageStrategies:
    """Strategies averaged over the second half of the rounds.

    Mixtures over a fixed grid are averaged exactly; of others, some rounds' are taken, drawn at
    random (evenly spaced ones would see a cycle at the same phase), and `POINTS` bids in all.
    """

    def __init__(self, seats: Sequence[Seats], rounds: int, rng: np.random.Generator) -> None:
        self.first = rounds // 2
        self.order = rng.permutation(rounds - self.first)
        self.kept: dict[int, list[tuple[Floats, Floats]]] = {id(each): [] for each in seats}
        self.seats = seats

    def see(self, t: int, seats: Seats, support: Floats, weights: Floats) -> None:
        """Take in the strategies of round t."""
        if t < self.first:
            return
        kept = self.kept[id(seats)]
        if seats.fixed:
            if kept:
                kept[0][1][...] += weights
            else:
                kept.append((np.broadcast_to(support, weights.shape), weights.copy()))
            return
        if self.order[t - self.first] < max(1, POINTS // weights.shape[-1]):
            kept.append((np.broadcast_to(support, weights.shape).copy(), weights.copy()))

    def strategies(self, N: int) -> tuple[Floats, Floats]:
        """(R, N, K) supports and weights; padded with weightless bids where K differs."""
        parts = []
        for each in self.seats:
            support, weights = (
                np.concatenate(arrays, axis=2) for arrays in zip(*self.kept[id(each)], strict=True)
            )
            parts.append((each.members, support, weights / weights.sum(axis=2, keepdims=True)))
        K = max(part[1].shape[2] for part in parts)
        R = len(parts[0][1])
        all_bids, all_weights = np.zeros((R, N, K)), np.zeros((R, N, K))
        for members, support, weights in parts:
            k = support.shape[2]
            all_bids[:, members, :k], all_bids[:, members, k:] = support, support[:, :, -1:]
            all_weights[:, members, :k] = weights
        return all_bids, all_weights


def seats_of(
    game: Game, styles: Sequence[Style], reach: Floats, multiples: Floats, seed: int
) -> list[Seats]:
    """A learner for all advertisers of the same style whose grids reach equally high."""
    people, R = game.people, len(multiples)
    groups: dict[tuple[str, str, float], list[int]] = {}
    for i, style in enumerate(styles):
        # utility maximizers and value maximizers whose grid reaches 3 are at the defaults
        key = (style.name, repr(style.parameters), float(reach[i]) if style.reaches else 0.0)
        groups.setdefault(key, []).append(i)
    seats = []
    for k, ((name, _, top), members) in enumerate(groups.items()):
        who = np.array(members)
        style = styles[members[0]]
        parameters = dict(style.parameters)
        if style.reaches:
            parameters = {"max_multiple": top, **parameters}
        if style.sees_all:
            parameters = {"grid_size": GRID, **parameters}
        some = Population(
            values=people.values[who],
            value_maximizer=people.value_maximizer[who],
            target_roi=people.target_roi[who],
            budget=np.full(len(who), np.inf),
        )
        rng = np.random.default_rng([seed, 1, k])
        learner = make_learner(name, some, R, rng, **parameters)
        if style.starts:
            learner.start_at(multiples[:, who])
        support = learner.strategy[0]
        over = support.ndim == 2
        grid = learner.grid if learner.grid is not None else support if over else None
        if grid is None:
            grid = game.top[who, None] * np.linspace(0, 1, YARDSTICK)
        fixed = over and np.array_equal(grid, support)
        beyond = np.linspace(
            grid[:, -1], np.maximum(game.top[who], grid[:, -1]), BEYOND + 1, axis=1
        )
        compared = np.concatenate([grid, beyond[:, 1:]], axis=1)
        mixes = support.shape[-1] > 1
        seats.append(Seats(who, learner, compared, mixes, fixed, grid.shape[1]))
    return seats


def stacked(parts: Sequence[tuple[Ints, Floats]]) -> Floats:
    """(N, G) grids in one array, the shorter ones ending in repetitions of their last bid."""
    N = sum(len(members) for members, _ in parts)
    G = max(grid.shape[1] for _, grid in parts)
    stacked = np.empty((N, G))
    for members, grid in parts:
        k = grid.shape[1]
        stacked[members, :k], stacked[members, k:] = grid, grid[:, -1:]
    return stacked
