"""Slot auctions that sell places in the reply before it is written: first price, GSP and VCG.

An auction picks which ads the reply shows; the reply is then written around them. On a pool, what
can be written is what has been: each distinct set S of ads shown together by some reply of the
request is *renderable*, and its click rates are importance-weighted means over its replies,

    ctr_i(S) = Σ_{j shows S} w_j·ctr_ji / Σ_{j shows S} w_j.

A set is feasible if it shows at most `slots` ads, or no more than the shortest set of the request:
so every request can be served, and bids never decide what is feasible. The feasible set of greatest
declared welfare `W(S) = Σ_i b_i·ctr_i(S)` wins, on equal welfare the one whose first reply comes
first; the reply is drawn from those that show exactly the winning ads, by importance weight.

The reserve is a price per click. Under first price and GSP, an ad that bids less counts as bidding
0, pays 0, and is shown only where it cannot be helped: sets are ranked by how few such ads they
show, and only then by welfare. Under VCG the reserve is the platform's cost of a click,
`W(S) = Σ_i (b_i − reserve)·ctr_i(S)`, which keeps the auction truthful.

Shapes: requests B, replies M, ads n, bid profiles per request K, grid bids G.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechanisms.base import Allocation, Mechanism, blocks, sum_over
from mechanisms.checks import Parametric, bid_grid, claims_weights, non_negative, whole
from mechanisms.gibbs import normalised
from mechanisms.kernels import as_declared, kernel, slots_numba, sparse_slots
from mechanisms.kernels.sparse_slots import FeasibleSets
from mechanisms.payments import first_price, gsp, price_per_click, vcg
from mechanisms.pool import Bools, Floats, Ints, ReplyPool

# Array elements a block of the reference's counterfactual auctions may hold: 32 MB of float64.
_BLOCK = 4_000_000


@dataclass(frozen=True, eq=False)
class RenderableSets:
    """The sets of ads that the replies of each request show; reply j stands for the set it shows.

    Attributes:
        shows: (B, M, n) the ad is in reply j's set.
        leader: (B, M) the first reply that shows reply j's set.
        share: (B, M) probability of reply j, drawn by importance weight from its own set.
        ctr: (B, M, n) mean click probability over reply j's set.
    """

    shows: Bools
    leader: Ints
    share: Floats
    ctr: Floats

    @classmethod
    def of(cls, pool: ReplyPool) -> RenderableSets:
        """The replies of every request, grouped by the ads they show; once for an origin pool."""
        sets = pool.derived("renderable sets", cls._grouped)
        if pool.index is None:
            return sets
        k = pool.index
        return cls(sets.shows[k], sets.leader[k], sets.share[k], sets.ctr[k])

    @classmethod
    def _grouped(cls, pool: ReplyPool) -> RenderableSets:
        B, M, _ = pool.shape
        pattern = np.packbits(pool.exposure, axis=2)
        leader, share = np.empty((B, M), dtype=np.int64), np.empty((B, M))
        ctr = np.empty_like(pool.ctr)
        for rows in blocks(B, M * M * max(1, pattern.shape[2]), _BLOCK):
            shown = pattern[rows]
            same = (shown[:, :, None, :] == shown[:, None, :, :]).all(axis=3)
            within = normalised(np.where(same, pool.log_weights[rows, None, :], -np.inf), axis=2)
            leader[rows] = same.argmax(axis=2)
            share[rows] = np.diagonal(within, axis1=1, axis2=2)
            ctr[rows] = within @ pool.ctr[rows]
        return cls(shows=pool.exposure, leader=leader, share=share, ctr=ctr)

    @property
    def first(self) -> Bools:
        """(B, M) no earlier reply shows the same set."""
        return self.leader == np.arange(self.leader.shape[1])

    @property
    def within(self) -> Floats:
        """(B, M, M) probability of reply k, drawn by importance weight from reply j's set."""
        same = self.leader[:, :, None] == self.leader[:, None, :]
        return np.where(same, self.share[:, None, :], 0.0)

    def drawn_from(self, rows: Ints, reply: Ints) -> Floats:
        """(k, M) probability of each reply of requests `rows`, given what set was won.

        Args:
            rows: (k,) requests.
            reply: (k,) a reply that shows the set.
        """
        leader = self.leader[rows]
        same = leader == leader[np.arange(len(rows)), reply][:, None]
        return np.where(same, self.share[rows], 0.0)

    def feasible(self, slots: int) -> Bools:
        """(B, M) reply j's set shows at most `slots` ads or as few as any; True once per set."""
        size = self.shows.sum(axis=2)
        limit = np.maximum(size.min(axis=1, keepdims=True), slots)
        return self.first & (size <= limit)


