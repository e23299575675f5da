"""The response surface on replies whose response to bids is known, and LLM-Auction on top of it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.llm_auction import fitting, surface
from mechanisms.llm_auction.mechanism import LLMAuction
from mechanisms.llm_auction.prompt import shown_bids
from mechanisms.llm_auction.surface import (
    MANIFEST,
    Response,
    Surface,
    Written,
    base_weights,
    response_of,
    surface_of,
)
from mechanisms.pool import ReplyPool
from mechanisms.pretrained import Pretrained
from tests.mechanisms.pools import close, generators, mean_charges, quick

pytestmark = pytest.mark.filterwarnings("ignore::mechanisms.gibbs.LowEffectiveSampleSize")
SURFACE, KERNEL = LLMAuction(), LLMAuction(estimate="kernel")


class Truth:
    """An LLM that shows one ad or none, by a rule that is known.

    Ad i is shown with probability proportional to exp(taste_i + slope·log(b_i / highest bid)), no
    ad to exp(0).
    """

    def __init__(self, requests, replies, slope, seed=0, ads=4):
        rng = np.random.default_rng(seed)
        self.slope, self.taste = slope, rng.normal(0, 1, (requests, 1, ads))
        self.click = np.exp(rng.normal(-2.5, 0.6, (requests, 1, ads)))
        profiles = shown_bids(100 ** rng.random((requests, replies, ads))).astype(float)
        shares = self.shown(profiles)
        drawn = (shares.cumsum(2) < rng.random((requests, replies, 1))).sum(2)
        exposure = np.arange(ads) == drawn[:, :, None]
        self.pool = ReplyPool.from_arrays(
            np.where(exposure, self.click * rng.uniform(0.8, 1.2, exposure.shape), 0.0),
            exposure=exposure,
            extras={"bid_profile": profiles},
        )

    def shown(self, bids):
        relative = np.maximum(bids / bids.max(2, keepdims=True), 0.01)
        odds = np.exp(self.taste + self.slope * np.log(relative))
        return odds / (1 + odds.sum(2, keepdims=True))

    def itctr(self, bids):
        return self.shown(bids) * self.click


def errors(truth, weights):
    """Of ITCTR at other bids, over its mean; and of its response to bids, over the true one."""
    B, _, n = truth.pool.shape
    bids = 100 ** np.random.default_rng(99).random((B, 40, n))
    true, found = truth.itctr(bids), weights(truth.pool, bids) @ truth.pool.ctr
    moves, moved = (each - each.mean(axis=1, keepdims=True) for each in (true, found))
    size = np.sqrt((moves**2).mean())
    return (
        np.sqrt(((found - true) ** 2).mean()) / true.mean(),
        np.sqrt(((moved - moves) ** 2).mean()) / size,
    )


@pytest.fixture(scope="module", params=[24, 48])
def known(request):
    return Truth(28, request.param, slope=1.0)


def test_a_known_response_is_recovered(known):
    """At the size of a market's pool, where a kernel over profiles does worse than nothing."""
    M = known.pool.shape[1]
    whole, response = errors(known, SURFACE.weights)
    by_kernel, kernel_response = errors(known, KERNEL.weights)
    flat, _ = errors(known, lambda pool, bids: np.full((len(bids), bids.shape[1], M), 1 / M))
    assert response < 0.4 < kernel_response
    assert whole < 0.7 * min(by_kernel, flat)
    found = response_of(known.pool)["held_out"]
    assert found["ridge"] is not None
    assert found["replies"] == 28 * round(0.2 * M)
    for rival in ("flat", "kernel"):
        mean, error = found["gain"][rival]
        assert mean > 2 * error > 0
    # of single replies, so that chance is most of it
    assert found["itctr_error"]["surface"] < found["itctr_error"]["kernel"]
    predicted, happened = np.array(found["itctr_bins"]).T
    assert (np.diff(predicted) >= 0).all()
    assert np.corrcoef(predicted, happened)[0, 1] > 0.8
    assert found["falls"] < 0.02  # the truth never falls


def test_bids_that_are_ignored_come_out_flat():
    for seed in range(3):
        truth = Truth(28, 24, slope=0.0, seed=seed)
        bids = 100 ** np.random.default_rng(1).random((28, 40, 4))
        itctr = SURFACE.weights(truth.pool, bids) @ truth.pool.ctr
        spread = itctr.std(axis=1).mean() / itctr.mean()
        assert spread < 0.12
        gained, error = response_of(truth.pool)["held_out"]["gain"]["flat"]
        assert gained < 2 * error + 1e-12


