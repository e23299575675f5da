"""Do configurations steer? How often an ad is shown by its own strength, and by its rivals'.

For every request and each of its candidate ads in turn: the probability that the ad is shown when
its strength is s and all the others have strength o. From a pool it is exact; from an LLM that is
asked again it is a mean over replies with common random numbers.
"""

from __future__ import annotations

import numpy as np

from mechanisms.iamfm.configuration import Steering
from mechanisms.iamfm.live import LiveEvaluator
from mechanisms.iamfm.reweighing import steered
from mechanisms.pool import Floats, Ints, ReplyPool

OTHERS = (0, 1)
"""Strengths of the rivals."""


def recorded_exposure(
    pool: ReplyPool, steering: Steering | None = None, others: tuple[int, ...] = OTHERS
) -> Floats:
    """(B, K + 1, len(others)) exposure by own and others' strength, mean over a request's ads.

    Args:
        pool: of guided insertion, with n >= 1 candidate ads.
        steering: what strengths mean.
        others: strengths of the others.
    """
    steering = steering or Steering()
    B, _, n = pool.shape
    found = np.zeros((B, steering.strongest + 1, len(others)))
    for focal in range(n):
        for (own, column), strengths in _settings(focal, n, steering, others):
            weights = steered(pool, np.tile(strengths, (B, 1)), steering)
            found[:, own, column] += (weights * pool.exposure[:, :, focal]).sum(axis=1)
    return found / n


def live_exposure(evaluator: LiveEvaluator, pairs: int, others: tuple[int, ...] = OTHERS) -> Floats:
    """(pairs, K + 1, len(others)) 1 where the ad was shown; one reply of level `full` to each.

    Pair p takes request p and its ad p, both counted around.

    Args:
        evaluator: writes; its configurations do not matter.
        pairs: to how many.
        others: strengths of the others.
    """
    requests = [evaluator.requests[p % len(evaluator.requests)] for p in range(pairs)]
    n, K = len(requests[0].ads), evaluator.steering.strongest
    # requests take their ads in turn: p // B alone would give a short run only first ads
    focal = [(p // len(evaluator.requests) + p) % n for p in range(pairs)]
    asked = np.array([[s for _, s in _settings(ad, n, evaluator.steering, others)] for ad in focal])
    features = evaluator.read(requests, asked, len(evaluator.levels) - 1, range(pairs))
    shown = features.exposure[np.arange(pairs), :, focal]
    return shown.reshape(pairs, K + 1, len(others)).astype(np.float64)


def _settings(
    focal: int, n: int, steering: Steering, others: tuple[int, ...]
) -> list[tuple[tuple[int, int], Ints]]:
    """Strengths (n,) by (own strength, index of the others'), own strength slowest."""
    mine = np.arange(n) == focal
    return [
        ((own, column), np.where(mine, own, theirs))
        for own in range(steering.strongest + 1)
        for column, theirs in enumerate(others)
    ]
