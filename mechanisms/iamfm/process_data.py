"""Samples as the Gaussian process sees them: points, values, and what is expected before them.

An ad's click rate is expected to be that of ads of its strength: the mean m(l, g) over all pairs at
level l, all advertisers and all configurations in which they have strength g. User satisfaction is
expected to be its mean at the level. What is left is standardised, outcome by outcome, and is what
`mechanisms.iamfm.gaussian_process` describes.

Where clicks are rare, so is what tells configurations apart by them. Drawn to a mean over all
strengths, every advertiser's rate would seem to depend on nothing, while user satisfaction, which
every pair shows, speaks against every ad: the model would then sponsor nobody.

Shapes: outcomes K = n + 1, data N, points M, levels L, own strengths G, a point's numbers D.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mechanisms.iamfm.sampling_error import SamplingError, own_strengths
from mechanisms.pool import Floats, Ints

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Points:
    """Points of the process.

    Attributes:
        which: (M,) numbers of configurations.
        strengths: (M, n) theirs.
        strongest: the highest of all strengths; the process sees them as shares of it.
        levels: (M,).
        times: (M,) 1/m, and 0 for the expected outcome.
        spread: (K, M) standard deviation of an outcome on one pair.
    """

    which: Ints
    strengths: Ints
    strongest: int
    levels: Ints
    times: Floats
    spread: Floats

    def tensor(self, L: int) -> Tensor:
        """(K, M, D) what the process's covariance reads: as each outcome sees the strengths.

        In order: own strength, total of the rivals (of users: of all) by √n, number of the
        configuration, time; the rivals' strengths by √n; the spread at its level; a 1 there.
        """
        M, n = self.strengths.shape
        scaled = self.strengths / max(self.strongest, 1)
        own = np.vstack([scaled.T, np.zeros(M)])
        rivals = scaled * (1 - np.eye(n + 1, n)[:, None]) / np.sqrt(n)
        rest = np.broadcast_to([self.which, self.times], (n + 1, 2, M))
        first = np.stack([own, rivals.sum(axis=2), rest[:, 0], rest[:, 1]], axis=2)
        level = np.broadcast_to(np.eye(L)[self.levels], (n + 1, M, L))
        parts = first, rivals, level * self.spread[:, :, None], level
        return torch.from_numpy(np.concatenate(parts, axis=2))


@dataclass(frozen=True, eq=False)
class Data:
    """Sample means, standardised.

    Attributes:
        points: N of them.
        values: (K, N).
        error: of pairs, in the outcomes' own units.
        expected: (K, L, G) m, which was subtracted.
        scale: (K,) by what was divided then.
    """

    points: Points
    values: Floats
    error: SamplingError
    expected: Floats
    scale: Floats

    @classmethod
    def of(cls, points: Points, means: Floats, error: SamplingError) -> Data:
        """Those of means (N, K) at points, each weighing as many pairs as it is of."""
        weights = 1 / points.times
        expected = _expected(points, means.T, weights, error.spread.shape)
        left = means.T - expected[at_points(points)]
        scale = np.sqrt(np.average(left**2, axis=1, weights=weights))
        varies = scale > 1e-12
        # what never varied (an ad that nobody clicked) is taken to vary as others do
        scale[~varies] = scale[varies].mean() if varies.any() else 1.0
        return cls(points, left / scale[:, None], error, expected, scale)

    def unscaled(self, values: Floats, points: Points) -> Floats:
        """Outcomes (K, M) at points, of standardised ones."""
        return values * self.scale[:, None] + self.expected[at_points(points)]


def at_points(points: Points) -> tuple[Ints, Ints, Ints]:
    """What picks (K, M), an outcome's number at every point, from (K, L, G)."""
    own = own_strengths(points.strengths)
    return np.arange(len(own))[:, None], points.levels[None], own


def _expected(points: Points, means: Floats, weights: Floats, shape: tuple[int, ...]) -> Floats:
    """(K, L, G) m, of means (K, N), each of so many pairs (N,).

    What was not seen is expected to be as at all levels, and at all strengths, together.
    """
    _, L, G = shape
    clicks, own = means[:-1], own_strengths(points.strengths)[:-1]
    expected = np.empty(shape)
    for level in range(L):
        here = points.levels == level
        within = weights * (here if here.any() else 1.0)
        expected[-1, level] = np.average(means[-1], weights=within)
        for strength in range(G):
            expected[:-1, level, strength] = _mean(
                clicks, within * (own == strength), weights * (own == strength), weights
            )
    return expected


def _mean(clicks: Floats, *weights: Floats) -> float:
    """Mean of click rates (n, N) under the first of the weights, (n, N) or (N,), that are any."""
    for each in weights:
        each = np.broadcast_to(each, clicks.shape)
        if each.any():
            return float((clicks * each).sum() / each.sum())
    raise ValueError("no data")
