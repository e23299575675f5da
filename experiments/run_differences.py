"""Finished runs side by side: what is compared with what, paired or not, and by how much.

The first run is the baseline. Mechanisms of the same name are compared with each other; runs that
have none in common are compared by the first of each. Where two runs met the same requests and dice
their differences are paired, replication by replication, else they are those of independent samples
(Welch). All amounts are means over the last quarter of a run's rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from experiments.report.records import Records
from experiments.tables import difference, last_quarter
from market.result import interval
from mechanisms.errors import BadInput
from mechanisms.pool import Floats

TOTALS = ("revenue", "welfare", "user_satisfaction", "ads_per_reply")
BEHAVIOUR = ("paid_share", "bid_utility", "bid_value")
COMPARED = (*TOTALS, *BEHAVIOUR)
"""What is compared, by the names of `experiments.measures`."""
SAME = {
    "rounds": "rounds",
    "requests_per_round": "requests per round",
    "replications": "replications",
    "environment_seed": "environment seed",
    "catalog": "catalog",
    "requests": "requests",
}
"""Settings that must agree, beside the seed, for two runs to meet the same requests and dice."""
WRITER = ("model", "engine", "dtype", "temperature")
"""Settings of `replies` that decide, too, which requests an LLM generates (`market.asking`)."""


@dataclass(frozen=True, eq=False)
class Side:
    """A run under a name of its own.

    Attributes:
        name: of the folder, with as much of its path as tells it from the others.
        run: its records.
    """

    name: str
    run: Records

    @cached_property
    def measured(self) -> pl.DataFrame:
        """`COMPARED` by mechanism and replication; null where there is none."""
        target = pl.when(pl.col("objective") == "value").then(pl.col("target_roi")).otherwise(1.0)
        ratio = (pl.col("bid") * target / pl.col("value")).mean()
        runs = self.run.advertisers.partition_by("mechanism", maintain_order=True)
        by_kind = (
            pl.concat(last_quarter(each) for each in runs)
            .group_by("mechanism", "replication", "objective")
            .agg(ratio.alias("ratio"))
        )
        found = self.run.by_replication
        for kind in ("utility", "value"):
            bids = by_kind.filter(pl.col("objective") == kind)
            bids = bids.select("mechanism", "replication", pl.col("ratio").alias(f"bid_{kind}"))
            found = found.join(
                bids, on=["mechanism", "replication"], how="left", maintain_order="left"
            )
        return found.select("mechanism", "replication", pl.col(*COMPARED).cast(pl.Float64))

    def of(self, label: str, measure: str) -> Floats:
        """(R,) a measure of a mechanism by replication; NaN where there is none."""
        ours = self.measured.filter(pl.col("mechanism") == label).sort("replication")
        return ours[measure].fill_null(np.nan).to_numpy()


@dataclass(frozen=True)
class Pair:
    """Two arms that are compared: a mechanism of the baseline and one of another run.

    Attributes:
        one: the baseline's mechanism.
        other: the other run's.
        side: of the other run.
        unlike: why their requests or dice are not the same; empty where differences are paired.
    """

    one: str
    other: str
    side: Side
    unlike: tuple[str, ...]


def names_of(folders: Sequence[Path]) -> list[str]:
    """Names that tell folders apart: as many parts from the end of their paths as it takes."""
    whole = [folder.resolve() for folder in folders]
    if len(whole) < 2:
        raise BadInput("runs side by side: give two folders or more")
    twice = sorted({str(each) for each in whole if whole.count(each) > 1})
    if twice:
        raise BadInput(f"{twice[0]} is given twice; compare different runs")
    for depth in range(1, max(len(each.parts) for each in whole) + 1):
        names = ["/".join(each.parts[-depth:]) for each in whole]
        if len(set(names)) == len(names):
            break
    return names


def pairs(sides: Sequence[Side]) -> list[Pair]:
    """What is compared with what: mechanisms of the same name, or else the first of each run."""
    baseline, *others = sides
    found = []
    for side in others:
        unlike = tuple(differing_chances(baseline.run, side.run))
        common = [label for label in baseline.run.labels if label in side.run.labels]
        matched = [(label, label) for label in common]
        matched = matched or [(baseline.run.labels[0], side.run.labels[0])]
        found += [Pair(one, other, side, unlike) for one, other in matched]
    return found


def differing_chances(one: Records, other: Records) -> Iterator[str]:
    """What keeps two runs from having the same requests and dice, in words."""
    if one.manifest["seed"] != other.manifest["seed"]:
        yield "seed"
    theirs = _chances(other.settings)
    for words, found in _chances(one.settings).items():
        if words in theirs and theirs[words] != found:
            yield words
    if one.advertisers["advertiser"].n_unique() != other.advertisers["advertiser"].n_unique():
        yield "number of advertisers"
    same_replies = one.settings.get("replies") == other.settings.get("replies")
    mine, theirs = _pools(one), _pools(other)
    if same_replies and any(mine[label] != theirs[label] for label in mine.keys() & theirs.keys()):
        yield "their pools, though these are of the same settings"


def _chances(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decides requests and dice, beside the seed, by its name in words."""
    replies = settings["replies"]
    found = {words: settings.get(key) for key, words in SAME.items()}
    found["source of replies"] = replies["source"]
    if settings["requests"]["source"] == "generated":
        found["LLM that writes requests"] = [replies[key] for key in WRITER]
    return found