@dataclass(frozen=True)
class SlotAuction(Parametric, Mechanism):
    """An auction over renderable sets; subclasses say which set wins and what it pays.

    Attributes:
        slots: most ads a reply may show, where the pool allows.
        reserve: least price per click.
    """

    compiled_rule: ClassVar[int | None] = None
    """Which rule of `kernels.slots_numba` it follows; None: none, and `auction` is called."""

    slots: int = 1
    reserve: float = 0.0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not as_declared(cls, "compiled_rule", ("auction", "allocate", "counterfactual")):
            cls.compiled_rule = None

    def __post_init__(self) -> None:
        whole("slots", self.slots, least=1)
        non_negative("reserve", self.reserve)

    @abstractmethod
    def auction(self, pool: ReplyPool, sets: RenderableSets, bids: Floats) -> tuple[Ints, Floats]:
        """Hold K auctions per request.

        Args:
            pool: B requests, M replies, n ads.
            sets: what the pool can render.
            bids: (B, K, n) per click.

        Returns:
            (B, K) the reply that stands for the winning set, and (B, K, n) expected payments.
        """

    def allocate(self, pool: ReplyPool, bids: ArrayLike) -> Allocation:
        """Expected outcome of `bids`, (N,) by advertiser or (B, n) by request."""
        claims_weights(self.name, pool)
        by_request = pool.bids_by_request(bids)
        if self._compiled:
            winner, itctr, payments = self._deviate(pool, by_request, by_request[:, :, None])
            itctr, payments = itctr[:, :, 0], payments[:, :, 0]
        else:
            sets = RenderableSets.of(pool)
            found = self.auction(pool, sets, by_request[:, None, :])
            winner, payments = found[0][:, 0], found[1][:, 0]
            itctr = sets.ctr[np.arange(len(winner)), winner]
        probabilities = RenderableSets.of(pool.origin).drawn_from(pool.rows, winner)
        return Allocation(probabilities, itctr, payments)

    def charge(
        self,
        pool: ReplyPool,
        bids: Floats,
        allocation: Allocation,
        chosen: Ints,
        clicks: NDArray[np.bool_],
    ) -> Floats:
        """(B, n) price per click `p_i / ctr_i(S*)` of every clicked ad."""
        return price_per_click(allocation.payments, allocation.itctr) * clicks

    def counterfactual(
        self, pool: ReplyPool, bids: ArrayLike, alternatives: Floats
    ) -> tuple[Floats, Floats]:
        """As `Mechanism.counterfactual`, with the best set of the others found once for all bids.

        The reference holds an auction for each bid, on replies grouped once.
        """
        if not as_declared(type(self), "counterfactual", ("allocate",)):
            return super().counterfactual(pool, bids, alternatives)
        claims_weights(self.name, pool)
        by_request = pool.bids_by_request(bids)
        grid = bid_grid(pool, alternatives)
        if self._compiled:
            return self._deviate(pool, by_request, grid)[1:]
        B, M, n = pool.shape
        G = grid.shape[2]
        itctr, payments = np.empty_like(grid), np.empty_like(grid)
        own = np.arange(n)
        for rows in blocks(B, M * max(M, n * n * G), _BLOCK):
            part, mine = pool.take(rows), by_request[rows]
            tried = np.repeat(mine[:, None, None, :], n, axis=1).repeat(G, axis=2)
            tried[:, own, :, own] = grid[rows].transpose(1, 0, 2)
            sets = RenderableSets.of(part)
            winner, paid = self.auction(part, sets, tried.reshape(len(rows), n * G, n))
            # indexing the deviator's own entry puts the axis n in front
            rates = _rates(sets, winner).reshape(len(rows), n, G, n)[:, own, :, own]
            itctr[rows] = rates.transpose(1, 0, 2)
            paid = paid.reshape(len(rows), n, G, n)[:, own, :, own]
            payments[rows] = paid.transpose(1, 0, 2)
        return itctr, payments

    def counterfactual_sums(
        self, pool: ReplyPool, index: Ints, bids: Floats, grids: Floats
    ) -> tuple[Floats, Floats]:
        """As `Mechanism.counterfactual_sums`, without arrays by request."""
        if not self._compiled:
            return super().counterfactual_sums(pool, index, bids, grids)
        claims_weights(self.name, pool)
        pool, index = sum_over(pool, index, bids, grids)
        return sparse_slots.deviation_sums(
            self._feasible(pool), pool.ads, index, bids, grids, self.compiled_rule, self.reserve
        )

    @property
    def _compiled(self) -> bool:
        return self.compiled_rule is not None and kernel() == "numba"

    def _feasible(self, pool: ReplyPool) -> FeasibleSets:
        """What compiled kernels read of the pool's origin: it depends on `slots` alone."""

        def listed(origin: ReplyPool) -> FeasibleSets:
            sets = RenderableSets.of(origin)
            feasible = sets.feasible(self.slots)
            return FeasibleSets.of(feasible, sets.shows, sets.ctr, qualities(origin, self.slots))

        return pool.derived(("feasible sets", self.slots), listed)

    def _deviate(self, pool: ReplyPool, bids: Floats, grid: Floats) -> tuple[Ints, Floats, Floats]:
        """Winners (B,) under `bids` (B, n), and `itctr` and `payments` of `grid` (B, n, G)."""
        return sparse_slots.deviations(
            self._feasible(pool), pool.rows, bids, grid, self.compiled_rule, self.reserve
        )

    def _qualified(self, bids: Floats) -> Floats:
        """Bids, with those below the reserve as 0."""
        return np.where(bids >= self.reserve, bids, 0.0)

    def _most_welfare(self, sets: RenderableSets, bids: Floats) -> Ints:
        """(B, K) reply of the winning set under first price and GSP."""
        welfare = self._qualified(bids) @ sets.ctr.transpose(0, 2, 1)
        open_ = np.broadcast_to(sets.feasible(self.slots)[:, None, :], welfare.shape)
        if self.reserve > 0:
            below = (bids < self.reserve).astype(np.float64)
            excess = np.where(open_, below @ sets.shows.transpose(0, 2, 1), np.inf)
            open_ = open_ & (excess == excess.min(axis=2, keepdims=True))
        return np.where(open_, welfare, -np.inf).argmax(axis=2)


