"""Compiled and torch kernels against the NumPy reference, for pools and bids of every kind."""

import multiprocessing
import os
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.kernels import VARIABLE, elementary, kernel, sparse, threads
from mechanisms.kernels.gibbs_numba import DECLARED
from mechanisms.llm_auction.ideal import IdealLLMAuction
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism
from mechanisms.slots import GSP, VCG, FirstPrice
from tests.mechanisms.pools import VARIANTS, generators, markets, pools, quick, taus, variant

GIBBS = {
    "mosaic": ("mosaic", {}),
    "no-offset": ("mosaic", {"offset": False}),
    "log-ratio": ("mosaic", {"reward": "log-ratio"}),
    "ideal": ("llm-auction-ideal", {}),
    "ideal-users": ("llm-auction-ideal", {"user_weight": 0.4, "max_ads": 1}),
}
SLOTS = ("first-price", "gsp", "vcg")
few = settings(max_examples=40, deadline=None)


def using(name):
    return mock.patch.dict(os.environ, {VARIABLE: name})


def many_threads(count):
    """So many threads, even for a small batch."""
    return mock.patch.multiple(threads, _WORTH=1, _limit=count)


def farthest(features, *bids, tau):
    """How far bids can move a score, in nats."""
    reach = np.abs(features).sum(axis=2).max(initial=0)
    return reach * max(each.max(initial=0) for each in bids) / tau


def agree(found, expected, scale, score):
    """To 1e-10 of the amounts about, or to what float64 can say of scores of that size.

    A score of size s is known to about s·2e-16, and that shows in probabilities in full, and in
    whatever is an expectation under them.
    """
    rtol = 1e-10 + 1e-15 * score
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * scale)


def outcomes(mechanism, pool, bids, grid):
    played = mechanism.allocate(pool, bids)
    tried = mechanism.counterfactual(pool, bids, grid)
    return played.probabilities, played.itctr, *tried, played.payments


@pytest.mark.parametrize("key", GIBBS)
@pytest.mark.parametrize("name", ["numba", "torch"])
@given(market=markets(), tau=taus)
@quick
def test_gibbs_agrees_with_the_reference(key, name, market, tau):
    pool, bids, rng = market
    B, _, n = pool.shape
    mechanism = make_mechanism(GIBBS[key][0], tau=tau, **GIBBS[key][1])
    grid = np.concatenate([rng.random((B, n, 4)) * 2, np.zeros((B, n, 1))], axis=2)
    with using("numpy"):
        expected = outcomes(mechanism, pool, bids, grid)
    with using(name):
        found = outcomes(mechanism, pool, bids, grid)
    features = mechanism.features(pool)
    score = farthest(features, bids, grid, tau=tau)
    scale = 1 + tau * (score + np.abs(pool.log_weights).max())
    for mine, theirs in zip(found, expected, strict=True):
        agree(mine, theirs, scale, score)


@few
@given(market=markets(min_ads=1), tau=taus, ratios=st.booleans())
def test_compiled_normaliser_without_i_holds_nothing_of_i(market, tau, ratios):
    """Not a bit of it, even where its bid is so loud that sums are taken in log space."""
    pool, bids, rng = market
    mechanism = Mosaic(tau, reward="log-ratio" if ratios else "clicks")
    candidates = mechanism.candidates(pool)
    grid = rng.random((*bids.shape, 3))
    for own in (0.0, 1e-3, 7.0, 1e3, 1e12):
        played = bids.copy()
        played[:, 0] = own
        found = (
            sparse.allocate(candidates, pool.rows, played, tau).log_z_without[:, 0],
            sparse.deviations(candidates, pool.rows, played, grid, tau).log_z_without[:, 0],
        )
        if own == 0.0:
            quiet = found
        for loud, without in zip(found, quiet, strict=True):
            np.testing.assert_array_equal(loud, without)


@st.composite
def tied_markets(draw):
    """Markets in which welfare is exact and ties abound: halves and quarters of everything."""
    pool = draw(pools(max_replies=9))
    rng = draw(generators())
    B, M, n = pool.shape
    ctr = np.where(pool.exposure, rng.choice([0.0, 0.25, 0.5], (B, M, n)), 0.0)
    tied = ReplyPool.from_arrays(ctr, exposure=pool.exposure)
    bids = rng.choice([0.0, 0.5, 1.0, 2.0], (B, n))
    return tied, bids, rng.choice([0.0, 0.5, 1.0, 1.5, 2.0], (B, n, 6))


