"""The rows of the comparison: means, paired differences and ratios, with 95 % intervals.

Requests are independent, bid profiles of a request are not: profiles are averaged first. Intervals
are over requests (`experiments.bootstrap`): bootstrap-t, of shares Wilson's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from experiments.bootstrap import Estimate, ratio_of, share_difference, share_of
from mechanisms.pool import Floats

SHOWN = (
    "revenue", "reward", "value", "satisfaction", "ads", "shown", "compliant", "well_formed",
    "read", "written",
)  # fmt: skip
SHARES = ("shown", "compliant", "well_formed")
COMPARED = ("revenue", "reward", "value", "satisfaction", "compliant")


def table(
    frames: Mapping[str, pl.DataFrame], against: str | None = None, seed: int = 0
) -> pl.DataFrame:
    """A row per way of writing.

    Args:
        frames: by name, as `experiments.ad_llm.measures` returns them, of the same trials.
        against: name whose revenue and reward are the denominators of `revenue_ratio` and
            `reward_ratio`, which are null where their intervals are not above 0: what a ratio is
            to could be nothing, and the ratio anything.
        seed: of the resamples.

    Returns:
        `name`, `requests`, `profiles`; the means `SHOWN`, of which `SHARES` are shares of replies;
        the ratios. Each with `_low` and `_high`.
    """
    rows = []
    for name, frame in frames.items():
        sums = by_request(frame)
        row = {"name": name, "requests": sums.height, "profiles": frame.height // sums.height}
        for measure in SHOWN:
            row |= _cells(measure, _mean(sums, measure, seed))
        if against is not None:
            base = by_request(frames[against])
            for measure in ("revenue", "reward"):
                top, bottom = (each[measure].to_numpy() for each in (sums, base))
                row |= _cells(f"{measure}_ratio", _quotient(top, bottom, seed))
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def differences(frames: Mapping[str, pl.DataFrame], against: str, seed: int = 0) -> pl.DataFrame:
    """Paired differences of every other row to `against`; `name`, `against`, and `COMPARED`."""
    base = by_request(frames[against])
    rows = []
    for name, frame in frames.items():
        if name != against:
            row = {"name": name, "against": against}
            for measure in COMPARED:
                row |= _cells(measure, paired(by_request(frame), base, measure, seed))
            rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def paired(ours: pl.DataFrame, theirs: pl.DataFrame, measure: str, seed: int = 0) -> Estimate:
    """Mean difference by request of two frames of `by_request`."""
    if measure in SHARES:
        return share_difference(ours[measure].to_numpy(), theirs[measure].to_numpy())
    return mean_bootstrapped((ours[measure] - theirs[measure]).to_numpy(), seed)


def own_gains(
    frames: Mapping[str, pl.DataFrame], begun: Mapping[str, str], seed: int = 0
) -> pl.DataFrame:
    """What each row earns beyond the row that it began from.

    Args:
        frames: by row, see `experiments.ad_llm.measures.of_writer`.
        begun: by row, the row that it began from.
        seed: of the bootstrap.

    Returns:
        Columns `name`, and `own_revenue` and `own_reward` with `_low` and `_high`.
    """
    rows = []
    for name, before in begun.items():
        ours, theirs = by_request(frames[name]), by_request(frames[before])
        row = {"name": name}
        for measure in ("revenue", "reward"):
            row |= _cells(f"own_{measure}", paired(ours, theirs, measure, seed))
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def by_request(frame: pl.DataFrame) -> pl.DataFrame:
    """Means over the bid profiles of each request, in the order of requests."""
    return frame.group_by("request", maintain_order=True).mean().sort("request").drop("draw")


def mean_bootstrapped(samples: Floats, seed: int = 0) -> Estimate:
    """The mean of `samples` (k,) with its bootstrap-t interval."""
    samples = np.asarray(samples, dtype=np.float64)
    return ratio_of(samples, np.ones_like(samples), seed)


def _mean(sums: pl.DataFrame, measure: str, seed: int) -> Estimate:
    samples = sums[measure].to_numpy()
    return share_of(samples) if measure in SHARES else mean_bootstrapped(samples, seed)


def _quotient(top: Floats, bottom: Floats, seed: int) -> Estimate:
    """Σ top / Σ bottom; nothing where the interval of the latter's mean reaches 0."""
    if not mean_bootstrapped(bottom, seed).low > 0:
        return Estimate(np.nan, np.nan, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):  # resamples with nothing at the bottom
        return ratio_of(top, bottom, seed)


def _cells(name: str, found: Estimate) -> dict[str, float | None]:
    """With null for what is not known."""
    plain = [float(x) if np.isfinite(x) else None for x in found]
    return dict(zip((name, f"{name}_low", f"{name}_high"), plain, strict=True))
