"""`admarket run`: record or reuse the replies, run the market, write the results folder.

The folder is written beside its final place and moved there when it is complete, so a run that
fails or is interrupted leaves what was there before.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from agents.learners.base import Population
from experiments.best_response import best_responses
from experiments.periods import over_periods, plans_frame
from experiments.provenance import where
from experiments.samples import SampleReply, sample_replies
from experiments.tables import last_quarter
from market.environment import LazyEngine, pools_of, titles
from market.live import LiveReplies
from market.model import MarketModel
from market.result import Result
from market.scenario import Scenario
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.gibbs import check_weights
from mechanisms.pool import Floats, ReplyPool
from mechanisms.registry import make_mechanism

SAMPLES = 6
CONTENTS = (
    "advertisers.parquet",
    "best_responses.parquet",
    "figures",
    "figures/advertisers.png",
    "figures/bids.png",
    "figures/market.png",
    "figures/periods.png",
    "live_replies.parquet",
    "manifest.json",
    "plans.parquet",
    "report.html",
    "rounds.parquet",
    "scenario.yaml",
    "summary.json",
)


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: its result, the independent best responses, and what was traded on.

    `pools` are those by mechanism, most of them `pool`; `live` has all replies written in live
    mode, by mechanism and round, and is None in recorded mode; `plans` has what was planned for
    periods (`experiments.periods`), and is None under mechanisms without.
    """

    scenario: Scenario
    seed: int
    pool: ReplyPool
    result: Result
    best: pl.DataFrame
    samples: dict[str, list[SampleReply]]
    pools: dict[str, ReplyPool] = field(default_factory=dict)
    live: pl.DataFrame | None = None
    plans: pl.DataFrame | None = None


def run(
    scenario: Scenario,
    seed: int = 0,
    *,
    pool: ReplyPool | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: bool = False,
) -> Run:
    """Run the scenario's market under its mechanism and those beside it, on the same requests.

    Args:
        scenario: what to run.
        seed: of arrivals, dice and learners.
        pool: candidate replies; default the scenario's.
        say: told in a line what is going on.
        progress: show progress bars (on a terminal only).
    """
    arms = [make_mechanism(arm.name, **arm.parameters) for arm in scenario.arms]
    engine = LazyEngine(scenario)
    given = pool is not None
    if given:
        traded = [pool] * len(arms)
    else:
        traded = pools_of(scenario, arms, say, engine)
        pool = traded[0]
    names = titles(pool)
    results, best, samples, pools, written, plans = [], [], {}, {}, [], {}
    for mechanism, pool_of_arm in zip(arms, traded, strict=True):
        check_weights(pool_of_arm)
        live = None
        if scenario.replies.source == "live" and not given:
            live = LiveReplies.of(scenario, pool_of_arm, seed, mechanism.writing, engine)
        say(f"market: {scenario.rounds} rounds x {scenario.replications} under {mechanism.name}")
        model = MarketModel(
            scenario, seed, pool=pool_of_arm, live=live, mechanism=mechanism, titles=names
        )
        result = model.run(progress=progress)
        results.append(result)
        plans[mechanism.name] = model.platform.plans
        found = best_responses(mechanism.exact, pool_of_arm, population(scenario))
        best.append(found.labelled(mechanism.name))
        samples[mechanism.name] = _samples(pool_of_arm, mechanism, result, seed)
        pools[mechanism.name] = pool_of_arm
        if live is not None:
            written.append(live.table().with_columns(pl.lit(mechanism.name).alias("mechanism")))
    return Run(
        scenario,
        seed,
        pool,
        Result.concat(results),
        pl.concat(best),
        samples,
        pools,
        pl.concat(written, how="diagonal") if written else None,
        plans_frame(plans),
    )


def population(scenario: Scenario) -> Population:
    """The private types of all advertisers, by index."""
    specs = scenario.advertisers
    return Population(
        values=np.array([spec.value for spec in specs]),
        value_maximizer=np.array([spec.objective == "value" for spec in specs]),
        target_roi=np.array([spec.target_roi for spec in specs]),
        budget=np.array([spec.budget or np.inf for spec in specs]) / scenario.rounds,
    )


def write(finished: Run, folder: str | Path) -> Path:
    """Write the results folder of DESIGN 5 and return the path of its report.

    An earlier run of the same scenario and seed is replaced, once the new folder is complete.
    """
    folder = Path(folder)
    check_folder(finished.scenario, finished.seed, folder)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        ready, old = Path(scratch) / "ready", Path(scratch) / "old"
        ready.mkdir()
        _fill(finished, ready)
        if folder.exists():
            folder.rename(old)
        ready.rename(folder)
    return folder / "report.html"


