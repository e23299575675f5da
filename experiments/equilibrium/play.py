"""Learners against each other: R replications from R starting points, in one vectorised run.

In every round the learners draw their bids, and get what they may see of the *expected* outcome
over the whole pool: no dice but theirs are thrown, realised amounts are the expected ones, and a
round's amounts are per request. With payoffs u_i and profiles b^1 .. b^T, the run keeps what regret
is made of: for every advertiser and every fixed bid g of its grid, the mean value and payment of
(g, b_−i^t), and those of its own strategies. The play is a coarse correlated equilibrium up to

    gap_i = max_g (1/T) Σ_t u_i(g, b_−i^t) − (1/T) Σ_t E u_i(b_i^t, b_−i^t)

(Moulin & Vial 1978), and its CCE gap is Σ_i gap_i over the value that all attain. The fixed bids g
reach as far as the deviations of `experiments.game`. For a value maximizer the greatest *value* is
taken among the bids whose value and payment, averaged over the play, meet the target ROI; what the
play owes to the target on average is counted beside the gap, as in `experiments.game`.

Starts: the first replication begins at the truthful bids, the others with every advertiser's bid at
its own multiple of the truthful one, drawn log-uniformly. A learner that keeps a mixture begins
with half its weight there and the rest spread over its grid: its mean bid is elsewhere. Where no
learner has a starting point, there is one replication.

Shapes: rounds T, replications R, advertisers N, grid bids G.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agents.learners.base import UTILITY_REACH, Feedback, Population, meets
from agents.learners.bid_grid import VALUE_GRID
from experiments.equilibrium.seats import AverageStrategies, Seats, Style, seats_of, stacked
from experiments.game import Game, fraction
from mechanisms.errors import BadInput
from mechanisms.pool import Bools, Floats

STARTS = {False: (0.05, UTILITY_REACH), True: (0.2, VALUE_GRID)}
"""Range of starting multiples, by whether the advertiser is a value maximizer."""
CEILING = 0.85  # a mean bid above this share of its grid wants a higher one
PILOT = 10  # one in so many rounds is played first, to see how high grids must reach


@dataclass(frozen=True, eq=False)
class Play:
    """What R replications of learners did over T rounds; money is per request of the pool.

    Attributes:
        starts: (R, N) multiples of the truthful bids that they began from.
        bids: (T, R, N) mean bids of the strategies, round by round.
        spread: (T, R, N) their standard deviations; 0 where a strategy is one bid.
        mixes: (N,) the learner's strategies are mixtures.
        support: (R, N, K) bids of the average strategies.
        weights: (R, N, K) their weights: strategies averaged over the second half of the rounds.
        grid: (N, G) fixed bids that the play is compared with.
        value: (R, N, G) mean value per round of the fixed bids, others as played; all rounds.
        payment: (R, N, G) mean payment likewise.
        own_value: (R, N) mean value of the strategies played.
        own_payment: (R, N) mean payment of the strategies played.
        reach: (N,) top of the learner's own bids, in multiples of the truthful bid; where it has no
            grid, the highest deviation.
    """

    starts: Floats
    bids: Floats
    spread: Floats
    mixes: Bools
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

    def path(self, people: Population) -> Floats:
        """(T, R, N, 2) means and standard deviations of the strategies, in truthful bids.

        The distance of two is at most Wasserstein's of order 2 (Gelbrich 1990), and for fixed bids
        that of the bids.
        """
        moments = np.stack([self.bids, self.spread], axis=-1)
        return moments / people.truthful_bids[:, None]

    def cce_gap(self, people: Population) -> Floats:
        """(R,) sum of the advertisers' gaps, dues to target ROIs included.

        As a fraction of the value that all attained together, like `Gains.exploitability`.
        """
        vm, roi = people.value_maximizer, people.target_roi
        met = meets(self.value, self.payment, roi[:, None])
        kept = np.where(met, self.value, -np.inf)
        fixed = np.where(vm[:, None], kept, self.value - self.payment).max(axis=2)
        own = np.where(vm, self.own_value, self.own_value - self.own_payment)
        owed = np.where(vm, roi * self.own_payment - self.own_value, 0.0)
        gap = (np.maximum(fixed - own, 0.0) + np.maximum(owed, 0.0)).sum(axis=1)
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
        starts: at least 1; R, unless no learner has a starting point.
        requests: requests of a round, drawn without replacement and met by all replications;
            default the whole pool.
        say: told in a line when grids are widened.

    Raises:
        BadInput: numbers out of range, or a style that a learner refuses.
    """
    check_size(rounds, starts, requests, game.pool.shape[0])
    if not any(style.starts for style in styles):
        starts = 1
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


