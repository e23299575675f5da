"""Iterated best response against theory, brute force and itself."""

import itertools
import time

import numpy as np
import pytest

from agents.learners.base import Population
from experiments.best_response import NEVER_SHOWN, NOT_BINDING, best_responses
from mechanisms.errors import BadInput
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism

N = 8
VM = np.arange(N) % 2 == 1


def population(values, vm, roi=1.5, budget=np.inf):
    values = np.asarray(values, dtype=float)
    return Population(
        values, np.asarray(vm), np.where(vm, roi, 1.0), np.full(len(values), float(budget))
    )


def make_pool(seed=0, requests=20):
    return ReplyPool.synthetic(requests, 15, 4, np.random.default_rng(seed), advertisers=N)


PEOPLE = population(np.linspace(1, 2.5, N), VM)


def test_mosaic_utility_maximizers_are_truthful_and_value_maximizers_overbid():
    found = best_responses(make_mechanism("mosaic", tau=0.3), make_pool(), PEOPLE)
    assert found.converged and found.sweeps < 10
    frame = found.frame
    np.testing.assert_allclose(frame["bid_over_value"].to_numpy()[~VM], 1, atol=1e-3)
    assert (frame["bid_over_target"].to_numpy()[VM] > 1.05).all()
    np.testing.assert_allclose(frame["roi"].to_numpy()[VM], 1.5, rtol=1e-3)
    assert frame["bid_over_target"].is_null().to_list() == (~VM).tolist()
    assert (frame["note"] == "").all()


def test_a_bad_start_leads_to_the_same_place():
    mechanism, pool = make_mechanism("mosaic", tau=0.3), make_pool()
    truthful = best_responses(mechanism, pool, PEOPLE)
    low = best_responses(mechanism, pool, PEOPLE, start=0.1 * PEOPLE.values)
    np.testing.assert_allclose(low.bids, truthful.bids, rtol=2e-3)


def test_first_price_rule_value_maximizers_bid_target_and_utility_maximizers_shade():
    found = best_responses(make_mechanism("llm-auction-ideal", tau=0.3), make_pool(), PEOPLE)
    assert found.converged
    np.testing.assert_allclose(found.frame["bid_over_target"].to_numpy()[VM], 1, atol=1e-3)
    assert (found.frame["bid_over_value"].to_numpy()[~VM] < 0.8).all()


@pytest.mark.parametrize("name", ["mosaic", "llm-auction-ideal"])
def test_agrees_with_brute_force_over_joint_bids(name):
    pool = ReplyPool.synthetic(3, 6, 2, np.random.default_rng(5))
    people = population([1.0, 2.0], [False, True])
    mechanism = make_mechanism(name, tau=0.5)
    grids = [np.linspace(0, 1.5, 61), np.linspace(0, 4 * 2.0 / 1.5, 161)]
    scores = np.empty((2, 61, 161))
    for (a, x), (b, y) in itertools.product(*map(enumerate, grids)):
        outcome = mechanism.allocate(pool, np.array([x, y]))
        clicks, paid = (
            np.bincount(pool.ads.ravel(), weights=amounts.ravel())
            for amounts in (outcome.itctr, outcome.payments)
        )
        value = people.values * clicks
        scores[0, a, b] = value[0] - paid[0]
        scores[1, a, b] = value[1] if value[1] >= 1.5 * paid[1] * (1 - 1e-9) else -np.inf
    best = (scores[0] >= scores[0].max(axis=0)) & (scores[1] >= scores[1].max(axis=1)[:, None])
    (a, b), *more = np.argwhere(best)
    assert not more
    found = best_responses(mechanism, pool, people)
    assert abs(found.bids[0] - grids[0][a]) <= 1.5 / 60
    assert abs(found.bids[1] - grids[1][b]) <= 8 / 1.5 / 160


def test_counterfactual_kernels_are_not_used(monkeypatch):
    def refuse(*_):
        raise AssertionError("the check must not share the learners' kernel")

    monkeypatch.setattr(Mosaic, "counterfactual", refuse)
    best_responses(make_mechanism("mosaic", tau=0.3), make_pool(requests=4), PEOPLE, sweeps=1)


def test_notes_say_where_the_best_bid_is_open():
    ctr = np.zeros((2, 3, 3))
    ctr[:, 0, 0] = 0.4
    pool = ReplyPool.from_arrays(ctr, num_advertisers=4)
    people = population([1.0, 1.0, 1.0, 1.0], [True, False, True, False], roi=1.01, budget=9)
    frame = best_responses(make_mechanism("mosaic", tau=50.0), pool, people).frame
    notes = frame["note"].to_list()
    # Alone and at a high temperature, a value maximizer is charged next to nothing for its clicks.
    assert notes[0] == f"{NOT_BINDING}; budget left out"
    assert all(note.startswith(NEVER_SHOWN) for note in notes[1:])
    np.testing.assert_allclose(frame["best_bid"], [10 / 1.01, 1, 1 / 1.01, 1])
    assert NOT_BINDING == "ROI target does not bind up to the cap of 10 v/target"
    assert frame["roi"].is_null().to_list() == [False, True, True, True]


def test_rivals_who_outbid_each_other_by_a_hair_have_not_converged():
    ctr = np.zeros((1, 3, 2))
    ctr[0, 1, 0] = ctr[0, 2, 1] = 0.5
    people = population([1.0, 1.0], [False, False])
    pool = ReplyPool.from_arrays(ctr)
    found = best_responses(make_mechanism("first-price"), pool, people, start=[0.3, 0.2])
    assert not found.converged and found.sweeps == 20
    assert found.gained > 0.1


def test_a_flat_objective_is_told_and_the_present_bid_kept():
    ctr = np.zeros((1, 3, 2))
    ctr[0, 1, 0] = ctr[0, 2, 1] = 0.5
    people = population([2.0, 1.0], [False, False])
    found = best_responses(make_mechanism("vcg"), ReplyPool.from_arrays(ctr), people)
    np.testing.assert_array_equal(found.bids, people.truthful_bids)
    # Whoever bids more wins and pays the other's bid: any winning bid, and any losing one, will do.
    assert found.frame["note"].str.contains(r"^flat: 0\.\d+ to 1.5 × truthful").to_list()[0]


def test_label_and_speed():
    pool = ReplyPool.synthetic(28, 24, 4, np.random.default_rng(0), advertisers=12)
    people = population(np.linspace(1, 3, 12), np.arange(12) % 2 == 1)
    began = time.perf_counter()
    found = best_responses(make_mechanism("mosaic", tau=0.3), pool, people)
    assert time.perf_counter() - began < 5
    labelled = found.labelled("mosaic")
    assert labelled["mechanism"].unique().to_list() == ["mosaic"]
    assert labelled["converged"].all() and labelled.height == 12


def test_bad_input_is_refused():
    mechanism, pool = make_mechanism("mosaic", tau=0.3), make_pool()
    with pytest.raises(BadInput, match="8"):
        best_responses(mechanism, pool, population([1.0], [False]))
    with pytest.raises(BadInput, match="start"):
        best_responses(mechanism, pool, PEOPLE, start=[1.0])
    with pytest.raises(BadInput, match="grid"):
        best_responses(mechanism, pool, PEOPLE, grid=2)
