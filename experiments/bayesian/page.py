"""`admarket equilibrium --known`: equilibria known in theory, and what learners came to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from experiments.bayesian import figures
from experiments.bayesian.functions import CELLS_A_PIECE
from experiments.bayesian.known import KnownEquilibria, known_equilibria
from experiments.bayesian.solve import LEARNERS
from experiments.page import Subject, Verdict, Verdicts, check_folder, write_page
from experiments.provenance import where

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTE = (
    "What is known comes from closed forms, roots of first-order conditions, or dominance, and "
    "from no mechanism or learner of this program. L2: root mean square distance of bid functions "
    "over values. Loss: 1 - payoff / best reply's payoff, what a missed target owes included. Grid "
    "loss: of the learner's strategy, on the bid and value cells that it plays on. Continuous "
    "loss: against any bid, of the bid function that stands for the strategy: always a cubic "
    f"spline with a piece for {CELLS_A_PIECE} bid cells, which suits linear equilibria; "
    "unsmoothed: of the strategy as it is. Seconds include all measurement; of several "
    "runs the slowest counts. Every row starts from the seed; figures show the rows' own runs."
)


def write_known(seed: int, folder: Path, say: Callable[[str], None]) -> Path:
    """Let learners find known equilibria again, and write the folder; returns the page's path.

    Raises:
        BadInput: the folder cannot be written, or holds something else.
    """
    subject = Subject("equilibrium", None, seed, asked={"known": True})
    check_folder(folder, subject)
    say("known equilibria: about half a minute")
    found = known_equilibria(seed)
    rows = found.rows
    say("figures and page")
    verdicts = [
        Verdict(
            (f"{row.name}, {row.learner}", row.target, f"{row.found} ({row.seconds:.2f} s)"),
            "met" if row.met else "not met",
            "good" if row.met else "bad",
        )
        for row in rows
    ]
    met = sum(row.met for row in rows)
    return write_page(
        folder,
        subject,
        title=f"Known equilibria, found again: {met} of {len(rows)}",
        label="pools without an LLM, built for theory",
        verdicts=Verdicts(("market and learner", "known", "found", ""), verdicts, NOTE),
        facts=[("Seed", str(seed)), ("Learners", ", ".join(LEARNERS) + "; hedge, pacing")],
        figures=_figures(found),
        tables={"known": pl.DataFrame([row.entry() for row in rows])},
        manifest=where(),
        summary=[row.entry() for row in rows],
    )


def _figures(found: KnownEquilibria) -> dict[str, tuple[Figure, str]]:
    """The solves of the table, drawn."""
    return {
        "first_price": (figures.first_price(found.first_price), figures.CAPTIONS["first_price"]),
        "utility_against_value": (
            figures.utility_maximizer_against_value_maximizer(found.against),
            figures.CAPTIONS["utility_against_value"],
        ),
    }