def check_size(rounds: int, starts: int, requests: int | None, pool: int) -> None:
    """Refuse a play that cannot be.

    Raises:
        BadInput: fewer rounds or starts than make sense, or not 1 to `pool` requests a round.
    """
    if rounds < 4 or starts < 1 or not (requests is None or 1 <= requests <= pool):
        raise BadInput(f"play: rounds >= 4, starts >= 1 and 1 <= requests <= {pool}")


def starting_points(people: Population, starts: int, rng: np.random.Generator) -> Floats:
    """(R, N) multiples of the truthful bids: 1 in the first row, then log-uniform on `STARTS`."""
    low, high = np.array([STARTS[bool(vm)] for vm in people.value_maximizer]).T
    drawn = np.exp(rng.uniform(np.log(low), np.log(high), size=(starts, len(low))))
    drawn[0] = 1.0
    return drawn


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
        self.seats = seats_of(game, styles, reach, multiples, seed)
        self.grid = stacked([(each.members, each.grid) for each in self.seats])

    def go(self, rounds: int) -> Play:
        """Play `rounds` rounds."""
        R, N = self.multiples.shape
        G = self.grid.shape[1]
        bids, spread = np.empty((rounds, R, N)), np.zeros((rounds, R, N))
        # running means: fixed bids' value and payment, own value and payment
        fixed, own = np.zeros((2, R, N, G)), np.zeros((2, R, N))
        late = AverageStrategies(self.seats, rounds, self.rng)
        tried = np.empty((R, N, G + 1))
        tried[:, :, :G] = self.grid
        for t in range(rounds):
            mixtures = []
            for seats in self.seats:
                support, weights = seats.learner.strategy
                mixtures.append(weights)
                mean = (support * weights).sum(axis=-1)
                bids[t][:, seats.members] = mean
                if seats.mixes:
                    squares = (support - mean[..., None]) ** 2
                    spread[t][:, seats.members] = np.sqrt((squares * weights).sum(axis=-1))
                tried[:, seats.members, G] = seats.learner.bids()
                late.see(t, seats, support, weights)
            outcome = np.stack(self._round().curves(tried[:, :, G], tried))
            fixed += (outcome[..., :G] - fixed) / (t + 1)
            brought = outcome[..., G].copy()
            for seats, weights in zip(self.seats, mixtures, strict=True):
                if seats.fixed:
                    mixed = outcome[:, :, seats.members, : seats.own]
                    brought[:, :, seats.members] = (mixed * weights).sum(axis=-1)
                self._teach(seats, *outcome)
            own += (brought - own) / (t + 1)
        support, weights = late.strategies(N)
        mixes, reach = np.empty(N, dtype=bool), np.empty(N)
        for seats in self.seats:
            mixes[seats.members] = seats.mixes
            reach[seats.members] = seats.grid[:, seats.own - 1]
        return Play(
            starts=self.multiples,
            bids=bids,
            spread=spread,
            mixes=mixes,
            support=support,
            weights=weights,
            grid=self.grid,
            value=fixed[0],
            payment=fixed[1],
            own_value=own[0],
            own_payment=own[1],
            reach=reach / self.game.people.truthful_bids,
        )

    def _round(self) -> Game:
        """The game on the requests of a round."""
        if self.requests is None:
            return self.game
        drawn = self.rng.choice(self.game.pool.shape[0], self.requests, replace=False)
        return Game(self.game.mechanism, self.game.pool.take(np.sort(drawn)), self.game.people)

    def _teach(self, seats: Seats, value: Floats, payment: Floats) -> None:
        who, G = seats.members, seats.own
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
