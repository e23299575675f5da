"""What welfare IAMFM gives up, and to what: from the configuration played to the best replies.

A period's configuration is found by evaluations, among a design, of strengths that mean certain
odds, and is the same for all requests. Each of these restrictions is lifted in turn, on recorded
replies at the advertisers' true values:

- `PLAYED`: the configuration that a search finds with its tokens, mean over seeds;
- `DESIGN`: the best of those searched among;
- `STRENGTHS`: the best of all (K + 1)^N, by coordinate ascent from every configuration of the
  design; exact but for local optima;
- `BY_REQUEST`: the best configuration of each request;
- `AUCTION`: mosaic under truthful bids, which weighs replies one by one;
- `REPLY`: the best of the recorded replies, of each request.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from experiments.arms import chosen
from experiments.parallel import Job
from market.scenario import Scenario
from mechanisms.base import Mechanism
from mechanisms.iamfm.configuration import Steering, full_grid
from mechanisms.iamfm.evaluations import weights_of
from mechanisms.iamfm.mechanism import IAMFM
from mechanisms.iamfm.recorded import RecordedEvaluator
from mechanisms.iamfm.reweighing import steered
from mechanisms.pool import Floats, Ints, ReplyPool

PLAYED, DESIGN, STRENGTHS = "played", "best of the design", "best of all strengths"
BY_REQUEST, AUCTION, REPLY = "best of each request", "auction", "best reply of each request"
RUNGS = PLAYED, DESIGN, STRENGTHS, BY_REQUEST, AUCTION, REPLY
ODDS = (0.25, 1.0, 2.5)
"""Factors of the scenario's odds."""
SEEDS = 8
"""Of the plans behind `PLAYED`."""
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Ladder:
    """What is compared.

    Attributes:
        pool: of replies.
        mechanism: with a token budget.
        auction: mosaic, on the same replies.
        values: (N,) per click.
    """

    pool: ReplyPool
    mechanism: IAMFM
    auction: Mechanism
    values: Floats

    @classmethod
    def of(cls, scenario: Scenario, pool: ReplyPool, mechanism: IAMFM) -> Ladder:
        """The scenario's advertisers, and mosaic as it has it."""
        (auction,) = chosen(scenario, ["mosaic"])
        values = np.array([each.value for each in scenario.advertisers])
        return cls(pool, mechanism, auction, values)


def welfare_by_range(job: Job, ladder: Ladder) -> list[dict[str, Any]]:
    """Welfare under a factor of the odds: (factor,).

    Returns:
        A row for each restriction: its name, the odds, welfare in money per request.
    """
    (factor,) = job
    odds = tuple(factor * each for each in ladder.mechanism.odds)
    mechanism, pool = replace(ladder.mechanism, odds=odds), ladder.pool.origin
    weights = weights_of(ladder.values, mechanism.user_weight)
    evaluator = mechanism.evaluator(pool)
    plans = [mechanism.plan(pool, ladder.values, seed) for seed in range(SEEDS)]
    by_reply = values_of(pool, ladder.values, mechanism.user_weight)
    auction = ladder.auction.allocate(pool, ladder.values).probabilities
    _, ascended = ascend(pool, mechanism.steering, weights, evaluator.configurations)
    found = {
        PLAYED: np.mean([plan.record["welfare"] for plan in plans]),
        DESIGN: (evaluator.truth() @ weights).max(),
        STRENGTHS: ascended.max(),
        BY_REQUEST: best_by_request(pool, mechanism.steering, by_reply).mean(),
        AUCTION: (auction * by_reply).sum(axis=1).mean(),
        REPLY: by_reply.max(axis=1).mean(),
    }
    return [
        {"factor": factor, "odds": list(odds), "range": name, "welfare": float(welfare)}
        for name, welfare in found.items()
    ]


def values_of(pool: ReplyPool, values: Floats, user_weight: float) -> Floats:
    """(B, M) welfare of each reply, in money."""
    return (pool.ctr * values[pool.ads][:, None]).sum(axis=2) + user_weight * pool.quality


def ascend(
    pool: ReplyPool, steering: Steering, weights: Floats, start: Ints
) -> tuple[Ints, Floats]:
    """Coordinate ascent on the welfare of the pool, from several configurations at once.

    Advertiser by advertiser the best strength is taken, until no single change is an improvement.

    Args:
        pool: an origin, of guided insertion.
        steering: what strengths mean.
        weights: (N + 1,) of an outcome in W.
        start: (S, N) configurations to start from.

    Returns:
        Local optima (S, N), and their welfare (S,) in money per request.
    """

    def welfare(configurations: Ints) -> Floats:
        return RecordedEvaluator(pool, configurations, steering).truth() @ weights

    best, worth = start.copy(), welfare(start)
    while True:
        before = worth.copy()
        for advertiser in range(start.shape[1]):
            for strength in range(steering.strongest + 1):
                tried = best.copy()
                tried[:, advertiser] = strength
                found = welfare(tried)
                better = found > worth + _ROUNDING
                best[better], worth[better] = tried[better], found[better]
        if not (worth > before).any():
            return best, worth


def best_by_request(pool: ReplyPool, steering: Steering, by_reply: Floats) -> Floats:
    """(B,) mean of `by_reply` (B, M) under the best strengths of a request's own candidates."""
    B, _, n = pool.shape
    C = (steering.strongest + 1) ** n
    found = [
        (steered(pool, np.tile(strengths, (B, 1)), steering) * by_reply).sum(axis=1)
        for strengths in full_grid(n, steering.strongest, C)
    ]
    return np.max(found, axis=0)