def test_same_recording_same_fit():
    truth = Truth(6, 10, slope=1.0)
    one, again = (fitting.fit(Written.of(truth.pool)) for _ in range(2))
    for name in ("inner", "bias", "outer"):
        np.testing.assert_array_equal(getattr(one[0], name), getattr(again[0], name))
    assert one[1] == again[1]


@st.composite
def surfaces(draw, max_ads=4):
    """A recording of any small shape, a response drawn at random, and a generator."""
    rng = draw(generators())
    B, M, n = (draw(st.integers(1, most)) for most in (3, 7, max_ads))
    exposure = rng.random((B, M, n)) < 0.4
    ctr = np.where(exposure, rng.random((B, M, n)), 0.0)
    profiles = shown_bids(100 ** rng.random((B, M, n))).astype(float)
    size = draw(st.sampled_from([0.1, 1.0, 3.0]))
    response = Response(rng.normal(size=(5, 6)), rng.normal(size=5), size * rng.normal(size=5))
    return Written(exposure, ctr, profiles), response, rng


@quick
@given(surfaces())
def test_recorded_frequencies_stand(drawn):
    """Averaged over the recorded profiles, every reply has the share that it had."""
    written, response, _ = drawn
    surface = Surface.over(written, response)
    B, M, _ = written.exposure.shape
    weights = surface.weights(np.arange(B), written.profiles)
    close(weights.sum(axis=2), 1)
    np.testing.assert_allclose(weights.mean(axis=1), 1 / M, rtol=1e-6)


@quick
@given(surfaces(), generators(), st.sampled_from([1e-3, 7.0, 1e5]))
def test_ads_have_no_names_and_money_no_unit(drawn, rng, factor):
    written, response, _ = drawn
    B, _, n = written.exposure.shape
    order, rows, bids = rng.permutation(n), np.arange(B), rng.random((B, 3, n))
    bids[rng.random(bids.shape) < 0.2] = 0.0
    moved = Written(*(each[:, :, order] for each in vars(written).values()))
    weights = Surface.over(written, response).weights(rows, bids)
    permuted = Surface.over(moved, response).weights(rows, factor * bids[:, :, order])
    np.testing.assert_allclose(permuted, weights, rtol=1e-7, atol=1e-12)


def test_the_base_in_closed_form():
    """Two replies, one shown to be e times likelier under its own profile than under the other."""
    tilts = np.array([[[1.0, 0.0], [0.0, 0.0]]])
    # w_1/w_2 = r solves r·e/(r·e + 1) + r/(r + 1) = 1: r = e^(-1/2)
    log_w = base_weights(tilts)[0]
    assert log_w[0] - log_w[1] == pytest.approx(-0.5, abs=1e-8)
    close(base_weights(np.zeros((2, 3, 3))), np.log(1 / 3))


def test_the_base_of_a_request_does_not_wait_for_others(monkeypatch):
    """Easy requests beside a hard one come out as they do alone; who is not done is told of."""
    rng = np.random.default_rng(9)
    easy, hard = rng.normal(size=(3, 6, 6)), 30 * rng.normal(size=(1, 6, 6))
    tilts = np.concatenate([easy[:1], hard, easy[1:]])
    monkeypatch.setattr(surface, "_ROUNDS", 300)
    with pytest.warns(
        RuntimeWarning, match=r"surface of 1 of 4 requests is not exact.* 300 rounds"
    ):
        together = base_weights(tilts)
    np.testing.assert_array_equal(together[[0, 2, 3]], base_weights(easy))
    odds = np.exp(together[[0, 2, 3], :, None] + easy)
    close((odds / odds.sum(1, keepdims=True)).mean(2), 1 / 6)  # recorded frequencies


@pytest.fixture(scope="module")
def small():
    return Truth(5, 12, slope=1.5).pool


@pytest.mark.parametrize("mechanism", [SURFACE, KERNEL])
def test_first_price(small, mechanism):
    rng = np.random.default_rng(2)
    bids = rng.random((5, 4))
    found = mechanism.allocate(small, bids)
    close(found.probabilities.sum(axis=1), 1)
    close(found.payments, bids * found.itctr)
    close(mean_charges(mechanism, small, bids, found), found.payments)
    close(mechanism.allocate(small, 1e4 * bids).itctr, found.itctr)
    again = [mechanism.run(small, bids, np.random.default_rng(3)) for _ in range(2)]
    for name in vars(again[0]):
        np.testing.assert_array_equal(getattr(again[0], name), getattr(again[1], name))


