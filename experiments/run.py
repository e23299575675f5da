"""`admarket run`: record or reuse the replies, run the market, write the results folder.

The folder is written beside its final place and moved there when it is complete, so a run that
fails or is interrupted leaves what was there before. What is not finished yet is kept beside it,
too (`experiments.unfinished`).
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
from experiments.folders import put_back, swap
from experiments.learned import gains_of
from experiments.periods import plans_frame
from experiments.provenance import where
from experiments.report.wording import pool_measures
from experiments.samples import SampleReply, sample_replies, save_samples
from experiments.tables import last_quarter
from experiments.unfinished import Unfinished, described
from market.environment import LazyEngine, pools_of, titles
from market.errors import Stopped
from market.live import LiveReplies
from market.model import MarketModel
from market.result import Result
from market.scenario import Scenario
from market.sizes import check_rounds_fit
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
    "gains.parquet",
    "live_replies.parquet",
    "manifest.json",
    "plans.parquet",
    "report-earlier.html",
    "report.html",
    "rounds.parquet",
    "samples.json",
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
    unfinished: Unfinished | None = None,
) -> Run:
    """Run the scenario's market under its mechanism and those beside it, on the same requests.

    Args:
        scenario: what to run.
        seed: of arrivals, dice and learners.
        pool: candidate replies; default the scenario's.
        say: told in a line what is going on.
        progress: show progress bars (on a terminal only).
        unfinished: where rounds are kept as they are played; the run goes on from what is there.

    Raises:
        Stopped: as `Unfinished.play`.
        BadInput: more rounds than memory holds.
    """
    check_rounds_fit(scenario)
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
    for number, (mechanism, pool_of_arm) in enumerate(zip(arms, traded, strict=True)):
        check_weights(pool_of_arm)
        live = None
        if scenario.replies.source == "live" and not given:
            journal = unfinished and unfinished.arm(number, mechanism.name)
            live = LiveReplies.of(scenario, pool_of_arm, seed, mechanism.writing, engine, journal)
        model = MarketModel(
            scenario, seed, pool=pool_of_arm, live=live, mechanism=mechanism, titles=names
        )
        if unfinished is None:
            say(described(model))
            result = model.run(progress=progress)
        else:
            result = unfinished.play(model, number, progress)
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
        # in one piece, since a file's bytes depend on the pieces
        pl.concat(written, how="diagonal", rechunk=True) if written else None,
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


def write(finished: Run, folder: str | Path, unfinished: Unfinished | None = None) -> Path:
    """Write the results folder of DESIGN 5 and return the path of its report.

    An earlier run of the same scenario and seed is replaced, once the new folder is complete.

    Args:
        finished: the run.
        folder: of the results.
        unfinished: removed at last, since all that it holds is then in `folder`.

    Raises:
        BadInput: see `check_folder`.
        Stopped: the folder cannot be written.
    """
    folder = Path(folder)
    check_folder(finished.scenario, finished.seed, folder)
    beside = folder.parent if unfinished is None else unfinished.folder
    try:
        with tempfile.TemporaryDirectory(dir=beside, prefix=f".{folder.name}-") as scratch:
            ready = Path(scratch) / "ready"
            ready.mkdir()
            _fill(finished, ready)
            swap(ready, folder)
    except OSError as error:
        goes_on = unfinished is not None and unfinished.holds_work
        words = unfinished.way_on if goes_on else "run it again"
        raise Stopped(
            f"cannot write {folder} ({error.strerror or error}); mend that, then {words}"
        ) from None
    if unfinished is not None:
        unfinished.remove()
    return folder / "report.html"


def check_folder(scenario: Scenario, seed: int, folder: Path) -> None:
    """Make sure that results can be written to `folder`, before anything is run.

    Raises:
        BadInput: it cannot be made, or holds anything but an earlier run of this scenario and seed.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-"):
            put_back(folder)
            there = [path.name for path in folder.iterdir()] if folder.exists() else []
            if (folder / "figures").is_dir():
                there += [f"figures/{path.name}" for path in (folder / "figures").iterdir()]
    except OSError as error:
        raise BadInput(
            f"{folder}: cannot be written ({error.strerror}); give another folder by --out"
        ) from None
    foreign = set(there) - set(CONTENTS)
    if foreign:
        raise BadInput(
            f"{folder}: holds {min(foreign)}, which is no part of a run; give another folder "
            "by --out"
        )
    try:
        same = not there or (
            (folder / "scenario.yaml").read_text("utf-8") == scenario.to_yaml()
            and json.loads((folder / "manifest.json").read_text("utf-8"))["seed"] == seed
        )
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise BadInput(f"{folder}: holds another run; give another folder by --out")


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
        "budget_spent": budget_spent(finished),
        "pool": {k: v for k, v in manifest.items() if k not in ("content_hash", "schema")},
        "pools": _traded(finished),
        **where(),
    }


