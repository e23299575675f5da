"""Slot auctions: cases worked out by hand, and what theory promises on any pool."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechanisms.payments import gsp
from mechanisms.pool import ReplyPool
from mechanisms.slots import GSP, VCG, FirstPrice, RenderableSets, stand_alone_ctr
from tests.mechanisms.pools import close, markets, mean_charges, quick, utilities

all_three = pytest.mark.parametrize("auction", [FirstPrice, GSP, VCG])
slots = st.integers(1, 3)
reserves = st.sampled_from([0.0, 0.2, 0.7])


@pytest.fixture
def pool():
    """Six replies over three ads.

    Sets and click rates: {} ; {0}: (0.5 + 3·0.3)/4 = 0.35 over replies 1 and 2 of weights 1 and 3;
    {1}: 0.2 ; {0, 1}: 0.3 and 0.1 ; {2}: 0.1. Bids 3, 4, 5 declare welfare 0, 1.05, 0.8, 1.3, 0.5.
    """
    return ReplyPool.from_arrays(
        [[[0, 0, 0], [0.5, 0, 0], [0.3, 0, 0], [0, 0.2, 0], [0.3, 0.1, 0], [0, 0, 0.1]]],
        log_ref=np.log([[1, 1, 3, 1, 1, 1]]),
    )


bids = np.array([3.0, 4.0, 5.0])
one_of_two = [[0, 0.25, 0.75, 0, 0, 0]]
pair = [[0, 0, 0, 0, 1, 0]]


@all_three
@pytest.mark.parametrize(("k", "probabilities"), [(1, one_of_two), (2, pair), (3, pair)])
def test_winning_set(pool, auction, k, probabilities):
    found = auction(slots=k).allocate(pool, bids)
    close(found.probabilities, probabilities)
    close(found.itctr, [[0.35, 0, 0]] if k == 1 else [[0.3, 0.1, 0]])


def test_first_price_by_hand(pool):
    close(FirstPrice().allocate(pool, bids).payments, [[1.05, 0, 0]])
    close(FirstPrice(slots=2).allocate(pool, bids).payments, [[0.9, 0.4, 0]])
    # ad 0 is below the reserve: of {}, {1} and {2}, {1} declares most
    close(FirstPrice(slots=2, reserve=3.5).allocate(pool, bids).payments, [[0, 0.8, 0]])
    # everybody is: nothing is shown
    nothing = FirstPrice(slots=2, reserve=6).allocate(pool, bids)
    close(nothing.probabilities, [[1, 0, 0, 0, 0, 0]])
    close(nothing.payments, [[0, 0, 0]])


def test_gsp_by_hand(pool):
    # scores 3·0.35 = 1.05, 4·0.2 = 0.8, 5·0.1 = 0.5
    close(stand_alone_ctr(pool), [[0.35, 0.2, 0.1]])
    # one slot: 0.8/0.35 per click at a click rate of 0.35
    close(GSP().allocate(pool, bids).payments, [[0.8, 0, 0]])
    # two slots: ad 0 pays 0.8/0.35 per click, ad 1 pays 0.5/0.2 = 2.5
    close(GSP(slots=2).allocate(pool, bids).payments, [[0.3 * 0.8 / 0.35, 0.1 * 2.5, 0]])
    # reserve 3 lifts both
    close(GSP(slots=2, reserve=3).allocate(pool, bids).payments, [[0.9, 0.3, 0]])


def test_gsp_prices_by_hand():
    quality = np.array([0.5, 0.5, 0.5, 0.0])
    # equal scores: the lower index ranks first and pays its whole bid, the other the best loser's
    prices = gsp(np.array([2.0, 2.0, 1.0, 9.0]), quality, np.array([True, True, False, False]))
    close(prices, [2, 1, 0, 0])
    # scores 1, 1.5, 0.5, 0: the last winner is outscored by a loser, yet pays at most its bid;
    # the first pays the next winner's score, 0
    prices = gsp(np.array([2.0, 3.0, 1.0, 9.0]), quality, np.array([True, False, False, True]))
    close(prices, [0, 0, 0, 9])
    prices = gsp(np.array([2.0, 3.0, 1.0, 9.0]), quality, np.array([True, False, False, False]))
    close(prices, [2, 0, 0, 0])


def test_vcg_by_hand(pool):
    # one slot: without ad 0, {1} would bring 0.8
    close(VCG().allocate(pool, bids).payments, [[0.8, 0, 0]])
    # two slots: ad 0 costs the others 0.8 - 0.4; ad 1 costs them 1.05 - 0.9
    close(VCG(slots=2).allocate(pool, bids).payments, [[0.4, 0.15, 0]])
    # reserve 1, virtual bids 2, 3, 4: sets bring 0, 0.7, 0.6, 0.9, 0.4;
    # ad 0: 1·0.3 + (0.6 - 0.3); ad 1: 1·0.1 + (0.7 - 0.6)
    close(VCG(slots=2, reserve=1).allocate(pool, bids).payments, [[0.6, 0.2, 0]])


def test_charges_are_per_click(pool):
    mechanism = VCG(slots=2)
    allocation = mechanism.allocate(pool, bids)
    clicks = np.array([[True, False, False]])
    charges = mechanism.charge(pool, bids[None], allocation, np.array([4]), clicks)
    close(charges, [[0.4 / 0.3, 0, 0]])


@all_three
def test_serves_a_request_whose_every_reply_shows_too_many(auction):
    crowded = ReplyPool.from_arrays([[[0.2, 0.1, 0.0], [0.1, 0.1, 0.1], [0.0, 0.1, 0.3]]])
    found = auction(slots=1).allocate(crowded, [1.0, 1.0, 1.0])
    close(found.probabilities, [[0, 0, 1]])


@pytest.mark.parametrize("auction", [FirstPrice, GSP])
def test_below_the_reserve_shown_only_where_it_cannot_be_helped(auction):
    full = ReplyPool.from_arrays([[[0.2, 0.3], [0.1, 0.0], [0.0, 0.1]]])
    found = auction(slots=2, reserve=2.0).allocate(full, [1.0, 1.0])
    # both singles show one such ad, the pair two; the first single wins the tie and pays nothing
    close(found.probabilities, [[0, 1, 0]])
    close(found.payments, [[0, 0]])
    found = auction(slots=2, reserve=2.0).allocate(full, [1.0, 2.0])
    close(found.probabilities, [[0, 0, 1]])
    close(found.payments, [[0, 0.2]])


def test_vcg_ad_shown_by_necessity_pays_nothing():
    only = ReplyPool.from_arrays([[[0.5]]])
    close(VCG(reserve=2.0).allocate(only, [1.0]).payments, [[0.0]])


@pytest.mark.parametrize("auction", [GSP, VCG])
@given(seed=st.integers(0, 10**6), n=st.integers(2, 6))
@quick
def test_classical_second_price(auction, seed, n):
    rng = np.random.default_rng(seed)
    b = rng.random(n)
    found = auction().allocate(ReplyPool.from_arrays(np.eye(n)[None]), b)
    expected = np.where(b == b.max(), np.sort(b)[-2], 0.0)
    close(found.payments, [expected])
    # and weighted by quality: win by b·q, pay the next b·q
    q = rng.uniform(0.2, 1, n)
    found = auction().allocate(ReplyPool.from_arrays(np.diag(q)[None]), b)
    close(found.payments, [np.where(b * q == (b * q).max(), np.sort(b * q)[-2], 0.0)])


def test_an_ad_that_cannot_be_shown_prices_nobody():
    # ad 2 is shown only beside ad 1, so with one slot it is no rival, whatever it bids
    pool = ReplyPool.from_arrays([[[0.5, 0, 0], [0, 0.5, 0], [0, 0.4, 0.5]]])
    close(GSP().allocate(pool, [3, 2, 10]).payments, [[0.5 * 2, 0, 0]])
    # with two slots it wins beside ad 1, which the score of ad 0, 1.5, prices at its whole bid
    close(GSP(slots=2).allocate(pool, [3, 2, 10]).payments, [[0, 0.4 * 2, 0.5 * 1 / 0.5]])


@quick
@given(markets(min_ads=1))
def test_one_slot_gsp_is_vcg_whatever_else_the_pool_shows(market):
    """Where a reply shows one ad alone, one slot makes both of them second-price auctions."""
    pool, bids, rng = market
    ctr, exposure = pool.ctr.copy(), pool.exposure.copy()
    alone = rng.integers(pool.shape[2], size=len(ctr))
    exposure[:, 0] = np.eye(pool.shape[2], dtype=bool)[alone]
    ctr[:, 0] = exposure[:, 0] * rng.random((len(ctr), 1))
    pool = replace(pool, ctr=ctr, exposure=exposure)
    gsp_, vcg_ = GSP().allocate(pool, bids), VCG().allocate(pool, bids)
    close(gsp_.probabilities, vcg_.probabilities)
    close(gsp_.payments, vcg_.payments, bids.max(initial=0))


def test_without_a_stand_alone_reply_quality_is_over_all_that_show_the_ad():
    pool = ReplyPool.from_arrays([[[0.2, 0.4, 0], [0.6, 0.4, 0]]], log_ref=np.log([[3.0, 1.0]]))
    close(stand_alone_ctr(pool), [[0.3, 0.4, 0.0]])


@pytest.mark.parametrize("n", [9, 70])
def test_sets_of_many_ads_are_told_apart(n):
    exposure = np.zeros((1, 4, n), dtype=bool)
    exposure[0, [0, 2], n - 1] = True
    exposure[0, 1, n - 2] = True
    sets = RenderableSets.of(ReplyPool.from_arrays(0.5 * exposure))
    np.testing.assert_array_equal(sets.first, [[True, True, False, True]])
    close(sets.within[0], [[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]])


@quick
@given(markets(), slots, reserves)
def test_vcg_truth_is_dominant_and_rational(market, k, reserve):
    check_truth(VCG(k, reserve), *market)


@quick
@given(markets(), reserves)
def test_gsp_truth_is_dominant_and_rational_with_one_slot(market, reserve):
    pool, bids, rng = market
    ctr, exposure = pool.ctr.copy(), pool.exposure.copy()
    ctr[:, -1], exposure[:, -1] = 0.0, False  # a reserve asks for a reply without ads
    check_truth(GSP(1, reserve), replace(pool, ctr=ctr, exposure=exposure), bids, rng)


def check_truth(mechanism, pool, bids, rng):
    """Truth is worth at least 0, and as much as any other bid, whatever the others bid."""
    values = rng.random(bids.shape)
    for i in range(bids.shape[1]):
        played = bids.copy()
        played[:, i] = values[:, i]
        best = utilities(pool, mechanism.allocate(pool, played), values)[:, i]
        assert (best >= -1e-12).all()
        for bid in (*rng.random(6), 0.0, mechanism.reserve, 40.0):
            played[:, i] = bid
            other = utilities(pool, mechanism.allocate(pool, played), values)[:, i]
            assert (other <= best + 1e-9).all()


@all_three
@given(market=markets(), k=slots, reserve=reserves)
@quick
def test_promises_of_all_three(auction, market, k, reserve):
    pool, bids, _ = market
    mechanism = auction(k, reserve)
    found = mechanism.allocate(pool, bids)
    close(found.probabilities.sum(1), 1)
    close(found.itctr, (found.probabilities[:, :, None] * pool.ctr).sum(1))
    assert (found.payments >= 0).all()
    assert (found.payments <= bids * found.itctr * (1 + 1e-12)).all()
    shown = (found.probabilities[:, :, None] > 0) & pool.exposure
    sizes = pool.exposure.sum(2)
    assert (shown.any(1).sum(1) <= np.maximum(sizes.min(1), k)).all()
    close(mean_charges(mechanism, pool, bids, found), found.payments, bids.max(initial=0))


@all_three
@given(market=markets(), k=slots, reserve=reserves)
@quick
def test_reserve_is_a_floor_where_one_may_leave(auction, market, k, reserve):
    """With a reply for every single ad and for none, each sold click costs the reserve or more."""
    pool, bids, rng = market
    B, _, n = pool.shape
    singles = np.broadcast_to(np.diag(rng.uniform(0.1, 1, n)), (B, n, n))
    ctr = np.concatenate([singles, np.zeros((B, 1, n))], axis=1)
    found = auction(k, reserve).allocate(ReplyPool.from_arrays(ctr), bids)
    assert (found.payments >= reserve * found.itctr - 1e-12).all()
    assert (bids[found.itctr > 0] >= reserve - 1e-12).all()
