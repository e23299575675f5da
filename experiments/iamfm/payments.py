"""Payment error against extra tokens: counterfactuals by ACO, by running again, and not at all.

The allocation is found first, with tokens of its own and the same random numbers for all ways; each
then computes payments with so many tokens more. An error is the mean over advertisers of
`|p_i − p_i^VCG|`, p^VCG being exact VCG payments of the true outcomes. It includes what comes
of playing another configuration than the best. `fixed_error` leaves that out: it measures against
the true externality `max_s W_{−i}(s) − W_{−i}(s*)` of the configuration s* that is played.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.iamfm.searches import ALLOCATION
from experiments.iamfm.worlds import World
from experiments.parallel import Job, stream
from mechanisms.iamfm.counterfactual import settle
from mechanisms.iamfm.elimination import SuccessiveHalving
from mechanisms.iamfm.evaluations import Evaluations, TokenBudget
from mechanisms.iamfm.exact import exact_vcg, externalities

SHARES = {
    "aco": (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
    "naive": (1 / 8, 1 / 4, 1 / 2, 1.0),
    "none": (0.0,),
}
"""Extra tokens by way, in units of n times those of the allocation: at 1, naive re-optimisation
runs each of its n searches with as many tokens as the allocation's had."""


def payment_errors(job: Job, worlds: Mapping[int, tuple[World, float]]) -> list[dict[str, Any]]:
    """All ways at all extra budgets on one problem: (n, seed).

    Args:
        job: number of advertisers, and seed.
        worlds: by n: the world, and tokens of the allocation.

    Returns:
        A row per way and `allowance`, the tokens that payments might spend: those they did
        (`extra`), `error` and `fixed_error`, and the mean exact payment (`exact`); money per
        request.
    """
    n, seed = job
    world, tokens = worlds[n]
    problem = world.problem(seed)
    method = SuccessiveHalving()
    exact = exact_vcg(problem.truth, problem.bids, problem.user_weight).payments
    rows = []
    for way, shares in SHARES.items():
        for share in shares:
            allowance = share * n * tokens
            known = Evaluations(problem.evaluator, TokenBudget(tokens + allowance))
            method.search(known, problem.weights, tokens, ALLOCATION, stream(seed, "allocation", n))
            before = known.budget.total
            dice = stream(seed, way, n, share)
            settled = settle(
                known, method, problem.bids, problem.user_weight, allowance, dice, how=way
            )
            due = externalities(problem.truth, problem.bids, problem.user_weight, settled.chosen)
            rows.append(
                {
                    "n": n,
                    "seed": seed,
                    "way": way,
                    "share": share,
                    "allowance": allowance,
                    "extra": known.budget.total - before,
                    "error": float(np.abs(settled.payments - exact).mean()),
                    "fixed_error": float(np.abs(settled.payments - due).mean()),
                    "exact": float(exact.mean()),
                }
            )
    return rows
