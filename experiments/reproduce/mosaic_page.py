"""Puts the study of MOSAIC together: measure, conclude, draw, write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.provenance import where
from experiments.report import replies_label
from experiments.reproduce import mosaic_figures as figures
from experiments.reproduce.mosaic import TRUTH, Study, log_ratio_tau, study
from experiments.reproduce.mosaic_conclusions import conclusions
from experiments.reproduce.page import check_folder, write_page
from market.scenario import Scenario


def reproduce(scenario: Scenario, seed: int, folder: Path, say: Callable[[str], None]) -> Path:
    """Run the study, write its folder, and return the path of its page."""
    check_folder(folder)
    done = study(scenario, seed, say)
    say("figures and page")
    drawn = {
        "convergence": figures.convergence(done.convergence),
        "offset": figures.offset(done.offsets),
        "temperature": figures.temperature(done.temperatures),
        "misreports": figures.misreports(done.misreports),
        "tokens": figures.tokens(done.tokens),
    }
    names = ("convergence", "offsets", "temperatures", "misreports", "tokens")
    return write_page(
        folder,
        title="MOSAIC, reproduced",
        label=replies_label(done.pools["guided"].manifest),
        facts=facts(done),
        conclusions=conclusions(done),
        figures={name: (figure, figures.CAPTIONS[name]) for name, figure in drawn.items()},
        tables={name: getattr(done, name) for name in names},
        manifest=manifest(done),
    )


def facts(done: Study) -> list[tuple[str, str]]:
    """What was done, in words."""
    pool, spec = done.pools["guided"], done.scenario.replies
    B, M, n = pool.shape
    return [
        ("Paper", "MOSAIC, arXiv 2405.05905"),
        ("Requests", f"{B} queries of catalog {done.scenario.catalog.source}, {n} ads each"),
        ("Advertisers", f"{pool.num_advertisers} truthful utility maximizers"),
        (
            "LLM",
            f"{spec.model}, {spec.dtype}, engine {spec.engine}, temperature {spec.temperature}",
        ),
        ("Candidates", f"{M} a request and way of writing; all ways have the same reference"),
        ("Optimum", f"estimated on {TRUTH * M} candidates a request of a recording of its own"),
        (
            "tau",
            f"{done.scenario.mechanism.parameters['tau']} for clicks, "
            f"{log_ratio_tau(done.scenario)} for log-ratios, whose optimum is then the geometric "
            "mean of the advertisers' LLMs",
        ),
        ("Reference policy", f"mention rate {spec.mention_rate}, inline rate {spec.inline_rate}"),
        ("Seeds", f"environment {done.scenario.environment_seed}, analysis {done.seed}"),
        *((f"pool {way}", pool.content_hash) for way, pool in done.pools.items()),
    ]


def manifest(done: Study) -> dict[str, Any]:
    """Provenance: scenario, seeds, pools, versions, machine."""
    return {
        "scenario": done.scenario.model_dump(mode="json"),
        "seed": done.seed,
        "pools": {way: pool.content_hash for way, pool in done.pools.items()},
        "writing": {way: pool.manifest.get("writing") for way, pool in done.pools.items()},
        **where(),
    }