@pytest.mark.parametrize("auction", SLOTS)
@given(
    market=tied_markets(), slots=st.integers(1, 3), reserve=st.sampled_from([0.0, 0.5, 0.75, 1.5])
)
@quick
def test_slots_agree_where_everything_ties(auction, market, slots, reserve):
    pool, bids, grid = market
    mechanism = make_mechanism(auction, slots=slots, reserve=reserve)
    with using("numpy"):
        expected = outcomes(mechanism, pool, bids, grid)
    for mine, theirs in zip(outcomes(mechanism, pool, bids, grid), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("auction", SLOTS)
@given(market=markets(max_replies=12), slots=st.integers(1, 3), reserve=st.sampled_from([0.0, 0.4]))
@quick
def test_slots_agree_with_the_reference(auction, market, slots, reserve):
    pool, bids, rng = market
    mechanism = make_mechanism(auction, slots=slots, reserve=reserve)
    grid = rng.random((*bids.shape, 5)) * 2
    with using("numpy"):
        expected = outcomes(mechanism, pool, bids, grid)
    for mine, theirs in zip(outcomes(mechanism, pool, bids, grid), expected, strict=True):
        agree(mine, theirs, 1 + bids.max(initial=0), 0.0)


@pytest.mark.parametrize("key", VARIANTS)
@given(market=markets(min_ads=1), replications=st.integers(1, 3), requests=st.integers(1, 4))
@few
def test_sums_are_sums_of_counterfactuals(key, market, replications, requests):
    pool, _, rng = market
    N = pool.num_advertisers
    mechanism = variant(key)
    index = rng.integers(len(pool.ads), size=(replications, requests))
    bids, grids = rng.random((replications, N)), rng.random((N, 4))
    found = mechanism.counterfactual_sums(pool, index, bids, grids)
    expected = Mechanism.counterfactual_sums(mechanism, pool, index, bids, grids)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == (replications, N, 4)
        agree(mine, theirs, 1.0, 0.0)
    # and of a taken pool, whose requests have other numbers
    taken = pool.take(index[0])
    here = np.arange(requests)[None]
    again = mechanism.counterfactual_sums(taken, here, bids[:1], grids)
    for mine, theirs in zip(again, found, strict=True):
        agree(mine[0], theirs[0], 1.0, 0.0)


@pytest.mark.parametrize("key", ["mosaic", "mosaic-cold", "gsp"])
def test_same_bytes_whatever_the_number_of_threads(key):
    rng = np.random.default_rng(3)
    pool = ReplyPool.synthetic(90, 12, 5, rng, advertisers=9)
    bids, grid = rng.random((90, 5)), rng.random((90, 5, 7))
    index, by_advertiser, grids = (
        rng.integers(90, size=(6, 11)),
        rng.random((6, 9)),
        rng.random((9, 7)),
    )
    mechanism = variant(key)

    def everything():
        sums = mechanism.counterfactual_sums(pool, index, by_advertiser, grids)
        return *outcomes(mechanism, pool, bids, grid), *sums

    one = everything()
    for count in (2, 3, 8):
        with many_threads(count):
            for mine, theirs in zip(everything(), one, strict=True):
                np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("key", ["mosaic", "mosaic-cold", "ideal"])
def test_same_bytes_alone_or_in_a_batch(key):
    """Whichever of a vector's numbers a request's exponentials and logarithms are."""
    rng = np.random.default_rng(5)
    pool = ReplyPool.synthetic(150, 11, 5, rng, mention_rate=0.9)
    bids, grid = rng.random((150, 5)), rng.random((150, 5, 3))
    mechanism = variant(key)
    batch = outcomes(mechanism, pool, bids, grid)
    for b in range(150):
        alone = outcomes(mechanism, pool.take([b]), bids[b : b + 1], grid[b : b + 1])
        for mine, theirs in zip(alone, batch, strict=True):
            np.testing.assert_array_equal(mine[0], theirs[b])


def test_exponentials_and_logarithms():
    """To the last bits of NumPy's, and each the same wherever it stands."""
    rng = np.random.default_rng(0)
    power = np.empty(1003)
    for compute, reference, values in (
        (elementary.exp, np.exp, rng.uniform(-700, 700, 1003)),
        (elementary.exp, np.exp, rng.normal(0, 1e-3, 1003)),
        (elementary.log, np.log, np.exp(rng.uniform(-700, 700, 1003))),
        (elementary.log, np.log, 1 + rng.normal(0, 1e-3, 1003)),
    ):
        found = values.copy()
        compute(found, power)
        np.testing.assert_allclose(found, reference(values), rtol=1e-15, atol=0)
        for first, last in ((1, 1003), (500, 501), (996, 1003)):
            part = values[first:last].copy()
            compute(part, power)
            np.testing.assert_array_equal(part, found[first:last])


def _report(pool, bids, sender):
    with many_threads(2):
        sender.send(Mosaic(0.1).allocate(pool, bids).payments)


def test_threads_survive_a_fork():
    pool = ReplyPool.synthetic(50, 6, 3, np.random.default_rng(0))
    bids = np.random.default_rng(1).random((50, 3))
    with many_threads(2):
        mine = Mosaic(0.1).allocate(pool, bids).payments
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=_report, args=(pool, bids, sender))
    child.start()
    assert receiver.poll(60)
    np.testing.assert_array_equal(receiver.recv(), mine)
    child.join(60)
    assert child.exitcode == 0


