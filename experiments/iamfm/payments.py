"""Payment error against extra tokens: counterfactuals by ACO, by running again, and not at all.

The allocation is found first, with tokens of its own; each way then computes payments from the same
samples with so many tokens more. Errors are means over advertisers, by three yardsticks:

- `error`, |p_i − p_i^VCG|: p^VCG are exact VCG payments of the true outcomes. It includes what
  comes of playing another configuration s* than the best, which no payment mends.
- `fixed_error`, |p_i − P_i|: P_i = max_s W_{−i}(s) − W_{−i}(s*) is the true externality of the s*
  that is played. If s* falls short of the best by α, so does every P_i include it, up to α each:
  what the allocation missed is charged to all n. A settlement that charges it to nobody, as ours
  does on purpose, is then off by up to α however many tokens payments get.
- `range_error`, the distance of p_i from [p̄_i, P_i]: p̄_i is the same maximum over the
  configurations that are truly no better than s*, that is, exact VCG of the problem without those
  that the allocation missed. The two ends charge for them nothing and everything, and settlements
  may do either. So it holds errors of payments only: with all outcomes known, every way has 0, but
  for what it would then choose instead of s*. It is what extra tokens can mend.

The ways differ in what they clamp to, ACO being nearer to p̄ and running again to P: a yardstick at
either end would favour one of them. At the best s* all three agree.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.iamfm.searches import ALLOCATION
from experiments.iamfm.worlds import Problem, World
from experiments.parallel import Job, stream
from mechanisms.iamfm.counterfactual import settle
from mechanisms.iamfm.elimination import SuccessiveHalving
from mechanisms.iamfm.evaluations import Evaluations, TokenBudget
from mechanisms.iamfm.exact import exact_vcg, externalities, others_welfare
from mechanisms.pool import Floats

Shares = Mapping[str, tuple[float, ...]]

NAIVE = ("naive", "naive-common")
"""Ways of running again, on pairs of their own and on the allocation's."""
SHARES: Shares = {
    "aco": (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
    "naive": (1 / 4, 1 / 2, 1.0),
    "naive-common": (1 / 4, 1 / 2, 1.0),
    "none": (0.0,),
}
"""Extra tokens by way, in units of n times those of the allocation: at 1, running again gives each
of its n searches as many tokens as the allocation's had."""
FEWER_SHARES: Shares = {
    "aco": (1 / 8, 1 / 2, 1.0),
    "naive": (1.0,),
    "naive-common": (1.0,),
    "none": (0.0,),
}


class Setting(NamedTuple):
    """What payments are studied on.

    Attributes:
        world: where problems come from.
        tokens: of the allocation.
        problems: how many.
        shares: extra tokens by way, as `SHARES`.
    """

    world: World
    tokens: float
    problems: int
    shares: Shares = SHARES


def payment_errors(job: Job, settings: Mapping[tuple[str, int], Setting]) -> list[dict[str, Any]]:
    """All ways at all extra budgets on one problem: (world, n, seed).

    Args:
        job: name of the world, number of advertisers, and seed.
        settings: by world and n.

    Returns:
        A row per way and `allowance`, the tokens that payments might spend: those they did
        (`extra`), errors by the three yardsticks, the mean payment less the exact one (`bias`) and
        less the true externality of what is played (`fixed_bias`), the means of these two (`exact`,
        `due`), and `regret` of what is played; money per request.
    """
    name, n, seed = str(job[0]), int(job[1]), int(job[2])
    world, tokens, _, shares = settings[name, n]
    problem = world.problem(seed)
    method = SuccessiveHalving()
    allocated = Evaluations(problem.evaluator, TokenBudget(tokens))
    method.search(allocated, problem.weights, tokens, ALLOCATION, stream(seed, "allocation", n))
    exact = exact_vcg(problem.truth, problem.bids, problem.user_weight).payments
    rows = []
    for way, some in shares.items():
        for share in some:
            allowance = share * n * tokens
            known = copy.deepcopy(allocated, {id(problem.evaluator): problem.evaluator})
            known.budget.limit = tokens + allowance
            settled = settle(
                known, method, problem.bids, problem.user_weight, allowance,
                stream(seed, way, n, share), how=way,
            )  # fmt: skip
            low, high = due(problem, settled.chosen)
            paid = settled.payments
            rows.append(
                {
                    "world": name,
                    "n": n,
                    "seed": seed,
                    "way": way,
                    "share": share,
                    "allowance": allowance,
                    "extra": known.budget.total - allocated.budget.total,
                    "error": float(np.abs(paid - exact).mean()),
                    "range_error": float(np.maximum(low - paid, paid - high).clip(0.0).mean()),
                    "fixed_error": float(np.abs(paid - high).mean()),
                    "bias": float((paid - exact).mean()),
                    "fixed_bias": float((paid - high).mean()),
                    "exact": float(exact.mean()),
                    "due": float(high.mean()),
                    "regret": float(problem.welfare.max() - problem.welfare[settled.chosen]),
                }
            )
    return rows


def due(problem: Problem, chosen: int) -> tuple[Floats, Floats]:
    """(n,) p̄_i and P_i of the configuration played; see the module.

    Both are exact VCG payments where `chosen` is the best configuration.
    """
    others = others_welfare(problem.truth, problem.bids, problem.user_weight)
    no_better = problem.welfare <= problem.welfare[chosen]
    low = others[:, no_better].max(axis=1) - others[:, chosen]
    return low, externalities(problem.truth, problem.bids, problem.user_weight, chosen)
