"""LLM-Auction's ideal rule: first price on a Gibbs allocation of bids and response quality."""

import numpy as np
import pytest
from hypothesis import given

from mechanisms.gibbs import kl_from_reference
from mechanisms.llm_auction.ideal import IdealLLMAuction
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool
from tests.mechanisms.pools import close, markets, mean_charges, quick, taus

# random pools have weights of every kind
pytestmark = pytest.mark.filterwarnings("ignore::mechanisms.gibbs.LowEffectiveSampleSize")


def test_worked_example():
    # s_resp: reply 1 shows 2 ads of 1 allowed, reply 2 has 2 malformed mentions
    pool = ReplyPool.from_arrays(
        [[[0.0, 0.0], [0.5, 0.25], [0.5, 0.0]]], malformed=[[0, 0, 2]], log_ref=np.log([[1, 1, 2]])
    )
    mechanism = IdealLLMAuction(0.5, user_weight=0.1, max_ads=1)
    close(mechanism.response_penalty(pool), [[0, 1, 2]])
    found = mechanism.allocate(pool, [2.0, 4.0])
    weight = np.array([1, np.exp((1 + 1 - 0.1) / 0.5), 2 * np.exp((1 - 0.2) / 0.5)])
    close(found.probabilities, [weight / weight.sum()])
    close(found.payments, [[2, 4]] * found.itctr)


@quick
@given(markets(), taus)
def test_first_price(market, tau):
    pool, bids, rng = market
    mechanism = IdealLLMAuction(tau, user_weight=0.3)
    outcome = mechanism.run(pool, bids, rng)
    np.testing.assert_array_equal(outcome.charges, np.where(outcome.clicks, bids, 0.0))
    close(outcome.payments, bids * outcome.itctr, bids.max(initial=0))
    close(mean_charges(mechanism, pool, bids, outcome), outcome.payments, bids.max(initial=0))


@quick
@given(markets(), taus)
def test_continuous_in_the_bid(market, tau):
    """The slope of a click rate is its variance over tau, so at most 1/(4·tau)."""
    pool, bids, _ = market
    step = 1e-3 * tau
    grid = np.arange(30) * step
    B, n = bids.shape
    mechanism = IdealLLMAuction(tau, user_weight=0.3)
    itctr, _ = mechanism.counterfactual(pool, bids, np.broadcast_to(grid, (B, n, 30)))
    assert (abs(np.diff(itctr, axis=2)) <= step / (4 * tau) + 1e-9).all()


@quick
@given(markets(), taus)
def test_divergence_from_the_reference(market, tau):
    pool, bids, _ = market
    kl = [
        kl_from_reference(
            pool.log_weights, IdealLLMAuction(tau).allocate(pool, scale * bids).probabilities
        )
        for scale in (0, 0.5, 1)
    ]
    close(kl[0], 0, rtol=1e-9)
    assert (kl[1] >= 0).all() and (kl[2] >= kl[1] - 1e-9 * (1 + kl[2])).all()


@quick
@given(markets(), taus)
def test_allocates_like_mosaic_where_users_have_no_weight(market, tau):
    pool, bids, _ = market
    ours = IdealLLMAuction(tau, user_weight=0.0, max_ads=0).allocate(pool, bids)
    theirs = Mosaic(tau).allocate(pool, bids)
    np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)


def test_user_weight_thins_the_ads():
    pool = ReplyPool.synthetic(20, 30, 4, np.random.default_rng(0), mention_rate=1.0)
    shown = [
        IdealLLMAuction(0.2, user_weight, 0).allocate(pool, np.ones(4)).probabilities
        * pool.exposure.sum(2)
        for user_weight in (0, 0.1, 1)
    ]
    assert shown[0].sum() > shown[1].sum() > shown[2].sum()
