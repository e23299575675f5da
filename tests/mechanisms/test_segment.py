"""Segment auction: cases by hand, and what Myerson's payments promise on any pool."""

from itertools import combinations, pairwise
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from mechanisms.base import Mechanism, draw_reply
from mechanisms.payments import myerson_draws
from mechanisms.pool import ReplyPool
from mechanisms.segment import SegmentAuction
from mechanisms.slots import stand_alone_ctr
from tests.mechanisms.pools import (
    close,
    generators,
    markets,
    mean_charges,
    permuted,
    quick,
    utilities,
)

segments = st.sampled_from([1, 2, 3])
no_ads = st.sampled_from([0.0, 0.2, 3.0])
scales = st.sampled_from([1e-9, 1e-3, 1.0, 1e3, 1e9])


@st.composite
def falling(draw):
    """A market whose ads are clicked less in larger sets, every subset of a set being renderable.

    Numbers come from a seeded generator; a set has one to three replies of any weight.
    """
    rng = draw(generators())
    n = draw(st.integers(1, 4))
    largest = [rng.choice(n, rng.integers(0, n + 1), replace=False) for _ in range(3)]
    family = {frozenset(s) for ads in largest for k in range(5) for s in combinations(ads, k)}
    rates = {}
    for shown in sorted(family, key=len):
        smaller = [rates[shown - {gone}] for gone in shown]
        caps = [min((r[i] for r in smaller if r[i] > 0), default=1.0) for i in range(n)]
        # at times as many clicks as in the smaller set
        rates[shown] = np.where(
            [i in shown for i in range(n)], caps * np.minimum(1, 1.2 * rng.random(n)), 0.0
        )
    ctr = np.repeat(list(rates.values()), rng.integers(1, 4, len(rates)), axis=0)
    order = rng.permutation(len(ctr))
    spread = draw(st.sampled_from([0.0, 1.0, 30.0]))
    pool = ReplyPool.from_arrays(ctr[order][None], spread * rng.standard_normal((1, len(ctr))))
    bids = rng.random((1, n)) * draw(st.sampled_from([0.1, 1.0, 50.0]))
    bids[rng.random((1, n)) < 0.15] = 0.0
    return pool, bids, rng


def test_two_ads_and_one_segment_by_hand():
    """Weights 3·0.4 = 1.2 and 2·0.3 = 0.6 against s_0 = 0.2: each ad is the only one shown."""
    pool = ReplyPool.from_arrays([[[0.4, 0], [0, 0.3], [0, 0]]])
    found = SegmentAuction(no_ad=0.2).allocate(pool, [3.0, 2.0])
    close(found.probabilities, [[0.6, 0.3, 0.1]])
    close(found.itctr, [[0.24, 0.09]])
    # b·x - ∫ 0.4·0.4z/(0.4z + 0.8)dz = 3·0.24 - 0.4·(3 - 2·log(1 + 1.2/0.8))
    close(found.payments[0, 0], 0.72 - 1.2 + 0.8 * np.log(2.5))
    # 2·0.09 - 0.3·(2 - 1.4/0.3·log(1 + 0.6/1.4))
    close(found.payments[0, 1], 0.18 - 0.6 + 1.4 * np.log(2 / 1.4))


def test_two_segments_by_hand():
    """Weights 1 and 1, nothing for no ad: both once, or one of them twice."""
    pool = ReplyPool.from_arrays([[[0.5, 0], [0, 0.25], [0.4, 0.1], [0, 0]]])
    found = SegmentAuction(2).allocate(pool, [2.0, 4.0])
    close(found.probabilities, [[0.25, 0.25, 0.5, 0]])
    close(found.itctr, [[0.25 * 0.5 + 0.5 * 0.4, 0.25 * 0.25 + 0.5 * 0.1]])
    # x(t) = 0.8·t(1-t) + 0.5·t², z = 2t/(1-t): p = ∫_0^½ 2t/(1-t)·(0.8 - 0.6t)dt
    close(found.payments[0, 0], 2 * (0.2 * (np.log(2) - 0.5) + 0.6 * 0.125))


