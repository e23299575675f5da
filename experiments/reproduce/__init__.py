"""The papers' questions, asked again on replies of our own: `admarket reproduce PAPER`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from market.scenario import Scenario


def _mosaic(scenario: Scenario, seed: int, folder: Path, say: Callable[[str], None]) -> Path:
    from experiments.reproduce.mosaic_page import reproduce

    return reproduce(scenario, seed, folder, say)


PAPERS = {"mosaic": _mosaic}
"""By name: run the reproduction into a folder, and return the path of its page."""