def test_arrays_that_may_not_be_written_will_do():
    pool = ReplyPool.synthetic(5, 6, 3, np.random.default_rng(0))
    bids = np.broadcast_to(np.array([0.5, 1.0, 2.0]), (5, 3))
    grid = np.broadcast_to(np.linspace(0, 1, 4), (5, 3, 4))
    for mechanism in (Mosaic(0.1), make_mechanism("gsp")):
        found = outcomes(mechanism, pool, bids, grid)
        for mine, theirs in zip(
            found, outcomes(mechanism, pool, bids.copy(), grid.copy()), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)


def test_refuses_an_unknown_kernel():
    assert kernel() == os.environ.get(VARIABLE, "numba")
    with using("fortran"), pytest.raises(BadInput, match="'fortran'; give one of numba, numpy"):
        Mosaic(0.1).allocate(ReplyPool.from_arrays([[[0.5]]]), [1.0])


@pytest.mark.parametrize("name", ["numba", "numpy", "torch"])
def test_refuses_what_overflows(name):
    pool = ReplyPool.from_arrays(np.full((1, 2, 1), 0.5))
    mechanism, index = Mosaic(1e-300), np.zeros((1, 1), dtype=np.int64)
    huge = np.full((1, 1), 1e10)
    with using(name):
        with pytest.raises(BadInput, match="larger tau"):
            mechanism.allocate(pool, huge)
        with pytest.raises(BadInput, match="larger tau"):
            mechanism.counterfactual(pool, [1.0], huge[None])
        with pytest.raises(BadInput, match="larger tau"):
            mechanism.counterfactual_sums(pool, index, np.ones((1, 1)), huge)


@pytest.mark.parametrize("key", ["mosaic", "gsp", "segment"])
@pytest.mark.parametrize(
    ("index", "bids", "grids", "match"),
    [
        (np.zeros((1, 1), int), np.ones((2, 2)), np.ones((2, 3)), "do not fit"),
        (np.zeros(1, int), np.ones((1, 2)), np.ones((2, 3)), "do not fit"),
        (np.zeros((1, 1), int), np.ones((1, 2)), np.ones((3, 3)), "do not fit"),
        (np.zeros((1, 1), int), np.array([[1.0, -1.0]]), np.ones((2, 3)), "bids hold"),
        (np.zeros((1, 1), int), np.ones((1, 2)), np.full((2, 3), np.nan), "grids hold"),
    ],
)
def test_sums_refuse(key, index, bids, grids, match):
    pool = ReplyPool.from_arrays(np.full((1, 2, 2), 0.5))
    with pytest.raises(BadInput, match=match):
        variant(key).counterfactual_sums(pool, index, bids, grids)


class Dearer(Mosaic):
    """A payment rule of its own."""

    def expected_payments(self, declared, log_z, log_z_without):
        return 1.05 * super().expected_payments(declared, log_z, log_z_without)


class Charity(Mosaic):
    """Charges of its own, at the same expected payments."""

    def charge(self, pool, bids, allocation, chosen, clicks):
        return np.zeros_like(allocation.payments)


