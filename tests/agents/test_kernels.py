"""Compiled rounds against the specification in NumPy, for mechanisms and pools of every kind."""

import mesa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import compiled, kernels
from agents.platform import Platform
from agents.streams import Dice
from agents.tally import AMOUNTS, Tally, check
from mechanisms.base import Outcome
from mechanisms.errors import BadInput
from mechanisms.gibbs import LowEffectiveSampleSize
from mechanisms.kernels.threads import limited
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism

GIBBS = [
    ("mosaic", {}),
    ("mosaic", {"settlement": "realised"}),
    ("mosaic", {"offset": False}),
    ("mosaic", {"offset": False, "settlement": "realised"}),
    ("mosaic", {"reward": "log-ratio"}),
    ("mosaic", {"reward": "log-ratio", "settlement": "realised"}),
    ("llm-auction-ideal", {}),
]
OTHERS = [("gsp", {"slots": 2}), ("vcg", {"reserve": 0.3}), ("first-price", {}), ("segment", {})]


@st.composite
def markets(draw):
    """A pool with weights, ads that are shown and never clicked, and some bids of 0."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    K, M, n = draw(st.integers(1, 6)), draw(st.integers(1, 7)), draw(st.integers(1, 5))
    N = n + draw(st.integers(0, 3))
    exposure = rng.random((K, M, n)) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    ctr = np.where(exposure & (rng.random((K, M, n)) < 0.8), rng.random((K, M, n)), 0.0)
    pool = ReplyPool.from_arrays(
        ctr,
        log_ref=rng.normal(0, draw(st.sampled_from([0.0, 1.0, 30.0])), (K, M)),
        quality=rng.random((K, M)),
        ads=np.stack([rng.permutation(N)[:n] for _ in range(K)]),
        exposure=exposure,
        num_advertisers=N,
        extras={"log_ratios": rng.normal(0, 2, (K, M, n))},
    )
    R, B = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 70]))
    bids = rng.uniform(0, 3, (R, N)) * (rng.random((R, N)) < 0.8)
    return pool, rng.integers(K, size=(R, B)), bids


def platform(name, parameters, pool, kernel="numba"):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADMARKET_KERNEL", kernel)
        tau = {"tau": parameters.pop("tau", 0.4)} if name in dict(GIBBS) else {}
        mechanism = make_mechanism(name, **tau, **parameters)
        return Platform(mesa.Model(rng=0), mechanism, pool)


def assert_same(ours: Tally, reference: Tally):
    for name, one, other in zip(AMOUNTS, ours.amounts, reference.amounts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(ours.means, reference.means, rtol=1e-10, atol=1e-9)


@pytest.mark.filterwarnings("ignore::mechanisms.gibbs.LowEffectiveSampleSize")
@pytest.mark.parametrize(("name", "parameters"), GIBBS + OTHERS)
@settings(max_examples=20, deadline=None)
@given(market=markets(), tau=st.sampled_from([1e-3, 0.3, 10.0]), round=st.integers(0, 3))
def test_compiled_rounds_are_those_of_the_specification(name, parameters, market, tau, round):
    pool, requests, bids = market
    parameters = parameters | ({"tau": tau} if name in dict(GIBBS) else {})
    dice = Dice(9, requests.size, pool.shape[2])
    tallies = []
    for kernel in ("numba", "numpy"):
        ours = platform(name, dict(parameters), pool, kernel)
        assert (ours._compiled is not None) == (kernel == "numba" and (name, {}) in GIBBS)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ADMARKET_KERNEL", kernel)
            tallies.append(ours.serve(requests, bids, dice, round))
    # the same dice fall the same way; only sums are rounded differently
    np.testing.assert_array_equal(tallies[0].shown, tallies[1].shown)
    np.testing.assert_array_equal(tallies[0].clicks, tallies[1].clicks)
    assert_same(*tallies)


@pytest.mark.parametrize(("name", "parameters"), [*GIBBS, *OTHERS])
def test_counterfactuals_are_those_of_the_specification(name, parameters, monkeypatch):
    rng = np.random.default_rng(3)
    pool = ReplyPool.synthetic(9, 8, 3, rng, advertisers=5)
    ratios = {"log_ratios": rng.normal(0, 1, pool.shape)}
    pool = ReplyPool.from_arrays(pool.ctr, ads=pool.ads, num_advertisers=5, extras=ratios)
    requests, bids = rng.integers(9, size=(3, 4)), rng.uniform(0, 2, (3, 5))
    grids = rng.uniform(0, 3, (5, 6))
    ours = platform(name, dict(parameters), pool)
    dice = Dice(0, requests.size, 3)
    found = ours.counterfactual(requests, bids, grids)
    served = ours.serve(requests, bids, dice, 0, grids)
    alone = ours.serve(requests, bids, dice, 0)
    np.testing.assert_array_equal(served.amounts, alone.amounts)
    assert alone.along is None
    monkeypatch.setenv("ADMARKET_KERNEL", "numpy")
    reference = platform(name, dict(parameters), pool, "numpy")
    expected = reference.serve(requests, bids, dice, 0, grids).along
    for one, along, other in zip(found, served.along, expected, strict=True):
        assert one.shape == (3, 5, 6)
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(along, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(16, 100), (1, 2500), (3, 1000)])
def test_threads_change_no_byte(shape):
    rng = np.random.default_rng(0)
    pool = ReplyPool.synthetic(50, 12, 4, rng, advertisers=7)
    requests, bids = rng.integers(50, size=shape), rng.uniform(0, 2, (shape[0], 7))
    grids = rng.uniform(0, 3, (7, 5))
    ours, dice = platform("mosaic", {}, pool), Dice(0, requests.size, 4)
    found = []
    for threads in (1, 2, 5):
        with limited(threads):
            tally = ours.serve(requests, bids, dice, 0, grids)
        found.append([array.tobytes() for array in (tally.amounts, tally.means, *tally.along)])
    assert found[0] == found[1] == found[2]


class Dearer(Mosaic):
    """Charges 5 % too much."""

    def expected_payments(self, declared, log_z, log_z_without):
        return 1.05 * super().expected_payments(declared, log_z, log_z_without)


class Free(Mosaic):
    """Charges nothing."""

    def charge(self, pool, bids, allocation, chosen, clicks):
        return np.zeros_like(bids)


class Renamed(Mosaic):
    """Mosaic by another name."""

    name = "renamed"


def test_a_subclass_with_rules_of_its_own_is_not_played_by_its_parents():
    pool = ReplyPool.synthetic(9, 8, 3, np.random.default_rng(0))
    requests, bids = np.arange(6).reshape(1, 6), np.ones((1, 3))
    sound, dearer, free, renamed = (
        Platform(mesa.Model(rng=0), kind(0.3), pool).serve(requests, bids, Dice(0, 6, 3), 0)
        for kind in (Mosaic, Dearer, Free, Renamed)
    )
    np.testing.assert_allclose(dearer.payments, 1.05 * sound.payments, rtol=1e-12)
    assert sound.charges.sum() > 0 and free.charges.sum() == 0
    assert compiled.CompiledRound.of(Renamed(0.3), pool) is not None
    np.testing.assert_array_equal(renamed.amounts, sound.amounts)


def test_weights_that_leave_no_choice_are_told():
    pool = ReplyPool.from_arrays(np.full((2, 3, 1), 0.1), log_ref=[[0, -50, -50], [0, 0, 0]])
    with pytest.warns(LowEffectiveSampleSize):
        platform("mosaic", {}, pool)


def test_large_rounds_are_served_in_parts_and_add_up(monkeypatch):
    parts = [compiled.equal_parts(1, B) for B in (1, 999, 1000, 10_417, 10_000, 10**6)]
    assert parts == [1, 1, 2, 11, 20, 20]
    assert compiled.equal_parts(1, 10_007) == 1  # a prime number
    assert [compiled.equal_parts(R, 10_000) for R in (2, 8, 20)] == [10, 2, 1]
    rng = np.random.default_rng(0)
    pool = ReplyPool.synthetic(50, 12, 4, rng, advertisers=7)
    requests, bids = rng.integers(50, size=(2, 1500)), rng.uniform(0, 2, (2, 7))
    dice, grids = Dice(0, requests.size, 4), rng.uniform(0, 3, (7, 5))
    ours = platform("mosaic", {}, pool)
    found = ours.serve(requests, bids, dice, 3, grids)
    monkeypatch.setenv("ADMARKET_KERNEL", "numpy")
    reference = platform("mosaic", {}, pool, "numpy").serve(requests, bids, dice, 3, grids)
    assert_same(found, reference)
    for one, other in zip(found.along, reference.along, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("name", ["mosaic", "gsp"])
def test_a_pool_taken_from_another_is_served_as_itself(name):
    rng = np.random.default_rng(0)
    whole = ReplyPool.synthetic(50, 12, 4, rng, advertisers=7)
    some = np.array([7, 3, 3, 40])
    requests, bids = rng.integers(4, size=(2, 5)), rng.uniform(0, 2, (2, 7))
    dice, grids = Dice(0, requests.size, 4), rng.uniform(0, 3, (7, 5))
    part, all_of_it = platform(name, {}, whole.take(some)), platform(name, {}, whole)
    one = part.serve(requests, bids, dice, 0, grids)
    other = all_of_it.serve(some[requests], bids, dice, 0, grids)
    assert_same(one, other)
    for ours, theirs in zip(one.along, other.along, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_requests_beyond_the_pool_are_refused():
    ours = platform("mosaic", {}, ReplyPool.synthetic(5, 6, 3, np.random.default_rng(0)))
    with pytest.raises(IndexError):
        ours.serve(np.array([[0, 5]]), np.ones((1, 3)), Dice(0, 2, 3), 0)


@pytest.mark.parametrize("bid", [-1.0, np.nan, np.inf])
def test_grids_with_something_else_than_bids_are_refused(bid):
    ours = platform("mosaic", {}, ReplyPool.synthetic(5, 6, 3, np.random.default_rng(0)))
    grids, bids, dice = np.ones((3, 2)), np.ones((1, 3)), Dice(0, 1, 3)
    requests = np.zeros((1, 1), dtype=np.int64)
    ours.serve(requests, bids, dice, 0, grids)
    fresh = grids.copy()
    for unheard_of in (grids, fresh):  # also in place
        unheard_of[2, 1] = bid
        with pytest.raises(BadInput, match="bid"):
            ours.counterfactual(requests, bids, unheard_of)
        with pytest.raises(BadInput, match="bid"):
            ours.serve(requests, bids, dice, 0, unheard_of)
    with pytest.raises(BadInput, match="do not fit"):
        ours.serve(requests, bids, dice, 0, np.ones((2, 2)))


@pytest.mark.parametrize("bid", [-1.0, np.nan, np.inf, 1e308])
def test_bids_that_no_auction_takes_are_refused_as_ever(bid):
    pool = ReplyPool.synthetic(5, 6, 3, np.random.default_rng(0))
    bids = np.ones((2, 3))
    bids[1, 2] = bid
    requests, dice = np.zeros((2, 4), dtype=np.int64), Dice(0, 8, 3)
    said = []
    for kernel in ("numba", "numpy"):
        with pytest.raises(BadInput, match="bid") as refused:
            platform("mosaic", {"tau": 1e-3}, pool, kernel).serve(requests, bids, dice, 0)
        said.append(str(refused.value))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (dict(probabilities=lambda a: a * 0.9), "do not sum to 1 .e.g. 0.9"),
        (dict(probabilities=lambda a: a * np.nan), "do not sum to 1 .e.g. nan"),
        (dict(probabilities=lambda a: a + np.array([[0.5, -0.5, 0, 0]])), "do not sum to 1"),
        (dict(clicks=lambda a: np.ones_like(a)), "not shown is clicked"),
        (dict(itctr=lambda a: a * np.nan), "itctr of an advertiser: NaN"),
        (dict(payments=lambda a: a + np.inf), "payments of an advertiser: NaN"),
        (dict(charges=lambda a: a - np.inf), "charges of an advertiser: NaN"),
        (dict(itctr=lambda a: a[:, :1]), "the outcome's itctr has shape"),
    ],
)
def test_outcomes_that_do_not_balance_are_refused(spoil, message):
    pool = ReplyPool.synthetic(5, 4, 3, np.random.default_rng(0))
    requests = np.arange(4).reshape(2, 2)
    sound = Mosaic(0.3).run(pool.take(requests.ravel()), np.ones(3), np.random.default_rng(0))
    compiled.add_up(pool, requests, sound, True)
    spoilt = Outcome(**vars(sound) | {k: f(getattr(sound, k)) for k, f in spoil.items()})
    with pytest.raises(RuntimeError, match=message):
        compiled.add_up(pool, requests, spoilt, True)


def test_charges_lost_between_platform_and_advertisers_are_noticed():
    pool = ReplyPool.synthetic(5, 4, 3, np.random.default_rng(0))
    requests = np.arange(4).reshape(2, 2)
    batch = pool.take(requests.ravel())
    outcome = Mosaic(0.3).run(batch, np.ones(3), np.random.default_rng(0))
    tally = compiled.add_up(pool, requests, outcome, True)
    check(batch, outcome, tally)
    revenue = float(outcome.charges[2:].sum())
    sound = kernels._close(1, 2, revenue, revenue, tally.amounts.copy(), tally.means.copy())
    assert sound == (kernels.BALANCED, 0.0)
    tally.charges[1] *= 0.99
    with pytest.raises(RuntimeError, match="charges miss the revenue"):
        check(batch, outcome, tally)
    with pytest.raises(RuntimeError, match="charges miss the revenue by 0"):
        kernels.refuse(*kernels._close(1, 2, revenue, revenue, tally.amounts, tally.means))


@pytest.mark.parametrize(
    ("asked", "bid", "grid", "error"),
    [
        (5, 1.0, 1.0, IndexError),
        (-1, 1.0, 1.0, IndexError),
        (0, -1.0, 1.0, BadInput),
        (0, np.nan, 1.0, BadInput),
        (0, 1.0, -1.0, BadInput),
    ],
)
@pytest.mark.parametrize("taken", [False, True])
def test_nothing_unchecked_reaches_compiled_counterfactuals(asked, bid, grid, error, taken):
    pool = ReplyPool.synthetic(5, 6, 3, np.random.default_rng(0))
    ours = platform("mosaic", {}, pool.take(np.arange(5)) if taken else pool)
    requests, bids, grids = np.array([[0]]), np.ones((1, 3)), np.ones((3, 2))
    ours.counterfactual(requests, bids, grids)
    # in place, as a caller might who keeps its arrays
    requests[:], bids[0, 1], grids[2, 1] = asked, bid, grid
    with pytest.raises(error, match="requests are 0..4" if error is IndexError else "bid"):
        ours.counterfactual(requests, bids, grids)
    with pytest.raises(BadInput, match="do not fit"):
        ours.counterfactual(np.array([[0]]), np.ones((1, 2)), np.ones((3, 2)))


def test_a_grid_changed_in_place_is_tried_as_it_is():
    pool = ReplyPool.synthetic(5, 6, 3, np.random.default_rng(0))
    ours, requests = platform("mosaic", {}, pool), np.arange(4).reshape(1, 4)
    bids, grids = np.ones((1, 3)), np.ones((3, 2))
    dice = Dice(0, requests.size, 3)
    ours.serve(requests, bids, dice, 0, grids)
    grids[1] = 700.0  # of which the scores overflow unless the highest bid is known
    found = ours.serve(requests, bids, dice, 0, grids).along
    fresh = platform("mosaic", {}, pool).counterfactual(requests, bids, grids)
    np.testing.assert_array_equal(found, fresh)
    assert np.isfinite(found).all()
