"""What training left behind: its stages, each with an Ad-LLM, and the logs of its epochs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from experiments.training.stages import STAGES
from mechanisms.errors import BadInput
from mechanisms.llm_auction.ad_llm import CARD, AdLLM

SUMMARY, POLICY, ENCODINGS = "stage.json", "policy", "encodings.json"


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: of its folder.
        kind: what was done, one of `experiments.training.stages.STAGES`.
        start: folder of the stage that it went on from, by name; empty for none.
        ad_llm: what it came to; None if that is gone.
        seconds: wall time by phase.
        epochs: what each epoch saw; for IRPO `epoch`, `correlation_before` and `correlation` of
            predicted and users' click probabilities, `reward`, `revenue`, `well_formed`, `pairs`.
        settings: of the whole training (`market.training.TrainingSpec`).
        pctr: folder of its click model after the last epoch; None if it has none.
    """

    name: str
    kind: str
    start: str = ""
    ad_llm: AdLLM | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    epochs: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    pctr: Path | None = None

    @property
    def warm_start(self) -> bool:
        """Whether it taught the format only."""
        return self.kind == "warm-start"

    @property
    def label(self) -> str:
        """Its name, and for IRPO by which click probabilities it was rewarded."""
        irpo = self.settings.get("irpo", {})
        if self.kind != "irpo" or "oracle" not in irpo:
            return self.name
        return f"{self.name} ({'Oracle' if irpo['oracle'] else 'pCTR'})"


def read_stages(folder: Path) -> list[Stage]:
    """The stages in a folder that `admarket train` wrote, in the order of rows.

    Raises:
        BadInput: there are none, or one's `stage.json` cannot be read.
    """
    found = []
    for file in sorted(folder.glob(f"*/{SUMMARY}")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            if told["stage"] not in STAGES:
                raise ValueError(f"unknown stage {told['stage']!r}")
            found.append(
                Stage(
                    name=file.parent.name,
                    kind=told["stage"],
                    start=Path(told["start"]).parent.name if told["start"] else "",
                    ad_llm=_ad_llm(file.parent / POLICY),
                    seconds=told.get("phases") or {"train": told["seconds"]},
                    epochs=told.get("epochs") or [],
                    settings=told["training"],
                    pctr=_click_model(file.parent, told.get("epochs") or []),
                )
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"{file} cannot be read ({error!r}); train that stage again") from None
    if not found:
        raise BadInput(
            f"--stages {folder} holds no stage of training (a folder with {SUMMARY}); give the "
            "folder that `admarket train` wrote"
        )
    return sorted(found, key=lambda stage: (STAGES.index(stage.kind), stage.name))


def _click_model(folder: Path, epochs: Sequence[Mapping[str, Any]]) -> Path | None:
    kept = folder / "work" / f"epoch-{len(epochs)}" / "pctr"
    return kept if kept.exists() else None


def _ad_llm(folder: Path) -> AdLLM | None:
    return AdLLM.load(folder) if (folder / CARD).exists() else None


def read_encodings(folder: Path) -> pl.DataFrame:
    """How ways of showing bids to the LLM did, from `encodings.json` beside the stages.

    Columns: `bids`, `ordered`, `steps` (of distillation), `loss` (nats per token), `lowest` and
    `highest` (choice share of an ad at the lowest and the highest bid), `spearman` and `gain` (from
    lowest to highest) with `_low` and `_high`. No rows where there is no such file. See
    `experiments.training.encodings`.

    Raises:
        BadInput: the file cannot be read.
    """
    numbers = ("loss", "lowest", "highest", *_with_ends("spearman"), *_with_ends("gain"))
    schema = {"bids": pl.String, "ordered": pl.Boolean, "steps": pl.Int64}
    schema |= dict.fromkeys(numbers, pl.Float64)
    file = folder / ENCODINGS
    if not file.exists():
        return pl.DataFrame(schema=schema)
    try:
        rows = []
        for told in json.loads(file.read_text(encoding="utf-8")):
            row = {name: told[name] for name in ("bids", "ordered", "steps", "loss")}
            row |= {"lowest": told["shares"][0], "highest": told["shares"][-1]}
            for name in ("spearman", "gain"):
                row |= dict(zip(_with_ends(name), told[name], strict=True))
            rows.append(row)
        return pl.DataFrame(rows, schema=schema)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadInput(f"{file} cannot be read ({error!r}); mend it or take it away") from None


def _with_ends(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


def times(stages: Sequence[Stage]) -> pl.DataFrame:
    """A row per stage and phase: `stage`, `phase`, `seconds`."""
    rows = [(stage.label, phase, s) for stage in stages for phase, s in stage.seconds.items()]
    schema = {"stage": pl.String, "phase": pl.String, "seconds": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def totals(stages: Sequence[Stage]) -> dict[str, float]:
    """By label, seconds from the untrained LLM on: a stage's own and of all that it goes on from.

    What a stage started from elsewhere took is not known, and not counted.
    """
    by_name = {stage.name: stage for stage in stages}
    found = {}
    for stage in stages:
        total, at, met = 0.0, stage, set()
        while at is not None and at.name not in met:
            met.add(at.name)
            total += sum(at.seconds.values())
            at = by_name.get(at.start)
        found[stage.label] = total
    return found


def correlations(stages: Sequence[Stage]) -> pl.DataFrame:
    """Correlation of predicted with the users' own click probabilities, a row per epoch.

    `before` is of the model that learned from earlier deployments, `after` of the one that has
    learned from this one: the difference is what the shift of the replies costs.
    """
    rows = [
        (stage.label, epoch["epoch"], epoch["correlation_before"], epoch["correlation"])
        for stage in stages
        for epoch in stage.epochs
        if "correlation" in epoch
    ]
    schema = {"stage": pl.String, "epoch": pl.Int64, "before": pl.Float64, "after": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")
