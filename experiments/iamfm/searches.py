"""Welfare against token budget: what the configuration that a search would play is truly worth.

All methods meet the same problems, and the whole budget goes to the search: payments have a study
of their own (`experiments.iamfm.payments`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import polars as pl

from experiments.iamfm.worlds import World
from experiments.parallel import Job, stream
from mechanisms.iamfm.baselines import RandomSearch, UniformAllocation
from mechanisms.iamfm.elimination import ConfidenceElimination, SuccessiveHalving
from mechanisms.iamfm.evaluations import Evaluations, TokenBudget
from mechanisms.iamfm.method import Method
from mechanisms.iamfm.surrogate import ModelBased, SingleFidelityGP

ELIMINATION, MODEL, SINGLE = "elimination", "model-based", "single fidelity"
ABLATION = "ablation"
ALLOCATION = "allocation"


class Contender(NamedTuple):
    """A method under comparison, with its defaults.

    Instantiations of IAMFM evaluate at several fidelities. An `ABLATION` is one of them without
    the biased level, which tells what that level is worth.
    """

    kind: str
    make: Callable[[], Method]


CONTENDERS = {
    "successive halving": Contender(ELIMINATION, SuccessiveHalving),
    "confidence elimination": Contender(ELIMINATION, ConfidenceElimination),
    "model-based": Contender(MODEL, ModelBased),
    "random search": Contender(SINGLE, RandomSearch),
    "uniform allocation": Contender(SINGLE, UniformAllocation),
    "single-fidelity GP": Contender(SINGLE, SingleFidelityGP),
    "halving, full only": Contender(ABLATION, partial(SuccessiveHalving, biased_share=0.0)),
}
BASELINES = tuple(name for name, each in CONTENDERS.items() if each.kind == SINGLE)
SLOW = ("model-based", "single-fidelity GP")
"""They fit models, and go first, so that no core waits for one of them at the end."""
INSTANTIATIONS = tuple(
    name for name, each in CONTENDERS.items() if each.kind in (ELIMINATION, MODEL)
)
ONE_LEVEL = {"successive halving": "halving, full only", "model-based": "single-fidelity GP"}
"""The same method without the biased level."""


def jobs(budgets: Mapping[str, Sequence[float]], seeds: Sequence[int]) -> list[Job]:
    """All searches: by budgets (tokens) of each world, and seeds."""
    ordered = sorted(CONTENDERS, key=lambda name: name not in SLOW)
    return [
        (world, name, tokens, seed)
        for name in ordered
        for world, some in budgets.items()
        for tokens in sorted(some, reverse=True)
        for seed in seeds
    ]


def search(job: Job, worlds: Mapping[str, World]) -> dict[str, Any]:
    """One search: (world, method, tokens, seed).

    Returns:
        A row: `welfare` of the choice, `optimum` and `unsponsored`, all true and in money per
        request, tokens `spent`, pairs at the unbiased level (`full`) and at all others (`cheap`),
        and `seconds`.
    """
    world, name, tokens, seed = job
    problem = worlds[world].problem(seed)
    method, weights = CONTENDERS[name].make(), problem.weights
    known = Evaluations(problem.evaluator, TokenBudget(tokens))
    started = time.perf_counter()
    method.search(known, weights, tokens, ALLOCATION, stream(seed, *job[:3]))
    chosen = method.choose(known, weights)
    seconds = time.perf_counter() - started
    return {
        "world": world,
        "method": name,
        "budget": tokens,
        "seed": seed,
        "welfare": float(problem.welfare[chosen]),
        "optimum": float(problem.welfare.max()),
        "unsponsored": float(problem.welfare[problem.sponsored_by_nobody]),
        "spent": known.budget.total,
        "full": int(known.counts[known.full].sum()),
        "cheap": int(known.counts[: known.full].sum()),
        "seconds": seconds,
    }


def frame(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows of searches with `share` of the optimum and `regret` in money per request."""
    return pl.DataFrame(rows).with_columns(
        share=pl.col("welfare") / pl.col("optimum"),
        regret=pl.col("optimum") - pl.col("welfare"),
    )
