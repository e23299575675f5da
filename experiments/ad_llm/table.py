"""The rows of the comparison: means, paired differences and ratios, with 95 % intervals.

Requests are independent, bid profiles of a request are not: profiles are averaged first, and
bootstrap-t intervals resample requests (`experiments.bootstrap.ratio_of`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from experiments.bootstrap import Estimate, ratio_of
from mechanisms.pool import Floats

SHOWN = (
    "revenue", "reward", "value", "satisfaction", "ads", "shown", "compliant", "well_formed",
    "read", "written",
)  # fmt: skip
COMPARED = ("revenue", "reward", "satisfaction", "compliant")


def table(
    frames: Mapping[str, pl.DataFrame], against: str | None = None, seed: int = 0
) -> pl.DataFrame:
    """A row per way of writing.

    Args:
        frames: by name, as `experiments.ad_llm.measures` returns them, of the same trials.
        against: name whose revenue and reward are the denominators of `revenue_ratio` and
            `reward_ratio`, which are null where that is not above 0.
        seed: of the resamples.

    Returns:
        `name`, `requests`, `profiles`; the means `SHOWN`, of which `well_formed` is the share of
        mentions that are, of those tried (pieces of markers count as tried); the ratios. Each with
        `_low` and `_high`.
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
                change = paired(by_request(frame), base, measure, seed)
                row |= _cells(measure, change)
            rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def paired(ours: pl.DataFrame, theirs: pl.DataFrame, measure: str, seed: int = 0) -> Estimate:
    """Mean difference by request of two frames of `by_request`."""
    return mean_bootstrapped((ours[measure] - theirs[measure]).to_numpy(), seed)


def by_request(frame: pl.DataFrame) -> pl.DataFrame:
    """Means over the bid profiles of each request, in the order of requests."""
    return frame.group_by("request", maintain_order=True).mean().sort("request").drop("draw")


def mean_bootstrapped(samples: Floats, seed: int = 0) -> Estimate:
    """The mean of `samples` (k,) with its bootstrap-t interval."""
    samples = np.asarray(samples, dtype=np.float64)
    return ratio_of(samples, np.ones_like(samples), seed)


def _mean(sums: pl.DataFrame, measure: str, seed: int) -> Estimate:
    if measure != "well_formed":
        return mean_bootstrapped(sums[measure].to_numpy(), seed)
    mentions = sums["ads"] + sums["malformed"]
    return _quotient(sums["ads"].to_numpy(), mentions.to_numpy(), seed)


def _quotient(top: Floats, bottom: Floats, seed: int) -> Estimate:
    """Σ top / Σ bottom; nothing where the latter is not above 0."""
    if not bottom.sum() > 0:
        return Estimate(np.nan, np.nan, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):  # resamples with nothing at the bottom
        return ratio_of(top, bottom, seed)


def _cells(name: str, found: Estimate) -> dict[str, float | None]:
    """With null for what is not known."""
    plain = [float(x) if np.isfinite(x) else None for x in found]
    return dict(zip((name, f"{name}_low", f"{name}_high"), plain, strict=True))