@dataclass(frozen=True)
class FirstPrice(SlotAuction):
    """A clicked ad pays its bid."""

    name: ClassVar[str] = "first-price"
    compiled_rule: ClassVar[int | None] = slots_numba.FIRST_PRICE

    def auction(self, pool: ReplyPool, sets: RenderableSets, bids: Floats) -> tuple[Ints, Floats]:
        """As `SlotAuction.auction`: `p_i = b_i·ctr_i(S*)`."""
        winner = self._most_welfare(sets, bids)
        return winner, first_price(self._qualified(bids), _rates(sets, winner))

    def charge(
        self,
        pool: ReplyPool,
        bids: Floats,
        allocation: Allocation,
        chosen: Ints,
        clicks: NDArray[np.bool_],
    ) -> Floats:
        """(B, n) bid of every clicked ad; 0 for one below the reserve."""
        return first_price(self._qualified(bids), clicks)


@dataclass(frozen=True)
class GSP(SlotAuction):
    """A clicked ad pays the least bid that would have kept its rank (second price by score).

    Scores are `b_i·q_i`, where q_i is ad i's click rate when shown alone, or over all the replies
    that show it if none shows it alone. An ad that no feasible set shows is nobody's rival, and its
    score is 0. See `mechanisms.payments.gsp`.
    """

    name: ClassVar[str] = "gsp"
    compiled_rule: ClassVar[int | None] = slots_numba.GSP

    def auction(self, pool: ReplyPool, sets: RenderableSets, bids: Floats) -> tuple[Ints, Floats]:
        """As `SlotAuction.auction`: `p_i = ctr_i(S*)·s_next/q_i`, between reserve and bid."""
        winner = self._most_welfare(sets, bids)
        shown = np.take_along_axis(sets.shows, winner[:, :, None], axis=1)
        quality = np.broadcast_to(qualities(pool, self.slots)[:, None, :], bids.shape)
        price = gsp(self._qualified(bids), quality, shown, self.reserve)
        return winner, price * _rates(sets, winner)


