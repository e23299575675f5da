"""Mechanisms that commit themselves for a period: bids are read at its start, then terms are fixed.

Most mechanisms hold an auction for every request. One that has to ask an LLM for what its
allocation would bring plans once for a *period* of rounds: from which distribution replies are
drawn, and what a click costs,

    charge of ad i  =  price_i · clicks of i,        0 <= price_i <= b_i,

b_i being the bid read at the start. So nobody is ever charged more than it bid for what it got (ex
post individual rationality), and bids have no effect before the next period.

A plan looks at everybody's bids, and at all the requests that there may be: those of a pool's
*origin*. So `Mechanism.allocate` and its like, on some of these requests, answer for one period
that is planned on the origin under the bids given. Bids by request must agree on what each
advertiser bids; who is a candidate in none of the requests given bids 0. A batch may hold several
periods, the same requests over and over under other bids, as experiments ask for them.

Shapes: replications R, advertisers N, requests B, replies M, ads n, grid bids G.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechanisms.base import Allocation, Mechanism, Outcome, realised, sum_over
from mechanisms.candidates import expectation
from mechanisms.checks import bid_grid
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, Ints, ReplyPool


class Alternatives(NamedTuple):
    """What each advertiser's other bids would have made of a period, the others' bids fixed.

    Attributes:
        outcome: (N, G) which of U distinct outcomes the bid leads to.
        prices: (N, G) of a click of the deviating advertiser, at most the bid.
        itctr: (U, K, N) expected clicks by outcome, request of the origin and advertiser.
    """

    outcome: Ints
    prices: Floats
    itctr: Floats


class Plan(ABC):
    """What is fixed for a period of one market.

    Attributes:
        bids: (N,) as read at its start.
        prices: (N,) of a click, at most the bid.
    """

    bids: Floats
    prices: Floats

    @abstractmethod
    def probabilities(self, pool: ReplyPool) -> Floats:
        """(B, M) from which replies to the requests of `pool` are drawn."""

    @abstractmethod
    def along(self, grids: Floats) -> Alternatives:
        """What the bids `grids` (N, G) would have led to, as the platform itself estimates it."""

    @property
    def record(self) -> Mapping[str, Any]:
        """What results tell of it: numbers, and lists by advertiser."""
        return {}


class Terms:
    """The plans in force in R replications of a market.

    Attributes:
        plans: by replication.
        bids: (R, N) as read.
        prices: (R, N) of a click.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans = tuple(plans)
        self.bids = np.stack([plan.bids for plan in plans])
        self.prices = np.stack([plan.prices for plan in plans])
        self._along: tuple[Floats, list[Alternatives]] | None = None

    def allocate(self, pool: ReplyPool, replication: Ints) -> Allocation:
        """Expected outcome of the requests of `pool`, which belong to replications (B,)."""
        B, M, _ = pool.shape
        probabilities = np.empty((B, M))
        for r, plan in enumerate(self.plans):
            mine = np.flatnonzero(replication == r)
            probabilities[mine] = plan.probabilities(pool.take(mine))
        itctr = expectation(probabilities, pool.ctr)
        return Allocation(probabilities, itctr, self._of_ads(pool, replication) * itctr)

    def charge(
        self, pool: ReplyPool, replication: Ints, clicks: NDArray[np.bool_] | Floats
    ) -> Floats:
        """(B, n) charges for `clicks` (B, n)."""
        return self._of_ads(pool, replication) * clicks

    def run(self, pool: ReplyPool, replication: Ints, rng: np.random.Generator) -> Outcome:
        """As `Mechanism.run`: draw a reply and clicks for each request, and charge."""
        allocation = self.allocate(pool, replication)
        return realised(
            pool, allocation, lambda _, clicks: self.charge(pool, replication, clicks), rng
        )

    def counterfactual(
        self, pool: ReplyPool, replication: Ints, alternatives: Floats
    ) -> tuple[Floats, Floats]:
        """As `Mechanism.counterfactual`: ITCTR and payments (B, n, G) of the deviating advertiser.

        Raises:
            BadInput: alternatives (B, n, G) that differ between an advertiser's requests.
        """
        grid = bid_grid(pool, alternatives)
        itctr, payments = np.empty_like(grid), np.empty_like(grid)
        for r, plan in enumerate(self.plans):
            mine = np.flatnonzero(replication == r)
            ads, rows = pool.ads[mine], pool.rows[mine]
            found = plan.along(_by_advertiser(ads, grid[mine], pool.num_advertisers))
            itctr[mine] = found.itctr[found.outcome[ads], rows[:, None, None], ads[:, :, None]]
            payments[mine] = found.prices[ads] * itctr[mine]
        return itctr, payments

    def counterfactual_sums(self, index: Ints, grids: Floats) -> tuple[Floats, Floats]:
        """As `Mechanism.counterfactual_sums`, both (R, N, G), had the period been planned so.

        Args:
            index: (R, B) requests of the origin that are served.
            grids: (N, G) bids to try.
        """
        if self._along is None or self._along[0] is not grids:
            # the same in every round of a period
            self._along = grids, [plan.along(grids) for plan in self.plans]
        own = np.arange(len(grids))[:, None]
        clicks = np.stack(
            [
                found.itctr[:, requests].sum(axis=1)[found.outcome, own]
                for found, requests in zip(self._along[1], index, strict=True)
            ]
        )
        return clicks, clicks * np.stack([found.prices for found in self._along[1]])

    def _of_ads(self, pool: ReplyPool, replication: Ints) -> Floats:
        return self.prices[replication[:, None], pool.ads]


