"""What all commands share: the application, common options, loading a scenario, saying a line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechanisms.errors import BadInput

if TYPE_CHECKING:
    from market.scenario import Scenario

app = typer.Typer(
    help="Markets in which advertisers bid for the words of an LLM.",
    pretty_exceptions_enable=False,
)

ScenarioArgument = Annotated[
    str, typer.Argument(help="A scenario file, or the name of a bundled one.")
]
SeedOption = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Seed of arrivals, dice and learners.")
]
OutOption = Annotated[
    Path | None, typer.Option(help="Results folder; default results/NAME-seedSEED.")
]
CatalogOption = Annotated[
    str | None, typer.Option(help="Catalog folder, instead of the scenario's.")
]
MechanismOption = Annotated[
    list[str] | None,
    typer.Option("--mechanism", help="A mechanism, repeatable; default the scenario's."),
]
LearnerOption = Annotated[
    str, typer.Option(help="A learner for all, or `scenario` for those it describes.")
]


def load(name: str, catalog: str | None) -> Scenario:
    """The scenario of that name or file, on another catalog if one is given.

    Raises:
        BadInput: there is none, or a catalog is given to one that has synthetic replies.
    """
    from experiments.unfinished import refuse_results
    from market.scenario import Scenario

    try:
        scenario = Scenario.from_yaml(name)
    except BadInput:
        refuse_results(name)
        raise
    if catalog is None:
        return scenario
    if scenario.replies.source == "synthetic":
        raise BadInput(f"--catalog {catalog}: scenario {name} has synthetic replies, drop it")
    return scenario.with_(catalog={**scenario.catalog.model_dump(), "source": catalog})


def say(line: str) -> None:
    """Tell the user what is going on; results go to standard output, this does not."""
    print(line, file=sys.stderr, flush=True)
