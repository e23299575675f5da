"""Slot auctions by the compiled kernel: feasible sets as lists, and the calls on them.

Shapes: requests B, ads n, grid bids G; replications R and advertisers N where sums are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mechanisms.kernels import slots_numba
from mechanisms.kernels.sparse import plain
from mechanisms.kernels.threads import split
from mechanisms.pool import Bools, Floats, Ints


@dataclass(frozen=True, eq=False)
class FeasibleSets:
    """The S feasible sets of a pool of B requests, by request and first reply, and their E ads.

    Attributes:
        start: (B + 1,) sets of request b are `start[b]` to `start[b + 1]`.
        reply: (S,) the first reply that shows the set.
        entry: (S + 1,) ads of set s are `entry[s]` to `entry[s + 1]`.
        ad: (E,) which of the request's candidate ads, in rising order.
        rate: (E,) its click rate in the set.
        alone: (B, n) qualities of GSP: click rates when shown alone.
        most: the most sets of a request.
    """

    start: Ints
    reply: Ints
    entry: Ints
    ad: Ints
    rate: Floats
    alone: Floats
    most: int

    @classmethod
    def of(cls, feasible: Bools, shows: Bools, ctr: Floats, alone: Floats) -> FeasibleSets:
        """List the sets.

        Args:
            feasible: (B, M) reply j stands for a feasible set.
            shows: (B, M, n) that set's ads.
            ctr: (B, M, n) their click rates in it.
            alone: (B, n) qualities of GSP, see `mechanisms.slots.qualities`.
        """
        request, reply = np.nonzero(feasible)
        which, ad = np.nonzero(shows[request, reply])
        return cls(
            start=np.searchsorted(request, np.arange(len(feasible) + 1)),
            reply=reply,
            entry=np.searchsorted(which, np.arange(len(request) + 1)),
            ad=ad,
            rate=ctr[request[which], reply[which], ad],
            alone=alone,
            most=int(feasible.sum(axis=1).max()),
        )

    @property
    def arrays(self) -> tuple[int | NDArray, ...]:
        """What kernels take, in their order."""
        return self.most, self.start, self.entry, self.reply, self.ad, self.rate, self.alone


def deviations(
    sets: FeasibleSets, index: Ints, bids: Floats, grid: Floats, rule: int, reserve: float
) -> tuple[Ints, Floats, Floats]:
    """Who wins requests `index` (B,) under `bids` (B, n), and what the bids of `grid` would bring.

    Args:
        sets: of the origin pool.
        index: (B,) requests.
        bids: (B, n) the bids played.
        grid: (B, n, G) bids to try.
        rule: how payments follow (`slots_numba.FIRST_PRICE` and so on).
        reserve: least price per click.

    Returns:
        (B,) the reply that stands for the winning set, and (B, n, G) click rates and payments.
    """
    winner, itctr, payments = (
        np.empty(len(index), np.int64),
        np.empty_like(grid),
        np.empty_like(grid),
    )
    given = (rule, float(reserve), plain(index), *sets.arrays, plain(bids), plain(grid))

    def run(first: int, last: int) -> bool:
        return slots_numba.deviate(first, last, *given, winner, itctr, payments)

    split(len(index), 10 * grid.size, run)
    return winner, itctr, payments


def deviation_sums(
    sets: FeasibleSets,
    ads: Ints,
    index: Ints,
    bids: Floats,
    grids: Floats,
    rule: int,
    reserve: float,
) -> tuple[Floats, Floats]:
    """Clicks and payments (R, N, G) of every bid of a grid, summed over requests.

    Args:
        sets: of the origin pool.
        ads: (pool, n) its ads.
        index: (R, B) requests.
        bids: (R, N) the bids played.
        grids: (N, G) bids to try.
        rule: how payments follow.
        reserve: least price per click.
    """
    (R, B), (N, G) = index.shape, grids.shape
    clicks, payments = np.empty((R, N, G)), np.empty((R, N, G))
    given = (rule, float(reserve), plain(index), *sets.arrays, plain(ads), plain(bids))
    given = (*given, plain(grids))

    def run(first: int, last: int) -> bool:
        return slots_numba.deviate_sums(first, last, *given, clicks, payments)

    split(R, 10 * R * B * ads.shape[1] * G, run)
    return clicks, payments