def test_shows_the_longest_prefix_that_is_renderable():
    """{0, 1} and {2} cannot be written; weights 1, 1, 2 (ad 2 is seen beside ad 0 only)."""
    pool = ReplyPool.from_arrays([[[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0.2, 0, 0.5]]])
    found = SegmentAuction(2).allocate(pool, [2.0, 2.0, 4.0])
    # 00, 01 -> {0}; 11, 10, 12 -> {1}; 02, 20 -> {0, 2}; 21, 22 -> nothing
    close(found.probabilities, np.array([[6, 2, 4, 4]]) / 16)
    close(found.itctr, [[2 / 16 * 0.5 + 4 / 16 * 0.2, 4 / 16 * 0.5, 4 / 16 * 0.5]])


def test_serves_by_the_shortest_where_nothing_drawn_can_be_shown():
    """Replies show {0, 1} twice, or {0, 1, 2}: bids change nothing, and cost nothing."""
    pool = ReplyPool.from_arrays(
        [[[0.5, 0.1, 0], [0.1, 0.5, 0], [0.2, 0.2, 0.2]]], log_ref=np.log([[1, 3, 1]])
    )
    found = SegmentAuction().allocate(pool, [1.0, 5.0, 2.0])
    close(found.probabilities, [[0.25, 0.75, 0]])
    close(found.itctr, [[0.2, 0.4, 0]])
    np.testing.assert_allclose(found.payments, 0, atol=1e-15)
    # with two draws {0, 1} is sold; ad 0 is clicked as often whatever it bids
    found = SegmentAuction(2).allocate(pool, [1.0, 5.0, 2.0])
    close(found.itctr, [[0.2, 0.4, 0]])
    close(found.payments, [[0, 0, 0]])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_alone_an_ad_is_always_shown_and_pays_nothing(k):
    pool = ReplyPool.from_arrays([[[0.4, 0], [0, 0.3], [0.2, 0.2], [0, 0]]])
    found = SegmentAuction(k).allocate(pool, [3.0, 0.0])
    close(found.probabilities, [[1, 0, 0, 0]])
    np.testing.assert_array_equal(found.payments, 0)
    nobody = SegmentAuction(k).allocate(pool, [0.0, 0.0])
    close(nobody.probabilities, [[0, 0, 0, 1]])
    np.testing.assert_array_equal(nobody.payments, 0)


def test_without_relevance_an_ad_pays_nothing():
    pool = ReplyPool.from_arrays(
        [[[0, 0], [0, 0], [0, 0.3], [0.2, 0.2]]],
        exposure=[[[0, 0], [1, 0], [0, 1], [1, 1]]],
    )
    found = SegmentAuction(3, 0.1).allocate(pool, [9.0, 1.0])
    close(stand_alone_ctr(pool), [[0, 0.3]])
    assert found.payments[0, 0] == found.itctr[0, 0] == 0


@quick
@given(markets(), segments, no_ads)
def test_promises_on_any_pool(market, k, no_ad):
    pool, bids, _ = market
    mechanism = SegmentAuction(k, no_ad)
    found = mechanism.allocate(pool, bids)
    close(found.probabilities.sum(1), 1, rtol=1e-12)
    assert (found.probabilities >= 0).all()
    close(found.itctr, (found.probabilities[:, :, None] * pool.ctr).sum(1), rtol=1e-12)
    assert (found.payments <= bids * found.itctr * (1 + 1e-12)).all()
    close(mean_charges(mechanism, pool, bids, found), found.payments, bids.max(initial=0))
    if k == 1:
        assert (found.payments >= 0).all()


