"""`admarket reproduce iamfm`: the claims of IAMFM, measured where the truth is known.

(a) What is the configuration worth that a search finds for its tokens, by elimination, by a model
of all fidelities, and by searches at a single one? (b) Which of the first two wins where? (c) How
many tokens do payments need, by Active Counterfactual Optimization and by running again? (d) What
does a misreport gain, against measured optimisation error, and do small ones pay on average? (e) Is
anybody charged above its value? (f) Are payments of an unlimited budget those of exact VCG? (g) Do
configurations steer the LLM? (h) What becomes of it in a market of learning advertisers?
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from experiments.iamfm import (
    incentives,
    market,
    other_bids,
    payments,
    ranges,
    searches,
    shading,
    steering,
)
from experiments.iamfm.searches import ELIMINATION, MODEL
from experiments.iamfm.worlds import Recorded, Synthetic, World
from experiments.parallel import Executor, Job, run_all
from market.audience import audience
from market.environment import LazyEngine, make_requests, pools_of
from market.result import Result
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.iamfm.mechanism import IAMFM
from mechanisms.iamfm.synthetic import SyntheticSettings
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism

SYNTHETIC, RECORDED = "synthetic", "recorded"
FEW = 5
"""n at which payment errors are shown in full."""
FIRST_SEED = 10**7
"""Far from those that methods and their defaults were chosen on."""
APART = 10**4
"""From the first seed of a part to that of the next."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        seeds: problems of each world that all searches meet.
        budgets: tokens of a search, by world.
        advertisers: n of the study of payments, `FEW` among them.
        allocation: tokens of the allocation there.
        payment_seeds: problems there, for each n, at n = `FEW`, and in the recorded world.
        misreports: random problems of the study of incentives, by world and kind of method.
        small_misreports: problems that small misreports are tried on, by world and method.
        exact: problems on which payments of an unlimited budget are compared with enumeration.
        live: requests that the LLM writes to, to see how it is steered.
        periods: planned, and planned again under other bids.
        rounds: of the market; None leaves them to the scenario.
    """

    seeds: int = 40
    budgets: tuple[tuple[str, tuple[float, ...]], ...] = (
        (SYNTHETIC, (8e3, 16e3, 32e3, 64e3, 128e3)),
        (RECORDED, (8e3, 16e3, 32e3, 64e3, 128e3)),
    )
    advertisers: tuple[int, ...] = (3, 4, 5, 6, 7, 8, 9, 10)
    allocation: float = 32e3
    payment_seeds: tuple[int, int, int] = (20, 100, 20)
    misreports: tuple[tuple[str, str, int], ...] = (
        (SYNTHETIC, MODEL, 10),
        (RECORDED, ELIMINATION, 60),
        (SYNTHETIC, ELIMINATION, 1000),
    )
    small_misreports: tuple[tuple[str, str, int], ...] = (
        (SYNTHETIC, "model-based", 10),
        (RECORDED, "successive halving", 40),
        (SYNTHETIC, "successive halving", 400),
        (RECORDED, shading.EXACT, 40),
        (SYNTHETIC, shading.EXACT, 300),
    )
    exact: int = 10
    live: int = steering.LIVE
    periods: int = 12
    rounds: int | None = None


@dataclass(frozen=True, eq=False)
class Study:
    """All that was measured, and on what.

    Attributes:
        scenario: the market, whose recorded replies are the recorded world; `seed` of all else.
        sizes: how much.
        pool: those replies.
        worlds: by name, those of the searches.
        support: effective sample sizes behind the recorded world's truth, see
            `mechanisms.iamfm.recorded.RecordedEvaluator.support`.
        welfare: see `experiments.iamfm.searches.frame`.
        payments: see `experiments.iamfm.payments.payment_errors`.
        misreports: see `experiments.iamfm.incentives.misreport`.
        small_misreports: see `experiments.iamfm.shading.small_misreports`.
        exact: see `experiments.iamfm.incentives.unlimited`.
        exposure: see `experiments.iamfm.steering.exposure`.
        market: those of `experiments.iamfm.market.ARMS`.
        other_bids: see `experiments.iamfm.other_bids.other_bids`.
        ranges: see `experiments.iamfm.ranges.welfare_by_range`.
        seconds: by part, summed over its jobs, and the `wall` time of all.
    """

    scenario: Scenario
    seed: int
    sizes: Sizes
    pool: ReplyPool
    worlds: dict[str, World]
    support: dict[str, float]
    welfare: pl.DataFrame
    payments: pl.DataFrame
    misreports: pl.DataFrame
    small_misreports: pl.DataFrame
    exact: pl.DataFrame
    exposure: pl.DataFrame
    market: Result
    other_bids: pl.DataFrame
    ranges: pl.DataFrame
    seconds: dict[str, float]


PARTS: dict[str, Callable[[Job, Any], Any]] = {
    "market": market.play,
    "searches": searches.search,
    "payments": payments.payment_errors,
    "misreports": incentives.misreport,
    "small misreports": shading.small_misreports,
    "unlimited": incentives.unlimited,
    "other bids": other_bids.other_bids,
    "ranges": ranges.welfare_by_range,
}
"""What is done by jobs, which are all given out together, the longest first."""


def study(
    scenario: Scenario,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
    *,
    sizes: Sizes | None = None,
    executor: Executor = "processes",
) -> Study:
    """Record the scenario's replies (or reuse them), and measure everything.

    Args:
        scenario: a market under a mechanism of IAMFM, on an LLM's replies.
        seed: of problems, evaluations, and what is random in the market.
        say: told in a line what is going on.
        sizes: how much is measured; default `Sizes()`.
        executor: see `experiments.parallel`.

    Raises:
        BadInput: a scenario of another mechanism, or without an LLM's replies.
    """
    sizes, mechanism = sizes or Sizes(), _mechanism(scenario)
    started = time.perf_counter()
    engine = LazyEngine(scenario)
    (pool,) = pools_of(scenario, [mechanism], say, engine)
    requests, users = make_requests(scenario, engine)
    written = time.perf_counter()
    say("steering the LLM")
    exposure = steering.exposure(
        pool,
        requests,
        audience(scenario, users, pool),
        mechanism.steering,
        engine.open,
        scenario.replies.design,
        seed,
        sizes.live,
    )
    steered = time.perf_counter()
    recorded = Recorded.of(scenario, pool, mechanism)
    worlds: dict[str, World] = {SYNTHETIC: Synthetic(), RECORDED: recorded}
    shared = {
        "market": market.Markets(_shortened(scenario, sizes), pool),
        "searches": worlds,
        "payments": _payment_settings(recorded, sizes),
        "misreports": worlds,
        "small misreports": worlds,
        "unlimited": worlds,
        "other bids": other_bids.Bidders.of(scenario, pool, mechanism),
        "ranges": ranges.Ladder.of(scenario, pool, mechanism),
    }
    jobs = _jobs(seed, sizes, shared["payments"])
    say("searches, payments, incentives and markets")
    done = run_all(measure, jobs, shared, executor=executor, say=say, progress=executor != "serial")
    found: dict[str, list[Any]] = {part: [] for part in PARTS}
    seconds = dict.fromkeys(PARTS, 0.0)
    for (part, *_), (result, took) in zip(jobs, done, strict=True):
        found[part].append(result)
        seconds[part] += took
    seconds |= {"replies": written - started, "steering": steered - written}
    return Study(
        scenario=scenario,
        seed=seed,
        sizes=sizes,
        pool=pool,
        worlds=worlds,
        support=recorded.evaluator.support(),
        welfare=searches.frame(found["searches"]),
        payments=pl.DataFrame([row for rows in found["payments"] for row in rows]),
        misreports=pl.DataFrame(found["misreports"]),
        small_misreports=pl.DataFrame([row for rows in found["small misreports"] for row in rows]),
        exact=pl.DataFrame(found["unlimited"]),
        exposure=exposure,
        market=Result.concat(found["market"]),
        other_bids=pl.DataFrame([row for rows in found["other bids"] for row in rows]),
        ranges=pl.DataFrame([row for rows in found["ranges"] for row in rows]),
        seconds=seconds | {"wall": time.perf_counter() - started},
    )


def measure(job: Job, shared: Mapping[str, Any]) -> tuple[Any, float]:
    """The result of a job, whose first entry is its part, and how many seconds it took."""
    part, *rest = job
    started = time.perf_counter()
    result = PARTS[str(part)](tuple(rest), shared[str(part)])
    return result, time.perf_counter() - started


def _payment_settings(recorded: Recorded, sizes: Sizes) -> dict[tuple[str, int], payments.Setting]:
    """By world and n, the recorded world and the largest n first: they take longest."""
    each, few, real = sizes.payment_seeds
    found = {
        (RECORDED, recorded.evaluator.configurations.shape[1]): payments.Setting(
            recorded, sizes.allocation, real, payments.FEWER_SHARES
        )
    }
    for n in sorted(sizes.advertisers, reverse=True):
        world = Synthetic(SyntheticSettings(advertisers=n))
        count = few if n == FEW else each
        found[SYNTHETIC, n] = payments.Setting(world, sizes.allocation, count)
    return found


def _jobs(
    seed: int, sizes: Sizes, settings: Mapping[tuple[str, int], payments.Setting]
) -> list[Job]:
    """All jobs, by part as in `PARTS`, the longest of each first."""

    def seeds(part: int, count: int) -> range:
        """Seeds of so many problems; none is another part's, or another study's."""
        first = FIRST_SEED * (seed + 1) + APART * part
        return range(first, first + count)

    of_part: dict[str, Iterable[Job]] = {
        "market": [(key, seed) for key in market.ARMS],
        "searches": searches.jobs(dict(sizes.budgets), seeds(0, sizes.seeds)),
        "payments": [
            (world, n, k) for (world, n), each in settings.items() for k in seeds(1, each.problems)
        ],
        "misreports": [
            (world, kind, k) for world, kind, count in sizes.misreports for k in seeds(2, count)
        ],
        "small misreports": [
            (world, method, k)
            for world, method, count in sizes.small_misreports
            for k in seeds(3, count)
        ],
        "unlimited": [(world, k) for world, _ in sizes.budgets for k in seeds(4, sizes.exact)],
        "other bids": [(k,) for k in seeds(5, sizes.periods)],
        "ranges": [(factor,) for factor in ranges.ODDS],
    }
    return [(part, *job) for part in PARTS for job in of_part[part]]


def _shortened(scenario: Scenario, sizes: Sizes) -> Scenario:
    return scenario if sizes.rounds is None else scenario.with_(rounds=sizes.rounds)


def _mechanism(scenario: Scenario) -> IAMFM:
    """The scenario's mechanism.

    Raises:
        BadInput: it is none of IAMFM's, or its replies are not an LLM's.
    """
    where = f"scenario {scenario.name}"
    if scenario.replies.source == "synthetic":
        raise BadInput(f"{where} has synthetic replies; the recorded world is an LLM's")
    mechanism = make_mechanism(scenario.mechanism.name, **scenario.mechanism.parameters)
    if not isinstance(mechanism, IAMFM):
        raise BadInput(f"{where} runs {mechanism.name}; give one of iamfm-elimination")
    return mechanism