class PeriodicMechanism(Mechanism):
    """A mechanism that reads bids once a period; see the module.

    Subclasses have a `period`, in rounds, and implement `plan`.
    """

    period: int

    @abstractmethod
    def plan(self, pool: ReplyPool, bids: Floats, seed: int) -> Plan:
        """The plan of a period.

        Args:
            pool: an origin: all requests that there may be.
            bids: (N,) as read.
            seed: of all that is random in planning.
        """

    def commit(self, pool: ReplyPool, bids: Floats, seeds: Sequence[int]) -> Terms:
        """Plan a period for each replication.

        Args:
            pool: its origin is planned on.
            bids: (R, N) as read.
            seeds: by replication.
        """
        return Terms(
            [self.plan(pool.origin, row, seed) for row, seed in zip(bids, seeds, strict=True)]
        )

    def allocate(self, pool: ReplyPool, bids: ArrayLike) -> Allocation:
        """Expected outcome of a period under `bids`, (N,) by advertiser or (B, n) by request."""
        terms, replication = self._planned(pool, bids)
        return terms.allocate(pool, replication)

    def charge(
        self,
        pool: ReplyPool,
        bids: Floats,
        allocation: Allocation,
        chosen: Ints,
        clicks: NDArray[np.bool_],
    ) -> Floats:
        """(B, n) the period's price of every click."""
        terms, replication = self._planned(pool, bids)
        return terms.charge(pool, replication, clicks)

    def run(self, pool: ReplyPool, bids: ArrayLike, rng: np.random.Generator) -> Outcome:
        """As `Mechanism.run`, all requests in one period."""
        terms, replication = self._planned(pool, bids)
        return terms.run(pool, replication, rng)

    def counterfactual(
        self, pool: ReplyPool, bids: ArrayLike, alternatives: Floats
    ) -> tuple[Floats, Floats]:
        """As `Mechanism.counterfactual`, by the platform's own estimate (`Plan.along`)."""
        terms, replication = self._planned(pool, bids)
        return terms.counterfactual(pool, replication, alternatives)

    def counterfactual_sums(
        self, pool: ReplyPool, index: Ints, bids: Floats, grids: Floats
    ) -> tuple[Floats, Floats]:
        """As `Mechanism.counterfactual_sums`, by the platform's own estimate (`Plan.along`)."""
        origin, index = sum_over(pool, index, bids, grids)
        return self.commit(origin, bids, [0] * len(bids)).counterfactual_sums(index, grids)

    def replanned(
        self, pool: ReplyPool, bids: ArrayLike, alternatives: Floats
    ) -> tuple[Floats, Floats]:
        """As `counterfactual`, but by planning a period for every alternative: slow, no estimate.

        Raises:
            BadInput: as `Terms.counterfactual`, or `bids` of several periods.
        """
        profiles, _ = profiles_of(pool, bids)
        if len(profiles) > 1:
            raise BadInput("bids are of several periods; plan other bids for one at a time")
        grid = bid_grid(pool, alternatives)
        itctr, payments = np.empty_like(grid), np.empty_like(grid)
        tried = _by_advertiser(pool.ads, grid, pool.num_advertisers)
        for i in np.unique(pool.ads):
            mine = pool.ads == i
            for g, bid in enumerate(tried[i]):
                other = profiles[0].copy()
                other[i] = bid
                found = self.allocate(pool, other)
                itctr[mine, g], payments[mine, g] = found.itctr[mine], found.payments[mine]
        return itctr, payments

    def _planned(self, pool: ReplyPool, bids: ArrayLike) -> tuple[Terms, Ints]:
        profiles, replication = profiles_of(pool, bids)
        return self.commit(pool, profiles, [0] * len(profiles)), replication


