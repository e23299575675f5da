"""The auction as a game in fixed bids: what each gets, gains by deviating, and best replies with.

A profile is one bid per advertiser, and its outcome the expected one over every request of a pool,
each with equal weight; amounts are money per request of the pool. The objectives are

    utility maximizer    max_b  v·x(b) − p(b)                                b in [0, 1.5 v]
    value maximizer      max_b  v·x(b)   subject to  v·x(b) >= tau_roi·p(b)  b in [0, 10 v/tau_roi]

with x expected clicks and p expected payments. `gains` compares a bid with the best fixed bid
against the same rivals. A value maximizer that misses its target plays no feasible strategy: what
it owes, `tau_roi·p − v·x`, counts beside its gain, so that a profile is an equilibrium exactly
where both are 0. NashConv (exploitability) is their sum over advertisers; divided by the value that
all of them attain, it is free of units.

All deviations come from `Mechanism.counterfactual`, R profiles at a time. `best_response.py` finds
equilibria from `Mechanism.allocate` alone, as an independent check of these.

Shapes: profiles R, advertisers N, grid bids G; requests B and ads n of the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from agents.learners.base import UTILITY_REACH, VALUE_REACH, Population
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, ReplyPool

ROUNDING = 1e-9  # of what a target ROI asks for, forgiven as rounding
COARSE, FINE = 61, 13
"""Points of the first grid over an advertiser's range, and of each finer one around the best."""
RESOLUTION = 1e-4  # of the truthful bid: where the search for a best reply ends
_BLOCK = 4_000_000  # outcomes of deviations held at once


@dataclass(frozen=True, eq=False)
class BestReplies:
    """Best fixed bids against R profiles, each (R, N).

    Attributes:
        bids: the best replies.
        value: expected value `v·x` attained by them.
        payment: expected payment.
    """

    bids: Floats
    value: Floats
    payment: Floats


@dataclass(frozen=True, eq=False)
class Gains:
    """What advertisers could gain, and what value maximizers owe to their targets.

    Attributes:
        gain: (R, N) best reply's objective less the present one's, >= 0.
        owed: (R, N) `tau_roi·p − v·x` of value maximizers that miss their target, else 0.
        value: (R, N) value attained at present.
        best: the best replies.
    """

    gain: Floats
    owed: Floats
    value: Floats
    best: BestReplies

    @property
    def nash_conv(self) -> Floats:
        """(R,) sum over advertisers of gain and what is owed, money per request."""
        return (self.gain + self.owed).sum(axis=1)

    @property
    def exploitability(self) -> Floats:
        """(R,) NashConv as a fraction of the value that all advertisers attain together."""
        return fraction(self.nash_conv, self.value.sum(axis=1))


def fraction(part: Floats, whole: Floats) -> Floats:
    """`part / whole`, both >= 0; where the whole is 0, 0 if the part is and else infinite."""
    nothing = np.where(part > 0, np.inf, 0.0)
    return np.divide(part, whole, out=nothing, where=whole > 0)


