"""Bootstrap intervals of means over requests, for one quantity or many at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mechanisms.pool import Floats

RESAMPLES = 4000


@dataclass(frozen=True, eq=False)
class Intervals:
    """Means of K quantities with 95 % bootstrap intervals.

    Attributes:
        mean: (K,)
        low: (K,) lower ends, each quantity by itself (percentile interval).
        high: (K,) upper ends.
        reach: (K,) half-widths within which all K means lie together with 95 % confidence (by the
            largest studentised deviation), so that K looks are one test.
    """

    mean: Floats
    low: Floats
    high: Floats
    reach: Floats


def intervals(samples: Floats, rng: np.random.Generator) -> Intervals:
    """Intervals of the column means of `samples` (k, K), rows being independent requests."""
    samples = np.asarray(samples, dtype=np.float64)
    k = len(samples)
    counts = rng.multinomial(k, np.full(k, 1 / k), size=RESAMPLES)
    means = counts @ samples / k
    mean, error = samples.mean(axis=0), samples.std(axis=0, ddof=1) / np.sqrt(k)
    # A quantity that does not vary has no error, and no deviation.
    scale = np.where(error > 0, error, 1.0)
    largest = (np.abs(means - mean) / scale).max(axis=1)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return Intervals(mean, low, high, np.quantile(largest, 0.95) * error)


def interval(samples: Floats, rng: np.random.Generator) -> tuple[float, float, float]:
    """`(mean, low, high)` of one quantity (k,)."""
    found = intervals(np.asarray(samples)[:, None], rng)
    return float(found.mean[0]), float(found.low[0]), float(found.high[0])
