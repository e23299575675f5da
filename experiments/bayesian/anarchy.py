"""Value maximizers in second-price auctions: an equilibrium worth half of the optimum.

Two queries, values per click and target ROI 1, bids by one multiplier per advertiser:

                    click rate, query A    click rate, query B
    advertiser 0            c                     c·ε
    advertiser 1            0                     c

The best allocation gives A to 0 and B to 1: welfare 2c over both. But advertiser 0 wins A for
nothing, and may spend what it won there to win B as well: bidding more than 1/ε it pays advertiser
1's score c for a click rate of c·ε, and still meets its target, as `c + c·ε >= c`. Advertiser 1
could win B back only at a score above its own value. So welfare is `(1 + ε)c`, and the ratio falls
to 1/2 with ε: the price of anarchy of value maximizers is 2, and no worse (Aggarwal,
Badanidiyuru & Mehta 2019; Deng, Mao, Mirrokni & Zuo 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.learners.base import meets
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, ReplyPool

CLICK_RATE = 0.5
_STEP = 1.01  # ratio of neighbouring bids tried


def anarchy_pool(epsilon: float) -> ReplyPool:
    """The instance: two requests, and a reply for each ad alone and for none.

    Raises:
        BadInput: epsilon not in (0, 1).
    """
    if not 0 < epsilon < 1:
        raise BadInput(f"epsilon must lie in (0, 1); got {epsilon}")
    ctr = np.zeros((2, 3, 2))
    ctr[0, 1, 0] = CLICK_RATE
    ctr[1, 1, 0], ctr[1, 2, 1] = CLICK_RATE * epsilon, CLICK_RATE
    return ReplyPool.from_arrays(ctr, ads=[[0, 1], [0, 1]])


@dataclass(frozen=True, eq=False)
class Anarchy:
    """What iterated best response comes to on the instance.

    Attributes:
        bids: (2,) per click; values and targets are 1.
        turns: of both advertisers until neither moved.
        gains: (2,) what the best feasible bid would add to each one's value: 0 at an equilibrium.
        roi: (2,) value per payment; infinite where nothing is paid.
        welfare_ratio: value won by all, relative to the best allocation's.
    """

    bids: Floats
    turns: int
    gains: Floats
    roi: Floats
    welfare_ratio: float


def iterate_best_responses(
    mechanism: Mechanism, epsilon: float, start: tuple[float, float] = (1.0, 1.0), turns: int = 50
) -> Anarchy:
    """Take turns from `start` until nobody can add value within its target.

    Who can moves to the lowest of its best bids; who cannot stays.

    Args:
        mechanism: a single-slot second-price auction, "gsp" or "vcg".
        epsilon: of the instance.
        start: first bids.
        turns: at most so many.

    Raises:
        BadInput: epsilon not in (0, 1).
    """
    pool = anarchy_pool(epsilon)
    bids = np.array(start, dtype=np.float64)
    grid = np.append(0.0, _STEP ** np.arange(-500, np.log(20 / epsilon) / np.log(_STEP)))
    turn, moved = 0, True
    while moved and turn < turns:
        turn += 1
        before = bids.copy()
        for i in range(2):
            value, _ = _feasible_values(mechanism, pool, bids, grid, i)
            if value[1:].max() > value[0]:
                bids[i] = grid[value[1:].argmax()]
        moved = bool((bids != before).any())
    tried = [_feasible_values(mechanism, pool, bids, grid, i) for i in range(2)]
    outcome = mechanism.allocate(pool, bids)
    best = pool.ctr.sum(axis=2).max(axis=1).sum()
    return Anarchy(
        bids=bids,
        turns=turn,
        gains=np.array([value.max() - value[0] for value, _ in tried]),
        roi=np.array([ratio for _, ratio in tried]),
        welfare_ratio=float(outcome.itctr.sum() / best),
    )


def _feasible_values(
    mechanism: Mechanism, pool: ReplyPool, bids: Floats, grid: Floats, i: int
) -> tuple[Floats, float]:
    """(1 + G,) value of the bid played and of each grid bid, and the ROI of the one played.

    Bids that miss the target have value -inf.
    """
    own = np.append(bids[i], grid)
    clicks, payments = mechanism.counterfactual(pool, bids, np.tile(own, (2, 2, 1)))
    value, paid = clicks[:, i].sum(axis=0), payments[:, i].sum(axis=0)
    roi = value[0] / paid[0] if paid[0] > 0 else np.inf
    return np.where(meets(value, paid, 1.0), value, -np.inf), float(roi)
