"""What IAMFM's learners hear of bids that they did not make, against planning anew under these.

What a period would have been under another bid is read off its own evaluations
(`mechanisms.iamfm.mechanism`). Choice and payment are then made anew on what is believed, among
candidates and counterfactuals that stay as they were. On believed outcomes that is VCG, so truth is
best *by construction*; and what an own bid does to the search, and through it to the own price,
cannot be seen. Here a period is planned again for every other bid, on the same pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.parallel import Job
from market.scenario import Scenario
from mechanisms.iamfm.mechanism import IAMFM, Sponsorship
from mechanisms.pool import Bools, Floats, ReplyPool

FACTORS = (0.5, 0.8, 1.25)
"""Other bids, over the value."""


@dataclass(frozen=True, eq=False)
class Bidders:
    """Whose periods are planned.

    Attributes:
        pool: of replies.
        mechanism: with a token budget.
        bids: (N,) truthful.
        tried: (N,) whether an advertiser's other bids are looked at: those of utility maximizers.
    """

    pool: ReplyPool
    mechanism: IAMFM
    bids: Floats
    tried: Bools

    @classmethod
    def of(cls, scenario: Scenario, pool: ReplyPool, mechanism: IAMFM) -> Bidders:
        """The scenario's advertisers."""
        people = scenario.advertisers
        value = np.array([each.objective == "value" for each in people])
        bids = np.array(
            [
                each.value / each.target_roi if each.objective == "value" else each.value
                for each in people
            ]
        )
        return cls(pool, mechanism, bids, ~value)


def other_bids(job: Job, bidders: Bidders) -> list[dict[str, Any]]:
    """A period of truthful bids: (seed,).

    Returns:
        Rows by advertiser and factor. Gains over the truthful utility, in money per request: `told`
        by the period's evaluations, and `replanned`; `utility` is the truthful one. Utilities are
        at the pool's true click rates.
    """
    (seed,) = job
    pool, bids = bidders.pool.origin, bidders.bids
    plan = bidders.mechanism.plan(pool, bids, seed)
    grids = bids[:, None] * np.array((1.0, *FACTORS))
    told = plan.along(grids)
    rows = []
    for i in np.flatnonzero(bidders.tried):
        heard = told.itctr.mean(axis=1)[told.outcome[i], i] * (bids[i] - told.prices[i])
        for g, factor in enumerate(FACTORS, start=1):
            other = bids.copy()
            other[i] = grids[i, g]
            found = utility(bidders.mechanism.plan(pool, other, seed), i, bids[i])
            rows.append(
                {
                    "seed": seed,
                    "advertiser": int(i),
                    "factor": factor,
                    "utility": float(heard[0]),
                    "told": float(heard[g] - heard[0]),
                    "replanned": found - float(heard[0]),
                }
            )
    return rows


def utility(plan: Sponsorship, advertiser: int, value: float) -> float:
    """True expected value less payment, money per request."""
    clicks = plan.evaluator.truth()[plan.settlement.chosen, advertiser]
    return float(clicks * (value - plan.prices[advertiser]))
