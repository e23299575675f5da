"""MOSAIC converges to the optimal reply distribution on an enumerated space, like M^(-1/2)."""

from itertools import pairwise

import numpy as np
import pytest

from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool

TAU = 0.4
SIZES = np.array([64, 128, 256, 512, 1024, 2048])


@pytest.fixture(scope="module")
def space():
    """40 replies: reference and generating distributions, click rates of 3 ads, and π*."""
    rng = np.random.default_rng(5)
    reference, context = rng.dirichlet(np.full(40, 2.0)), rng.dirichlet(np.full(40, 2.0))
    ctr = np.where(rng.random((40, 3)) < 0.4, rng.random((40, 3)), 0.0)
    values = np.array([1.0, 0.6, 1.4])
    optimum = reference * np.exp(ctr @ values / TAU)
    return reference, context, ctr, values, optimum / optimum.sum()


def drawn(space, generating, size, sets, rng):
    """A pool of `sets` requests, each with `size` candidates from `generating`, and which."""
    reference, _, ctr, _, _ = space
    which = rng.choice(40, size=(sets, size), p=generating)
    pool = ReplyPool.from_arrays(
        ctr[which],
        np.log(reference[which]),
        np.log(generating[which]),
        num_advertisers=3,
    )
    return pool, which


def distances(space, generating, rng):
    """Mean total variation between allocation and π*, by number of candidates."""
    *_, values, optimum = space
    found = []
    for size in SIZES:
        sets = 120
        pool, which = drawn(space, generating, size, sets, rng)
        allocation = Mosaic(TAU).allocate(pool, values)
        at = which + 40 * np.arange(sets)[:, None]
        mass = np.bincount(at.ravel(), allocation.probabilities.ravel(), 40 * sets)
        found.append(0.5 * np.abs(mass.reshape(sets, 40) - optimum).sum(1).mean())
    return np.array(found)


@pytest.mark.parametrize("way", ["reference", "context", "mixture"])
def test_total_variation_falls_like_one_over_root_m(space, way):
    reference, context, *_ = space
    generating = {
        "reference": reference,
        "context": context,
        "mixture": (reference + context) / 2,
    }[way]
    found = distances(space, generating, np.random.default_rng(11))
    slope, _ = np.polyfit(np.log(SIZES), np.log(found), 1)
    assert slope == pytest.approx(-0.5, abs=0.04)
    assert found[-1] < 0.06


def test_welfare_approaches_the_optimum_from_below(space):
    """τ·log Z of M candidates is the regularised welfare achieved; its mean rises to τ·log Z*."""
    reference, _, ctr, values, _ = space
    best = TAU * np.log((reference * np.exp(ctr @ values / TAU)).sum())
    rng = np.random.default_rng(3)
    gaps = []
    for size in (8, 32, 128, 512):
        pool, _ = drawn(space, reference, size, 400, rng)
        rewards = values * pool.ctr
        z = (np.exp(pool.log_weights) * np.exp(rewards.sum(2) / TAU)).mean(1)
        gaps.append(best - TAU * np.log(z).mean())
    assert all(early > late for early, late in pairwise(gaps))
    # a bias, so it falls like 1/M: four times as many candidates, about a quarter
    assert gaps[0] / gaps[2] == pytest.approx(16, rel=0.6)
    assert 0 < gaps[-1] < 0.005
