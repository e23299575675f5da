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

Best replies are searched for: on an even grid, finely around its several highest peaks, and, under
slot auctions, just above the bids at which an advertiser gets into a reply. What is found can be
attained, so gains and exploitability are *lower bounds*: exact for smooth rules and for a single
slot up to the resolution, where more slots or mixed rivals make many jumps perhaps too low.

All deviations come from `Mechanism.counterfactual`, R profiles at a time. `best_response.py` finds
equilibria from `Mechanism.allocate` alone, as an independent check of these.

Shapes: profiles R, advertisers N, grid bids G; requests B and ads n of the pool.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from agents.learners.base import UTILITY_REACH, VALUE_REACH, Population, meets
from experiments.critical_bids import critical_bids
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, Ints, ReplyPool

COARSE, FINE, PEAKS = 121, 13, 3
"""Points of the first grid over an advertiser's range, of each finer one around a peak, and of how
many of the highest peaks."""
RESOLUTION = 1e-4  # of the truthful bid: where the search for a best reply ends
_BLOCK = 4_000_000  # outcomes of deviations held at once
Objective = Literal["utility", "value"]


def population_of(
    pool: ReplyPool,
    values: ArrayLike,
    objective: Objective | Sequence[Objective] = "utility",
    roi: ArrayLike | None = None,
) -> Population:
    """Private types of all N advertisers of a pool, without budgets.

    Raises:
        BadInput: not one for each advertiser, an unknown objective, or a number not above 0.
    """
    N = pool.num_advertisers
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (N,):
        raise BadInput(f"values have shape {values.shape}; give one for each of {N} advertisers")
    kinds = [objective] * N if isinstance(objective, str) else list(objective)
    unknown = [kind for kind in kinds if kind not in ("utility", "value")]
    if unknown or len(kinds) != N:
        what = f"{unknown[0]!r}" if unknown else f"{len(kinds)} entries"
        raise BadInput(f"objective has {what}; give 'utility' or 'value', or {N} of them")
    targets = np.asarray(1.0 if roi is None else roi, dtype=np.float64)
    if targets.shape not in ((), (N,)):
        raise BadInput(f"roi has shape {targets.shape}; give a number, or one for each of {N}")
    for name, given in (("values", values), ("roi", targets)):
        if not (np.isfinite(given) & (given > 0)).all():
            raise BadInput(f"{name} hold a number that is not above 0 and finite; give others")
    vm = np.array([kind == "value" for kind in kinds])
    return Population(
        values=values,
        value_maximizer=vm,
        target_roi=np.where(vm, targets, 1.0),
        budget=np.full(N, np.inf),
    )


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
        met = meets(value, payment, self.people.target_roi[:, None])
        return np.where(vm, np.where(met, value, -np.inf), value - payment)

    def best_replies(
        self, bids: ArrayLike, also: ArrayLike | None = None, *, pooled: bool = False
    ) -> BestReplies:
        """Best fixed bids against each profile that a search finds; see the module.

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
        # against many draws outcomes jump everywhere, a little
        jumps = critical_bids(self.mechanism, self.pool, played)
        tried.append(np.where(jumps <= self.top[:, None], jumps, 0.0))
        if also is not None:
            also = np.asarray(also, dtype=np.float64)
            tried.append(np.broadcast_to(also, (R, *also.shape)))
        found = self._scored(bids, np.sort(np.concatenate(tried, axis=2), axis=2))
        peaks = _at(found, _highest_peaks(found[0]))
        width = self.top / (COARSE - 1)
        while (width > RESOLUTION * self.people.truthful_bids).any():
            low = np.maximum(peaks[1] - width[:, None], 0.0)
            high = np.minimum(peaks[1] + width[:, None], self.top[:, None])
            finer = low[..., None] + (high - low)[..., None] * np.linspace(0, 1, FINE)
            # the best so far goes along: a finer grid may miss it
            finer = np.sort(np.concatenate([finer, peaks[1][..., None]], axis=3), axis=3)
            found = self._scored(bids, finer.reshape(R, N, -1))
            around = tuple(x.reshape(finer.shape) for x in found)
            # bids ascend, so that the first of the greatest is the lowest
            peaks = tuple(x[..., 0] for x in _at(around, around[0].argmax(axis=3)[..., None]))
            width = 2 * width / (FINE - 1)
        score, tried = peaks[:2]
        lowest = np.where(score == score.max(axis=2, keepdims=True), tried, np.inf).argmin(axis=2)
        return BestReplies(*(x[:, :, 0] for x in _at(peaks, lowest[:, :, None])[1:]))

    def gains(
        self, bids: ArrayLike, also: ArrayLike | None = None, *, pooled: bool = False
    ) -> Gains:
        """What each advertiser could gain against each profile.

        Args:
            bids: (R, N) profiles.
            also: as in `best_replies`.
            pooled: the profiles are rounds of play, and an advertiser's gain is its regret: what
                the best single bid would have brought on average, less what was attained, or 0
                where no single bid does as well. Where nobody gains, play is a coarse correlated
                equilibrium. All arrays are then (1, N).
        """
        bids = self._profiles(bids)
        value, payment = self.outcome(bids)
        if pooled:
            value, payment = (x.mean(axis=0, keepdims=True) for x in (value, payment))
        best = self.best_replies(bids, also, pooled=pooled)
        vm = self.people.value_maximizer
        now = np.where(vm, value, value - payment)
        attainable = np.where(vm, best.value, best.value - best.payment)
        target = self.people.target_roi
        missed = vm & ~meets(value, payment, target)
        return Gains(
            gain=np.maximum(attainable - now, 0.0),
            owed=np.where(missed, target * payment - value, 0.0),
            value=value,
            best=best,
        )

    def _scored(self, bids: Floats, tried: Floats) -> tuple[Floats, ...]:
        """(R, N, K) each: objective, bid, value and payment of `tried` (R, N, K).

        Against each of the profiles or, for R = 1, against all of them.
        """
        if len(tried) < len(bids):
            value, payment = (x.mean(axis=0)[None] for x in self.curves(bids, tried[0]))
        else:
            value, payment = self.curves(bids, tried)
        return self.objective(value, payment), tried, value, payment

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


def _at(found: tuple[Floats, ...], pick: Ints) -> tuple[Floats, ...]:
    return tuple(np.take_along_axis(x, pick, axis=-1) for x in found)


def _highest_peaks(score: Floats) -> Ints:
    """(R, N, PEAKS) where scores (R, N, K) are locally greatest, best first; of plateaus the start.

    Where there are fewer peaks, other bids fill the places.
    """
    outside = np.full((*score.shape[:2], 1), -np.inf)
    before = np.concatenate([outside, score[:, :, :-1]], axis=2)
    after = np.concatenate([score[:, :, 1:], outside], axis=2)
    height = np.where((score > before) & (score >= after), score, -np.inf)
    return np.argsort(-height, axis=2, kind="stable")[:, :, :PEAKS]
