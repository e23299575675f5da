"""The pre-trained Ad-LLM on pools of known profiles: a kernel over bids, at first price."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.gibbs import LowEffectiveSampleSize
from mechanisms.pool import ReplyPool
from mechanisms.pretrained import Pretrained
from mechanisms.registry import make_mechanism
from tests.mechanisms.pools import close, generators, mean_charges, quick

# random profiles leave any effective sample size
pytestmark = pytest.mark.filterwarnings("ignore::mechanisms.gibbs.LowEffectiveSampleSize")
bandwidths = st.sampled_from([1e-9, 0.05, 0.15, 2.0])


@st.composite
def markets(draw):
    """A pool with bid profiles, bids (B, n) with a few zeros, and their generator."""
    rng = draw(generators())
    B, M, n = (draw(st.integers(1, most)) for most in (3, 7, 4))
    exposure = rng.random((B, M, n)) < 0.5
    profiles = 100 ** rng.random((B, M, n))
    if draw(st.booleans()):
        profiles[rng.random(profiles.shape) < 0.3] = 0.0
    pool = ReplyPool.from_arrays(
        np.where(exposure, rng.random((B, M, n)), 0.0),
        exposure=exposure,
        extras={"bid_profile": profiles},
    )
    bids = rng.random((B, n))
    bids[rng.random((B, n)) < 0.2] = 0.0
    return pool, bids, rng


def with_profiles(profiles, ctr=None):
    profiles = np.asarray(profiles, dtype=float)
    ctr = np.full(profiles.shape, 0.5) if ctr is None else ctr
    return ReplyPool.from_arrays(ctr, extras={"bid_profile": profiles})


def test_worked_example():
    # shares (1/2, 1/2) and (1, 0): squared distance 1/2 from the first, 0 from the second
    pool = with_profiles([[[3, 3], [7, 0]]], [[[0.2, 0.0], [0.6, 0.1]]])
    found = Pretrained(bandwidth=0.5).allocate(pool, [4.0, 0.0])
    first = np.exp(-1.0) / (1 + np.exp(-1.0))
    close(found.probabilities, [[first, 1 - first]])
    click = 0.2 * first + 0.6 * (1 - first)
    close(found.itctr, [[click, 0.1 * (1 - first)]])
    close(found.payments, [[4 * click, 0.0]])


@quick
@given(markets(), bandwidths)
def test_first_price(market, bandwidth):
    pool, bids, rng = market
    mechanism = Pretrained(bandwidth)
    found = mechanism.allocate(pool, bids)
    close(found.probabilities.sum(axis=1), 1)
    close(found.payments, bids * found.itctr)
    close(mean_charges(mechanism, pool, bids, found), found.payments)
    outcome = mechanism.run(pool, bids, rng)
    close(outcome.charges, bids * outcome.clicks)


@quick
@given(markets(), bandwidths, st.sampled_from([1e-3, 7.0, 1e4]))
def test_money_has_no_unit(market, bandwidth, factor):
    pool, bids, _ = market
    found = Pretrained(bandwidth).allocate(pool, bids)
    scaled = Pretrained(bandwidth).allocate(pool, factor * bids)
    if bandwidth > 1e-6:  # in the limit, rounding decides between replies equally near
        close(scaled.probabilities, found.probabilities)
        close(scaled.payments, factor * found.payments, factor)


@quick
@given(markets(), generators())
def test_order_of_advertisers_does_not_matter(market, rng):
    pool, bids, _ = market
    order = rng.permutation(bids.shape[1])
    moved = ReplyPool.from_arrays(
        pool.ctr[:, :, order],
        exposure=pool.exposure[:, :, order],
        extras={"bid_profile": pool.extras["bid_profile"][:, :, order]},
    )
    found, other = (
        Pretrained().allocate(*each) for each in ((pool, bids), (moved, bids[:, order]))
    )
    close(other.probabilities, found.probabilities)
    close(other.payments, found.payments[:, order])


@quick
@given(markets(), bandwidths)
def test_counterfactuals_are_auctions(market, bandwidth):
    pool, bids, rng = market
    mechanism = Pretrained(bandwidth)
    grid = rng.random((*bids.shape, 3))
    grid[:, :, 0] = bids
    fast = mechanism.counterfactual(pool, bids, grid)
    slow = Mechanism.counterfactual(mechanism, pool, bids, grid)
    for mine, plain in zip(fast, slow, strict=True):
        close(mine, plain)
    close(fast[0][:, :, 0], mechanism.allocate(pool, bids).itctr)


def test_limits_of_the_kernel():
    rng = np.random.default_rng(1)
    profiles = 100 ** rng.random((4, 9, 3))
    pool, bids = with_profiles(profiles), rng.random((4, 3))
    shares = profiles / profiles.sum(2, keepdims=True)
    asked = bids / bids.sum(1, keepdims=True)
    nearest = ((shares - asked[:, None]) ** 2).sum(2).argmin(1)
    for bandwidth in (1e-300, 1e-9, 1e-5):
        found = Pretrained(bandwidth).allocate(pool, bids).probabilities
        np.testing.assert_array_equal(found, np.eye(9)[nearest])
    close(Pretrained(1e6).allocate(pool, bids).probabilities, 1 / 9)


def test_replies_written_under_the_bids_played_weigh_the_same():
    bids = np.array([[0.3, 0.7, 0.1], [2.0, 0.0, 5.0]])
    pool = with_profiles(np.repeat(bids[:, None], 5, axis=1))
    for bandwidth in (1e-12, 0.15):
        close(Pretrained(bandwidth).allocate(pool, bids).probabilities, 1 / 5)
        close(Pretrained(bandwidth).allocate(pool, 1e6 * bids).probabilities, 1 / 5)


def test_nobody_bids():
    """Shares are equal then: the reply written to equal bids is the nearest."""
    pool = with_profiles([[[1, 1], [1, 100], [100, 1]]])
    found = Pretrained(0.05).allocate(pool, [0.0, 0.0])
    close(found.probabilities, [[1, 0, 0]])
    assert (found.payments == 0).all()


def test_the_estimate_comes_closer_with_more_replies():
    """Clicks that rise with the share: recovered from replies written under other bids."""
    rng = np.random.default_rng(5)
    bids = np.array([[3.0, 1.0]])
    errors = []
    for replies, bandwidth in ((20, 0.3), (2000, 0.05)):
        profiles = 100 ** rng.random((1, replies, 2))
        shown = profiles / profiles.sum(2, keepdims=True)
        pool = with_profiles(profiles, 0.4 * shown)
        errors.append(abs(Pretrained(bandwidth).allocate(pool, bids).itctr[0, 0] - 0.3))
    assert errors[1] < 0.005 < errors[0]


def test_no_ads():
    pool = ReplyPool.from_arrays(np.zeros((2, 3, 0)), extras={"bid_profile": np.zeros((2, 3, 0))})
    found = Pretrained().allocate(pool, np.zeros(0))
    close(found.probabilities, 1 / 3)
    itctr, payments = Pretrained().counterfactual(pool, np.zeros((2, 0)), np.zeros((2, 0, 4)))
    assert itctr.shape == payments.shape == (2, 0, 4)


@pytest.mark.filterwarnings("default::mechanisms.gibbs.LowEffectiveSampleSize")
def test_warns_once_per_pool_where_one_reply_is_near():
    def pool():
        return with_profiles([[[1, 0], [0, 1], [0, 1]]])

    rng, grid = np.random.default_rng(0), np.array([[[9e9], [1.0]]])
    ways = (
        lambda met: Pretrained().run(met, [1.0, 0.0], rng),
        lambda met: Pretrained().counterfactual(met, [1.0, 1.0], grid),
    )
    for way in ways:
        met = pool()
        with pytest.warns(LowEffectiveSampleSize, match="estimated weights under these bids"):
            way(met)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for again in ways:
                again(met)
            Pretrained().run(pool(), [0.0, 1.0], rng)
            Pretrained(bandwidth=2.0).counterfactual(pool(), [1.0, 1.0], grid)
            Pretrained().run(with_profiles([[[1, 0]]]), [0.0, 1.0], rng)


@pytest.mark.parametrize(
    "name", ["mosaic", "llm-auction-ideal", "first-price", "gsp", "vcg", "segment"]
)
def test_its_replies_are_for_nobody_who_needs_weights(name):
    tau = {"tau": 1.0} if name in ("mosaic", "llm-auction-ideal") else {}
    mechanism = make_mechanism(name, **tau)
    pool = replace(
        with_profiles([[[1, 0], [0, 1]]]), manifest={"design": {"generation": "auction"}}
    )
    grid = np.ones((1, 2, 3))
    asked = [
        lambda each: mechanism.allocate(each, [1.0, 1.0]),
        lambda each: mechanism.run(each, [1.0, 1.0], np.random.default_rng(0)),
        lambda each: mechanism.counterfactual(each, [1.0, 1.0], grid),
    ]
    if name == "mosaic":
        asked.append(lambda each: mechanism.allocate_reports(each, np.ones((1, 2, 2))))
    for ask in asked:
        for each in (pool, pool.take([0])):
            with pytest.raises(BadInput, match=f"{name} needs importance weights") as caught:
                ask(each)
            assert "\n" not in str(caught.value)
        ask(replace(pool, manifest={"design": {"generation": "token"}}))
        ask(replace(pool, manifest={}))
    Pretrained().allocate(pool, [1.0, 1.0])


def test_refuses():
    with pytest.raises(BadInput, match="bandwidth is 0; give a finite number > 0"):
        make_mechanism("pretrained", bandwidth=0)
    bare = ReplyPool.from_arrays(np.full((1, 3, 2), 0.5))
    with pytest.raises(BadInput, match="needs bid_profile, which these replies lack; record"):
        Pretrained().allocate(bare, [1.0, 1.0])
    wrong = ReplyPool.from_arrays(np.full((1, 3, 2), 0.5), extras={"bid_profile": np.ones((1, 3))})
    with pytest.raises(BadInput, match=r"bid_profile has shape \(1, 3\); give \(B, M, n\)"):
        Pretrained().allocate(wrong, [1.0, 1.0])
