"""The Gibbs allocation, its deviation kernel and its warnings, against naive formulas."""

import warnings

import numpy as np
import pytest
from hypothesis import given

from mechanisms.errors import BadInput
from mechanisms.gibbs import (
    LowEffectiveSampleSize,
    check_weights,
    deviations,
    effective_sample_size,
    gibbs,
    kl_from_reference,
    warn_if_low,
)
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool
from tests.mechanisms.pools import close, markets, quick, taus


def naive(log_weights, rewards, tau):
    """3.1 as written, one request, no log space."""
    w = np.exp(log_weights)
    z = np.mean(w * np.exp(rewards.sum(1) / tau))
    without = [
        np.mean(w * np.exp(np.delete(rewards, i, 1).sum(1) / tau)) for i in range(rewards.shape[1])
    ]
    return w * np.exp(rewards.sum(1) / tau) / (len(w) * z), np.log(z), np.log(without)


def test_worked_example():
    # weights 1, 2, 1; rewards 0, 1, 0 and 0, 0, 2 at tau 1
    w = np.log([[1.0, 2.0, 1.0]])
    rewards = np.array([[[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]])
    found = gibbs(w, rewards, 1.0)
    e = np.e
    z = (1 + 2 * e + e**2) / 3
    close(found.probabilities, [[1 / (3 * z), 2 * e / (3 * z), e**2 / (3 * z)]])
    close(found.log_z, [np.log(z)])
    close(found.log_z_without, [[np.log((3 + e**2) / 3), np.log((2 + 2 * e) / 3)]])


@pytest.mark.parametrize("tau", [0.1, 0.5, 3.0])
def test_matches_the_naive_formula(tau):
    rng = np.random.default_rng(1)
    log_weights, rewards = rng.normal(size=(4, 6)), rng.normal(size=(4, 6, 3))
    found = gibbs(log_weights, rewards, tau)
    for b in range(4):
        probabilities, log_z, without = naive(log_weights[b], rewards[b], tau)
        close(found.probabilities[b], probabilities)
        close(found.log_z[b], log_z)
        close(found.log_z_without[b], without)


@quick
@given(markets(), taus)
def test_kernel_equals_one_allocation_per_bid(market, tau):
    pool, bids, rng = market
    B, _, n = pool.shape
    grid = rng.random((B, n, 5)) * 3
    tried = deviations(pool.log_weights, bids, pool.ctr, grid, tau)
    for i in range(n):
        for g in range(5):
            changed = bids.copy()
            changed[:, i] = grid[:, i, g]
            one = gibbs(pool.log_weights, changed[:, None, :] * pool.ctr, tau)
            itctr = (one.probabilities * pool.ctr[:, :, i]).sum(1)
            # scores of size s carry an error of s·1e-16, which probabilities show in full
            close(tried.itctr[:, i, g], itctr, rtol=1e-9 + 1e-14 * 50 / tau)
            close(tau * tried.log_z[:, i, g], tau * one.log_z, 50)
            close(tau * tried.log_z_without[:, i], tau * one.log_z_without[:, i], 50)


def test_kernel_is_the_same_in_any_block_and_range():
    rng = np.random.default_rng(2)
    pool = ReplyPool.synthetic(300, 30, 3, rng)
    bids = rng.random((300, 3))
    grid = np.broadcast_to(np.linspace(0, 2, 50), (300, 3, 50))
    whole = deviations(pool.log_weights, bids, pool.ctr, grid, 0.1)
    part = pool.take([7, 250])
    some = deviations(part.log_weights, bids[[7, 250]], part.ctr, grid[:2], 0.1)
    close(whole.itctr[[7, 250]], some.itctr)
    # one enormous alternative takes every row off the short cut without a shift
    wide = np.concatenate([grid, np.full((300, 3, 1), 1e5)], axis=2)
    shifted = deviations(pool.log_weights, bids, pool.ctr, wide, 0.1)
    close(shifted.itctr[:, :, :-1], whole.itctr)
    close(shifted.log_z[:, :, :-1], whole.log_z)


@quick
@given(markets(min_ads=1))
def test_normaliser_without_i_holds_nothing_of_i(market):
    pool, bids, rng = market
    rewards = bids[:, None, :] * pool.ctr
    loud = rewards.copy()
    loud[:, :, 0] = 1e12 * rng.random(loud.shape[:2])
    before, after = (gibbs(pool.log_weights, r, 0.3).log_z_without[:, 0] for r in (rewards, loud))
    np.testing.assert_array_equal(before, after)


@quick
@given(markets(), taus)
def test_finite_and_normalised_at_any_temperature(market, tau):
    pool, bids, _ = market
    found = gibbs(pool.log_weights, bids[:, None, :] * pool.ctr, tau)
    assert np.isfinite(found.log_z).all() and np.isfinite(found.log_z_without).all()
    assert (found.probabilities >= 0).all()
    close(found.probabilities.sum(1), 1)


@quick
@given(markets(), taus)
def test_maximises_regularised_welfare(market, tau):
    pool, bids, rng = market
    rewards = (bids[:, None, :] * pool.ctr).sum(2)
    found = gibbs(pool.log_weights, rewards[:, :, None], tau)

    def welfare(probabilities):
        kl = kl_from_reference(pool.log_weights, probabilities)
        return (probabilities * rewards).sum(1) - tau * kl

    best = welfare(found.probabilities)
    scale = 50 + tau * 3000
    # tau·log Z, up to how the weights are normalised
    nobody = gibbs(pool.log_weights, 0 * rewards[:, :, None], tau)
    close(best, tau * (found.log_z - nobody.log_z), scale)
    assert (welfare(rng.dirichlet(np.ones(rewards.shape[1]), len(rewards))) <= best + 1e-9).all()


def test_divergence():
    reference = np.log([[1.0, 3.0]])
    close(kl_from_reference(reference, np.array([[0.25, 0.75]])), [0.0])
    close(kl_from_reference(reference, np.array([[1.0, 0.0]])), [np.log(4)])
    close(kl_from_reference(reference + 800, np.array([[0.5, 0.5]])), [0.5 * np.log(4 / 3)])
    close(kl_from_reference(np.zeros((1, 1)), np.ones((1, 1))), [0.0])


@pytest.mark.parametrize("tau", [0, -1.0, np.nan, np.inf, "1", True, None])
def test_refuses_temperatures(tau):
    with pytest.raises(BadInput, match="tau is"):
        gibbs(np.zeros((1, 2)), np.zeros((1, 2, 1)), tau)
    with pytest.raises(BadInput, match="tau is"):
        deviations(np.zeros((1, 2)), np.zeros((1, 1)), np.zeros((1, 2, 1)), np.ones((1, 1, 1)), tau)


def test_refuses_what_overflows():
    with pytest.raises(BadInput, match="larger tau"):
        gibbs(np.zeros((1, 2)), np.full((1, 2, 1), 1e10), 1e-300)
    pool = ReplyPool.from_arrays(np.full((1, 2, 1), 0.5))
    with pytest.raises(BadInput, match="larger tau"):
        Mosaic(1e-300).counterfactual(pool, [1.0], np.full((1, 1, 1), 1e10))


def test_effective_sample_size():
    close(
        effective_sample_size(np.array([[1.0, 1, 1, 1], [9, 0, 0, 0], [3, 1, 0, 0]])), [4, 1, 1.6]
    )
    close(effective_sample_size(np.zeros((2, 3))), [0, 0])
    pool = ReplyPool.from_arrays(np.full((1, 3, 1), 0.5), log_ref=[[800.0, 800.0, 0.0]])
    close(pool.effective_sample_size, [2])


def test_warn_if_low():
    pool = ReplyPool.from_arrays(np.full((1, 3, 1), 0.5))
    low, fine = np.array([1.5, 3.0]), np.array([2.0, 3.0])
    with pytest.warns(LowEffectiveSampleSize, match="have odd weights .* below 2; mend"):
        warn_if_low(low, 3, "odd weights", "; mend it", pool)
    with pytest.warns(LowEffectiveSampleSize, match="even weights"):
        warn_if_low(low, 3, "even weights", "", pool)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_low(low, 3, "odd weights", "; mend it", pool)  # once per pool
        warn_if_low(fine, 3, "odd weights", "")
        warn_if_low(np.zeros((0, 2)), 3, "odd weights", "")
        warn_if_low(np.ones(2), 1, "odd weights", "")  # one reply leaves no choice by any weights
    for _ in range(2):
        with pytest.warns(LowEffectiveSampleSize):
            warn_if_low(low, 3, "odd weights", "")


def test_warns_once_per_pool_of_poor_weights():
    poor = ReplyPool.from_arrays(np.full((2, 3, 1), 0.5), log_ref=[[0, 0, 0], [40, 0, 0]])
    with pytest.warns(LowEffectiveSampleSize, match="effective sample size below 2"):
        Mosaic(1.0).run(poor, [1.0], np.random.default_rng(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_weights(poor)
        check_weights(ReplyPool.from_arrays(np.full((2, 3, 1), 0.5)))
        again = ReplyPool.from_arrays(poor.ctr, log_ref=poor.log_ref)
        Mosaic(1.0).allocate(again, [1.0])
