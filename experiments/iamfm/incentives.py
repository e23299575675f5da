"""What misreports gain against measured optimisation error, who is charged what, exact payments.

A problem is drawn whole: who bids, how noisy, rough and biased evaluations are (in the synthetic
world), tokens for allocation and payments, the method, and who reports what. It is run twice on the
same random numbers: with truthful bids, and with one advertiser's misreport. Gain and error are
those of `mechanisms.iamfm.incentives`, where the bound `gain <= 2·error` is proven; so what is
looked at here is the program, and how much of the bound is used. What small misreports gain on
average is another question: `experiments.iamfm.shading`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.iamfm.payments import SHARES
from experiments.iamfm.searches import ALLOCATION, CONTENDERS
from experiments.iamfm.worlds import Problem, Synthetic, World
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
from mechanisms.iamfm.exact import Settlement
from mechanisms.iamfm.incentives import misreport_gain
from mechanisms.iamfm.synthetic import SyntheticSettings
from mechanisms.pool import Floats, Ints

PAYMENTS_SHARE = 0.3
"""Of the token budget, as the mechanism has it."""
TOKENS = (2e3, 64e3)
"""The least and the most of a random problem."""
REPORTS = (0.0, 0.5, 0.8, 0.9, 1.1, 1.25, 2.0, 4.0)
"""Of random misreports, over the value."""


def mechanism(
    problem: Problem, method: str, tokens: float, seed: int
) -> Callable[[Floats], Settlement]:
    """A whole run on a problem, search and payments by ACO, from bids (n,).

    Its random numbers are the same every time, so equal bids give equal settlements.

    Args:
        problem: whose evaluator is asked.
        method: one of `CONTENDERS`.
        tokens: the budget, of which `PAYMENTS_SHARE` is kept for payments.
        seed: of the search.
    """
    search = CONTENDERS[method].make()

    def run(bids: Floats) -> Settlement:
        known = Evaluations(problem.evaluator, TokenBudget(tokens))
        weights = weights_of(bids, problem.user_weight)
        dice = stream(seed, "search")
        search.search(known, weights, tokens * (1 - PAYMENTS_SHARE), ALLOCATION, dice)
        return settle(known, search, bids, problem.user_weight, known.budget.left, dice)

    return run


def misreport(job: Job, worlds: Mapping[str, World]) -> dict[str, Any]:
    """One random problem and misreport: (world, kind of method, seed).

    A synthetic problem has settings of its own. A recorded one has the pool's replies.

    Returns:
        A row: the problem, which `factor` of its value somebody reports, its `gain` and the error
        `epsilon`; of the truthful run `charge_over_value`, the largest mean charge less realised
        mean value of an advertiser, and `lump_over_value`, the share of advertisers whose payment
        p_i is above it; and `scale`, the largest value at stake in this problem. Money per request.
    """
    world, kind, seed = job
    rng = stream(seed, "misreport")
    place = worlds[world]
    if isinstance(place, Synthetic):
        place = Synthetic(_settings(rng))
    problem = place.problem(seed)
    n = len(problem.bids)
    tokens = float(np.exp(rng.uniform(*np.log(TOKENS))))
    name = str(rng.choice([key for key, each in CONTENDERS.items() if each.kind == kind]))
    advertiser = int(rng.integers(n))
    factor = float(rng.choice(REPORTS))
    run = mechanism(problem, name, tokens, seed)
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
        "world": world,
        "kind": kind,
        "seed": seed,
        "n": n,
        "method": name,
        "tokens": tokens,
        "factor": factor,
        "gain": float(found.gain),
        "epsilon": float(found.error),
        "charge_over_value": float((charges - values).max()),
        "lump_over_value": float((honest.payments > values).mean()),
        "scale": float((problem.bids * problem.truth[:, :-1].max(axis=0)).max()),
    }


def _settings(rng: np.random.Generator) -> SyntheticSettings:
    return SyntheticSettings(
        advertisers=int(rng.integers(2, 6)),
        roughness=float(rng.choice([0.0, 0.2, 0.5])),
        noise=float(rng.choice([0.0, 0.3, 1.0])),
        bias=float(rng.choice([0.0, 0.3])),
    )


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

    The search is successive halving, as ever; only that its evaluations have no noise.

    Returns:
        A row: the largest `difference` of a payment, in money per request, and whether the
        configuration is `optimal`.
    """
    world, seed = job
    problem = worlds[world].problem(seed)
    evaluator = Noiseless(problem.evaluator.configurations, problem.truth)
    # pairs cost one each; each of n naive searches can afford some of every configuration
    tokens = 50.0 * problem.truth.size
    exact = enumerated(problem.truth.tolist(), problem.bids.tolist(), problem.user_weight)
    apart, optimal = 0.0, True
    for way in SHARES:
        known, method = Evaluations(evaluator, TokenBudget(2 * tokens)), SuccessiveHalving()
        dice = stream(seed, way)
        method.search(known, problem.weights, tokens, ALLOCATION, dice)
        found = settle(known, method, problem.bids, problem.user_weight, tokens, dice, how=way)
        apart = max(apart, float(np.abs(found.payments - exact).max()))
        optimal &= bool(problem.welfare[found.chosen] >= problem.welfare.max() - 1e-12)
    return {"world": world, "seed": seed, "difference": apart, "optimal": optimal}


def enumerated(
    truth: Sequence[Sequence[float]], bids: Sequence[float], user_weight: float
) -> list[float]:
    """(n,) Clarke's pivot of outcomes (S, n + 1), by loops that share no code with what they check.

    Args:
        truth: by configuration, (ctr_1, ..., ctr_n, u).
        bids: per click.
        user_weight: μ.
    """

    def welfare(outcome: Sequence[float], without: int | None = None) -> float:
        total = user_weight * outcome[-1]
        for i, bid in enumerate(bids):
            if i != without:
                total += bid * outcome[i]
        return total

    best = max(truth, key=welfare)
    return [max(welfare(s, i) for s in truth) - welfare(best, i) for i in range(len(bids))]