@dataclass(frozen=True, eq=False)
class Game:
    """Advertisers with given values against each other under a mechanism, on a whole pool.

    Attributes:
        mechanism: any.
        pool: candidate replies; advertiser i of `people` is advertiser i of `pool.ads`.
        people: private types of all N advertisers; budgets are left out.

    Raises:
        BadInput: a population of another size than the pool's.
    """

    mechanism: Mechanism
    pool: ReplyPool
    people: Population

    def __post_init__(self) -> None:
        count = len(self.people.values)
        if count != self.pool.num_advertisers:
            raise BadInput(
                f"{count} advertisers for a pool of {self.pool.num_advertisers}; give one each"
            )

    @cached_property
    def top(self) -> Floats:
        """(N,) highest bid that a deviation may have."""
        reach = np.where(self.people.value_maximizer, VALUE_REACH, UTILITY_REACH)
        return self.people.truthful_bids * reach

    def outcome(self, bids: ArrayLike) -> tuple[Floats, Floats]:
        """(R, N) expected value `v·x` and payment per request, at profiles `bids` (R, N)."""
        bids = self._profiles(bids)
        value, payment = self.curves(bids, bids[:, :, None])
        return value[:, :, 0], payment[:, :, 0]

    def curves(self, bids: ArrayLike, grid: ArrayLike) -> tuple[Floats, Floats]:
        """(R, N, G) value and payment of each advertiser along its grid, the others' bids fixed.

        Args:
            bids: (R, N) profiles.
            grid: (N, G) bids to try, or (R, N, G) where they differ by profile.
        """
        bids = self._profiles(bids)
        R, N = bids.shape
        grid = np.asarray(grid, dtype=np.float64)
        grid = np.broadcast_to(grid, (R, N, grid.shape[-1]))
        clicks, payment = np.empty(grid.shape), np.empty(grid.shape)
        for rows in self._blocks(R, grid.shape[2]):
            clicks[rows], payment[rows] = self._sums(bids[rows], grid[rows])
        return self.people.values[:, None] * clicks, payment

    def objective(self, value: Floats, payment: Floats) -> Floats:
        """(..., N, G) what is maximised: minus infinity where a target ROI is missed."""
        vm = self.people.value_maximizer[:, None]
        owed = self.people.target_roi[:, None] * payment
        meets = value >= owed - ROUNDING * np.abs(owed)
        return np.where(vm, np.where(meets, value, -np.inf), value - payment)

    def best_replies(
        self, bids: ArrayLike, also: ArrayLike | None = None, *, pooled: bool = False
    ) -> BestReplies:
        """Best fixed bids against each profile: a coarse grid, then finer ones around its best.

        The bids played (on average, where profiles are pooled) and the truthful ones are tried too,
        so that the reply to a profile is never worse than what is played. Of bids that do equally
        well the lowest is taken.

        Args:
            bids: (R, N) profiles.
            also: (N, K) further bids to try, if any.
            pooled: take the R profiles for equally likely draws of one, and reply to that one: a
                mixed profile if advertisers' draws are independent. The replies are then (1, N).
        """
        bids = self._profiles(bids)
        played = bids.mean(axis=0, keepdims=True) if pooled else bids
        R, N = played.shape
        grid = self.top[:, None] * np.linspace(0, 1, COARSE)
        truthful = np.broadcast_to(self.people.truthful_bids, (R, N))
        tried = [np.broadcast_to(grid, (R, N, COARSE)), np.stack([played, truthful], axis=2)]
        if also is not None:
            also = np.asarray(also, dtype=np.float64)
            tried.append(np.broadcast_to(also, (R, *also.shape)))
        best = self._best_of(bids, np.concatenate(tried, axis=2))
        width = self.top / (COARSE - 1)
        while (width > RESOLUTION * self.people.truthful_bids).any():
            low = np.maximum(best.bids - width, 0.0)
            high = np.minimum(best.bids + width, self.top)
            steps = np.linspace(0, 1, FINE)
            finer = low[:, :, None] + (high - low)[:, :, None] * steps
            # the best so far goes along: a finer grid may miss it
            best = self._best_of(bids, np.concatenate([finer, best.bids[:, :, None]], axis=2))
            width = 2 * width / (FINE - 1)
        return best

    def gains(self, bids: ArrayLike, also: ArrayLike | None = None) -> Gains:
        """What each advertiser could gain against each profile; `also` as in `best_replies`."""
        bids = self._profiles(bids)
        value, payment = self.outcome(bids)
        best = self.best_replies(bids, also)
        vm = self.people.value_maximizer
        now = np.where(vm, value, value - payment)
        attainable = np.where(vm, best.value, best.value - best.payment)
        owed = np.where(vm, self.people.target_roi * payment - value, 0.0)
        forgiven = ROUNDING * self.people.target_roi * payment
        return Gains(
            gain=np.maximum(attainable - now, 0.0),
            owed=np.where(owed > forgiven, owed, 0.0),
            value=value,
            best=best,
        )

    def _best_of(self, bids: Floats, tried: Floats) -> BestReplies:
        """The best of `tried` (R, N, K), against each of R profiles or, for R = 1, against all."""
        tried = np.sort(tried, axis=2)
        if len(tried) < len(bids):
            value, payment = (x.mean(axis=0)[None] for x in self.curves(bids, tried[0]))
        else:
            value, payment = self.curves(bids, tried)
        # bids ascend, so that the first of the greatest is the lowest
        pick = self.objective(value, payment).argmax(axis=2)[:, :, None]
        chosen = (np.take_along_axis(x, pick, axis=2)[:, :, 0] for x in (tried, value, payment))
        return BestReplies(*chosen)

    def _profiles(self, bids: ArrayLike) -> Floats:
        bids = np.asarray(bids, dtype=np.float64)
        if bids.ndim != 2 or bids.shape[1] != self.pool.num_advertisers:
            raise BadInput(
                f"profiles have shape {bids.shape}; give (R, N = {self.pool.num_advertisers})"
            )
        return bids

    def _blocks(self, profiles: int, width: int) -> Iterator[slice]:
        B, M, n = self.pool.shape
        each = max(1, _BLOCK // max(1, B * n * max(M, width)))
        for start in range(0, profiles, each):
            yield slice(start, min(start + each, profiles))

    def _sums(self, bids: Floats, grid: Floats) -> tuple[Floats, Floats]:
        """(R, N, G) mean clicks and payments per request of the pool."""
        R, N, G = grid.shape
        B = self.pool.shape[0]
        profile = np.repeat(np.arange(R), B)[:, None]
        batch = self.pool.take(np.tile(np.arange(B), R))
        found = self.mechanism.counterfactual(
            batch, bids[profile, batch.ads], grid[profile, batch.ads]
        )
        bins = ((batch.ads + N * profile)[:, :, None] * G + np.arange(G)).ravel()
        clicks, payments = (
            np.bincount(bins, amounts.ravel(), R * N * G).reshape(R, N, G) / B for amounts in found
        )
        return clicks, payments