def budget_spent(finished: Run) -> dict[str, float]:
    """By mechanism, the greatest share of its budget that any advertiser spent in a replication."""
    budgets = np.array([each.budget or np.inf for each in finished.scenario.advertisers])
    frame = finished.result.advertisers
    last = frame.filter(pl.col("round") == frame["round"].max()).sort("advertiser")
    return {
        name: float((ours["spend"].to_numpy() / budgets[ours["advertiser"].to_numpy()]).max())
        for (name,), ours in last.group_by("mechanism", maintain_order=True)
        if np.isfinite(budgets).any()
    }


def least_ess(finished: Run) -> float:
    """The least effective sample size of any request that was traded on, under any mechanism."""
    pools = [finished.pool, *finished.pools.values()]
    recorded = min(float(pool.effective_sample_size.min()) for pool in pools)
    # A round is at least as low as any of its requests, on average.
    return min(recorded, float(finished.result.rounds["ess"].min()))


def gains(finished: Run) -> pl.DataFrame:
    """What advertisers could still gain at the bids they came to, under every mechanism."""
    people, frame = population(finished.scenario), finished.result.advertisers
    return pl.concat(
        gains_of(
            frame.filter(pl.col("mechanism") == arm.name),
            make_mechanism(arm.name, **arm.parameters),
            finished.pools.get(arm.name, finished.pool),
            people,
        )
        for arm in finished.scenario.arms
    )


def _traded(finished: Run) -> list[dict[str, Any]]:
    """Of each pool, which mechanisms traded on it, its measures, and how it came about."""
    names: dict[ReplyPool, list[str]] = {}
    for arm in finished.scenario.arms:
        names.setdefault(finished.pools.get(arm.name, finished.pool), []).append(arm.name)
    return [
        {
            "mechanisms": traders,
            "measures": pool_measures(pool),
            "manifest": {
                k: v for k, v in pool.manifest.items() if k not in ("content_hash", "schema")
            },
        }
        for pool, traders in names.items()
    ]


def _fill(finished: Run, folder: Path) -> None:
    """Write what a run leaves behind, and then the page that is made of these files alone."""
    from experiments.report import build
    from experiments.report.records import sha256_of

    finished.result.save(folder)
    finished.best.write_parquet(folder / "best_responses.parquet")
    gains(finished).write_parquet(folder / "gains.parquet")
    save_samples(finished.samples, folder / "samples.json")
    if finished.live is not None:
        finished.live.write_parquet(folder / "live_replies.parquet")
    if finished.plans is not None:
        finished.plans.write_parquet(folder / "plans.parquet")
    (folder / "scenario.yaml").write_text(finished.scenario.to_yaml(), encoding="utf-8")
    written = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    manifest = {**provenance(finished), "sha256": written}
    text = json.dumps(manifest, indent=2, sort_keys=True)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
    build(folder)


def _samples(pool: ReplyPool, mechanism: Mechanism, result: Result, seed: int) -> list[SampleReply]:
    """Replies served under the bids that advertisers came to, averaged over the last rounds."""
    rng = np.random.default_rng([seed, 99])
    return sample_replies(pool, mechanism, settled_bids(result), rng, SAMPLES)


def settled_bids(result: Result) -> Floats:
    """(N,) mean bids over the last quarter of rounds and all replications."""
    late = last_quarter(result.advertisers).sort("replication", "round", "advertiser")
    # not by group_by, whose sums depend on the number of threads in their last digits
    return late["bid"].to_numpy().reshape(-1, late["advertiser"].n_unique()).mean(axis=0)