def profiles_of(pool: ReplyPool, bids: ArrayLike) -> tuple[Floats, Ints]:
    """The bids by advertiser, (R, N), behind `bids`, and which of them each request (B,) is under.

    Several (R > 1) only where the requests are the same ones R times over.

    Args:
        pool: B requests.
        bids: (N,) by advertiser, or (B, n) by request.

    Raises:
        BadInput: as `ReplyPool.bids_by_request`, or an advertiser bids two things at once.
    """
    by_request = pool.bids_by_request(bids)
    B, N = len(pool.ads), pool.num_advertisers
    given = np.asarray(bids, dtype=np.float64)
    if given.ndim == 1:
        return given[None], np.zeros(B, dtype=np.int64)
    for size in dict.fromkeys((B, _repeats_after(pool.rows))):
        profiles = np.zeros((B // size, N))
        replication = np.repeat(np.arange(B // size), size)
        profiles[replication[:, None], pool.ads] = by_request
        if (profiles[replication[:, None], pool.ads] == by_request).all():
            return profiles, replication
    raise BadInput(
        "an advertiser bids differently in different requests, and bids are read once a period; "
        "give them by advertiser, (N,)"
    )


def concerning(mechanism: Mechanism, pool: ReplyPool, index: int) -> Ints:
    """(k,) requests that decide on what advertiser `index` gets: those it competes in.

    In a period all of them, if it competes in any: what is planned depends on everybody's bids.
    """
    competes = (pool.ads == index).any(axis=1)
    if isinstance(mechanism, PeriodicMechanism) and competes.any():
        competes[:] = True
    return np.flatnonzero(competes)


def _by_advertiser(ads: Ints, grid: Floats, advertisers: int) -> Floats:
    """(N, G) alternatives from those by request, (B, n, G); BadInput where they differ."""
    tried = np.zeros((advertisers, grid.shape[2]))
    tried[ads] = grid
    if (tried[ads] != grid).any():
        raise BadInput(
            "alternatives differ between the requests of an advertiser, whose bid is read once a "
            "period; give it the same in all"
        )
    return tried


def _repeats_after(rows: Ints) -> int:
    """After how many of the requests they start over; their number if they do not."""
    for size in np.flatnonzero(rows[1:] == rows[0]) + 1:
        if len(rows) % size == 0 and (rows.reshape(-1, size) == rows[:size]).all():
            return int(size)
    return len(rows)
