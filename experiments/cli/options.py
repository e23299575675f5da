"""What all commands share: the application, common options, loading a scenario, saying a line."""

from __future__ import annotations

import sys
import unicodedata
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
    print(visible(line), file=sys.stderr, flush=True)


def visible(line: str) -> str:
    r"""A line with control and invisible characters escaped: it may quote anything.

    >>> visible("caf\u00e9 \x1b[31m \u202e")
    'café \\x1b[31m \\u202e'
    """
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        each.encode("unicode_escape").decode() if unicodedata.category(each) in hidden else each
        for each in line
    )
