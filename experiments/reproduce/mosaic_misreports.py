"""What an advertiser gains by misreporting to MOSAIC: bids, whole reward vectors, and a search."""

from __future__ import annotations

import numpy as np
import polars as pl

from mechanisms.candidates import expectation
from mechanisms.mosaic import Mosaic
from mechanisms.pool import Floats, ReplyPool

FACTORS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0, 3.0)
SHAKES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
STEPS = 30


def misreports(
    pool: ReplyPool, weights: Floats, mechanism: Mosaic, rng: np.random.Generator
) -> pl.DataFrame:
    """Gain from misreporting, every advertiser by itself, the others truthful.

    Scalar: a bid of `size` times the truth. Vector: `size` times the scale of the rewards of noise
    on top of the truth, reply by reply; the negated truth; credit for every reply that shows the
    ad, and blame for those that show a rival; and the best of climbs by random steps, from the
    truth and from random reports.

    Args:
        pool: candidate replies.
        weights: (N,) value per unit of the reward.
        mechanism: with its tau and its form of reward.
        rng: of what is random in misreports.

    Returns:
        A row per kind, size, request and ad: `gain` in utility over truth, and the ad's `value` and
        `stake`, the mean absolute reward, under truth; all in money per request. Where rewards are
        clicks, the stake is the value.
    """
    truth = weights[pool.ads][:, None, :] * mechanism.features(pool)
    found = mechanism.allocate_reports(pool, truth)
    value = expectation(found.probabilities, truth)
    honest = value - found.payments
    stake = expectation(found.probabilities, np.abs(truth))
    B, _, n = pool.shape
    scale = truth.std(axis=1, keepdims=True) + 1e-9

    def gains(reported: Floats) -> Floats:
        """(B, n) gains when each advertiser alone reports its column of `reported` (B, M, n)."""
        out = np.empty_like(honest)
        for i in range(n):
            mixed = truth.copy()
            mixed[:, :, i] = reported[:, :, i]
            other = mechanism.allocate_reports(pool, mixed)
            own = expectation(other.probabilities, truth) - other.payments
            out[:, i] = (own - honest)[:, i]
        return out

    def noise() -> Floats:
        return scale * rng.normal(size=truth.shape)

    def climb(start: Floats) -> Floats:
        """(B, n) the best gain met on a climb by random steps."""
        reported, best = start, gains(start)
        for step in range(STEPS):
            candidate = reported + 0.5 * 0.85**step * noise()
            gain = gains(candidate)
            better = gain > best
            best = np.where(better, gain, best)
            reported = np.where(better[:, None, :], candidate, reported)
        return best

    rival = (pool.exposure.sum(axis=2, keepdims=True) - pool.exposure) > 0
    credit = scale * (pool.exposure.astype(float) - rival)
    tried: list[tuple[str, float, Floats]] = [
        *(("scalar", factor, gains(factor * truth)) for factor in FACTORS),
        *(("noise", size, gains(truth + size * noise())) for size in SHAKES),
        ("negated", 1.0, gains(-truth)),
        *(("credit and blame", size, gains(truth + size * credit)) for size in (0.1, 1.0)),
        ("climb from truth", 1.0, climb(truth)),
        ("climb from random", 1.0, climb(2 * noise())),
    ]
    return pl.concat(
        pl.DataFrame(
            {
                "kind": kind,
                "size": size,
                "request": np.repeat(np.arange(B), n),
                "ad": pool.ads.ravel(),
                "gain": gain.ravel(),
                "value": value.ravel(),
                "stake": stake.ravel(),
            }
        )
        for kind, size, gain in tried
    )
