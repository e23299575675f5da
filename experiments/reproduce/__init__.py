"""The papers' questions, asked again on replies of our own: `admarket reproduce PAPER`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from market.scenario import Scenario
from mechanisms.errors import BadInput


def _mosaic(
    scenario: Scenario, seed: int, folder: Path, say: Callable[[str], None], **options: object
) -> Path:
    from experiments.reproduce.mosaic_page import reproduce

    _refuse(options, "mosaic")
    return reproduce(scenario, seed, folder, say)


def _iamfm(
    scenario: Scenario, seed: int, folder: Path, say: Callable[[str], None], **options: object
) -> Path:
    from experiments.reproduce.iamfm_page import reproduce

    _refuse(options, "iamfm")
    return reproduce(scenario, seed, folder, say)


def _refuse(options: Mapping[str, object], paper: str) -> None:
    """Refuse what was asked for of another paper's reproduction."""
    for name, given in options.items():
        if given:
            raise BadInput(f"--{name.replace('_', '-')} is for llm-auction, not {paper}; drop it")


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


PAPERS = {"mosaic": _mosaic, "llm-auction": _llm_auction, "iamfm": _iamfm}
"""By name: run the reproduction into a folder, and return the path of its page."""
