"""Commands that run or record markets."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from experiments import tracking
from experiments.cli.options import (
    CatalogOption,
    OutOption,
    ScenarioArgument,
    SeedOption,
    app,
    load,
    say,
)
from mechanisms.errors import BadInput


@app.command()
def run(
    context: typer.Context,
    scenario: ScenarioArgument = "default",
    seed: SeedOption = 0,
    out: OutOption = None,
    catalog: CatalogOption = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Go on with the unfinished run of this results folder, and of its scenario.",
        ),
    ] = None,
    checkpoint_every: Annotated[
        float, typer.Option(min=0, help="Seconds between checkpoints; 0 for none.")
    ] = 5.0,
    mlflow: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Log the finished run to this MLflow, too."),
    ] = None,
) -> None:
    """Run a market and write its results folder, ending with the report's path.

    A run that was stopped, by whatever, goes on where it was when it is run again.
    """
    from experiments import run as running
    from experiments.unfinished import Unfinished, begun
    from market.errors import Stopped

    if mlflow is not None:
        tracking.check_mlflow()
    if resume is None:
        described = load(scenario, catalog)
        folder = out or Path("results") / f"{described.name}-seed{seed}"
    else:
        _refuse_beside_resume(context, ("scenario", "seed", "out", "catalog"))
        if not checkpoint_every:
            raise BadInput("--resume goes on with checkpoints; drop --checkpoint-every 0")
        folder, described, seed = begun(resume)
    running.check_folder(described, seed, folder)
    work = (
        Unfinished(folder, described, seed, every=checkpoint_every, say=say)
        if checkpoint_every
        else contextlib.nullcontext()
    )
    with work as unfinished:
        try:
            finished = running.run(described, seed, say=say, progress=True, unfinished=unfinished)
            say("figures and report")
            page = running.write(finished, folder, unfinished)
        except KeyboardInterrupt:
            if unfinished is None:
                raise
            raise Stopped(f"interrupted; {unfinished.way_on}") from None
    _conclude(page, mlflow)


def _conclude(report: Path, tracking_uri: str | None) -> None:
    """End with the report's path, and log the run where that is asked for."""
    print(report, flush=True)
    if tracking_uri is not None:
        say(f"logging to MLflow: run {tracking.log_to_mlflow(report.parent, tracking_uri)}")


def _refuse_beside_resume(context: typer.Context, names: tuple[str, ...]) -> None:
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise BadInput(f"--resume finds scenario, seed and folder by itself; drop {name}")


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A results folder of `admarket run`.")
    ],
) -> None:
    """Draw the figures and write the page of a finished run again, from its files alone."""
    from experiments.report import rebuild

    print(rebuild(folder, say))


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


@app.command()
def dashboard(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIR|SCENARIO]",
            help="A results folder, a scenario file or a bundled scenario; default the default "
            "market, or the synthetic one while no replies are recorded.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for one that is free.")] = 8765,
    no_open: Annotated[bool, typer.Option("--no-open", help="Open no browser.")] = False,
) -> None:
    """Play and change a market in the browser, or look at a finished run."""
    from experiments.dashboard.server import serve

    serve(source, port, open_browser=not no_open, say=say)
