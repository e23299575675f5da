"""What holds of every mechanism: counterfactuals, monotone click rates, odd pools, one `run`."""

import numpy as np
import pytest
from hypothesis import given

from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.pool import ReplyPool
from tests.mechanisms.pools import VARIANTS, close, markets, mean_charges, quick, rich, variant

every = pytest.mark.parametrize("key", VARIANTS)
# Where a bid is on something else than clicks, they need not follow it.
MONOTONE = [k for k in VARIANTS if not k.startswith(("gsp", "segments", "mosaic-log-ratio"))]


@every
@given(market=markets())
@quick
def test_override_equals_allocating_again(key, market):
    pool, bids, rng = market
    mechanism = variant(key)
    B, _, n = pool.shape
    grid = np.concatenate([rng.random((B, n, 4)) * 2, np.zeros((B, n, 1))], axis=2)
    fast = mechanism.counterfactual(pool, bids, grid)
    slow = Mechanism.counterfactual(mechanism, pool, bids, grid)
    # at tau = 1e-6 the rounding of scores of size 1e8 shows in the probabilities
    rtol = 1e-6 if key == "mosaic-cold" else 1e-9
    for quick_one, plain in zip(fast, slow, strict=True):
        assert quick_one.shape == (B, n, 5)
        close(quick_one, plain, 1 + bids.max(initial=0), rtol=rtol)


@every
@given(market=markets())
@quick
def test_no_deviation_is_the_outcome_itself(key, market):
    pool, bids, _ = market
    mechanism = variant(key)
    itctr, payments = mechanism.counterfactual(pool, bids, bids[:, :, None])
    played = mechanism.allocate(pool, bids)
    rtol = 1e-6 if key == "mosaic-cold" else 1e-9
    close(itctr[:, :, 0], played.itctr, rtol=rtol)
    close(payments[:, :, 0], played.payments, 1 + bids.max(initial=0), rtol=rtol)


@pytest.mark.parametrize("key", MONOTONE)
@given(market=markets())
@quick
def test_clicks_do_not_fall_as_the_bid_rises(key, market):
    pool, bids, _ = market
    B, _, n = pool.shape
    grid = np.broadcast_to(np.linspace(0, 2, 21), (B, n, 21))
    itctr, _ = variant(key).counterfactual(pool, bids, grid)
    assert (np.diff(itctr, axis=2) >= -(1e-6 if key == "mosaic-cold" else 1e-9)).all()


@every
def test_pool_without_ads(key):
    pool = rich(ReplyPool.from_arrays(np.zeros((2, 3, 0))))
    outcome = variant(key).run(pool, np.zeros(0), np.random.default_rng(0))
    close(outcome.probabilities, 1 / 3)
    assert outcome.payments.shape == outcome.clicks.shape == outcome.charges.shape == (2, 0)
    itctr, payments = variant(key).counterfactual(pool, np.zeros(0), np.zeros((2, 0, 4)))
    assert itctr.shape == payments.shape == (2, 0, 4)


@every
def test_pool_of_one_reply_and_one_ad(key):
    pool = rich(ReplyPool.from_arrays([[[0.5]]]))
    found = variant(key).allocate(pool, [2.0])
    close(found.probabilities, [[1.0]])
    close(found.itctr, [[0.5]])


@every
def test_same_dice_same_outcome(key):
    pool = rich(ReplyPool.synthetic(8, 6, 3, np.random.default_rng(0)))
    bids = np.array([0.3, 0.8, 0.5])
    one, two = (variant(key).run(pool, bids, np.random.default_rng(4)) for _ in range(2))
    for field in vars(one):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    by_request = pool.bids_by_request(bids)
    close(mean_charges(variant(key), pool, by_request, one), one.payments)


@every
@pytest.mark.parametrize("bids", [[1.0], [1.0, -1.0], [1.0, np.nan], [[1.0, np.inf]]])
def test_refuses_bids(key, bids):
    pool = ReplyPool.from_arrays(np.full((1, 3, 2), 0.5))
    with pytest.raises(BadInput, match="bid"):
        variant(key).allocate(pool, bids)
    with pytest.raises(BadInput, match="bid"):
        variant(key).counterfactual(pool, bids, np.zeros((1, 2, 1)))


@every
@pytest.mark.parametrize(
    "grid", [np.zeros((2, 1)), np.zeros((1, 3, 4)), np.full((1, 2, 1), -1), [[[np.nan], [0]]]]
)
def test_refuses_alternatives(key, grid):
    pool = ReplyPool.from_arrays(np.full((1, 3, 2), 0.5))
    with pytest.raises(BadInput, match="alternatives"):
        variant(key).counterfactual(pool, [1.0, 1.0], grid)