class Dutch(FirstPrice):
    """An auction of its own."""

    def auction(self, pool, sets, bids):
        winner, payments = super().auction(pool, sets, bids)
        return winner, payments / 2


def test_rules_of_ones_own_are_not_replaced_by_compiled_ones():
    rng = np.random.default_rng(0)
    pool = ReplyPool.synthetic(6, 5, 3, rng)
    index, bids, grids = np.arange(6)[None], rng.random((1, 3)), rng.random((3, 4))
    for own, usual, factor in ((Dearer(0.1), Mosaic(0.1), 1.05), (Dutch(), FirstPrice(), 0.5)):
        _, mine = own.counterfactual_sums(pool, index, bids, grids)
        _, theirs = usual.counterfactual_sums(pool, index, bids, grids)
        agree(mine, factor * theirs, 1.0, 0.0)
        paid = own.allocate(pool, bids[0]).payments
        agree(paid, factor * usual.allocate(pool, bids[0]).payments, 1.0, 0.0)
    assert Mosaic(0.1).compiled_charges is not None
    assert Dearer(0.1).compiled_payments is Dearer(0.1).compiled_charges is None
    assert Charity(0.1).compiled_payments is not None
    assert Charity(0.1).compiled_charges is None


class Fifth:
    """A mixin that charges 5 % too much."""

    def expected_payments(self, declared, log_z, log_z_without):
        return 1.05 * super().expected_payments(declared, log_z, log_z_without)


class Half:
    """A mixin that halves what a slot auction charges."""

    def auction(self, pool, sets, bids):
        winner, payments = super().auction(pool, sets, bids)
        return winner, payments / 2


class Third:
    """A mixin whose outcome costs a third, whatever the payment rule."""

    def allocate(self, pool, bids):
        found = super().allocate(pool, bids)
        return replace(found, payments=found.payments / 3)


class Named(Mosaic):
    """A payment rule and the compiled one for it."""

    compiled_payments = DECLARED

    def expected_payments(self, declared, log_z, log_z_without):
        return declared


@pytest.mark.parametrize(
    ("mixin", "parent", "factor"),
    [
        (Fifth, Mosaic(0.1), 1.05),
        (Fifth, IdealLLMAuction(0.1), 1.05),
        (Third, Mosaic(0.1), 1 / 3),
        (Half, FirstPrice(slots=2), 0.5),
        (Half, VCG(), 0.5),
        (Third, GSP(slots=2), 1 / 3),
    ],
)
@pytest.mark.parametrize("name", ["numba", "numpy"])
def test_rules_of_a_mixin_count_too(mixin, parent, factor, name):
    rng = np.random.default_rng(0)
    pool = ReplyPool.synthetic(6, 5, 3, rng)
    index, bids, grids = np.arange(6)[None], rng.random((1, 3)), rng.random((3, 4))
    mixed = type("Mixed", (mixin, type(parent)), {})(**vars(parent))
    heir = type("Heir", (type(mixed),), {})(**vars(parent))
    with using(name):
        for own in (mixed, heir):
            for asked in (
                lambda m: m.allocate(pool, bids[0]).payments,
                lambda m: m.counterfactual(pool, bids[0], np.tile(grids, (6, 1, 1)))[1],
                lambda m: m.counterfactual_sums(pool, index, bids, grids)[1],
            ):
                agree(asked(own), factor * asked(parent), 1.0, 0.0)


def test_a_compiled_rule_is_named_by_who_knows_the_payments():
    assert Named(0.1).compiled_payments == DECLARED
    stray = type("Stray", (type("Rule", (), {"compiled_payments": DECLARED}), Mosaic), {})
    assert stray(0.1).compiled_payments is None
    mixed = type("Mixed", (Fifth, Named), {})
    assert mixed(0.1).compiled_payments is None
    assert Mosaic(0.1).compiled_payments is not None


def test_sums_refuse_requests_that_are_not_there():
    pool = ReplyPool.from_arrays(np.full((2, 2, 2), 0.5))
    for beyond in (-1, 2):
        with pytest.raises(IndexError, match=r"requests are 0\.\.1"):
            Mosaic(1.0).counterfactual_sums(
                pool, np.array([[beyond]]), np.ones((1, 2)), np.ones((2, 1))
            )
