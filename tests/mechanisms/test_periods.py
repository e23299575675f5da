"""Plans for a period: how bids by request are read, and what follows from a plan."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.errors import BadInput
from mechanisms.periods import profiles_of
from mechanisms.pool import ReplyPool
from tests.mechanisms.leader import Leader
from tests.mechanisms.pools import close, mean_charges, quick

N, B = 6, 8


def make_pool(seed=0):
    return ReplyPool.synthetic(B, 9, 3, np.random.default_rng(seed), advertisers=N)


@st.composite
def periods(draw):
    """A pool, some profiles of bids (R, N) with ties and zeros, and a generator."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    R = draw(st.integers(1, 4))
    bids = rng.choice([0.0, 0.5, 1.0, 2.0, 3.5], size=(R, N))
    return make_pool(int(rng.integers(1000))), bids, rng


def tiled(pool, bids):
    """The pool once for each profile, and the bids by request."""
    copies = pool.take(np.tile(np.arange(B), len(bids)))
    return copies, np.repeat(bids, B, axis=0)[np.arange(len(copies.ads))[:, None], copies.ads]


@quick
@given(periods())
def test_batches_of_several_periods_are_told_apart(market):
    pool, bids, _ = market
    copies, by_request = tiled(pool, bids)
    profiles, replication = profiles_of(copies, by_request)
    np.testing.assert_array_equal(
        profiles[replication[:, None], copies.ads],
        bids[np.repeat(np.arange(len(bids)), B)[:, None], copies.ads],
    )
    mechanism = Leader()
    together = mechanism.allocate(copies, by_request)
    alone = [mechanism.allocate(pool, np.where(listed(pool), row, 0.0)) for row in bids]
    for name in ("probabilities", "itctr", "payments"):
        want = np.concatenate([getattr(each, name) for each in alone])
        close(getattr(together, name), want)


def listed(pool):
    return np.isin(np.arange(N), pool.ads)


@quick
@given(periods())
def test_charges_have_the_payments_for_a_mean_and_are_at_most_the_bid(market):
    pool, bids, rng = market
    mechanism = Leader()
    # bids by request do not tell of who is in none
    bids = np.where(listed(pool), bids[0], 0.0)
    by_request = pool.bids_by_request(bids)
    allocation = mechanism.allocate(pool, bids)
    close(mean_charges(mechanism, pool, by_request, allocation), allocation.payments)
    outcome = mechanism.run(pool, bids, rng)
    assert (outcome.charges <= by_request * outcome.clicks).all()
    np.testing.assert_array_equal(outcome.payments, allocation.payments)


@settings(max_examples=25, deadline=None)
@given(periods())
def test_counterfactuals_are_periods_planned_under_the_other_bids(market):
    pool, bids, rng = market
    mechanism, G = Leader(), 5
    grids = rng.choice([0.0, 0.7, 1.0, 4.0], size=(N, G))
    itctr, payments = mechanism.counterfactual(pool, bids[0], grids[pool.ads])
    index = rng.integers(B, size=(len(bids), 5))
    sums = mechanism.counterfactual_sums(pool, index, bids, grids)
    for r, profile in enumerate(bids):
        for i in range(N):
            for g in range(G):
                tried = profile.copy()
                tried[i] = grids[i, g]
                found = mechanism.allocate(pool, tried)
                mine = pool.ads == i
                if r == 0:
                    close(itctr[mine][:, g], found.itctr[mine])
                    close(payments[mine][:, g], found.payments[mine])
                for total, amounts in zip(sums, (found.itctr, found.payments), strict=True):
                    want = np.where(mine, amounts, 0.0).sum(axis=1)[index[r]].sum()
                    assert total[r, i, g] == pytest.approx(want, abs=1e-9)


def test_requests_taken_from_a_pool_are_planned_for_as_all_of_it():
    pool, bids = make_pool(), np.arange(1.0, N + 1)
    some = pool.take([5, 2, 2])
    whole, part = (Leader().allocate(each, bids) for each in (pool, some))
    for name in ("probabilities", "itctr", "payments"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[[5, 2, 2]])


def test_refuses_bids_that_are_not_an_advertisers():
    pool = make_pool()
    uneven = np.random.default_rng(0).random((B, 3))
    with pytest.raises(BadInput, match="bids differently in different requests") as refused:
        Leader().allocate(pool, uneven)
    assert "\n" not in str(refused.value)
    with pytest.raises(BadInput, match="alternatives differ between the requests"):
        Leader().counterfactual(pool, np.ones(N), uneven[:, :, None])
