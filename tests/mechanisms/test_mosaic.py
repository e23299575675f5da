"""MOSAIC: what the paper proves, for any pool and any reports."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechanisms.errors import BadInput
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool
from tests.mechanisms.pools import (
    close,
    generators,
    markets,
    mean_charges,
    permuted,
    pools,
    quick,
    taus,
    utilities,
)

# random pools have weights of every kind
pytestmark = pytest.mark.filterwarnings("ignore::mechanisms.gibbs.LowEffectiveSampleSize")

offsets = st.booleans()
fields = ("probabilities", "itctr", "payments")


def rounding(tau):
    """Bids are computed compiled, reports by NumPy: scores of size s differ by about s·1e-16."""
    return 1e-10 + 1e-14 * 50 / tau


def test_worked_example():
    # Two replies, one ad in the second, ctr 1, bid 1, tau 1: pi_2 = e/(1+e), log Z = log((1+e)/2)
    pool = ReplyPool.from_arrays([[[0.0], [1.0]]])
    found = Mosaic(1.0).allocate(pool, [1.0])
    share = np.e / (1 + np.e)
    close(found.itctr, [[share]])
    close(found.payments, [[share - np.log((1 + np.e) / 2)]])
    bare = Mosaic(1.0, offset=False).allocate(pool, [1.0])
    close(bare.payments, found.payments)  # alone, log Z(r_-i) = 0


@quick
@given(markets(min_ads=1), taus, offsets)
def test_truth_beats_every_bid(market, tau, offset):
    pool, bids, rng = market
    mechanism = Mosaic(tau, offset)
    values = rng.random(bids.shape)
    for i in range(bids.shape[1]):
        played = bids.copy()
        played[:, i] = values[:, i]
        best = utilities(pool, mechanism.allocate(pool, played), values)[:, i]
        for bid in (0.0, 0.5, 0.9, 1.1, 3.0, 1000.0):
            played[:, i] = bid * values[:, i]
            other = utilities(pool, mechanism.allocate(pool, played), values)[:, i]
            assert (other <= best + 1e-9 * (1 + abs(best))).all()


@quick
@given(pools(min_ads=1), generators(), taus, offsets)
def test_truth_beats_every_reward_vector(pool, rng, tau, offset):
    mechanism = Mosaic(tau, offset)
    rewards = rng.normal(size=pool.shape) * rng.choice([0.1, 1, 5])

    def utility(reported):
        allocation = mechanism.allocate_reports(pool, reported)
        own = (allocation.probabilities[:, :, None] * rewards).sum(1) - allocation.payments
        return own[:, 0]

    best = utility(rewards)
    B, M, _ = pool.shape
    for lie in (
        rng.normal(size=(B, M)),
        rewards[:, :, 0] + 0.01 * rng.normal(size=(B, M)),
        -rewards[:, :, 0],
        100 * rng.normal(size=(B, M)),
        np.zeros((B, M)),
    ):
        reported = rewards.copy()
        reported[:, :, 0] = lie
        assert (utility(reported) <= best + 1e-9 * (1 + abs(best))).all()


@quick
@given(markets(), taus)
def test_offset_payments_are_charges_nobody_regrets(market, tau):
    pool, bids, _ = market
    allocation = Mosaic(tau).allocate(pool, bids)
    assert (allocation.payments >= 0).all()
    assert (utilities(pool, allocation, bids) >= -1e-12 * (1 + bids)).all()
    close(allocation.probabilities.sum(1), 1)
    close(allocation.itctr, (allocation.probabilities[:, :, None] * pool.ctr).sum(1))


@quick
@given(markets(), generators())
def test_order_of_advertisers_does_not_matter(market, rng):
    pool, bids, _ = market
    order = rng.permutation(bids.shape[1])
    found = Mosaic(0.2).allocate(pool, bids)
    other = Mosaic(0.2).allocate(permuted(pool, order), bids[:, order])
    close(other.probabilities, found.probabilities)
    close(other.itctr, found.itctr[:, order])
    close(other.payments, found.payments[:, order], bids.max(initial=0))


@quick
@given(markets(), st.sampled_from([1e-3, 0.5, 7.0, 1e4]))
def test_money_has_no_unit(market, factor):
    pool, bids, _ = market
    found = Mosaic(0.2).allocate(pool, bids)
    scaled = Mosaic(0.2 * factor).allocate(pool, factor * bids)
    close(scaled.probabilities, found.probabilities)
    close(scaled.payments, factor * found.payments, factor * bids.max(initial=0))


@quick
@given(markets(), st.sampled_from([-700.0, 3.0, 700.0]))
def test_weights_need_no_normalising(market, shift):
    pool, bids, _ = market
    moved = ReplyPool.from_arrays(pool.ctr, pool.log_ref + shift, pool.log_gen)
    found, other = (Mosaic(0.2).allocate(p, bids) for p in (pool, moved))
    for field in fields:
        close(getattr(other, field), getattr(found, field), bids.max(initial=0))


@quick
@given(markets(), taus, st.sampled_from(["expected", "realised"]), offsets)
def test_settlements_charge_the_same_on_average(market, tau, settlement, offset):
    pool, bids, _ = market
    mechanism = Mosaic(tau, offset, settlement)
    allocation = mechanism.allocate(pool, bids)
    mean = mean_charges(mechanism, pool, bids, allocation)
    close(mean, allocation.payments, 1 + bids.max(initial=0) + tau * 3000, rtol=1e-12)


@quick
@given(markets(), taus)
def test_realised_settlement_leaves_a_sure_utility(market, tau):
    pool, bids, _ = market
    mechanism = Mosaic(tau, settlement="realised")
    allocation = mechanism.allocate(pool, bids)
    sure = utilities(pool, allocation, bids)
    for j in range(pool.shape[1]):
        charges = mechanism.charge(pool, bids, allocation, np.full(len(bids), j), None)
        close(bids * pool.ctr[:, j] - charges, sure, bids.max(initial=0))


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_without_offset(tau):
    rng = np.random.default_rng(3)
    pool = ReplyPool.from_arrays(rng.random((2, 5, 3)), log_ref=rng.normal(size=(2, 5)))
    bids = rng.random((2, 3))
    found = Mosaic(tau, offset=False).allocate(pool, bids)
    rewards = bids[:, None, :] * pool.ctr
    z = (np.exp(pool.log_weights) * np.exp(rewards.sum(2) / tau)).mean(1)
    expected = (found.probabilities[:, :, None] * rewards).sum(1) - tau * np.log(z)[:, None]
    close(found.payments, expected)


@quick
@given(markets())
def test_cold_auction_picks_the_best_reply(market):
    pool, bids, _ = market
    flat = ReplyPool.from_arrays(pool.ctr)
    worth = (bids[:, None, :] * pool.ctr).sum(2)
    chosen = Mosaic(1e-9).allocate(flat, bids).probabilities
    # equal replies share
    best = worth >= worth.max(1, keepdims=True) * (1 - 1e-12)
    close(chosen, best / best.sum(1, keepdims=True))


@quick
@given(markets(), taus, st.sampled_from(["expected", "realised"]))
def test_reports_of_bids_times_ctr_are_bids(market, tau, settlement):
    pool, bids, _ = market
    mechanism = Mosaic(tau, settlement=settlement)
    by_bids = mechanism.run(pool, bids, np.random.default_rng(5))
    reports = bids[:, None, :] * pool.ctr
    by_reports = mechanism.run_reports(pool, reports, np.random.default_rng(5))
    for field in (*fields, "charges"):
        close(getattr(by_reports, field), getattr(by_bids, field), 50, rounding(tau))
    for field in ("chosen", "clicks"):
        np.testing.assert_array_equal(getattr(by_reports, field), getattr(by_bids, field))


@quick
@given(markets(min_ads=1), taus, offsets)
def test_bids_on_log_ratios_are_reports_of_them(market, tau, offset):
    """And so truth is optimal for who values log-ratios, at v per nat."""
    pool, values, _ = market
    mechanism = Mosaic(tau, offset, reward="log-ratio")
    ratios = pool.extras["log_ratios"]
    reports = values[:, None, :] * ratios
    by_bids, by_reports = mechanism.allocate(pool, values), Mosaic(tau, offset)
    for field in fields:
        expected = getattr(by_reports.allocate_reports(pool, reports), field)
        close(getattr(by_bids, field), expected, 400, rounding(tau))

    def utility(bids):
        found = mechanism.allocate(pool, bids)
        return values[:, 0] * (found.probabilities * ratios[:, :, 0]).sum(1) - found.payments[:, 0]

    best = utility(values)
    for factor in (0.0, 0.5, 0.95, 1.05, 2.0):
        lie = values.copy()
        lie[:, 0] *= factor
        assert (utility(lie) <= best + 1e-9 * (1 + abs(best))).all()


def test_log_ratios_need_recording():
    pool = ReplyPool.from_arrays([[[0.5]]])
    with pytest.raises(BadInput, match=r"replies\.log_ratios"):
        Mosaic(0.1, reward="log-ratio").allocate(pool, [1.0])


def test_one_reply_costs_nothing():
    pool = ReplyPool.from_arrays([[[0.5, 0.25]]])
    found = Mosaic(0.1).allocate(pool, [3.0, 1.0])
    close(found.probabilities, [[1.0]])
    close(found.itctr, [[0.5, 0.25]])
    close(found.payments, [[0.0, 0.0]])


@pytest.mark.parametrize("shape", [(1, 3), (1, 2, 2), (2, 3, 2)])
def test_refuses_reports_of_another_shape(shape):
    pool = ReplyPool.from_arrays(np.full((1, 3, 2), 0.5))
    with pytest.raises(BadInput, match=r"rewards have shape"):
        Mosaic(0.1).allocate_reports(pool, np.zeros(shape))


def test_refuses_reports_that_are_not_numbers():
    pool = ReplyPool.from_arrays(np.full((1, 3, 2), 0.5))
    with pytest.raises(BadInput, match="NaN"):
        Mosaic(0.1).run_reports(pool, np.full((1, 3, 2), np.nan), np.random.default_rng(0))
