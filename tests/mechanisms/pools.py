"""Hypothesis strategies for pools and bids, and what several test modules share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism

quick = settings(max_examples=100, deadline=None)
taus = st.sampled_from([1e-6, 1e-3, 0.05, 0.3, 1.0, 20.0])

# every mechanism, with parameters that reach every branch
VARIANTS = {
    "mosaic": ("mosaic", {"tau": 0.2}),
    "mosaic-realised": ("mosaic", {"tau": 0.2, "settlement": "realised"}),
    "mosaic-no-offset": ("mosaic", {"tau": 0.05, "offset": False}),
    "mosaic-cold": ("mosaic", {"tau": 1e-6}),
    "mosaic-log-ratio": ("mosaic", {"tau": 0.5, "reward": "log-ratio"}),
    "ideal": ("llm-auction-ideal", {"tau": 0.2}),
    "ideal-users": ("llm-auction-ideal", {"tau": 0.2, "user_weight": 0.4, "max_ads": 1}),
    "first-price": ("first-price", {}),
    "first-price-reserve": ("first-price", {"slots": 2, "reserve": 0.4}),
    "gsp": ("gsp", {}),
    "gsp-reserve": ("gsp", {"slots": 2, "reserve": 0.4}),
    "vcg": ("vcg", {}),
    "vcg-reserve": ("vcg", {"slots": 2, "reserve": 0.4}),
    "segment": ("segment", {}),
    "segments-2": ("segment", {"segments": 2}),
    "segments-3": ("segment", {"segments": 3, "no_ad": 0.3}),
}


def variant(key):
    name, parameters = VARIANTS[key]
    return make_mechanism(name, **parameters)


@st.composite
def pools(draw, max_requests=3, max_replies=7, max_ads=4, min_ads=0):
    """Pools of any small shape: sparse to full exposure, flat to extreme weights.

    Numbers come from a seeded generator, so that ties between sets of ads have probability 0.
    """
    B = draw(st.integers(1, max_requests))
    M = draw(st.integers(1, max_replies))
    n = draw(st.integers(min_ads, max_ads))
    density = draw(st.sampled_from([0.0, 0.3, 0.6, 1.0]))
    spread = draw(st.sampled_from([0.0, 1.0, 30.0, 500.0]))
    rng = draw(generators())
    exposure = rng.random((B, M, n)) < density
    ctr = np.where(exposure, rng.random((B, M, n)), 0.0)
    if draw(st.booleans()):
        # exposed, yet never clicked
        ctr[rng.random(ctr.shape) < 0.2] = 0.0
    return ReplyPool.from_arrays(
        ctr,
        log_ref=-40 + spread * rng.standard_normal((B, M)),
        log_gen=-40 + spread * rng.standard_normal((B, M)),
        quality=rng.random((B, M)),
        exposure=exposure,
        malformed=rng.integers(0, 3, (B, M)),
        extras={"log_ratios": rng.normal(0, 2, ctr.shape)},
    )


def rich(pool):
    """The pool with every extra array that a mechanism may ask for."""
    extras = {"log_ratios": np.random.default_rng(7).normal(0, 2, pool.shape)}
    return replace(pool, extras=extras)


@st.composite
def generators(draw):
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


@st.composite
def markets(draw, **shape):
    """A pool, bids (B, n) with a few zeros and ties with 1, and the generator they came from."""
    pool = draw(pools(**shape))
    rng = draw(generators())
    B, _, n = pool.shape
    bids = rng.random((B, n)) * draw(st.sampled_from([0.1, 1.0, 50.0]))
    bids[rng.random((B, n)) < 0.15] = 0.0
    return pool, bids, rng


def utilities(pool, allocation, values):
    """(B, n) expected utilities `v·itctr − p`."""
    return values * allocation.itctr - allocation.payments


def mean_charges(mechanism, pool, bids, allocation):
    """(B, n) exact expectation of the charges over replies and clicks (charges are affine)."""
    total = np.zeros_like(bids)
    for j in range(pool.shape[1]):
        chosen = np.full(len(bids), j)
        charges = mechanism.charge(pool, bids, allocation, chosen, pool.ctr[:, j])
        total += allocation.probabilities[:, [j]] * charges
    return total


def permuted(pool, order):
    """The pool with its candidate ads listed in another order."""
    return ReplyPool.from_arrays(
        pool.ctr[:, :, order],
        log_ref=pool.log_ref,
        log_gen=pool.log_gen,
        quality=pool.quality,
        exposure=pool.exposure[:, :, order],
        malformed=pool.malformed,
        extras={name: array[:, :, order] for name, array in pool.extras.items()},
    )


def close(actual, expected, scale=1.0, rtol=1e-9):
    """Assert equality to 1e-9 relative to the largest amount about."""
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * max(1e-3, scale))