def _pools(run: Records) -> Mapping[str, str | None]:
    """The hash of the pool that each mechanism traded on; earlier versions had one for all."""
    of_all = dict.fromkeys(run.labels, run.manifest.get("pool_hash"))
    return run.manifest.get("pool_hash_by_mechanism") or of_all


def differences_of(baseline: Side, found: Sequence[Pair]) -> pl.DataFrame:
    """A row per pair and measure.

    Columns: compared, measure, baseline and other (means, with `_low` and `_high`), difference
    (other less baseline, likewise), paired.
    """
    rows = []
    for pair in found:
        compared = f"{pair.other} · {pair.side.name}"
        if pair.one != pair.other:
            compared += f", against {pair.one} · {baseline.name}"
        for measure in COMPARED:
            one, other = baseline.of(pair.one, measure), pair.side.of(pair.other, measure)
            if not (np.isfinite(one).any() and np.isfinite(other).any()):
                continue
            parts = {
                "baseline": interval(one),
                "other": interval(other),
                "difference": difference(other, one, paired=not pair.unlike),
            }
            row: dict[str, Any] = {"compared": compared, "measure": measure}
            for name, part in parts.items():
                row |= {
                    name: part["mean"],
                    f"{name}_low": part["low"],
                    f"{name}_high": part["high"],
                }
            rows.append(row | {"paired": not pair.unlike})
    return pl.DataFrame(rows, infer_schema_length=None)


def settings_that_differ(sides: Sequence[Side]) -> pl.DataFrame:
    """A row per setting of which runs have different values: setting, and `run 1`, `run 2`, ..."""
    flat = [
        {"seed": str(side.run.manifest["seed"]), **dict(_settings(side.run.settings))}
        for side in sides
    ]
    rows = [
        (key, *(each.get(key, "–") for each in flat))
        for key in dict.fromkeys(chain.from_iterable(flat))
        if len({each.get(key) for each in flat}) > 1
    ]
    names = ["setting", *(f"run {k}" for k in range(1, len(sides) + 1))]
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


def measures(sides: Sequence[Side]) -> pl.DataFrame:
    """A row per run and mechanism: `COMPARED`, exploitability and regret, with `_low`, `_high`."""
    rows = []
    for side in sides:
        for label in side.run.labels:
            found = {name: interval(side.of(label, name)) for name in COMPARED}
            found["exploitability"] = side.run.exploitability.get(label, interval(np.empty(0)))
            found["regret"] = side.run.regret.get(label, interval(np.empty(0)))
            row: dict[str, Any] = {"run": side.name, "mechanism": label}
            for name, part in found.items():
                row |= {
                    name: part["mean"],
                    f"{name}_low": part["low"],
                    f"{name}_high": part["high"],
                }
            rows.append(row)
    numbers = {name: pl.Float64 for name in rows[0] if name not in ("run", "mechanism")}
    return pl.DataFrame(rows, schema={"run": pl.String, "mechanism": pl.String, **numbers})


def _settings(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, value), list entries by their number."""
    if isinstance(value, Mapping):
        parts = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, list) and any(isinstance(part, (Mapping, list)) for part in value):
        parts = [(str(k), part) for k, part in enumerate(value)]
    else:
        yield prefix, str(value)
        return
    for key, part in parts:
        yield from _settings(part, f"{prefix}.{key}" if prefix else key)