@settings(max_examples=60, deadline=None)
@given(markets(min_ads=1, max_requests=1), segments, no_ads, scales, st.data())
def test_payments_integrate_the_allocation(market, k, no_ad, scale, data):
    pool, bids, _ = market
    mechanism = SegmentAuction(k, no_ad)
    i = data.draw(st.integers(0, bids.shape[1] - 1))
    bids[0, i] *= scale
    bid = bids[0, i]

    def clicked(share):
        tried = bids.copy()
        tried[0, i] = share * bid
        return mechanism.allocate(pool, tried).itctr[0, i]

    # x bends where the bid outweighs the others: integrate between powers of 100
    knots = [0, *np.logspace(-12, 0, 7)]
    parts = [quad(clicked, a, b, epsabs=1e-13)[0] for a, b in pairwise(knots)]
    expected = bid * (clicked(1.0) - sum(parts))
    paid = mechanism.allocate(pool, bids).payments[0, i]
    assert abs(paid - expected) <= 1e-9 * bid


@pytest.mark.parametrize(("k", "m"), [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)])
def test_payments_keep_their_digits_where_terms_cancel(k, m):
    """Far below all others, `x = C(k,m)·t^m` and `p = m/(m+1)·b·x`: relative, not absolute."""
    by_count = np.zeros(k + 1)
    by_count[m] = 1.0
    t = np.array([1e-100, 1e-30, 1e-9])
    click_rate = comb(k, m) * t**m
    np.testing.assert_allclose(
        myerson_draws(np.ones(3), t, 1 - t, by_count), m / (m + 1) * click_rate, rtol=1e-8
    )


def test_payments_are_smooth_where_the_series_takes_over():
    t = 0.1 * (1 + np.array([-1e-12, 1e-12]))
    for k in (1, 2, 3):
        below, above = myerson_draws(np.ones(2), t, 1 - t, np.eye(k + 1)[k])
        assert abs(above - below) <= 1e-10 * above


@quick
@given(markets(), no_ads, scales)
def test_one_segment_is_truthful_on_any_pool(market, no_ad, scale):
    pool, bids, rng = market
    truthful_and_monotone(SegmentAuction(1, no_ad), pool, bids, rng, scale)


@quick
@given(falling(), segments, no_ads, scales)
def test_truthful_where_click_rates_fall_with_the_size_of_the_set(market, k, no_ad, scale):
    pool, bids, rng = market
    truthful_and_monotone(SegmentAuction(k, no_ad), pool, bids, rng, scale)
    found = SegmentAuction(k, no_ad).allocate(pool, bids)
    assert (found.payments >= 0).all()
    assert (utilities(pool, found, bids) >= 0).all()


def truthful_and_monotone(mechanism, pool, bids, rng, scale):
    """No bid of a dense grid beats the value, and clicks do not fall from bid to bid."""
    values = scale * rng.random(bids.shape)
    dense = np.concatenate([[0], np.logspace(-6, 6, 150), np.linspace(0.01, 2, 150)])
    grid = values[:, :, None] * np.append(1.0, np.sort(dense))
    itctr, payments = mechanism.counterfactual(pool, bids, grid)
    assert (np.diff(itctr[:, :, 1:], axis=2) >= -1e-12).all()
    utility = values[:, :, None] * itctr - payments
    assert (utility <= utility[:, :, :1] + 1e-12 * scale).all()


def test_truth_may_lose_where_an_ad_gains_from_company():
    """Drawn with ad 1, ad 0 is clicked four times as often: bidding less brings company."""
    pool = ReplyPool.from_arrays([[[0, 0], [0.2, 0], [0, 0.2], [0.8, 0.2]]])
    grid = np.array([[[100.0, 2.0], [1.0, 1.0]]])
    itctr, payments = SegmentAuction(2).counterfactual(pool, [1.0, 1.0], grid)
    honest, shaded = 100 * itctr[0, 0] - payments[0, 0]
    assert itctr[0, 0, 0] < itctr[0, 0, 1]
    assert honest < shaded
    assert payments[0, 0, 0] < 0


@quick
@given(markets(), segments, no_ads)
def test_counterfactual_equals_allocating_again(market, k, no_ad):
    pool, bids, rng = market
    mechanism = SegmentAuction(k, no_ad)
    grid = rng.random((*bids.shape, 6)) * [0, 1e-6, 0.5, 2, 50, 1e6]
    fast = mechanism.counterfactual(pool, bids, grid)
    slow = Mechanism.counterfactual(mechanism, pool, bids, grid)
    np.testing.assert_allclose(fast[0], slow[0], rtol=1e-12, atol=1e-12)
    assert (abs(fast[1] - slow[1]) <= 1e-12 * np.maximum(1, grid)).all()


