"""The papers' questions, asked again on replies of our own: `admarket reproduce PAPER`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from market.scenario import Scenario
from mechanisms.errors import BadInput


def _mosaic(
    scenario: Scenario, seed: int, folder: Path, say: Callable[[str], None], **options: object
) -> Path:
    from experiments.reproduce.mosaic_page import reproduce

    for name, given in options.items():
        if given:
            raise BadInput(f"--{name.replace('_', '-')} is for llm-auction, not mosaic; drop it")
    return reproduce(scenario, seed, folder, say)


def _llm_auction(
    scenario: Scenario,
    seed: int,
    folder: Path,
    say: Callable[[str], None],
    *,
    ad_llm: str | None = None,
    stages: Path | None = None,
    train: bool = False,
) -> Path:
    from experiments.reproduce.llm_auction_page import reproduce

    return reproduce(scenario, seed, folder, say, ad_llm=ad_llm, stages=stages, train=train)


PAPERS = {"mosaic": _mosaic, "llm-auction": _llm_auction}
"""By name: run the reproduction into a folder, and return the path of its page."""
