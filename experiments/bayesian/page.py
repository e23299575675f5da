"""`admarket equilibrium --known`: equilibria known in theory, and what learners came to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl

from experiments.bayesian import figures
from experiments.bayesian.known import (
    BIDDERS,
    TARGETS,
    known_equilibria,
    single_item,
    utility_against_value_report,
)
from experiments.bayesian.prior import Uniform
from experiments.bayesian.solve import LEARNERS, solve_bayesian
from experiments.page import Subject, Verdict, Verdicts, check_folder, write_page
from experiments.provenance import where
from mechanisms.registry import make_mechanism

NOTE = (
    "What is known comes from closed forms, roots of first-order conditions, or dominance, and "
    "from no mechanism or learner of this program. L2: root mean square distance of bid functions "
    "over values. Loss: 1 - payoff / best reply's payoff, in the continuous game, and in brackets "
    "on the grid that the learner plays on. Seconds include all measurement."
)


def write_known(seed: int, folder: Path, say: Callable[[str], None]) -> Path:
    """Let learners find known equilibria again, and write the folder; returns the page's path.

    Raises:
        BadInput: the folder cannot be written, or holds something else.
    """
    subject = Subject("equilibrium", None, seed, asked={"known": True})
    check_folder(folder, subject)
    say("known equilibria: about half a minute")
    rows = known_equilibria(np.random.default_rng(seed))
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
        figures=_figures(seed),
        tables={"known": pl.DataFrame([asdict(row) for row in rows])},
        manifest=where(),
        summary=[asdict(row) for row in rows],
    )


def _figures(seed: int):
    mechanism, prior = make_mechanism("first-price"), Uniform(0, 1)
    first_price = {
        learner: {
            n: solve_bayesian(
                mechanism, single_item(n), prior, learner, rng=np.random.default_rng(seed)
            )
            for n in BIDDERS
        }
        for learner in LEARNERS
    }
    against = {
        roi: utility_against_value_report(roi, np.random.default_rng(seed)) for roi in TARGETS
    }
    return {
        "first_price": (figures.first_price(first_price), figures.CAPTIONS["first_price"]),
        "utility_against_value": (
            figures.utility_maximizer_against_value_maximizer(against),
            figures.CAPTIONS["utility_against_value"],
        ),
    }
