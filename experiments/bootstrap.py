"""Intervals of means and ratios over requests, which are independent of each other.

Few requests make percentile intervals too short: means get t-intervals, ratios of sums studentised
bootstrap (bootstrap-t) intervals, shares Wilson's score interval: near 0 and 1 the others are too
short, and of equal samples nothing. Many quantities at once get joint ones (`intervals`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from mechanisms.llm_auction.compliance import share
from mechanisms.pool import Floats

RESAMPLES = 4000


class Estimate(NamedTuple):
    """A mean or ratio with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __neg__(self) -> Estimate:
        return Estimate(-self.mean, -self.high, -self.low)

    def less(self, level: float) -> Estimate:
        """The estimate of what is above `level`."""
        return Estimate(self.mean - level, self.low - level, self.high - level)


def mean_of(samples: Floats, looks: int = 1) -> Estimate:
    """The mean of `samples` (k,) with its t-interval; of a single one nothing is known.

    Intervals of so many `looks` hold together with 95 % confidence (Bonferroni).
    """
    samples = np.asarray(samples, dtype=np.float64)
    k = len(samples)
    mean = float(samples.mean())
    if k < 2:
        return Estimate(mean, -np.inf, np.inf)
    reach = float(stdtrit(k - 1, 1 - 0.025 / looks) * samples.std(ddof=1) / np.sqrt(k))
    return Estimate(mean, mean - reach, mean + reach)


def share_of(samples: Floats) -> Estimate:
    """The mean of shares `samples` (k,) in [0, 1] with Wilson's interval, as of k yeses and noes.

    Shares that are no yes or no vary less, so that the interval is wide enough for them too.
    """
    samples = np.asarray(samples, dtype=np.float64)
    found = share(float(samples.sum()), len(samples))
    return Estimate(found.value, found.low, found.high)


def share_difference(ours: Floats, theirs: Floats) -> Estimate:
    """Difference of two `share_of`, (k,) each and paired, by Newcombe's score interval (1998).

    With φ the correlation of the pairs, the ends of both Wilson intervals at distances a and b give
    `√(a² − 2φab + b²)`. Where all of one are equal φ is not known, and taken as 0.
    """
    one, other = share_of(ours), share_of(theirs)
    varied = np.ptp(ours) > 0 and np.ptp(theirs) > 0
    phi = float(np.corrcoef(ours, theirs)[0, 1]) if varied else 0.0

    def reach(a: float, b: float) -> float:
        return float(np.sqrt(max(a**2 - 2 * phi * a * b + b**2, 0.0)))

    difference = one.mean - other.mean
    down = reach(one.mean - one.low, other.high - other.mean)
    up = reach(one.high - one.mean, other.mean - other.low)
    return Estimate(difference, difference - down, difference + up)


def ratio_of(top: Floats, bottom: Floats, seed: int = 0) -> Estimate:
    """Σ top / Σ bottom, (k,) each and paired, with its bootstrap-t interval.

    Errors of the ratio and of its resamples are those of its linearisation.
    """
    top, bottom = (np.asarray(x, dtype=np.float64) for x in (top, bottom))
    k = len(top)
    ratio = float(top.sum() / bottom.sum())
    if k < 2:
        return Estimate(ratio, -np.inf, np.inf)
    error = np.sqrt(((top - ratio * bottom) ** 2).sum() / (k - 1) * k) / abs(bottom.sum())
    rng = np.random.default_rng([seed, 8])
    counts = rng.multinomial(k, np.full(k, 1 / k), size=RESAMPLES)
    sums = counts @ np.stack([top, bottom, top**2, top * bottom, bottom**2], axis=1)
    again = sums[:, 0] / sums[:, 1]
    squares = sums[:, 2] - 2 * again * sums[:, 3] + again**2 * sums[:, 4]
    errors = np.sqrt(np.maximum(squares, 0) / (k - 1) * k) / np.abs(sums[:, 1])
    told = errors > 1e-6 * error  # a resample of one request many times over has no error
    if not told.any():
        return Estimate(ratio, ratio, ratio)
    low, high = np.quantile((again[told] - ratio) / errors[told], [0.025, 0.975])
    return Estimate(ratio, float(ratio - high * error), float(ratio - low * error))


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
