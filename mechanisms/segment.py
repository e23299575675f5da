"""Segment auction: an ad is drawn for each segment of the reply (Hajiaghayi et al., 2406.09459).

Each of k segments draws one ad, independently and with replacement, with probability proportional
to bid × relevance, where q_i is ad i's click rate when shown alone and s_0 the weight of no ad:

    p_i = b_i·q_i / (s_0 + Σ_l b_l·q_l);  no ad is drawn where all weights are 0.

The reply shows the distinct ads drawn. On a pool it is drawn, by importance weight, from those that
show exactly these. Where there are none, the LLM could not write the further segments: the longest
prefix of the draws whose set is renderable (`mechanisms.slots`) is shown. Where no prefix is, not
even that of no draws, the request is served, whatever the bids, by the replies that show the fewest
ads, which then count as unsold but may be clicked.

Payments are Myerson's, `b·x_i(b) − ∫_0^b x_i(z)dz`, of the click rate x_i of the *whole* reply, so
that what the other ads shown do to ad i's clicks is priced too. Everything is exact: all (n + 1)^k
sequences of draws are enumerated. Given that ad i is drawn m times, what else is drawn does not
depend on its bid; so with `a_m` its click rate then, u = b·q_i, S = s_0 + Σ_{l≠i} b_l·q_l,

    x_i = Σ_{m=0..k} C(k,m)·t^m·(1−t)^(k−m)·a_m,  t = u/(u + S),

and the integral has a closed form (`mechanisms.payments.myerson_draws`).

Truth is optimal where x_i does not fall in the bid, for which it is enough that a_m does not fall
in m. That holds for one segment on any pool, and for two or three where every subset of a
renderable set is renderable and an ad is clicked no more often in a larger set than in a smaller.
Pools as recorded can break either slightly. Payments are below 0 only where x_i falls.

Shapes: requests B, replies M, ads n, segments k, sequences Q = (n + 1)^k, grid bids G.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from mechanisms.base import Allocation, Mechanism, blocks
from mechanisms.checks import Parametric, bid_grid, claims_weights, non_negative, one_of
from mechanisms.payments import myerson_draws, price_per_click
from mechanisms.pool import Floats, Ints, ReplyPool
from mechanisms.slots import RenderableSets, stand_alone_ctr

# Array elements a block of requests may hold: 8 MB of float64, which caches still help with.
_BLOCK = 1_000_000


@dataclass(frozen=True)
class SegmentAuction(Parametric, Mechanism):
    """An ad for each segment, drawn in proportion to bid × relevance, at Myerson's price.

    Attributes:
        segments: k, how many ads are drawn; 1 to 3.
        no_ad: s_0, the weight of leaving a segment without an ad, in money per reply like
            bid × relevance.
    """

    name: ClassVar[str] = "segment"

    segments: int = 1
    no_ad: float = 0.0

    def __post_init__(self) -> None:
        one_of("segments", self.segments, (1, 2, 3))
        non_negative("no_ad", self.no_ad)

    def allocate(self, pool: ReplyPool, bids: ArrayLike) -> Allocation:
        """Expected outcome of `bids`, (N,) by advertiser or (B, n) by request."""
        claims_weights(self.name, pool)
        by_request = pool.bids_by_request(bids)
        B, M, n = pool.shape
        probabilities, itctr, payments = np.empty((B, M)), np.empty((B, n)), np.empty((B, n))
        for rows in self._blocks(pool):
            part, mine = pool.take(rows), by_request[rows]
            shown = ShownBySequence.of(part, self.segments)
            relevance = stand_alone_ctr(part)
            reached = shown.reached(self._weights(relevance, mine))
            probabilities[rows] = (reached[:, None] @ shown.within)[:, 0]
            itctr[rows] = (reached[:, None] @ shown.ctr)[:, 0]
            payments[rows] = self._curves(shown, relevance, mine).at(mine[:, :, None])[1][:, :, 0]
        return Allocation(probabilities=probabilities, itctr=itctr, payments=payments)

    def charge(
        self,
        pool: ReplyPool,
        bids: Floats,
        allocation: Allocation,
        chosen: Ints,
        clicks: NDArray[np.bool_],
    ) -> Floats:
        """(B, n) price per click `p_i / x_i` of every clicked ad: one price for every reply."""
        return price_per_click(allocation.payments, allocation.itctr) * clicks

    def counterfactual(
        self, pool: ReplyPool, bids: ArrayLike, alternatives: Floats
    ) -> tuple[Floats, Floats]:
        """As `Mechanism.counterfactual`: sequences are enumerated once for all bids."""
        claims_weights(self.name, pool)
        by_request = pool.bids_by_request(bids)
        grid = bid_grid(pool, alternatives)
        itctr, payments = np.empty_like(grid), np.empty_like(grid)
        for rows in self._blocks(pool, grid.shape[2]):
            part = pool.take(rows)
            shown = ShownBySequence.of(part, self.segments)
            curves = self._curves(shown, stand_alone_ctr(part), by_request[rows])
            itctr[rows], payments[rows] = curves.at(grid[rows])
        return itctr, payments

    def _weights(self, relevance: Floats, bids: Floats) -> Floats:
        """(B, n + 1) `b_i·q_i` of the ads and, last, the weight of no ad."""
        return np.concatenate([bids * relevance, np.full((len(bids), 1), self.no_ad)], axis=1)

    def _curves(self, shown: ShownBySequence, relevance: Floats, bids: Floats) -> ClickCurves:
        return ClickCurves.of(shown, relevance, self._weights(relevance, bids))

    def _blocks(self, pool: ReplyPool, grid_bids: int = 1) -> Iterator[Ints]:
        B, M, n = pool.shape
        held = M * max(M, n) + max(1, n) * ((n + 1) ** self.segments + grid_bids)
        return blocks(B, held, _BLOCK)


@dataclass(frozen=True, eq=False)
class ShownBySequence:
    """What each sequence of k draws comes to, whatever the bids.

    Attributes:
        draws: the sequences.
        reply: (B, Q) reply that stands for the set shown (`RenderableSets`), or M for the replies
            that show the fewest ads, where no prefix is renderable.
        within: (B, M + 1, M) probability of each reply given `reply`.
        ctr: (B, M + 1, n) mean click probability given `reply`.
    """

    draws: Draws
    reply: Ints
    within: Floats
    ctr: Floats

    @classmethod
    def of(cls, pool: ReplyPool, segments: int) -> ShownBySequence:
        """Look up, for every sequence, its longest prefix whose set some reply shows."""
        B, M, n = pool.shape
        sets, draws = RenderableSets.of(pool), _draws(n, segments)
        size = pool.exposure.sum(axis=2)
        ads = np.where(pool.exposure, np.arange(n), n)
        padded = np.concatenate([ads, np.full((B, M, segments), n)], axis=2)
        codes = _encoded(np.sort(padded, axis=2)[:, :, :segments], n)
        b, j = np.nonzero(sets.first & (size <= segments))
        stands_for = np.full((B, (n + 1) ** segments), M)
        stands_for[b, codes[b, j]] = j
        reply = np.full((B, len(draws.symbols)), M)
        for prefix in draws.prefix_sets:
            reply = np.where(reply == M, stands_for[:, prefix], reply)
        fewest = np.where(size == size.min(axis=1, keepdims=True), pool.log_weights, -np.inf)
        otherwise = softmax(fewest, axis=1)[:, None]
        return cls(
            draws=draws,
            reply=reply,
            within=np.concatenate([sets.within, otherwise], axis=1),
            ctr=np.concatenate([sets.ctr, otherwise @ pool.ctr], axis=1),
        )

    def reached(self, weights: Floats) -> Floats:
        """(B, M + 1) probability of each `reply`, ads drawn in proportion to `weights` (B, n + 1).

        Where all weights are 0, no ad is drawn.
        """
        B, states, _ = self.within.shape
        n = weights.shape[1] - 1
        share = _proportional(weights, np.arange(n + 1) == n)
        chance = share[:, self.draws.symbols].prod(axis=2)
        at = self.reply + states * np.arange(B)[:, None]
        return np.bincount(at.ravel(), chance.ravel(), B * states).reshape(B, states)


@dataclass(frozen=True, eq=False)
class ClickCurves:
    """Every ad's click rate and payment as functions of its own bid, the others' bids fixed.

    Attributes:
        relevance: (B, n) q_i.
        others: (B, n) S, the weight of all that ad i competes with, no ad included.
        by_count: (B, n, k + 1) a_m, click rate of ad i given that it is drawn m times.
    """

    relevance: Floats
    others: Floats
    by_count: Floats

    @classmethod
    def of(cls, shown: ShownBySequence, relevance: Floats, weights: Floats) -> ClickCurves:
        """Curves at the `weights` (B, n + 1) of ads and no ad; an ad's own does not enter."""
        draws, (B, n) = shown.draws, relevance.shape
        k = draws.symbols.shape[1]
        rivals = weights[:, draws.others]
        chance = _proportional(rivals, draws.others == n)[..., None]
        rows = np.arange(B)[:, None, None, None]
        by_count = np.zeros((B, n, k + 1))
        # an ad that is not drawn is shown only where nothing drawn can be
        forced = (shown.reply == shown.within.shape[2]).any()
        for m in range(0 if forced else 1, k + 1):
            sequences = draws.containing[m]
            own = np.arange(n)[:, None, None]
            clicked = shown.ctr[rows, shown.reply[:, sequences], own].mean(axis=2)
            for left in range(k - m, 0, -1):
                clicked = (clicked.reshape(B, n, n ** (left - 1), n) @ chance)[..., 0]
            by_count[:, :, m] = clicked.reshape(B, n)
        return cls(relevance=relevance, others=rivals.sum(axis=2), by_count=by_count)

    def at(self, bids: Floats) -> tuple[Floats, Floats]:
        """(B, n, G) click rates and payments at own `bids` (B, n, G)."""
        own, others = bids * self.relevance[:, :, None], self.others[:, :, None]
        total = own + others
        drawn = np.divide(own, total, out=np.zeros_like(own), where=total > 0)
        missed = np.divide(others, total, out=np.ones_like(own), where=total > 0)
        by_count = self.by_count[:, :, None, :]
        k = by_count.shape[-1] - 1
        rate = sum(
            comb(k, m) * drawn**m * missed ** (k - m) * by_count[..., m] for m in range(k + 1)
        )
        return rate, myerson_draws(bids, drawn, missed, by_count)


