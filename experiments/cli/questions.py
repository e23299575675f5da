"""Commands that ask something of a market: deviations, equilibria, comparisons, papers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.options import (
    CatalogOption,
    LearnerOption,
    MechanismOption,
    OutOption,
    ScenarioArgument,
    SeedOption,
    app,
    load,
    say,
)
from mechanisms.errors import BadInput, instead


@app.command()
def audit(
    scenario: ScenarioArgument = "default",
    mechanism: MechanismOption = None,
    others: Annotated[
        str, typer.Option(help="What the others bid: truthful, or learned (best responses).")
    ] = "truthful",
    catalog: CatalogOption = None,
    seed: SeedOption = 0,
    out: OutOption = None,
) -> None:
    """Try strategic deviations: incentive compatibility and individual rationality, measured."""
    from experiments.audit import run_audit

    described = load(scenario, catalog)
    folder = out or Path("results") / f"audit-{described.name}-seed{seed}"
    print(run_audit(described, seed, folder, say, mechanisms=mechanism, others=others))


@app.command()
def equilibrium(
    scenario: ScenarioArgument = "default",
    mechanism: MechanismOption = None,
    learner: LearnerOption = "hedge",
    rounds: Annotated[
        int | None, typer.Option(min=4, help="Rounds of learning; default the learner's.")
    ] = None,
    starts: Annotated[int, typer.Option(min=1, help="Starting points, run side by side.")] = 8,
    known: Annotated[
        bool, typer.Option(help="Instead: check learners against equilibria known in theory.")
    ] = False,
    catalog: CatalogOption = None,
    seed: SeedOption = 0,
    out: OutOption = None,
) -> None:
    """Find the equilibrium that learners settle in, and how far from an exact one it is."""
    if known:
        chosen = (scenario, mechanism, learner, rounds, starts, catalog)
        if chosen != ("default", None, "hedge", None, 8, None):
            raise BadInput("--known brings its own markets; give --seed and --out at most")
        from experiments.bayesian.page import write_known

        print(write_known(seed, out or Path("results") / f"known-equilibria-seed{seed}", say))
        return
    from experiments.equilibrium import find_equilibrium

    described = load(scenario, catalog)
    folder = out or Path("results") / f"equilibrium-{described.name}-{learner}-seed{seed}"
    print(
        find_equilibrium(
            described, seed, folder, say,
            learner=learner, mechanisms=mechanism, rounds=rounds, starts=starts,
        )
    )  # fmt: skip


@app.command()
def compare(
    context: typer.Context,
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SCENARIO | DIR DIR...]",
            help="A scenario file or the name of a bundled one (default: default); or folders of "
            "finished runs, to put side by side.",
        ),
    ] = None,
    mechanism: Annotated[
        list[str] | None,
        typer.Option(
            help="A mechanism, repeatable; default mosaic, llm-auction-ideal, segment and the slot "
            "auctions, with the scenario's parameters where it has them."
        ),
    ] = None,
    share: Annotated[
        list[float] | None,
        typer.Option(help="A share of value maximizers, repeatable; default 0 to 1 by 0.25."),
    ] = None,
    learner: Annotated[
        list[str] | None,
        typer.Option(help="A learner for all, repeatable; default hedge and gradient."),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Populations drawn per cell.")] = 8,
    rounds: Annotated[int, typer.Option(min=4, help="Rounds of learning.")] = 2000,
    starts: Annotated[int, typer.Option(min=1, help="Starting points of each.")] = 2,
    executor: Annotated[str, typer.Option(help="serial, processes or ray.")] = "processes",
    workers: Annotated[
        int | None, typer.Option(min=1, help="At once; default one per core.")
    ] = None,
    catalog: CatalogOption = None,
    seed: SeedOption = 0,
    out: OutOption = None,
) -> None:
    """Map mechanisms against shares of value maximizers and learners, or put runs side by side.

    Of a scenario: mechanisms, shares and learners at their equilibria. Of two or more results
    folders of `admarket run`: what differs between them, and by how much.
    """
    given = subjects or ["default"]
    if len(given) > 1:
        print(_side_by_side(context, given, out))
        return
    if Path(given[0]).is_dir():
        raise BadInput(f"{given[0]} is a folder; give a scenario, or two or more folders of runs")
    from experiments.compare import run_compare

    described = load(given[0], catalog)
    folder = out or Path("results") / f"compare-{described.name}-seed{seed}"
    print(
        run_compare(
            described, seed, folder, say,
            mechanisms=mechanism, shares=share, learners=learner,
            draws=draws, rounds=rounds, starts=starts, executor=executor, workers=workers,
        )
    )  # fmt: skip


def _side_by_side(context: typer.Context, given: list[str], out: Path | None) -> Path:
    """The page of finished runs; options that make new ones are refused.

    Raises:
        BadInput: something given is no folder, or an option speaks of a scenario.
    """
    folders = [Path(each) for each in given]
    for folder in folders:
        if not folder.is_dir():
            raise BadInput(
                f"{folder}: no such folder; give one scenario, or two or more folders of runs"
            )
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in ("subjects", "out") and source is not None and source.name == "COMMANDLINE":
            raise BadInput(f"--{name} is for a scenario; folders of runs are compared as they are")
    from experiments.side_by_side import side_by_side

    names = "-".join(folder.resolve().name for folder in folders)
    return side_by_side(folders, out or Path("results") / f"side-by-side-{names:.80}")


@app.command()
def reproduce(
    paper: Annotated[str, typer.Argument(help="Which paper's: mosaic, llm-auction or iamfm.")],
    scenario: Annotated[
        str | None, typer.Option(help="Scenario; default the bundled one of the paper's name.")
    ] = None,
    catalog: CatalogOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default results/reproduce-NAME-seedSEED.")
    ] = None,
    ad_llm: Annotated[
        str | None, typer.Option(help="llm-auction: the Ad-LLM on trial, a folder or a name.")
    ] = None,
    stages: Annotated[
        Path | None, typer.Option(help="llm-auction: folder of training stages to compare.")
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="llm-auction: first train the stages missing there.")
    ] = False,
) -> None:
    """Ask a paper's questions again, in figures and sentences with intervals."""
    from experiments.reproduce import PAPERS

    if paper not in PAPERS:
        raise BadInput(f"no reproduction of {paper!r}; {instead(paper, PAPERS)}")
    described = load(scenario or paper, catalog)
    folder = out or Path("results") / f"reproduce-{described.name}-seed{seed}"
    asked = {"ad_llm": ad_llm, "stages": stages, "train": train}
    print(PAPERS[paper](described, seed, folder, say, **asked))