def check_folder(scenario: Scenario, seed: int, folder: Path) -> None:
    """Make sure that results can be written to `folder`, before anything is run.

    Raises:
        BadInput: it cannot be made, or holds anything but an earlier run of this scenario and seed.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-"):
            there = [path.name for path in folder.iterdir()] if folder.exists() else []
            if (folder / "figures").is_dir():
                there += [f"figures/{path.name}" for path in (folder / "figures").iterdir()]
    except OSError as error:
        raise BadInput(
            f"--out {folder}: cannot be written ({error.strerror}); choose another folder"
        ) from None
    foreign = set(there) - set(CONTENTS)
    if foreign:
        raise BadInput(
            f"--out {folder} holds {min(foreign)}, which is no part of a run; choose another folder"
        )
    try:
        same = not there or (
            (folder / "scenario.yaml").read_text("utf-8") == scenario.to_yaml()
            and json.loads((folder / "manifest.json").read_text("utf-8"))["seed"] == seed
        )
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise BadInput(f"--out {folder} holds another run; choose another folder")


def provenance(finished: Run) -> dict[str, Any]:
    """What produced the numbers: versions, seed, model, pool, revision, machine."""
    manifest = finished.pool.manifest
    return {
        "seed": finished.seed,
        "environment_seed": finished.scenario.environment_seed,
        "replies": "live" if finished.live is not None else manifest.get("source", "arrays"),
        "model": manifest.get("model"),
        "pool_hash": finished.pool.content_hash,
        # DESIGN 3.1: below 2 an auction rests on a single reply, and the result must say so.
        "effective_sample_size_min": float(least_ess(finished)),
        "low_effective_sample_size": bool(least_ess(finished) < 2),
        "pool_hash_by_mechanism": {n: each.content_hash for n, each in finished.pools.items()},
        # what is no exact outcome of recorded or live replies, by mechanism
        "estimates": {
            arm.name: dict(found)
            for arm in finished.scenario.arms
            if (pool := finished.pools.get(arm.name)) is not None
            and (found := make_mechanism(arm.name, **arm.parameters).estimates(pool))
        },
        "pool": {k: v for k, v in manifest.items() if k not in ("content_hash", "schema")},
        **where(),
    }


def least_ess(finished: Run) -> float:
    """The least effective sample size of any request that was traded on, under any mechanism."""
    pools = [finished.pool, *finished.pools.values()]
    recorded = min(float(pool.effective_sample_size.min()) for pool in pools)
    # A round is at least as low as any of its requests, on average.
    return min(recorded, float(finished.result.rounds["ess"].min()))


def _fill(finished: Run, folder: Path) -> None:
    from experiments import plots
    from experiments.report import write_report

    result, manifest = finished.result, provenance(finished)
    result.save(folder)
    finished.best.write_parquet(folder / "best_responses.parquet")
    if finished.live is not None:
        finished.live.write_parquet(folder / "live_replies.parquet")
    (folder / "scenario.yaml").write_text(finished.scenario.to_yaml(), encoding="utf-8")
    text = json.dumps(manifest, indent=2, sort_keys=True)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
    drawn = {
        "bids": plots.bid_trajectories(result.advertisers, finished.best),
        "market": plots.market_over_rounds(result.rounds),
        "advertisers": plots.payments_and_roi(result.advertisers),
    }
    if finished.plans is not None:
        finished.plans.write_parquet(folder / "plans.parquet")
        values = [spec.value for spec in finished.scenario.advertisers]
        drawn["periods"] = over_periods(finished.plans, titles(finished.pool), values)
    figures = {
        name: plots.save(figure, folder / "figures" / f"{name}.png")
        for name, figure in drawn.items()
    }
    write_report(
        folder,
        title=f"Market {finished.scenario.name}, seed {finished.seed}",
        scenario=finished.scenario.model_dump(mode="json"),
        manifest=manifest,
        result=result,
        best=finished.best,
        samples=finished.samples,
        figures=figures,
        pool=finished.pool,
        plans=finished.plans,
    )


def _samples(pool: ReplyPool, mechanism: Mechanism, result: Result, seed: int) -> list[SampleReply]:
    """Replies served under the bids that advertisers came to, averaged over the last rounds."""
    rng = np.random.default_rng([seed, 99])
    return sample_replies(pool, mechanism, settled_bids(result), rng, SAMPLES)


def settled_bids(result: Result) -> Floats:
    """(N,) mean bids over the last quarter of rounds and all replications."""
    late = last_quarter(result.advertisers)
    means = late.group_by("advertiser").agg(pl.col("bid").mean()).sort("advertiser")
    return means["bid"].to_numpy()