@pytest.mark.parametrize("mechanism", [SURFACE, KERNEL])
def test_counterfactuals_are_auctions(small, mechanism, monkeypatch):
    rng = np.random.default_rng(4)
    bids, grid = rng.random((5, 4)), rng.random((5, 4, 3))
    grid[:, :, 0], grid[:, :, 2] = bids, 0.0
    slow = Mechanism.counterfactual(mechanism, small, bids, grid)
    fast = mechanism.counterfactual(small, bids, grid)
    monkeypatch.setattr("mechanisms.pretrained._BLOCK", 1)  # a request at a time
    blocked = mechanism.counterfactual(small, bids, grid)
    for mine, also, plain in zip(fast, blocked, slow, strict=True):
        close(mine, plain)
        close(also, plain)
    close(fast[0][:, :, 0], mechanism.allocate(small, bids).itctr)


def test_kernel_is_that_of_the_untrained_llm(small):
    bids = np.random.default_rng(5).random((5, 4))
    theirs = Pretrained(0.2).allocate(small, bids)
    close(LLMAuction(estimate="kernel", bandwidth=0.2).allocate(small, bids).itctr, theirs.itctr)


def test_batches_are_of_their_origin(small):
    bids = np.random.default_rng(6).random((3, 4))
    batch = small.take([4, 0, 4])
    found = SURFACE.allocate(batch, bids).probabilities
    whole = SURFACE.allocate(small, np.tile(bids[:1], (5, 1))).probabilities
    close(found[0], whole[4])
    assert surface_of(batch) is surface_of(small)


def test_replies_written_under_the_bids_played_weigh_the_same():
    bids = np.array([[0.3, 0.7, 0.1], [2.0, 0.0, 5.0]])
    exposure = np.random.default_rng(0).random((2, 6, 3)) < 0.5
    live = ReplyPool.from_arrays(
        0.2 * exposure, extras={"bid_profile": np.repeat(bids[:, None], 6, axis=1)}
    )
    close(SURFACE.allocate(live, bids).probabilities, 1 / 6)
    assert response_of(live)["held_out"] == {"ridge": None, "replies": 0}


def test_edges():
    rng = np.random.default_rng(7)
    nobody = Truth(3, 8, 1.0).pool
    for bids in (np.zeros((3, 4)), np.array([[1.0, 0, 0, 0]] * 3), np.full((3, 4), 1e300)):
        found = SURFACE.allocate(nobody, bids)
        assert np.isfinite(found.itctr).all()
    close(SURFACE.allocate(nobody, np.zeros((3, 4))).probabilities,
          SURFACE.allocate(nobody, np.ones((3, 4))).probabilities)  # fmt: skip
    none = ReplyPool.from_arrays(np.zeros((2, 6, 0)), extras={"bid_profile": np.zeros((2, 6, 0))})
    close(SURFACE.allocate(none, np.zeros(0)).probabilities, 1 / 6)
    alone = ReplyPool.from_arrays(
        (rng.random((2, 6, 1)) < 0.5) * 0.1, extras={"bid_profile": np.full((2, 6, 1), 100.0)}
    )
    close(SURFACE.allocate(alone, np.ones(1)).probabilities, 1 / 6)


def test_a_manifest_keeps_the_fit(small, monkeypatch):
    kept = replace(small, manifest={MANIFEST: response_of(small)})

    def refit(*_):
        raise AssertionError("fitted again")

    bids = np.random.default_rng(8).random((5, 4))
    expected = SURFACE.allocate(small, bids).probabilities
    monkeypatch.setattr(fitting, "fit", refit)
    close(SURFACE.allocate(kept, bids).probabilities, expected)
    other = replace(kept, ctr=kept.ctr / 2)  # not what it was fitted to
    with pytest.raises(AssertionError, match="fitted again"):
        SURFACE.allocate(other, bids)


def test_refuses():
    bare = ReplyPool.from_arrays(np.full((1, 3, 2), 0.5))
    for mechanism in (SURFACE, KERNEL):
        with pytest.raises(BadInput, match="needs bid_profile, which these replies lack; record"):
            mechanism.allocate(bare, [1.0, 1.0])
    with pytest.raises(BadInput, match="bids are >= 0"):
        SURFACE.allocate(Truth(3, 8, 1.0).pool, [1.0, -1.0, 0.0, 0.0])
