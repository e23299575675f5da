"""What curves over tokens tell: who is ahead, where two curves cross, and who needs fewer tokens.

A sample is a table (seeds k, points X): a curve for each seed. Two methods meet the same problems
and random numbers under a seed, so all comparisons are of pairs, and intervals are over seeds.

At an error e, the *token ratio* of two methods is t_ours(e) / t_theirs(e), t(e) being the fewest
tokens at which a mean error curve is at or below e. More tokens do not make payments worse, but a
measured curve goes up and down with its noise, and its first dip below e would be the luckiest of
several. So both curves are first made monotone, by isotonic regression of the means, in every
resample anew: points against the order are replaced by their average. Between points a curve is
linear. Error curves are convex as a rule; straight lines then lie above them, which makes t_ours
larger than it is, and t_theirs is taken at a point. So the ratio errs against us.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from experiments.bootstrap import RESAMPLES, Estimate, mean_of
from mechanisms.pool import Floats

COVERED = (0.025, 0.975)


def table(frame: pl.DataFrame, column: str, along: str) -> tuple[Floats, Floats]:
    """Points (X,) of `along` in increasing order and samples (seeds, X) of a column.

    Raises:
        ValueError: a seed misses a point or has it twice.
    """
    points = np.sort(frame[along].unique().to_numpy())
    ordered = frame.sort("seed", along)
    seeds = ordered["seed"].n_unique()
    if ordered.height != seeds * len(points) or ordered.select("seed", along).is_duplicated().any():
        raise ValueError(f"not every seed has every {along} once")
    return points, ordered[column].to_numpy().reshape(seeds, len(points))


def differences(ours: Floats, theirs: Floats) -> list[Estimate]:
    """(X) mean differences of paired samples (k, X), each with its t-interval over seeds."""
    return [mean_of(column) for column in (ours - theirs).T]


def leaders(samples: dict[str, Floats]) -> list[str]:
    """(X) who has the highest mean at each point.

    Chosen by the same samples that they are then compared on, the leader looks better than it is:
    a lead over it is understated.
    """
    names = list(samples)
    means = np.array([samples[name].mean(axis=0) for name in names])
    return [names[k] for k in means.argmax(axis=0)]


def crossings(x: Floats, y: Floats) -> list[float]:
    """Where y (X,), linear in log x between points, changes sign; points where y = 0 are passed."""
    told = np.flatnonzero(y)
    at, y = np.log(x[told]), y[told]
    before = np.flatnonzero(y[:-1] * y[1:] < 0)
    share = y[before] / (y[before] - y[before + 1])
    return np.exp(at[before] + share * (at[before + 1] - at[before])).tolist()


@dataclass(frozen=True)
class Crossing:
    """Where one method overtakes another.

    Attributes:
        at: all points at which the mean difference changes sign, in increasing order.
        share: of the resamples of seeds, how many have any.
        low, high: 95 % percentile interval of the last one, over the resamples that have one; NaN
            if none has.
    """

    at: tuple[float, ...]
    share: float
    low: float
    high: float


def crossing(x: Floats, difference: Floats, seed: int = 0) -> Crossing:
    """Where the mean of `difference` (k, X) changes sign along x (X,)."""
    resampled = _counts(len(difference), seed) @ difference / len(difference)
    found = [crossings(x, each) for each in resampled]
    last = [each[-1] for each in found if each]
    low, high = np.quantile(last, COVERED).tolist() if last else (np.nan, np.nan)
    return Crossing(tuple(crossings(x, difference.mean(axis=0))), len(last) / len(found), low, high)


def falling(errors: Floats) -> Floats:
    """Isotonic regression: the curves (..., X) nearest to `errors` that never rise along X.

    By the min-max formula, min over a <= x of max over b >= x of the mean of errors a..b.
    """
    X = errors.shape[-1]
    sums = np.concatenate([np.zeros((*errors.shape[:-1], 1)), errors.cumsum(axis=-1)], axis=-1)
    curve = np.full(errors.shape, np.inf)
    for a in range(X):
        means = (sums[..., a + 1 :] - sums[..., a : a + 1]) / np.arange(1, X - a + 1)
        highest = np.maximum.accumulate(means[..., ::-1], axis=-1)[..., ::-1]
        curve[..., a:] = np.minimum(curve[..., a:], highest)
    return curve


def tokens_to_reach(tokens: Floats, errors: Floats, level: Floats) -> Floats:
    """(...) fewest tokens at which a curve is at or below `level`; infinite where it never is.

    Args:
        tokens: (..., X), in increasing order.
        errors: (..., X) of the curve, which never rises; linear between points.
        level: (...).
    """
    reached = errors <= level[..., None]
    after = reached.argmax(axis=-1)[..., None]
    before = np.maximum(after - 1, 0)
    (t0, t1), (e0, e1) = (
        [np.take_along_axis(each, at, axis=-1)[..., 0] for at in (before, after)]
        for each in (tokens, errors)
    )
    fall = np.where(e0 > e1, e0 - e1, 1.0)
    share = np.where(e0 > e1, (e0 - level) / fall, 1.0).clip(0.0, 1.0)
    return np.where(reached.any(axis=-1), t0 + share * (t1 - t0), np.inf)


@dataclass(frozen=True, eq=False)
class ErrorCurve:
    """Payment error against tokens: samples (k, X) each, of the same seeds in the same order."""

    tokens: Floats
    errors: Floats

    def resampled(self, counts: Floats) -> ErrorCurve:
        """Means (R, X) by how often each seed is drawn (R, k)."""
        k = counts.sum(axis=1, keepdims=True)
        return ErrorCurve(counts @ self.tokens / k, counts @ self.errors / k)


def token_ratios(ours: ErrorCurve, theirs: ErrorCurve, seed: int = 0) -> list[Estimate]:
    """Token ratio at the error of each of their points, with a percentile interval over seeds.

    Infinite where we never come to their error; their points have tokens above 0.
    """

    def ratios(one: ErrorCurve, other: ErrorCurve) -> Floats:
        mine, levels = falling(one.errors), falling(other.errors)
        reached = [tokens_to_reach(one.tokens, mine, level) for level in levels.T]
        return np.stack(reached, axis=1) / other.tokens

    k = len(ours.errors)
    (mean,) = ratios(*(curve.resampled(np.ones((1, k))) for curve in (ours, theirs)))
    counts = _counts(k, seed)
    again = ratios(ours.resampled(counts), theirs.resampled(counts))
    # no interpolation between resamples: some are infinite
    low, high = np.quantile(again, COVERED, axis=0, method="inverted_cdf")
    return [Estimate(*map(float, each)) for each in zip(mean, low, high, strict=True)]


def show(found: Estimate, sign: str = "") -> str:
    """An estimate and its interval, to three figures."""
    mean, low, high = (f"{x:{sign}.3g}" for x in found)
    return f"{mean} [{low}, {high}]"


def at_points(points: Sequence[float]) -> str:
    """Token budgets in words."""
    return ", ".join(f"{point:,.0f}" for point in points)


def _counts(k: int, seed: int) -> Floats:
    """(R, k) how often each of k seeds is in a resample."""
    rng = np.random.default_rng([seed, 9])
    return rng.multinomial(k, np.full(k, 1 / k), size=RESAMPLES).astype(np.float64)
