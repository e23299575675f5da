"""What misreports gain against measured optimisation error, who is charged what, exact payments.

A problem is drawn whole: number of advertisers, how noisy, rough and biased evaluations are, tokens
for allocation and payments, the method, and who reports what. A problem is run twice on the same
random numbers: with truthful bids, and with one advertiser's misreport. Gain and error are those of
`mechanisms.iamfm.incentives`, where the bound `gain <= 2·error` is proven; here it is looked at how
much of it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.iamfm.payments import SHARES
from experiments.iamfm.searches import ALLOCATION, CONTENDERS, ELIMINATION
from experiments.iamfm.worlds import Synthetic, World
from experiments.parallel import Job, stream
from mechanisms.iamfm.counterfactual import settle
from mechanisms.iamfm.elimination import SuccessiveHalving
from mechanisms.iamfm.evaluations import (
    Evaluations,
    Evaluator,
    Level,
    TokenBudget,
    weights_of,
)
from mechanisms.iamfm.exact import Settlement, exact_vcg
from mechanisms.iamfm.incentives import misreport_gain
from mechanisms.iamfm.synthetic import SyntheticSettings
from mechanisms.pool import Floats, Ints

PAYMENTS_SHARE = 0.3
"""Of the token budget, as the mechanism has it."""


def misreport(job: Job, _: None) -> dict[str, Any]:
    """One random problem and misreport: (seed,).

    Returns:
        A row: the problem, which `factor` of its value somebody reports, its `gain` and the error
        `epsilon`; of the truthful run `charge_over_value`, the largest mean charge less realised
        mean value of an advertiser, and `lump_over_value`, the share of advertisers whose payment
        p_i is above it; and `scale`, the largest value at stake. Money per request.
    """
    (seed,) = job
    rng = stream(seed, "misreport")
    settings = SyntheticSettings(
        advertisers=int(rng.integers(2, 6)),
        roughness=float(rng.choice([0.0, 0.2, 0.5])),
        noise=float(rng.choice([0.0, 0.3, 1.0])),
        bias=float(rng.choice([0.0, 0.3])),
    )
    problem = Synthetic(settings).problem(seed)
    n = settings.advertisers
    tokens = float(np.exp(rng.uniform(np.log(2e3), np.log(64e3))))
    name = str(rng.choice([key for key, each in CONTENDERS.items() if each.kind == ELIMINATION]))
    method = CONTENDERS[name].make()
    advertiser = int(rng.integers(n))
    factor = float(rng.choice([0.0, 0.5, 0.8, 0.9, 1.1, 1.25, 2.0, 4.0]))

    def run(bids: Floats) -> Settlement:
        known = Evaluations(problem.evaluator, TokenBudget(tokens))
        weights = weights_of(bids, problem.user_weight)
        dice = stream(seed, "search")
        method.search(known, weights, tokens * (1 - PAYMENTS_SHARE), ALLOCATION, dice)
        return settle(known, method, bids, problem.user_weight, known.budget.left, dice)

    honest = run(problem.bids)
    found = misreport_gain(
        lambda bids: honest if (bids == problem.bids).all() else run(bids),
        problem.truth,
        problem.bids,
        problem.user_weight,
        advertiser,
        factor * problem.bids[advertiser],
    )
    charges = honest.charges(problem.truth)
    values = problem.bids * problem.truth[honest.chosen, :-1]
    return {
        "seed": seed,
        "n": n,
        "method": name,
        "tokens": tokens,
        "noise": settings.noise,
        "roughness": settings.roughness,
        "bias": settings.bias,
        "factor": factor,
        "gain": float(found.gain),
        "epsilon": float(found.error),
        "charge_over_value": float((charges - values).max()),
        "lump_over_value": float((honest.payments > values).mean()),
        "scale": float((problem.bids * problem.truth[:, :-1].max(axis=0)).max()),
    }


@dataclass(frozen=True, eq=False)
class Noiseless:
    """An evaluator whose every pair is the truth, for a token: what an unlimited budget comes to.

    Attributes:
        configurations: (S, n)
        truth: (S, n + 1)
    """

    configurations: Ints
    truth: Floats
    levels: tuple[Level, ...] = (Level("full", 1.0),)

    def sample(self, which: Ints, level: int, start: int, stop: int) -> tuple[Floats, Floats]:
        """See `Evaluator`."""
        shape = (len(which), stop - start)
        outcomes = np.broadcast_to(self.truth[which][:, None], (*shape, self.truth.shape[1]))
        return outcomes, np.ones(shape)

    def reseeded(self, seed: int) -> Evaluator:
        """Itself: there is no noise."""
        return self


def unlimited(job: Job, worlds: Mapping[str, World]) -> dict[str, Any]:
    """Payments of every way with an unlimited budget against enumeration: (world, seed).

    Returns:
        A row: the largest `difference` of a payment, in money per request, and whether the
        configuration is `optimal`.
    """
    world, seed = job
    problem = worlds[world].problem(seed)
    evaluator = Noiseless(problem.evaluator.configurations, problem.truth)
    everything = np.arange(len(problem.truth))
    tokens = 1e3 * len(everything)
    exact = exact_vcg(problem.truth, problem.bids, problem.user_weight)
    apart, optimal = 0.0, True
    for way in SHARES:
        known = Evaluations(evaluator, TokenBudget(tokens))
        known.extend(everything, known.full, 2, ALLOCATION)
        found = settle(
            known, SuccessiveHalving(), problem.bids, problem.user_weight, known.budget.left,
            stream(seed, way), how=way,
        )  # fmt: skip
        apart = max(apart, float(np.abs(found.payments - exact.payments).max()))
        optimal &= bool(problem.welfare[found.chosen] >= problem.welfare.max() - 1e-12)
    return {"world": world, "seed": seed, "difference": apart, "optimal": optimal}
