"""Learners against environments whose answers are known on paper."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.learners import LEARNERS, Feedback, Population
from mechanisms.errors import BadInput
from tests.agents.learning import R, learner_of, people, play, smooth_market


def test_truthful_and_shading_are_exact():
    population = people(vm=[False, True, True])
    truth = [[1.0, 2 / 1.5, 0.5 / 1.5]] * R
    np.testing.assert_array_equal(learner_of("truthful", population).bids(), truth)
    shaded = learner_of("shading", population, factor=0.25).bids()
    np.testing.assert_allclose(shaded, 0.25 * np.array(truth), rtol=1e-15)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("hegde", {}, r"unknown learner 'hegde'; did you mean 'hedge'\?"),
        ("oracle", {}, "there are best-response, .*truthful"),
        ("hedge", {"gridsize": 3}, "did you mean 'grid_size'"),
        ("truthful", {"factor": 1}, "it has none"),
        ("shading", {"factor": 0}, "factor is 0; give a finite number > 0"),
        ("shading", {"factor": 11}, "factor is 11; give at most 10"),
        ("hedge", {"grid_size": 1}, "grid_size"),
        ("hedge", {"max_multiple": float("nan")}, "max_multiple"),
        ("pacing", {"step": 0}, "step"),
        ("pacing", {"max_multiple": 0.5}, "max_multiple"),
        ("pacing", {"start": 10.1}, "start"),
        ("hedge", {"grid_size": "abc"}, "grid_size is 'abc'; give a whole number >= 2"),
        ("hedge", {"grid_size": float("inf")}, "grid_size is inf"),
        ("pacing", {"step": None}, "step is None; give a finite number > 0"),
        ("pacing", {"signal": "loud"}, "'expected', 'realised'"),
        ("exp3", {"signal": "loud"}, "'expected', 'realised'"),
        ("exp3", {"grid_size": True}, "grid_size is True"),
        ("dual-averaging", {"regulariser": "kl"}, "'entropic', 'euclidean'"),
        ("dual-averaging", {"step": 0}, "step"),
        ("dual-averaging", {"power": 1.5}, "power"),
        ("best-response", {"inertia": 1.0}, "inertia"),
        ("best-response", {"memory": -0.1}, "memory"),
        ("fictitious-play", {"memory": 0.5}, "it has grid_size, max_multiple"),
        ("gradient", {"step": float("nan")}, "step"),
        ("gradient", {"width": -1}, "width"),
        ("reinforce", {"floor": 0.5}, "floor is 0.5; give less than spread"),
        ("reinforce", {"max_multiple": 0}, "max_multiple"),
        ("reinforce", {"signal": "loud"}, "'expected', 'realised'"),
    ],
)
def test_bad_names_and_parameters_are_refused(name, parameters, message):
    with pytest.raises(BadInput, match=message):
        learner_of(name, people(), **parameters)


def test_value_maximizers_may_go_up_to_ten_times_truthful():
    pacing = learner_of("pacing", people(), start=10.0)
    np.testing.assert_allclose(
        pacing.bids(), 10 * pacing.population.truthful_bids[None].repeat(R, 0)
    )
    pacing = learner_of("pacing", people())
    bids, *_ = play(pacing, lambda b: smooth_market(b, 0.01), 400)
    np.testing.assert_allclose(bids[-1], 10 * pacing.population.truthful_bids[None].repeat(R, 0))
    assert pacing.capped.all()


@pytest.mark.parametrize("name", [n for n, kind in LEARNERS.items() if kind.feedback == "full"])
def test_full_feedback_needs_a_grid(name):
    learner = learner_of(name, people())
    assert learner.grid is not None
    nothing = np.zeros((R, 3))
    with pytest.raises(BadInput, match="full feedback"):
        learner.learn(Feedback(nothing, nothing, nothing, nothing, nothing))


def test_hedge_grids_reach_beyond_the_truthful_bid_and_contain_it():
    population = people(vm=[False, True, True])
    grid = learner_of("hedge", population).grid
    assert grid.shape == (3, 61)
    np.testing.assert_allclose(grid.max(axis=1), population.truthful_bids * [1.5, 3, 3])
    assert (np.abs(grid - population.truthful_bids[:, None]).min(axis=1) < 1e-12).all()


@pytest.mark.parametrize("money", [1e-6, 1.0, 1e6])
def test_hedge_concentrates_on_the_best_bid_in_any_unit_of_money(money):
    population = people(money * np.array([1.0, 2.0]), vm=False)
    learner = learner_of("hedge", population, grid_size=11)

    def market(bids):
        clicks = 0.05 + 0.4 * bids / (bids + money)
        return clicks, bids * clicks

    best = (population.values[:, None] - learner.grid) * market(learner.grid)[0]
    *_, _ = play(learner, market, 1500)
    weights = learner.state["weights"]
    np.testing.assert_array_equal(weights.argmax(-1), np.tile(best.argmax(-1), (R, 1)))
    # grid steps of 0.15 v: neighbours differ little, so some weight stays there
    assert (weights.max(axis=-1) > 0.6).all()
    assert np.abs(learner.mean_bids / learner.grid[[0, 1], best.argmax(-1)] - 1).max() < 0.15


def test_utility_maximizers_have_no_multiplier_and_value_maximizers_keep_it_positive():
    learner = learner_of("hedge", people(vm=[False, True, True]))
    play(learner, lambda b: smooth_market(b, 1.0), 50)
    assert (learner.state["multiplier"][:, 0] == 0).all()
    assert (learner.state["multiplier"][:, 1:] > 0).all()


@pytest.mark.parametrize(("share", "kappa"), [(1.0, 1.0), (0.5, 2.0)])
def test_value_maximizers_reach_the_bid_where_roi_binds(share, kappa):
    """A click costs `share · b`, so v = tau · p at b = v / (tau · share)."""
    population = people()
    hedge = learner_of("hedge", population)
    bids, clicks, payments = play(hedge, lambda b: smooth_market(b, share), 2000)
    average = hedge.average_bids / population.truthful_bids
    np.testing.assert_allclose(average, kappa, rtol=0.02)
    late = bids[1500:].mean(axis=(0, 1)) / population.truthful_bids
    np.testing.assert_allclose(late, kappa, rtol=0.05)
    roi = population.values * clicks.sum(0) / payments.sum(0)
    np.testing.assert_allclose(roi / 1.5, 1, rtol=0.02)

    for start in (0.25, 3.0):
        pacing = learner_of("pacing", population, start=start)
        bids, _, _ = play(pacing, lambda b: smooth_market(b, share), 2000)
        np.testing.assert_allclose(bids[-1] / population.truthful_bids, kappa, rtol=1e-3)

    pacing = learner_of("pacing", population)
    bids, clicks, payments = play(pacing, lambda b: smooth_market(b, share), 500)
    np.testing.assert_allclose(bids[-1] / population.truthful_bids, kappa, rtol=1e-3)
    roi = population.values * clicks.sum(0) / payments.sum(0)
    np.testing.assert_allclose(roi / 1.5, 1, rtol=0.01)
    assert (roi / 1.5 > 1 - 1e-9).all()
    assert not pacing.capped.any()


def test_pacing_by_realised_clicks_is_right_on_average():
    population = people()
    learner = learner_of("pacing", population, signal="realised")
    rng = np.random.default_rng(3)
    bids, clicks, payments = play(learner, lambda b: smooth_market(b, 0.5), 3000, rng)
    roi = population.values * clicks[1500:].sum(0) / payments[1500:].sum(0)
    np.testing.assert_allclose(roi / 1.5, 1, rtol=0.03)
    np.testing.assert_allclose(bids[1500:].mean(0) / population.truthful_bids, 2.0, rtol=0.05)


def test_pacing_says_when_its_cap_binds_before_the_target():
    learner = learner_of("pacing", people(), max_multiple=3.0)
    bids, *_ = play(learner, lambda b: smooth_market(b, 0.1), 300)
    np.testing.assert_allclose(bids[-1], 3.0 * learner.population.truthful_bids[None].repeat(R, 0))
    assert learner.capped.all()


@pytest.mark.parametrize("vm", [False, True])
def test_pacing_spends_its_budget_and_no_more(vm):
    budget = np.array([0.2, 0.5, 0.05])
    population = people(vm=vm, budget=budget)
    learner = learner_of("pacing", population)
    bids, _, payments = play(learner, lambda b: smooth_market(b, 1.0), 2000)
    np.testing.assert_allclose(payments[1000:].mean(0), np.tile(budget, (R, 1)), rtol=0.01)
    assert (payments.mean(0) <= 1.03 * budget).all()
    assert (bids <= population.truthful_bids * (1 + 1e-12)).all()


def test_pacing_without_constraints_that_bind_is_truthful_for_utility_maximizers():
    learner = learner_of("pacing", people(vm=False, budget=[np.inf, 1e6, np.inf]))
    bids, *_ = play(learner, lambda b: smooth_market(b, 1.0), 50)
    np.testing.assert_array_equal(bids[-1], [[1.0, 2.0, 0.5]] * R)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(4)), vm=st.lists(st.booleans(), min_size=4, max_size=4))
def test_permuting_advertisers_permutes_the_bids_of_a_deterministic_learner(order, vm):
    values, roi = np.array([1.0, 2.0, 0.5, 3.0]), np.array([1.0, 1.2, 1.5, 2.0])
    budget, vm = np.array([np.inf, 0.4, 0.1, np.inf]), np.array(vm)
    deterministic = ("truthful", "shading", "pacing", "best-response", "fictitious-play")
    for name in (*deterministic, "gradient"):
        plain = learner_of(name, Population(values, vm, roi, budget))
        mixed = learner_of(name, Population(values[order], vm[order], roi[order], budget[order]))
        ours, *_ = play(plain, lambda b: smooth_market(b, 0.6), 30)
        theirs, *_ = play(mixed, lambda b: smooth_market(b, 0.6), 30)
        np.testing.assert_array_equal(theirs, ours[:, :, order])


def test_a_round_without_requests_teaches_nothing():
    for name in ("hedge", "pacing", "dual-averaging", "gradient", "fictitious-play"):
        learner = learner_of(name, people())
        play(learner, lambda b: smooth_market(b, 0.5), 20)
        before = mean_of(learner)
        play(learner, lambda b: (0 * b, 0 * b), 1)
        np.testing.assert_allclose(mean_of(learner), before, rtol=1e-12)


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_state_and_generator_are_a_checkpoint(name):
    def market(bids):
        return smooth_market(bids, 0.7)

    first = learner_of(name, people())
    play(first, market, 30)
    state, generator = copy.deepcopy(first.state), first.rng.bit_generator.state
    ahead, *_ = play(first, market, 20)
    second = learner_of(name, people(), seed=9)
    second.state, second.rng.bit_generator.state = state, generator
    again, *_ = play(second, market, 20)
    np.testing.assert_array_equal(again, ahead)


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_bids_are_bids(name):
    learner = learner_of(name, people(vm=[True, False, True]))
    bids, *_ = play(learner, lambda b: smooth_market(b, 1.0), 40)
    assert bids.shape == (40, R, 3)
    assert np.isfinite(bids).all() and (bids >= 0).all()


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_a_strategy_is_a_distribution_over_bids_and_draws_nothing(name):
    learner = learner_of(name, people(vm=[True, False, True]))
    for rounds in (0, 30):
        play(learner, lambda b: smooth_market(b, 0.8), rounds)
        generator, state = learner.rng.bit_generator.state, copy.deepcopy(learner.state)
        support, weights = learner.strategy
        assert learner.rng.bit_generator.state == generator
        for key, before in state.items():
            np.testing.assert_array_equal(learner.state[key], before)
        assert weights.shape == (R, 3, support.shape[-1]) and support.ndim in (2, 3)
        assert np.broadcast_shapes(support.shape, weights.shape) == weights.shape
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-12)
        assert (weights >= 0).all() and (support >= 0).all()
        if name in ("hedge", "exp3", "dual-averaging"):
            drawn = np.mean([learner.bids() for _ in range(3000)], axis=0)
            spread = np.sqrt((weights * support**2).sum(-1) - mean_of(learner) ** 2)
            # one in a million that a draw of this many misses by 5 standard errors
            assert (np.abs(drawn - mean_of(learner)) <= 5 * spread / np.sqrt(3000) + 1e-12).all()


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_learners_start_where_they_are_told(name):
    population = people(vm=[True, False, True])
    multiples = np.array([[0.5, 0.75, 1.0], [1.5, 0.25, 2.0]])
    learner = learner_of(name, population)
    if learner.feedback == "none":
        with pytest.raises(BadInput, match="no starting point"):
            learner.start_at(multiples)
        return
    learner.start_at(multiples)
    support, weights = learner.strategy
    support = np.broadcast_to(support, weights.shape)
    target = multiples * population.truthful_bids
    if name in ("hedge", "exp3", "dual-averaging"):
        assert np.isclose(weights.max(axis=-1), 0.5).all()
        begun = np.take_along_axis(support, weights.argmax(-1)[..., None], -1)[..., 0]
        cell = learner.support[:, 1]
        assert (np.abs(begun - target) <= cell / 2 + 1e-12).all()
    elif name == "reinforce":
        np.testing.assert_allclose(np.median(support, axis=-1), target)
    else:
        np.testing.assert_allclose(learner.bids(), target, rtol=0.03)
    with pytest.raises(BadInput, match="finite multiples"):
        learner.start_at(multiples[:, :2])
    with pytest.raises(BadInput, match="finite multiples"):
        learner.start_at(-multiples)
    play(learner, lambda b: smooth_market(b, 0.8), 1)
    with pytest.raises(BadInput, match="learned already"):
        learner.start_at(multiples)


@pytest.mark.parametrize("name", sorted(LEARNERS))
@pytest.mark.parametrize("money", [1e-6, 1e6])
def test_no_learner_minds_the_unit_of_money(name, money):
    def of(unit):
        population = people(unit * np.array([1.0, 2.0, 0.5]), vm=[True, False, True])

        def market(bids):
            clicks, payments = smooth_market(bids / unit, 0.8)
            return clicks, unit * payments

        bids, *_ = play(learner_of(name, population), market, 25)
        return bids / unit

    np.testing.assert_allclose(of(money), of(1.0), rtol=1e-6)


def mean_of(learner):
    support, weights = learner.strategy
    return (support * weights).sum(axis=-1)
