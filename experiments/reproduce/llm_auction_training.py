"""All stages of training that the study of LLM-Auction compares, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from experiments.ad_llm.stages import POLICY
from experiments.training.stages import train
from market.scenario import Scenario
from market.training import TrainingSpec

LAST = "irpo-from-distill"
"""The stage whose Ad-LLM is on trial."""
PLAN = (
    ("warm-start", "warm-start", None, False),
    ("distill", "distill", None, False),
    ("irpo-from-warm-start", "irpo", "warm-start", False),
    (LAST, "irpo", "distill", False),
    ("irpo-oracle-from-distill", "irpo", "distill", True),
    ("online-from-warm-start", "online", "warm-start", False),
)
"""Folder, stage, folder to start from, and whether IRPO is the Oracle variant."""


def train_all(
    scenario: Scenario, seed: int, folder: Path, say: Callable[[str], None] = lambda _: None
) -> Path:
    """Run what is not done yet of `PLAN`, in `folder`, which is returned."""
    spec = (scenario.training or TrainingSpec()).model_dump()
    for name, stage, start, oracle in PLAN:
        asked = scenario
        if spec["irpo"]["oracle"] != oracle:
            asked = scenario.with_(training={**spec, "irpo": {**spec["irpo"], "oracle": oracle}})
        begun = None if start is None else folder / start / POLICY
        train(asked, stage, seed, folder / name, begun, say)
    return folder
