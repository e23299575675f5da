"""What figures and the report tell of a run, reduced to small tables first.

Intervals are 95 % t-intervals of a mean, as in `Result.summary`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy.special import stdtrit

from experiments.best_response import NEVER_SHOWN, NOT_BINDING
from market.result import TAIL, interval
from mechanisms.pool import Floats, Ints

ROUNDING = 1e-9
"""Sums differ in their last digits by the order in which threads add."""


def by_advertiser(advertisers: pl.DataFrame) -> pl.DataFrame:
    """Means over the last quarter of rounds by mechanism and advertiser, with 95 % intervals.

    Columns: mechanism, advertiser, title, objective, value, target_roi, and, each also with `_low`
    and `_high`: bid_over_truthful, itctr_per_1000, payment_per_1000, utility_per_1000 (expected,
    per 1,000 requests in which the ad is a candidate) and roi (expected value per unit paid; null
    where nothing is paid). Intervals resample replications; null for fewer than two.
    """
    keys = ["mechanism", "advertiser"]
    runs = advertisers.partition_by("mechanism", maintain_order=True)
    per = 1000 / pl.col("requests").sum()
    target = pl.when(pl.col("objective") == "value").then(pl.col("target_roi")).otherwise(1.0)
    paid, gained = pl.col("payment").sum(), (pl.col("value") * pl.col("itctr")).sum()
    first = ("title", "objective", "value", "target_roi")
    clusters = (
        pl.concat(last_quarter(run) for run in runs)
        .group_by(*keys, "replication", maintain_order=True)
        .agg(
            *(pl.col(name).first() for name in first),
            bid_over_truthful=(pl.col("bid") * target / pl.col("value")).mean(),
            itctr_per_1000=pl.col("itctr").sum() * per,
            payment_per_1000=paid * per,
            utility_per_1000=pl.col("expected_utility").sum() * per,
            roi=pl.when(paid > 0).then(gained / paid),
        )
    )
    measured = clusters.columns[len(keys) + 1 + len(first) :]
    rows = []
    for key, ours in clusters.group_by(keys, maintain_order=True):
        row: dict[str, Any] = dict(zip(keys, key, strict=True))
        row |= {name: ours[name][0] for name in first}
        for name in measured:
            found = interval(ours[name].cast(pl.Float64).to_numpy())
            row |= {name: found["mean"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def by_replication(rounds: pl.DataFrame) -> pl.DataFrame:
    """Means over the last quarter of rounds by mechanism and replication: all of `rounds`.

    Further columns: attained (advertisers' expected value, money per request) and paid_share
    (expected payments as a fraction of it; null where nothing is attained).
    """
    attained = pl.col("welfare") - pl.col("user_satisfaction")
    runs = rounds.partition_by("mechanism", maintain_order=True)
    return (
        pl.concat(last_quarter(run) for run in runs)
        .group_by("mechanism", "replication", maintain_order=True)
        .agg(pl.exclude("round").mean())
        .sort("replication", maintain_order=True)
        .with_columns(attained=attained)
        .with_columns(
            paid_share=pl.when(pl.col("attained") > 0).then(
                pl.col("expected_revenue") / pl.col("attained")
            )
        )
    )


def movement(advertisers: pl.DataFrame) -> dict[str, dict[str, float | int | None]]:
    """By mechanism, how far mean bids moved from the third quarter of the rounds to the last.

    Distance of the means of bids, in multiples of the truthful bid, averaged over advertisers by
    the value that they attain in the last quarter (who is never clicked may bid what it likes);
    with its interval over replications. No number for a run of fewer than 4 rounds. Swings within
    a quarter do not show here, but in `spread`.
    """
    target = pl.when(pl.col("objective") == "value").then(pl.col("target_roi")).otherwise(1.0)
    keys = ["replication", "advertiser"]
    found = {}
    for (name,), ours in advertisers.group_by("mechanism", maintain_order=True):
        total = int(ours["round"].max()) + 1
        if total < 4:
            found[name] = interval(np.empty(0))
            continue
        quarters = (
            ours.with_columns(
                quarter=pl.col("round") * 4 // total, ratio=pl.col("bid") * target / pl.col("value")
            )
            .filter(pl.col("quarter") >= 2)
            .group_by(*keys, "quarter")
            .agg(pl.col("ratio").mean(), value=(pl.col("value") * pl.col("itctr")).sum())
        )
        third, last = (quarters.filter(pl.col("quarter") == k).sort(*keys) for k in (2, 3))
        replications = third["replication"].n_unique()
        before, after, value = (
            frame[column].to_numpy().reshape(replications, -1)
            for frame, column in ((third, "ratio"), (last, "ratio"), (last, "value"))
        )
        found[name] = interval(np.abs(after - before) @ _shares(value.sum(axis=0)))
    return found


def spread(advertisers: pl.DataFrame) -> dict[str, float | int | None]:
    """How far bids of one mechanism's run swing from round to round within the last quarter.

    Of each replication the diameter of `equilibrium.diagnosis`: twice the greatest distance from
    the mean, in multiples of the truthful bid, advertisers weighted by the value that they attain;
    with its interval over replications. At least two rounds are looked at.
    """
    total = int(advertisers["round"].max()) + 1
    target = pl.when(pl.col("objective") == "value").then(pl.col("target_roi")).otherwise(1.0)
    late = (
        advertisers.filter(pl.col("round") >= min(int(np.ceil(TAIL * total)), total - 2))
        .sort("replication", "round", "advertiser")
        .select(
            "replication",
            "advertiser",
            ratio=pl.col("bid") * target / pl.col("value"),
            value=pl.col("value") * pl.col("itctr"),
        )
    )
    R, N = late["replication"].n_unique(), late["advertiser"].n_unique()
    ratio, value = (late[name].to_numpy().reshape(R, -1, N) for name in ("ratio", "value"))
    away = ratio - ratio.mean(axis=1, keepdims=True)
    squares = away**2 @ _shares(value.sum(axis=(0, 1)))
    return interval(2 * np.sqrt(squares.max(axis=1)))


def _shares(value: Floats) -> Floats:
    """Weights (N,) that sum to 1, by the value attained; equal where nobody attains any."""
    return value / value.sum() if value.sum() > 0 else np.full(len(value), 1 / len(value))


def difference(one: Floats, other: Floats, *, paired: bool) -> dict[str, float | int | None]:
    """Mean of `one` less mean of `other`, (R,) each, with its 95 % t-interval.

    Paired, the interval is of the differences; else Welch's, of independent samples, whose sizes
    may differ. Entries that are NaN are left out; the ends are None for fewer than two of either.
    What differs by no more than `ROUNDING` of itself is the same.
    """
    if paired:
        same = np.isclose(one, other, rtol=ROUNDING, atol=0)
        return interval(np.where(same, 0.0, one - other))
    one, other = one[np.isfinite(one)], other[np.isfinite(other)]
    mean, noise = float(one.mean() - other.mean()), ROUNDING * abs(other.mean())
    mean = 0.0 if abs(mean) <= noise else mean
    low = high = None
    if min(len(one), len(other)) > 1:
        parts = np.array([each.var(ddof=1) / len(each) for each in (one, other)])
        variance = parts.sum()
        degrees = np.array([len(one), len(other)]) - 1
        reach = 0.0
        if variance > 0:
            freedom = variance**2 / (parts**2 / degrees).sum()
            reach = float(stdtrit(freedom, 0.975) * np.sqrt(variance))
            reach = 0.0 if reach <= noise else reach
        low, high = mean - reach, mean + reach
    return {"mean": mean, "low": low, "high": high, "clusters": min(len(one), len(other))}


def best_means(best: pl.DataFrame, label: str, kind: str) -> float | None:
    """Mean over advertisers of the best bid relative to truthful; None where there is none.

    Left out are advertisers that are never shown, and those with no finite best bid (`unbounded`).
    """
    column = "bid_over_value" if kind == "utility" else "bid_over_target"
    ours = best.filter(
        (pl.col("mechanism") == label)
        & (pl.col("objective") == kind)
        & ~pl.col("note").str.starts_with(NEVER_SHOWN)
        & ~pl.col("note").str.contains(NOT_BINDING, literal=True)
    )
    return ours[column].mean() if ours.height else None


def unbounded(best: pl.DataFrame, label: str, kind: str) -> int:
    """Advertisers whose target never binds, so that higher is always better."""
    ours = (pl.col("mechanism") == label) & (pl.col("objective") == kind)
    return best.filter(ours & pl.col("note").str.contains(NOT_BINDING, literal=True)).height


def last_quarter(frame: pl.DataFrame) -> pl.DataFrame:
    """The rounds that `Result.summary` describes, of one mechanism's frame; at least the last."""
    total = int(frame["round"].max()) + 1
    return frame.filter(pl.col("round") >= min(int(np.ceil(TAIL * total)), total - 1))


def binned(
    frame: pl.DataFrame, edges: Ints, keys: Sequence[str], amounts: Sequence[pl.Expr]
) -> pl.DataFrame:
    """Means of `amounts` by `keys` and bin of rounds; bin k starts at `edges[k]`."""
    last = int(frame["round"].max())
    bin_of = pl.Series(np.searchsorted(edges, np.arange(last + 1), side="right") - 1)
    bins = bin_of.gather(frame["round"]).alias("bin")
    return (
        frame.lazy()
        .with_columns(bins)
        .group_by(*keys, "bin")
        .agg(amount.mean() for amount in amounts)
        .sort(*keys, "bin")
        .collect()
    )


def trajectory(
    advertisers: pl.DataFrame, label: str, kind: str, bins: int
) -> tuple[Floats, Floats | None, float]:
    """Bids over truthful: centres of the bins, (clusters, bins) means, mean of the last quarter.

    Centres count rounds from 1. The means are None where nobody has that objective.
    """
    ours = advertisers.filter((pl.col("mechanism") == label) & (pl.col("objective") == kind))
    if not ours.height:
        return np.empty(0), None, np.nan
    total = int(ours["round"].max()) + 1
    edges = np.unique(np.geomspace(1, total + 1, bins + 1).astype(int))[:-1] - 1
    ends = np.append(edges[1:], total)
    target = pl.col("target_roi") if kind == "value" else 1.0
    ratio = (pl.col("bid") * target / pl.col("value")).alias("ratio")
    table = binned(ours, edges, ["advertiser"], [ratio])
    means = table["ratio"].to_numpy().reshape(-1, len(edges))
    late = last_quarter(ours).select(ratio.mean()).item()
    return np.sqrt((edges + 1.0) * ends), means, late
