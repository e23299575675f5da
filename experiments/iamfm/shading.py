"""What small misreports gain on average: a bid a little off the value, in one setting.

The bound of `mechanisms.iamfm.incentives` holds for every misreport, and is too loose to say
whether it pays to shade. Here problems of a world differ in nothing but their seed. One advertiser
of each reports some `factor` times its value, the others being truthful, and its mean gain over
problems stands beside its mean utility when truthful. Under exact VCG no gain is above 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from experiments.iamfm.incentives import mechanism
from experiments.iamfm.searches import CONTENDERS, MODEL
from experiments.iamfm.worlds import Problem, World
from experiments.parallel import Job
from mechanisms.iamfm.exact import Settlement, exact_vcg
from mechanisms.iamfm.incentives import utilities
from mechanisms.pool import Floats

FACTORS = (0.5, 0.8, 0.9, 1.1, 1.25, 2.0)
"""Reported bid over value."""
NEAR = (0.8, 0.9, 1.1)
"""The same of methods that fit a model, where every one of them takes seconds."""
TOKENS = 32e3
"""Of a run, payments included."""
EXACT = "exact VCG"
"""The reference: payments of the true outcomes, by enumeration."""


def small_misreports(job: Job, worlds: Mapping[str, World]) -> list[dict[str, Any]]:
    """Small misreports on one problem: (world, method, seed); the method may be `EXACT`.

    Returns:
        A row per factor: the `gain` of the advertiser that misreports, in true expected utility,
        and its `utility` if truthful; money per request.
    """
    world, method, seed = job
    problem = worlds[world].problem(seed)
    run = _exact(problem) if method == EXACT else mechanism(problem, method, TOKENS, seed)
    advertiser = seed % len(problem.bids)

    def utility(factor: float) -> float:
        bids = problem.bids.copy()
        bids[advertiser] *= factor
        return float(utilities(run(bids), problem.truth, problem.bids)[advertiser])

    truthful = utility(1.0)
    slow = method in CONTENDERS and CONTENDERS[method].kind == MODEL
    return [
        {
            "world": world,
            "method": method,
            "seed": seed,
            "factor": factor,
            "gain": utility(factor) - truthful,
            "utility": truthful,
        }
        for factor in (NEAR if slow else FACTORS)
    ]


def _exact(problem: Problem) -> Callable[[Floats], Settlement]:
    return lambda bids: exact_vcg(problem.truth, bids, problem.user_weight)
