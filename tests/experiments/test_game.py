"""The game in fixed bids against brute force, closed forms, and the allocations themselves."""

import numpy as np
import pytest

from agents.learners.base import Population
from experiments.best_response import best_responses
from experiments.critical_bids import ABOVE, critical_bids
from experiments.game import Game
from mechanisms.errors import BadInput
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism

N = 5
NAMES = {
    "mosaic": {"tau": 0.2}, "llm-auction-ideal": {"tau": 0.2}, "vcg": {}, "gsp": {},
    "first-price": {}, "segment": {},
}  # fmt: skip


def population(values, vm, roi=1.3):
    values, vm = np.asarray(values, dtype=float), np.asarray(vm)
    return Population(values, vm, np.where(vm, roi, 1.0), np.full(len(values), np.inf))


def small_game(name="mosaic", seed=0, **parameters):
    pool = ReplyPool.synthetic(12, 10, 3, np.random.default_rng(seed), advertisers=N)
    people = population(np.linspace(1, 2, N), np.arange(N) % 2 == 1)
    return Game(make_mechanism(name, **(parameters or NAMES[name])), pool, people)


@pytest.mark.parametrize("name", NAMES)
def test_curves_are_the_allocations_at_each_deviation(name):
    game = small_game(name)
    rng = np.random.default_rng(1)
    bids, grid = rng.random((2, N)) * 3, rng.random((N, 4)) * 3
    value, payment = game.curves(bids, grid)
    for r, i, g in np.ndindex(2, N, 4):
        tried = bids[r].copy()
        tried[i] = grid[i, g]
        found = game.mechanism.allocate(game.pool, tried)
        mine = game.pool.ads == i
        B = game.pool.shape[0]
        expected = game.people.values[i] * found.itctr[mine].sum() / B
        np.testing.assert_allclose(value[r, i, g], expected, atol=1e-12)
        np.testing.assert_allclose(payment[r, i, g], found.payments[mine].sum() / B, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_best_replies_are_no_worse_than_brute_force(name, seed):
    game = small_game(name, seed)
    profiles = np.random.default_rng(seed).uniform(0.3, 1.5, (4, N))
    bids = game.people.truthful_bids * np.concatenate([profiles, np.ones((1, N))])
    best = game.best_replies(bids)
    grid = game.top[:, None] * np.linspace(0, 1, 2001)
    brute = game.objective(*game.curves(bids, grid)).max(axis=2)
    vm = game.people.value_maximizer
    attained = np.where(vm, best.value, best.value - best.payment)
    # segment auctions on a pool as recorded are not smooth either, and have no critical bids
    slack = 1e-3 if name == "segment" else 1e-6
    assert (attained >= brute - slack * np.abs(brute).max()).all()
    owed = np.where(vm, game.people.target_roi * best.payment - best.value, 0)
    assert (owed <= 1e-8).all()


@pytest.mark.parametrize("name", ["first-price", "vcg", "gsp"])
@pytest.mark.parametrize("reserve", [0.0, 0.5])
def test_between_critical_bids_of_a_single_slot_clicks_are_constant(name, reserve):
    game = small_game(name, reserve=reserve)
    bids = game.people.truthful_bids[None] * np.random.default_rng(2).uniform(0.4, 1.4, (1, N))
    jumps = critical_bids(game.mechanism, game.pool, bids)
    grid = np.tile(np.linspace(0.001, 3, 1500), (N, 1))
    value, _ = game.curves(bids, grid)
    for i in range(N):
        rises = np.flatnonzero(np.abs(np.diff(value[0, i])) > 1e-12)
        for k in rises:
            assert ((jumps[0, i] > grid[i, k]) & (jumps[0, i] <= ABOVE**2 * grid[i, k + 1])).any()
    assert critical_bids(make_mechanism("mosaic", tau=0.1), game.pool, bids).shape == (1, N, 0)


def test_gains_vanish_where_iterated_best_response_settles_and_nowhere_else():
    game = small_game("llm-auction-ideal")
    settled = best_responses(game.mechanism, game.pool, game.people)
    assert settled.converged
    gains = game.gains(np.stack([settled.bids, 0.5 * settled.bids, 1.2 * settled.bids]))
    assert gains.exploitability[0] < 1e-5
    assert (gains.exploitability[1:] > 1e-2).all()
    np.testing.assert_allclose(gains.nash_conv, (gains.gain + gains.owed).sum(axis=1))


def test_a_value_maximizer_that_misses_its_target_owes():
    game = small_game("llm-auction-ideal")
    bids = game.people.truthful_bids * np.where(game.people.value_maximizer, 1.1, 1.0)
    gains = game.gains(bids[None])
    vm = game.people.value_maximizer
    value, _ = game.outcome(bids[None])
    # First price: 10 % above v / target, 10 % of the value is owed.
    np.testing.assert_allclose(gains.owed[0, vm], 0.1 * value[0, vm])
    assert (gains.owed[0, ~vm] == 0).all()
    np.testing.assert_allclose(value[0, vm], game.people.values[vm] * _clicks(game, bids)[vm])


def _clicks(game, bids):
    found = game.mechanism.allocate(game.pool, bids)
    return np.bincount(game.pool.ads.ravel(), found.itctr.ravel(), N) / game.pool.shape[0]


def test_truth_is_dominant_for_utility_maximizers_under_mosaic():
    game = small_game("mosaic")
    rng = np.random.default_rng(3)
    bids = game.people.truthful_bids * rng.uniform(0.3, 2, (6, N))
    vm = game.people.value_maximizer
    bids[:, ~vm] = game.people.values[~vm]
    assert game.gains(bids).gain[:, ~vm].max() < 1e-12


def test_pooled_replies_are_replies_to_the_mean_curve():
    game = small_game("llm-auction-ideal")
    draws = game.people.truthful_bids * np.random.default_rng(4).uniform(0.2, 1.2, (7, N))
    best = game.best_replies(draws, pooled=True)
    assert best.bids.shape == (1, N)
    grid = game.top[:, None] * np.linspace(0, 1, 801)
    mean = [x.mean(axis=0) for x in game.curves(draws, grid)]
    brute = game.objective(*mean).max(axis=1)
    vm = game.people.value_maximizer
    attained = np.where(vm, best.value, best.value - best.payment)[0]
    assert (attained >= brute - 1e-6).all()
    # copies of one profile are that profile
    again = game.best_replies(np.repeat(draws[:1], 3, axis=0), pooled=True)
    np.testing.assert_allclose(again.bids, game.best_replies(draws[:1]).bids, rtol=1e-6)


def test_blocks_do_not_change_the_numbers(monkeypatch):
    game = small_game("mosaic")
    bids = np.random.default_rng(5).random((6, N)) * 2
    whole = game.curves(bids, game.top[:, None] * np.linspace(0, 1, 9))
    monkeypatch.setattr("experiments.game._BLOCK", 1)
    parts = game.curves(bids, game.top[:, None] * np.linspace(0, 1, 9))
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


def test_bad_input_is_refused():
    game = small_game()
    with pytest.raises(BadInput, match="give one each"):
        Game(game.mechanism, game.pool, population([1.0], [False]))
    with pytest.raises(BadInput, match="profiles have shape"):
        game.outcome(np.ones(N))
