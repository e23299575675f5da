"""Commands that run or record markets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.options import (
    CatalogOption,
    OutOption,
    ScenarioArgument,
    SeedOption,
    app,
    load,
    say,
)


@app.command()
def run(
    scenario: ScenarioArgument = "default",
    seed: SeedOption = 0,
    out: OutOption = None,
    catalog: CatalogOption = None,
) -> None:
    """Run a market and write its results folder, ending with the report's path."""
    from experiments import run as running

    described = load(scenario, catalog)
    folder = out or Path("results") / f"{described.name}-seed{seed}"
    running.check_folder(described, seed, folder)
    finished = running.run(described, seed, say=say, progress=True)
    say("figures and report")
    print(running.write(finished, folder))


@app.command()
def record(
    scenario: ScenarioArgument = "default",
    catalog: CatalogOption = None,
    out: Annotated[Path | None, typer.Option(help="Also save the pool in this folder.")] = None,
) -> None:
    """Record a scenario's candidate replies into the cache, and say what they are like."""
    from market.environment import pools_of
    from mechanisms.recording import describe, save_pool
    from mechanisms.registry import make_mechanism

    described = load(scenario, catalog)
    arms = [make_mechanism(arm.name, **arm.parameters) for arm in described.arms]
    pools = pools_of(described, arms, say)
    for number, pool in enumerate({id(pool): pool for pool in pools}.values()):
        B, M, n = pool.shape
        design = pool.manifest.get("design", {})
        way = f", written by {design['generation']}" if design else ""
        print(f"requests {B}, replies {M}, ads {n}, advertisers {pool.num_advertisers}{way}")
        for key, value in describe(pool).items():
            print(f"{key} {value:.4g}")
        print(f"content_hash {pool.content_hash}")
        if out is not None:
            print(save_pool(pool, out if not number else out.with_name(f"{out.name}-{number}")))