@quick
@given(markets(), segments, no_ads, generators())
def test_order_of_advertisers_does_not_matter(market, k, no_ad, rng):
    pool, bids, _ = market
    order = rng.permutation(bids.shape[1])
    found = SegmentAuction(k, no_ad).allocate(pool, bids)
    other = SegmentAuction(k, no_ad).allocate(permuted(pool, order), bids[:, order])
    close(other.probabilities, found.probabilities)
    close(other.itctr, found.itctr[:, order])
    close(other.payments, found.payments[:, order], bids.max(initial=0))


@quick
@given(markets(), segments, no_ads, scales)
def test_money_has_no_unit(market, k, no_ad, factor):
    pool, bids, _ = market
    found = SegmentAuction(k, no_ad).allocate(pool, bids)
    scaled = SegmentAuction(k, no_ad * factor).allocate(pool, factor * bids)
    close(scaled.probabilities, found.probabilities)
    close(scaled.payments / factor, found.payments, bids.max(initial=0))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_charges_average_to_the_payments(k):
    pool = ReplyPool.synthetic(1, 30, 4, np.random.default_rng(2))
    bids = np.array([[1.0, 2.0, 0.5, 4.0]])
    many = pool.take(np.zeros(40_000, dtype=int))
    outcome = SegmentAuction(k, 0.1).run(
        many, np.repeat(bids, 40_000, axis=0), np.random.default_rng(3)
    )
    error = outcome.charges.std(0) / 200
    assert (abs(outcome.charges.mean(0) - outcome.payments[0]) <= 5 * error).all()
    assert (outcome.charges <= bids * outcome.clicks).all()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_probabilities_are_those_of_the_draw_step_by_step(k):
    """Draws ads one by one, then looks for a reply by plain comparison of sets."""
    rng = np.random.default_rng(5)
    shown = [{0}, {1}, {0, 1}, {0, 1, 2}, {3}, {1, 3}, {0}, set(), {2, 3}]
    exposure = np.array([[i in ads for i in range(4)] for ads in shown])
    ctr = np.where(exposure, rng.uniform(0.1, 0.9, exposure.shape), 0.0)
    pool = ReplyPool.from_arrays([ctr], log_ref=rng.standard_normal((1, len(shown))))
    bids, no_ad, tries = np.array([1.0, 2.0, 1.5, 1.0]), 0.3, 20_000
    weights = np.append(bids * stand_alone_ctr(pool)[0], no_ad)
    drawn = rng.choice(5, (tries, k), p=weights / weights.sum())
    importance = np.exp(pool.log_weights[0])
    probabilities = np.zeros((tries, len(shown)))
    for row, sequence in zip(probabilities, drawn, strict=True):
        for length in range(k, -1, -1):
            matches = [ads == set(sequence[:length]) - {4} for ads in shown]
            if any(matches):
                row[:] = importance * matches / importance[matches].sum()
                break
    replies = np.bincount(draw_reply(probabilities, rng), minlength=len(shown)) / tries
    expected = SegmentAuction(k, no_ad).allocate(pool, bids).probabilities[0]
    assert (abs(replies - expected) <= 5 * np.sqrt(expected * (1 - expected) / tries)).all()


def test_blocks_of_requests_and_many_ads_change_nothing(monkeypatch):
    pool = ReplyPool.synthetic(7, 9, 12, np.random.default_rng(0), mention_rate=1.0)
    bids = np.random.default_rng(1).random((7, 12))
    mechanism = SegmentAuction(3, 0.1)
    whole = mechanism.allocate(pool, bids)
    monkeypatch.setattr("mechanisms.segment._BLOCK", 1)
    for field, array in vars(mechanism.allocate(pool, bids)).items():
        close(array, getattr(whole, field), rtol=1e-12)
