"""Puts the study of MOSAIC together: measure, conclude, draw, write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments.page import Subject, check_folder, write_page
from experiments.provenance import where
from experiments.report import replies_label
from experiments.reproduce import mosaic_figures as figures
from experiments.reproduce.mosaic import TRUTH, Study, log_ratio_tau, study
from experiments.reproduce.mosaic_conclusions import FALLS, conclusions
from experiments.reproduce.page import verdicts
from market.scenario import Scenario

TABLES = ("convergence", "offsets", "temperatures", "misreports", "tokens")


def reproduce(scenario: Scenario, seed: int, folder: Path, say: Callable[[str], None]) -> Path:
    """Run the study, write its folder, and return the path of its page."""
    check_folder(folder, subject(scenario, seed))
    done = study(scenario, seed, say)
    say("figures and page")
    return write(done, folder)


def subject(scenario: Scenario, seed: int) -> Subject:
    """What its folder is about."""
    return Subject("reproduction", scenario, seed, {"paper": "mosaic"})


def write(done: Study, folder: Path) -> Path:
    """Write the study's folder and return the path of its page."""
    found = conclusions(done)
    return write_page(
        folder,
        subject(done.scenario, done.seed),
        title="MOSAIC, reproduced",
        label=replies_label(done.pools["guided"].manifest),
        verdicts=verdicts(found),
        summary=[asdict(each) for each in found],
        facts=facts(done),
        figures={
            name: (figure, figures.CAPTIONS[name]) for name, figure in figures.draw(done).items()
        },
        tables={name: getattr(done, name) for name in TABLES},
        manifest=manifest(done),
    )


def facts(done: Study) -> list[tuple[str, str]]:
    """What was done, in words."""
    pool, spec = done.pools["guided"], done.scenario.replies
    B, M, n = pool.shape
    ess, seconds = done.pools["truth"].effective_sample_size, done.seconds
    return [
        ("Paper", "MOSAIC, arXiv 2405.05905"),
        ("Requests", f"{B} queries of catalog {done.scenario.catalog.source}, {n} ads each"),
        ("Advertisers", f"{pool.num_advertisers} truthful utility maximizers"),
        (
            "LLM",
            f"{spec.model}, {spec.dtype}, engine {spec.engine}, temperature {spec.temperature}",
        ),
        ("Candidates", f"{M} a request and way of writing; all ways have the same reference"),
        (
            "Optimum",
            f"estimated on {TRUTH * M} candidates a request of a recording of its own, whose "
            f"weights have effective sample sizes from {ess.min():.1f} (median "
            f"{np.median(ess):.1f})",
        ),
        (
            "Convergence",
            "agrees where, from a quarter of the candidates to all, total variation falls, to less "
            f"than {FALLS} of what it was, and the gap in tau log Z falls; and the allocation ends "
            "nearer to its optimum than the reference, and than to other requests' optima",
        ),
        (
            "tau",
            f"{done.scenario.mechanism.parameters['tau']} for clicks, "
            f"{log_ratio_tau(done.scenario)} for log-ratios, whose optimum is then the geometric "
            "mean of the advertisers' LLMs",
        ),
        ("Reference policy", f"mention rate {spec.mention_rate}, inline rate {spec.inline_rate}"),
        ("Seeds", f"environment {done.scenario.environment_seed}, analysis {done.seed}"),
        (
            "Wall time",
            f"{seconds['replies']:.0f} s for replies, those recorded earlier reused; "
            f"{seconds['measures']:.0f} s for measures",
        ),
        *((f"pool {way}", pool.content_hash) for way, pool in done.pools.items()),
    ]


def manifest(done: Study) -> dict[str, Any]:
    """Provenance: pools, wall time, versions, machine."""
    return {
        "seconds": done.seconds,
        "pools": {way: pool.content_hash for way, pool in done.pools.items()},
        "writing": {way: pool.manifest.get("writing") for way, pool in done.pools.items()},
        **where(),
    }
