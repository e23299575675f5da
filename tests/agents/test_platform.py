"""The platform's sums against a naive loop, and advertisers as views."""

from dataclasses import replace

import mesa
import numpy as np
import pytest

from agents import Account, Platform, UtilityMaximizer, make_learner
from agents.learners import Population
from agents.learners.base import meets
from agents.tally import AMOUNTS, MEANS, Tally
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism

R, B, N, G = 3, 5, 6, 4


@pytest.fixture(params=["mosaic", "first-price"])
def platform(request):
    rng = np.random.default_rng(7)
    pool = ReplyPool.synthetic(10, 8, 3, rng, advertisers=N)
    parameters = {"tau": 0.3} if request.param == "mosaic" else {}
    return Platform(mesa.Model(rng=0), make_mechanism(request.param, **parameters), pool)


@pytest.fixture
def served(platform):
    rng = np.random.default_rng(1)
    requests = rng.integers(10, size=(R, B))
    bids = rng.uniform(0, 2, (R, N))
    return requests, bids, platform.auction(requests, bids, np.random.default_rng(2))


def test_every_request_is_served_under_its_replications_bids(platform, served):
    requests, bids, outcome = served
    for r in range(R):
        alone = platform.mechanism.allocate(platform.pool.take(requests[r]), bids[r])
        rows = slice(r * B, (r + 1) * B)
        np.testing.assert_allclose(outcome.itctr[rows], alone.itctr)
        np.testing.assert_allclose(outcome.payments[rows], alone.payments)


def test_tally_equals_a_loop(platform, served):
    requests, _, outcome = served
    tally = platform.tally(requests, outcome)
    want = {name: np.zeros((R, N)) for name in AMOUNTS}
    pool = platform.pool
    for row, k in enumerate(requests.ravel()):
        r = row // B
        for slot, who in enumerate(pool.ads[k]):
            want["requests"][r, who] += 1
            want["exposure"][r, who] += outcome.probabilities[row] @ pool.exposure[k, :, slot]
            want["shown"][r, who] += pool.exposure[k, outcome.chosen[row], slot]
            for name in ("itctr", "payments", "clicks", "charges"):
                want[name][r, who] += getattr(outcome, name)[row, slot]
    for name, expected in want.items():
        np.testing.assert_allclose(getattr(tally, name), expected, atol=1e-12, err_msg=name)


def test_counterfactuals_equal_a_loop(platform, served):
    requests, bids, _ = served
    grids = np.linspace(0.1, 3.0, N * G).reshape(N, G)
    clicks, payments = platform.counterfactual(requests, bids, grids)
    assert clicks.shape == payments.shape == (R, N, G)
    for r in range(R):
        pool = platform.pool.take(requests[r])
        for who in range(N):
            for g in range(G):
                tried = bids[r].copy()
                tried[who] = grids[who, g]
                outcome = platform.mechanism.allocate(pool, tried)
                mine = pool.ads == who
                assert clicks[r, who, g] == pytest.approx(outcome.itctr[mine].sum(), abs=1e-9)
                assert payments[r, who, g] == pytest.approx(outcome.payments[mine].sum(), abs=1e-9)


def advertiser(kind, **changes):
    model = mesa.Model(rng=0)
    one = np.ones(1)
    population = Population(one, np.array([True]), one, one)
    learner = make_learner("truthful", population, 2, np.random.default_rng(0))
    whole, bids = Account.open(np.array([1.0, 2.0, 3.0]), 2), np.zeros((2, 3))
    who = kind(
        model,
        **dict(
            index=1, title="Tea", value=2.0, target_roi=1.5, budget=np.inf, learner=learner,
            account=whole.of(1), bid=bids[:, 1],
        )
        | changes,
    )  # fmt: skip
    return who, whole, bids


def test_an_advertiser_is_a_view_on_the_market():
    who, whole, bids = advertiser(UtilityMaximizer)
    assert np.isnan(who.roi).all()
    bids[:] = [[1, 2, 3], [4, 5, 6]]
    np.testing.assert_array_equal(who.bid, [2, 5])
    np.testing.assert_array_equal(who.bid_over_value, [1, 2.5])
    with pytest.raises(ValueError, match="read-only"):
        who.bid[0] = 9
    ones = np.ones((2, 3))
    for clicks, charge in ((3, 2), (1, 3)):
        amounts = np.stack([ones, ones, clicks * ones, charge * ones, ones, ones, ones])
        whole.settle(Tally(amounts, np.zeros((len(MEANS), 2))))
    np.testing.assert_array_equal(who.account.requests, [2, 2])
    np.testing.assert_array_equal(who.account.clicks, [4, 4])
    np.testing.assert_array_equal(who.account.value, [8, 8])
    np.testing.assert_array_equal(who.spend, [5, 5])
    np.testing.assert_array_equal(who.utility, [3, 3])
    np.testing.assert_allclose(who.roi, [1.6, 1.6])


def test_a_target_is_met_with_equality():
    value, payment = np.array([3.0, 3.0, 0.0]), np.array([2.0, 2.1, 0.0])
    np.testing.assert_array_equal(meets(value, payment, 1.5), [True, False, True])


class Fresh:
    """A live source whose replies are those of another pool."""

    def __init__(self, pool):
        self.pool, self.shown = pool, []

    def replies(self, requests, bids):
        assert bids.shape == (requests.size, self.pool.shape[2])
        return self.pool.take(requests.ravel())

    def show(self, chosen):
        self.shown.append(chosen)


def test_live_replies_are_those_of_the_round_and_no_others():
    rng = np.random.default_rng(0)
    recorded = ReplyPool.synthetic(4, 6, 3, rng)
    other = ReplyPool.synthetic(4, 6, 3, rng)
    fresh = replace(other, ads=recorded.ads)
    live = Fresh(fresh)
    platform = Platform(mesa.Model(), make_mechanism("mosaic", tau=0.2), recorded, live)
    plain = Platform(mesa.Model(), make_mechanism("mosaic", tau=0.2), fresh)
    requests, bids = np.array([[0, 3], [2, 2]]), np.ones((2, 3))
    one, same = (p.auction(requests, bids, np.random.default_rng(1)) for p in (platform, plain))
    np.testing.assert_array_equal(one.charges, same.charges)
    np.testing.assert_array_equal(live.shown[0], one.chosen)
    ours, theirs = platform.tally(requests, one), plain.tally(requests, same)
    np.testing.assert_allclose(ours.amounts, theirs.amounts, rtol=1e-12)
    np.testing.assert_allclose(ours.means, theirs.means, rtol=1e-12)
    with pytest.raises(RuntimeError, match="just served"):
        platform.tally(requests.copy(), one)