@dataclass(frozen=True, eq=False)
class Draws:
    """All sequences of k draws from n ads and no ad (symbol n), numbered in base n + 1.

    Attributes:
        symbols: (Q, k) what each sequence draws.
        prefix_sets: of k, k−1, ..., 0 draws: (Q,) number of the set drawn so far, a set being
            numbered as the sequence of its ads in order, filled up with n.
        others: (n, n) symbols other than ad i.
        containing: by m: (n, C(k,m), n^(k−m)) sequences in which ad i is drawn m times, by where
            it is drawn and what the other draws are.
    """

    symbols: Ints
    prefix_sets: tuple[Ints, ...]
    others: Ints
    containing: tuple[Ints, ...]


@lru_cache(maxsize=32)
def _draws(n: int, k: int) -> Draws:
    symbols = _sequences(np.arange(n + 1), k)
    prefix_sets = []
    for length in range(k, -1, -1):
        drawn = np.sort(np.where(np.arange(k) < length, symbols, n), axis=1)
        drawn[:, 1:][drawn[:, 1:] == drawn[:, :-1]] = n
        prefix_sets.append(_encoded(np.sort(drawn, axis=1), n))
    lower = np.arange(max(0, n - 1))
    others = np.concatenate(
        [lower + (lower >= np.arange(n)[:, None]), np.full((n, min(n, 1)), n)], axis=1
    )
    containing = []
    for m in range(k + 1):
        places = list(combinations(range(k), m))
        drawn = np.empty((n, len(places), n ** (k - m), k), dtype=np.int64)
        for at, place in enumerate(places):
            elsewhere = [position for position in range(k) if position not in place]
            drawn[:, at, :, list(place)] = np.arange(n)[:, None]
            drawn[:, at][:, :, elsewhere] = others[:, _sequences(np.arange(n), k - m)]
        containing.append(_encoded(drawn, n))
    return Draws(symbols, tuple(prefix_sets), others, tuple(containing))


def _sequences(symbols: Ints, length: int) -> Ints:
    """(len(symbols)**length, length) all sequences, the last symbol changing fastest."""
    grid = np.meshgrid(*[symbols] * length, indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, length) if length else np.zeros((1, 0), np.int64)


def _encoded(sequences: Ints, n: int) -> Ints:
    """Numbers in base n + 1 of `sequences` (..., k)."""
    k = sequences.shape[-1]
    return sequences @ (n + 1) ** np.arange(k - 1, -1, -1)


def _proportional(weights: Floats, otherwise: NDArray[np.bool_]) -> Floats:
    """`weights` over their sum along the last axis; `otherwise` where that is 0."""
    total = weights.sum(axis=-1, keepdims=True)
    given = np.broadcast_to(otherwise, weights.shape).astype(np.float64)
    return np.divide(weights, total, out=given, where=total > 0)
