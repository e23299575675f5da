"""Learners against each other: R replications from R starting points, in one vectorised run.

In every round the learners draw their bids, and get what they may see of the *expected* outcome
over the whole pool: no dice but theirs are thrown, realised amounts are the expected ones, and a
round's amounts are per request. With payoffs u_i and profiles b^1 .. b^T, the run keeps what regret
is made of: for every advertiser and every fixed bid g of its grid, the mean value and payment of
(g, b_−i^t), and those of its own strategies. The play is a coarse correlated equilibrium up to

    gap_i = max_g (1/T) Σ_t u_i(g, b_−i^t) − (1/T) Σ_t E u_i(b_i^t, b_−i^t)

(Moulin & Vial 1978). For a value maximizer the greatest *value* is taken among the bids whose value
and payment, averaged over the play, meet the target ROI; what the play owes to the target on
average is counted beside the gap, as in `experiments.game`.

Starts: the first replication begins truthful, the others with every advertiser's bid at its own
multiple of the truthful one, drawn log-uniformly.

Shapes: rounds T, replications R, advertisers N, grid bids G.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agents.learners.base import UTILITY_REACH, Feedback, Learner, Population
from agents.learners.bid_grid import VALUE_GRID
from agents.learners.registry import LEARNERS, make_learner
from experiments.game import ROUNDING, Game, fraction
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, Ints

STARTS = {False: (0.05, UTILITY_REACH), True: (0.2, VALUE_GRID)}
"""Range of starting multiples, by whether the advertiser is a value maximizer."""
YARDSTICK = 31  # fixed bids that a play is compared with where its learner has no grid
GRID = 121  # bids of learners with full feedback, if not asked for otherwise: precision is cheap
CEILING = 0.85  # a mean bid above this share of its grid wants a higher one
PILOT = 10  # one in so many rounds is played first, to see how high grids must reach
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

    def _takes(self, *parameters: str) -> bool:
        return set(parameters) <= set(inspect.signature(LEARNERS[self.name]).parameters)


@dataclass(frozen=True, eq=False)
class Play:
    """What R replications of learners did over T rounds; money is per request of the pool.

    Attributes:
        starts: (R, N) multiples of the truthful bids that they began from.
        bids: (T, R, N) mean bids of the strategies, round by round.
        support: (R, N, K) bids of the average strategies.
        weights: (R, N, K) their weights: strategies averaged over the second half of the rounds.
        grid: (N, G) fixed bids that the play is compared with.
        value: (R, N, G) mean value per round of the fixed bids, others as played; all rounds.
        payment: (R, N, G) mean payment likewise.
        own_value: (R, N) mean value of the strategies played.
        own_payment: (R, N) mean payment of the strategies played.
        reach: (N,) top of `grid`, in multiples of the truthful bid.
    """

    starts: Floats
    bids: Floats
    support: Floats
    weights: Floats
    grid: Floats
    value: Floats
    payment: Floats
    own_value: Floats
    own_payment: Floats
    reach: Floats

    @property
    def last(self) -> Floats:
        """(R, N) mean bids of the last strategies."""
        return self.bids[-1]

    @property
    def average(self) -> Floats:
        """(R, N) mean bids, averaged over the second half of the rounds."""
        return self.bids[len(self.bids) // 2 :].mean(axis=0)

    def cce_gap(self, people: Population) -> Floats:
        """(R,) greatest gap of any advertiser, dues to target ROIs included.

        As a fraction of the value that all attained together, like `Gains.exploitability`.
        """
        vm, roi = people.value_maximizer, people.target_roi
        due = roi[:, None] * self.payment
        meets = self.value >= due * (1 - ROUNDING)
        kept = np.where(meets, self.value, -np.inf)
        fixed = np.where(vm[:, None], kept, self.value - self.payment).max(axis=2)
        own = np.where(vm, self.own_value, self.own_value - self.own_payment)
        owed = np.where(vm, roi * self.own_payment - self.own_value, 0.0)
        gap = (np.maximum(fixed - own, 0.0) + np.maximum(owed, 0.0)).max(axis=1)
        return fraction(gap, self.own_value.sum(axis=1))


def play(
    game: Game,
    styles: Sequence[Style],
    rng: np.random.Generator,
    *,
    rounds: int,
    starts: int,
    requests: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Play:
    """Let every advertiser learn, from `starts` starting points at once.

    Where a rule charges less than the bid, a value maximizer may want to bid many times the
    truthful bid. Grids reach 3 times it at first. A tenth of the rounds is played to see whether
    anyone comes to the upper end of its grid; if so, that grid's reach is doubled, at most to the
    greatest deviation that exploitability knows of, and so on. Then the play begins anew.

    Args:
        game: who plays what; budgets are left out.
        styles: (N) how each advertiser learns.
        rng: starts, requests of a round and the learners' dice.
        rounds: T, at least 4.
        starts: R, at least 1.
        requests: requests of a round, drawn without replacement and met by all replications;
            default the whole pool.
        say: told in a line when grids are widened.

    Raises:
        BadInput: numbers out of range, or a style that a learner refuses.
    """
    B = game.pool.shape[0]
    if rounds < 4 or starts < 1 or not (requests is None or 1 <= requests <= B):
        raise BadInput(f"play: rounds >= 4, starts >= 1 and 1 <= requests <= {B}")
    multiples = starting_points(game.people, starts, rng)
    seed = int(rng.integers(2**63))
    reach = np.where(game.people.value_maximizer, VALUE_GRID, UTILITY_REACH)
    widest = game.top / game.people.truthful_bids
    ours = np.array([style.reaches for style in styles]) & game.people.value_maximizer
    while ours.any():
        pilot = _Run(game, styles, reach, multiples, seed, requests)
        ends = pilot.go(max(4, rounds // PILOT)).last / game.people.truthful_bids
        low = (ends > CEILING * reach).any(axis=0) & ours & (reach < widest)
        if not low.any():
            break
        reach = np.where(low, np.minimum(2 * reach, widest), reach)
        say(f"{low.sum()} advertisers bid at the end of their grid; doubled, and begun anew")
    return _Run(game, styles, reach, multiples, seed, requests).go(rounds)


def starting_points(people: Population, starts: int, rng: np.random.Generator) -> Floats:
    """(R, N) multiples of the truthful bids: 1 in the first row, then log-uniform on `STARTS`."""
    low, high = np.array([STARTS[bool(vm)] for vm in people.value_maximizer]).T
    drawn = np.exp(rng.uniform(np.log(low), np.log(high), size=(starts, len(low))))
    drawn[0] = 1.0
    return drawn


@dataclass(frozen=True, eq=False)
class _Seats:
    """Advertisers that share a learner object, and the fixed bids they are compared with."""

    members: Ints
    learner: Learner
    grid: Floats
    fixed: bool  # whether the learner's strategies are mixtures over `grid`


class _Run:
    """A play under way."""

    def __init__(
        self,
        game: Game,
        styles: Sequence[Style],
        reach: Floats,
        multiples: Floats,
        seed: int,
        requests: int | None,
    ) -> None:
        self.game, self.multiples, self.requests = game, multiples, requests
        self.rng = np.random.default_rng([seed, 0])
        self.seats = _seats(game, styles, reach, multiples, seed)
        self.grid = _stacked([(each.members, each.grid) for each in self.seats])

    def go(self, rounds: int) -> Play:
        """Play `rounds` rounds."""
        R, N = self.multiples.shape
        G = self.grid.shape[1]
        bids = np.empty((rounds, R, N))
        # running means: fixed bids' value and payment, own value and payment
        fixed, own = np.zeros((2, R, N, G)), np.zeros((2, R, N))
        late = _Average(self.seats, rounds, self.rng)
        tried = np.empty((R, N, G + 1))
        tried[:, :, :G] = self.grid
        for t in range(rounds):
            mixtures = []
            for seats in self.seats:
                support, weights = seats.learner.strategy
                mixtures.append(weights)
                bids[t][:, seats.members] = (support * weights).sum(axis=-1)
                tried[:, seats.members, G] = seats.learner.bids()
                late.see(t, seats, support, weights)
            outcome = np.stack(self._round().curves(tried[:, :, G], tried))
            fixed += (outcome[..., :G] - fixed) / (t + 1)
            brought = outcome[..., G].copy()
            for seats, weights in zip(self.seats, mixtures, strict=True):
                if seats.fixed:
                    mixed = outcome[:, :, seats.members, : seats.grid.shape[1]]
                    brought[:, :, seats.members] = (mixed * weights).sum(axis=-1)
                self._teach(seats, *outcome)
            own += (brought - own) / (t + 1)
        support, weights = late.strategies(N)
        return Play(
            starts=self.multiples,
            bids=bids,
            support=support,
            weights=weights,
            grid=self.grid,
            value=fixed[0],
            payment=fixed[1],
            own_value=own[0],
            own_payment=own[1],
            reach=self.grid[:, -1] / self.game.people.truthful_bids,
        )

    def _round(self) -> Game:
        """The game on the requests of a round."""
        if self.requests is None:
            return self.game
        drawn = self.rng.choice(self.game.pool.shape[0], self.requests, replace=False)
        return Game(self.game.mechanism, self.game.pool.take(np.sort(drawn)), self.game.people)

    def _teach(self, seats: _Seats, value: Floats, payment: Floats) -> None:
        who, G = seats.members, seats.grid.shape[1]
        clicks = value[:, who] / self.game.people.values[who, None]
        paid = payment[:, who]
        wanted = seats.learner.grid is not None
        seats.learner.learn(
            Feedback(
                clicks=clicks[:, :, -1],
                charges=paid[:, :, -1],
                itctr=clicks[:, :, -1],
                payments=paid[:, :, -1],
                requests=np.ones(clicks.shape[:2]),
                grid_itctr=clicks[:, :, :G] if wanted else None,
                grid_payments=paid[:, :, :G] if wanted else None,
            )
        )


class _Average:
    """Strategies averaged over the second half of the rounds.

    Mixtures over a fixed grid are averaged exactly; of others, some rounds' are taken, drawn at
    random (evenly spaced ones would see a cycle at the same phase), and `POINTS` bids in all.
    """

    def __init__(self, seats: Sequence[_Seats], rounds: int, rng: np.random.Generator) -> None:
        self.first = rounds // 2
        self.order = rng.permutation(rounds - self.first)
        self.kept: dict[int, list[tuple[Floats, Floats]]] = {id(each): [] for each in seats}
        self.seats = seats

    def see(self, t: int, seats: _Seats, support: Floats, weights: Floats) -> None:
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


def _seats(
    game: Game, styles: Sequence[Style], reach: Floats, multiples: Floats, seed: int
) -> list[_Seats]:
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
        if type(learner).start_at is not Learner.start_at:
            learner.start_at(multiples[:, who])
        support = learner.strategy[0]
        mixes = support.ndim == 2
        grid = learner.grid if learner.grid is not None else support if mixes else None
        if grid is None:
            grid = game.top[who, None] * np.linspace(0, 1, YARDSTICK)
        fixed = mixes and np.array_equal(grid, support)
        seats.append(_Seats(who, learner, np.asarray(grid), fixed))
    return seats


def _stacked(parts: Sequence[tuple[Ints, Floats]]) -> Floats:
    """(N, G) grids in one array, the shorter ones ending in repetitions of their last bid."""
    N = sum(len(members) for members, _ in parts)
    G = max(grid.shape[1] for _, grid in parts)
    stacked = np.empty((N, G))
    for members, grid in parts:
        k = grid.shape[1]
        stacked[members, :k], stacked[members, k:] = grid, grid[:, -1:]
    return stacked
