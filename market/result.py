"""What a run leaves behind: two frames and a summary with intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.special import stdtrit

from mechanisms.errors import BadInput
from mechanisms.pool import Floats

TAIL = 0.75  # a summary describes the rounds from this fraction of the run on


@dataclass(frozen=True, eq=False)
class Result:
    """Records of one run, or of several side by side.

    Attributes:
        rounds: see `Ledger.rounds_frame`.
        advertisers: see `Ledger.advertisers_frame`.
        summary: by mechanism, see `summarise`.
    """

    rounds: pl.DataFrame
    advertisers: pl.DataFrame
    summary: dict[str, Any]

    @classmethod
    def of(cls, rounds: pl.DataFrame, advertisers: pl.DataFrame) -> Result:
        """A result with the summary of its frames."""
        return cls(rounds, advertisers, summarise(rounds, advertisers))

    @classmethod
    def concat(cls, results: Sequence[Result]) -> Result:
        """Put runs under different mechanisms (or labels) side by side.

        Raises:
            BadInput: no results, or two of the same label, which would be averaged unawares.
        """
        labels = [label for result in results for label in result.summary]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if not results or twice:
            what = f"two results are labelled {twice[0]!r}" if twice else "no results to concat"
            raise BadInput(f"{what}; give each run its own label")
        return cls(
            rounds=pl.concat([result.rounds for result in results]),
            advertisers=pl.concat([result.advertisers for result in results]),
            summary={key: part for result in results for key, part in result.summary.items()},
        )

    def save(self, directory: str | Path) -> Path:
        """Write rounds.parquet, advertisers.parquet and summary.json; returns the directory.

        Equal results give equal bytes: fixed compression and row groups, no time of writing.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("rounds", "advertisers"):
            frame: pl.DataFrame = getattr(self, name)
            frame.write_parquet(
                directory / f"{name}.parquet",
                compression="zstd",
                compression_level=3,
                row_group_size=2**17,
            )
        summary = _rounded(self.summary)
        text = json.dumps(summary, indent=2, sort_keys=True, allow_nan=False)
        (directory / "summary.json").write_text(text + "\n", encoding="utf-8")
        return directory


def _rounded(found: Any) -> Any:
    """Floats to 12 digits: beyond them a mean depends on the order in which threads add."""
    if isinstance(found, dict):
        return {key: _rounded(value) for key, value in found.items()}
    return float(f"{found:.12g}") if isinstance(found, float) else found


def summarise(rounds: pl.DataFrame, advertisers: pl.DataFrame) -> dict[str, Any]:
    """Means over the last quarter of rounds, with 95 % t-intervals, by mechanism.

    Intervals of `revenue`, `welfare`, ... are over replications: other seeds of the same market.
    Those under `objectives` are over advertisers, each entering with its mean over rounds and
    replications (which are no further evidence on other advertisers). Advertisers of
    one market influence each other: read these as the spread within this market. Intervals are null
    for fewer than two clusters.
    `roi` and `roi_over_target` are of expected value and payments; advertisers that pay nothing
    have none and are left out (`clusters` says how many are in).
    """
    summary: dict[str, Any] = {}
    for label in rounds["mechanism"].unique(maintain_order=True):
        ours = rounds.filter(pl.col("mechanism") == label)
        total = ours["round"].max() + 1
        start = min(int(np.ceil(TAIL * total)), total - 1)
        late = pl.col("round") >= start
        by_replication = (
            ours.filter(late)
            .group_by("replication")
            .agg(pl.exclude("mechanism", "round", "replication").mean())
            .sort("replication")
        )
        people = advertisers.filter((pl.col("mechanism") == label) & late)
        summary[label] = {
            "rounds": total,
            "summarised_from_round": start,
            "replications": by_replication.height,
            **{
                name: interval(by_replication[name].cast(pl.Float64).to_numpy())
                for name in by_replication.columns
                if name != "replication"
            },
            "objectives": {
                kind: _objective(people.filter(pl.col("objective") == kind), kind)
                for kind in sorted(people["objective"].unique())
            },
        }
    return summary


def interval(clusters: Floats) -> dict[str, float | int | None]:
    """Mean of `clusters` and its 95 % Student t-interval; NaN entries are left out.

    With a handful of clusters a percentile bootstrap covers less than 90 %; the t-interval holds
    its level for means that are roughly normal.
    """
    known = clusters[np.isfinite(clusters)]
    count = len(known)
    if not count:
        return {"mean": None, "low": None, "high": None, "clusters": 0}
    mean = float(known.mean())
    low = high = None
    if count > 1:
        reach = float(stdtrit(count - 1, 0.975) * known.std(ddof=1) / np.sqrt(count))
        low, high = mean - reach, mean + reach
    return {"mean": mean, "low": low, "high": high, "clusters": count}


def _objective(people: pl.DataFrame, kind: str) -> dict[str, Any]:
    paid = pl.col("payment").sum()
    roi = pl.when(paid > 0).then((pl.col("value") * pl.col("itctr")).sum() / paid)
    clusters = (
        people.group_by("advertiser")
        .agg(
            bid_over_value=(pl.col("bid") / pl.col("value")).mean(),
            bid_over_truthful=(pl.col("bid") * pl.col("target_roi") / pl.col("value")).mean(),
            itctr=pl.col("itctr").mean(),
            payment=pl.col("payment").mean(),
            expected_utility=pl.col("expected_utility").mean(),
            roi=roi,
            roi_over_target=roi / pl.col("target_roi").first(),
        )
        .sort("advertiser")
    )
    # Only value maximizers have a target; a utility maximizer that hardly pays has any ROI.
    skip = {"advertiser"}
    skip |= {"bid_over_truthful", "roi", "roi_over_target"} if kind == "utility" else set()
    return {
        name: interval(clusters[name].cast(pl.Float64).to_numpy())
        for name in clusters.columns
        if name not in skip
    }