@dataclass(frozen=True)
class VCG(SlotAuction):
    """Each advertiser pays what its presence costs the others and the platform.

    `p_i = max_S [W(S) − b_i·ctr_i(S)] − [W(S*) − b_i·ctr_i(S*)]`, over feasible sets, with
    `W(S) = Σ_i (b_i − reserve)·ctr_i(S)`. At reserve 0 this is `W_−i(S*_−i) − W_−i(S*)`. An ad that
    would not be shown when bidding below the reserve pays at least the reserve per click. Truth is
    dominant, and no truthful advertiser ends below 0, at any reserve.
    """

    name: ClassVar[str] = "vcg"
    compiled_rule: ClassVar[int | None] = slots_numba.VCG

    def auction(self, pool: ReplyPool, sets: RenderableSets, bids: Floats) -> tuple[Ints, Floats]:
        """As `SlotAuction.auction`, with VCG payments."""
        welfare = (bids - self.reserve) @ sets.ctr.transpose(0, 2, 1)
        welfare = np.where(sets.feasible(self.slots)[:, None, :], welfare, -np.inf)
        winner = welfare.argmax(axis=2)
        own = bids[:, :, None, :] * sets.ctr[:, None, :, :]
        declared = bids * _rates(sets, winner)
        # nobody pays more than declared; only rounding goes above
        return winner, np.minimum(vcg(welfare, own, winner), declared)


def stand_alone_ctr(pool: ReplyPool) -> Floats:
    """(B, n) click rate of each ad shown alone, by importance weight.

    Where no reply shows the ad alone: over all that show it; where none does: 0.
    """
    rates = pool.derived("stand-alone click rates", _stand_alone_ctr)
    return rates if pool.index is None else rates[pool.index]


def qualities(pool: ReplyPool, slots: int) -> Floats:
    """(B, n) q_i of GSP: `stand_alone_ctr`, but 0 for an ad that no feasible set shows."""

    def found(origin: ReplyPool) -> Floats:
        sets = RenderableSets.of(origin)
        rival = (sets.feasible(slots)[:, :, None] & sets.shows).any(axis=1)
        return np.where(rival, stand_alone_ctr(origin), 0.0)

    rates = pool.derived(("qualities", slots), found)
    return rates if pool.index is None else rates[pool.index]


def _stand_alone_ctr(pool: ReplyPool) -> Floats:
    alone = pool.exposure & (pool.exposure.sum(axis=2, keepdims=True) == 1)
    counted = np.where(alone.any(axis=1, keepdims=True), alone, pool.exposure)
    masked = np.where(counted, pool.log_weights[:, :, None], -np.inf)
    return (normalised(masked, axis=1) * pool.ctr).sum(axis=1)


def _rates(sets: RenderableSets, winner: Ints) -> Floats:
    """(B, K, n) click rates of the sets that the replies `winner` (B, K) stand for."""
    return np.take_along_axis(sets.ctr, winner[:, :, None], axis=1)
