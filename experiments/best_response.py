"""Best responses: an independent check of what learners found, on the same pool.

Advertisers start truthful and take turns. Each moves to the bid that is best against the others'
bids, over every request of the pool with equal weight:

    utility maximizer    max_b  Σ_x v·itctr(b) − payment(b)                    b in [0, 1.5 v]
    value maximizer      max_b  Σ_x v·itctr(b)                                b in [0, 10 v/tau_roi]
                         subject to  Σ_x v·itctr(b) >= tau_roi · Σ_x payment(b)

until nobody moves. Outcomes come from `Mechanism.allocate` alone, so a mistake in the kernels that
learners learn from (`counterfactual`) would show as a disagreement with what they learned.

What it is: a search for a Nash equilibrium in fixed bids, one number per advertiser for the whole
pool. Where it converges, no advertiser gains by another fixed bid within the range, up to the
resolution of the grid. What it is not: a proof that the equilibrium is unique or that learners must
reach it; a check of strategies that randomise or differ by request; a certificate where it does not
converge (first-price slots have no equilibrium in fixed bids, in general). Budgets are left out.

Where bids tie, an advertiser stays with the bid it has, and otherwise takes the lowest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from agents.learners.base import UTILITY_REACH, VALUE_REACH, Population, meets
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.periods import concerning
from mechanisms.pool import Bools, Floats, Ints, ReplyPool

TIE = 1e-12  # gains below this fraction of the score are none
GAIN = 1e-3  # smallest gain, as a fraction of the score, that speaks against convergence
COPIES = 20_000  # requests allocated in one call, to bound memory

NEVER_SHOWN = "never shown: every bid gives 0"
NOT_BINDING = f"ROI target does not bind up to the cap of {VALUE_REACH:g} v/target"
AT_TOP = f"best at the upper end of the range, {UTILITY_REACH:g} v"


@dataclass(frozen=True, eq=False)
class BestResponse:
    """Where iterated best response ended.

    Attributes:
        frame: a row per advertiser: advertiser, objective ("utility" or "value"), value,
            target_roi, best_bid, bid_over_value, bid_over_target (best_bid · target_roi / value;
            null for utility maximizers), utility (v·itctr − payment, summed over the pool's
            requests), roi (v·itctr / payment; null where nothing is paid), note (where the best bid
            is not determined by the objective; else empty).
        bids: (N,) the best bids.
        converged: in the last sweep nobody moved by more than twice the resolution, nor gained more
            than `GAIN` (rivals who outbid each other by a hair move little and gain much).
        sweeps: turns that every advertiser took.
        moved: largest move in the last sweep, as a fraction of the truthful bid.
        gained: largest gain in the last sweep, as a fraction of what was then attained.
    """

    frame: pl.DataFrame
    bids: Floats
    converged: bool
    sweeps: int
    moved: float
    gained: float

    def labelled(self, mechanism: str) -> pl.DataFrame:
        """The frame with columns `mechanism`, `converged` and `sweeps`, to stack several."""
        return self.frame.select(
            pl.lit(mechanism).alias("mechanism"),
            pl.all(),
            pl.lit(self.converged).alias("converged"),
            pl.lit(self.sweeps).alias("sweeps"),
        )


def best_responses(
    mechanism: Mechanism,
    pool: ReplyPool,
    population: Population,
    *,
    start: ArrayLike | None = None,
    sweeps: int = 20,
    grid: int = 61,
    zoom: int = 13,
    tolerance: float = 1e-4,
) -> BestResponse:
    """Iterate best responses of all advertisers over the whole pool.

    Args:
        mechanism: any; only `allocate` is called.
        pool: candidate replies; advertiser i of `population` is advertiser i of `pool.ads`.
        population: all N advertisers of the pool.
        start: (N,) bids to start from, default truthful.
        sweeps: at most so many turns each, at least 1.
        grid: points of the coarse grid over the range, at least 3.
        zoom: points of each finer grid, laid over the two cells around the best point so far.
        tolerance: final resolution of a bid, as a fraction of the truthful bid.

    Raises:
        BadInput: a population of another size than the pool's, a bad start, or fewer points,
            sweeps or tolerance than make sense.
    """
    N = pool.num_advertisers
    if len(population.values) != N:
        raise BadInput(f"{len(population.values)} advertisers for a pool of {N}; give one each")
    if grid < 3 or zoom < 5 or sweeps < 1 or not 0 < tolerance < 1:
        raise BadInput("best_responses: grid >= 3, zoom >= 5, sweeps >= 1 and 0 < tolerance < 1")
    bids = np.array(population.truthful_bids if start is None else start, dtype=np.float64)
    if bids.shape != (N,) or not (np.isfinite(bids).all() and (bids >= 0).all()):
        raise BadInput(f"start must be {N} finite bids >= 0; got {bids}")
    bidders = [_Bidder(mechanism, pool, population, i, tolerance) for i in range(N)]
    moved, gained, sweep, converged = 0.0, 0.0, 0, False
    while sweep < sweeps and not converged:
        sweep += 1
        before, gains = bids.copy(), np.zeros(N)
        for i, bidder in enumerate(bidders):
            bids[i], gains[i] = bidder.respond(bids, grid, zoom)
        moved = float((np.abs(bids - before) / population.truthful_bids).max(initial=0.0))
        gained = float(gains.max(initial=0.0))
        converged = moved <= 2 * tolerance and gained <= GAIN
    notes = [bidder.note(bids, grid) for bidder in bidders]
    frame = _frame(mechanism, pool, population, bids, notes)
    return BestResponse(frame, bids, converged, sweep, moved, gained)


class _Bidder:
    """One advertiser's view of the pool: the requests that decide on what it gets."""

    def __init__(
        self,
        mechanism: Mechanism,
        pool: ReplyPool,
        population: Population,
        index: int,
        tolerance: float,
    ) -> None:
        self.index = index
        self.mechanism = mechanism
        self.requests: Ints = concerning(mechanism, pool, index)
        # (B, n) where its ad is listed
        self.own: Bools = pool.ads[self.requests] == index
        self.pool = pool.take(self.requests) if len(self.requests) else None
        self.value = float(population.values[index])
        self.roi = float(population.target_roi[index])
        self.value_maximizer = bool(population.value_maximizer[index])
        self.limited = bool(np.isfinite(population.budget[index]))
        self.truthful = float(population.truthful_bids[index])
        self.resolution = tolerance * self.truthful
        self.top = self.truthful * (VALUE_REACH if self.value_maximizer else UTILITY_REACH)

    def outcome(self, bids: Floats, tried: Floats) -> tuple[Floats, Floats]:
        """(G,) value and payment of each bid in `tried`, summed over requests; others fixed."""
        if self.pool is None:
            return np.zeros(len(tried)), np.zeros(len(tried))
        B = len(self.requests)
        each = max(1, COPIES // B)
        parts = [self._allocate(bids, tried[k : k + each], B) for k in range(0, len(tried), each)]
        clicks, paid = (np.concatenate(part) for part in zip(*parts, strict=True))
        return self.value * clicks, paid

    def _allocate(self, bids: Floats, tried: Floats, B: int) -> tuple[Floats, Floats]:
        G = len(tried)
        copies = self.pool.take(np.tile(np.arange(B), G))
        own = np.tile(self.own, (G, 1))
        profile = np.where(own, np.repeat(tried, B)[:, None], bids[copies.ads])
        found = self.mechanism.allocate(copies, profile)
        return (
            np.where(own, found.itctr, 0.0).reshape(G, -1).sum(axis=1),
            np.where(own, found.payments, 0.0).reshape(G, -1).sum(axis=1),
        )

    def objective(self, bids: Floats, tried: Floats) -> Floats:
        """(G,) what the advertiser maximises; minus infinity where it misses its ROI target."""
        value, paid = self.outcome(bids, tried)
        if not self.value_maximizer:
            return value - paid
        return np.where(meets(value, paid, self.roi), value, -np.inf)

    def respond(self, bids: Floats, grid: int, zoom: int) -> tuple[float, float]:
        """The best bid against `bids`, and the gain as a fraction of what it attains.

        A coarse grid, then finer ones around its best point. Where the present bid misses the ROI
        target there is nothing to compare with, and the gain counts as 0.
        """
        current = float(bids[self.index])
        tried = np.append(np.linspace(0.0, self.top, grid), (current, self.truthful))
        scores = self.objective(bids, tried)
        stay = scores[grid]
        best, score = _pick(tried, scores)
        width = self.top / (grid - 1)
        while width > self.resolution:
            # Wide enough for both neighbours, so that a best point at an edge loses nothing.
            tried = np.linspace(max(best - width, 0.0), min(best + width, self.top), zoom)
            finer, finer_score = _pick(tried, self.objective(bids, tried))
            if finer_score > score:
                best, score = finer, finer_score
            width = (tried[-1] - tried[0]) / (zoom - 1)
        if not np.isfinite(stay):
            return best, 0.0
        if score <= stay + TIE * max(abs(score), abs(stay)):
            return current, 0.0
        return best, (score - stay) / max(abs(score), abs(stay))

    def note(self, bids: Floats, grid: int) -> str:
        """Where the objective leaves the best bid open, in words; empty where it does not."""
        tried = np.append(np.linspace(0.0, self.top, grid), bids[self.index])
        value, _ = self.outcome(bids, tried)
        scores = self.objective(bids, tried)
        notes = ["budget left out"] if self.limited else []
        if not value.any():
            return "; ".join([NEVER_SHOWN, *notes])
        best = scores.max()
        ties = tried[scores >= best - TIE * abs(best)]
        if np.ptp(ties) > 2 * self.top / (grid - 1):
            low, high = ties.min() / self.truthful, ties.max() / self.truthful
            notes.insert(0, f"flat: {low:.3g} to {high:.3g} × truthful do as well")
        if bids[self.index] >= self.top * (1 - TIE):
            notes.insert(0, NOT_BINDING if self.value_maximizer else AT_TOP)
        return "; ".join(notes)


def _pick(tried: Floats, scores: Floats) -> tuple[float, float]:
    """The lowest bid among those of greatest score."""
    best = scores.max()
    if best == -np.inf:  # cannot happen where bidding 0 is free; then bid nothing
        return 0.0, -np.inf
    return float(tried[scores >= best - TIE * abs(best)].min()), float(best)


def _frame(
    mechanism: Mechanism, pool: ReplyPool, people: Population, bids: Floats, notes: list[str]
) -> pl.DataFrame:
    found = mechanism.allocate(pool, bids)
    N = len(bids)

    def total(amounts: Floats) -> Floats:
        return np.bincount(pool.ads.ravel(), weights=amounts.ravel(), minlength=N)

    value, paid = people.values * total(found.itctr), total(found.payments)
    vm = people.value_maximizer
    with np.errstate(divide="ignore", invalid="ignore"):
        roi = np.where(paid > 0, value / paid, np.nan)
    return pl.DataFrame(
        {
            "advertiser": np.arange(N),
            "objective": np.where(vm, "value", "utility").tolist(),
            "value": people.values,
            "target_roi": people.target_roi,
            "best_bid": bids,
            "bid_over_value": bids / people.values,
            "bid_over_target": np.where(vm, bids * people.target_roi / people.values, np.nan),
            "utility": value - paid,
            "roi": roi,
            "note": notes,
        }
    ).with_columns(pl.col("bid_over_target", "roi").fill_nan(None))
