"""Learners that see their own outcome only: EXP3-IX and REINFORCE."""

import numpy as np
import pytest

from agents.learners import Feedback, make_learner
from agents.learners.reinforce import LogNormalPolicy
from mechanisms.errors import BadInput
from tests.agents.learning import R, learner_of, people, play, smooth_market


def best_multiple(population, share):
    """(N,) multiples of truthful that are best for utility maximizers in `smooth_market`."""
    tried = np.linspace(0, 1.5, 3001)[:, None]
    clicks, payments = smooth_market(tried * population.values, share)
    return tried[(population.values * clicks - payments).argmax(axis=0), 0]


@pytest.mark.parametrize("adversary", ["coins", "spiteful"])
def test_exp3_regret_stays_below_the_bound_of_neu(adversary):
    runs, G, T, epsilon = 50, 6, 1500, 0.001
    rng = np.random.default_rng(2)
    learner = make_learner("exp3", people([1.0], vm=False), runs, rng, grid_size=G)
    chance = np.full(G, 0.3)
    chance[3] = 0.8
    earned, total = 0.0, np.zeros((runs, 1, G))
    for _ in range(T):
        learner.bids()
        weights = learner.state["weights"]
        payoffs = (rng.random(total.shape) < chance).astype(float)
        if adversary == "spiteful":
            payoffs = np.ones(total.shape)
            np.put_along_axis(payoffs, weights.argmax(axis=-1)[..., None], 0.0, axis=-1)
        seen = np.take_along_axis(payoffs, learner.state["drawn"][..., None], -1)[..., 0]
        earned = earned + seen
        total += payoffs
        learner.learn(Feedback(seen, 0 * seen, seen, 0 * seen, 0 * seen))
    regret = total.max(axis=-1) - earned
    confidence = (2 * np.sqrt(G * T / np.log(G)) + 1) * np.log(2 / epsilon)
    assert (regret <= 4 * np.sqrt(G * T * np.log(G)) + confidence).all()
    np.testing.assert_allclose(learner.regret_bound, 4 * np.sqrt(G * T * np.log(G)), rtol=0.01)
    if adversary == "coins":  # half of what a learner without learning would lose
        assert regret.mean() < 0.5 * 0.5 * T * (G - 1) / G


def test_exp3_bound_grows_where_the_first_mixture_is_uneven():
    """A start that gives half the weight to one bid of 11 gives 1/20 to each other."""
    learner = learner_of("exp3", people([1.0, 2.0], vm=False), grid_size=11)
    learner.state["squared_ranges"] += 9.0
    even = 4 * np.sqrt(11 * np.log(11) * 9)
    np.testing.assert_allclose(learner.regret_bound, even)
    learner.start_at(np.ones((R, 2)))
    uneven = (3 + np.log(20) / np.log(11)) / 4
    np.testing.assert_allclose(learner.regret_bound, uneven * even)


def test_exp3_charges_the_bid_drawn_and_no_other():
    learner = learner_of("exp3", people([1.0, 2.0], vm=False), grid_size=4)
    zero = np.zeros((R, 2))
    learner.bids()
    learner.learn(Feedback(zero, zero, zero + 1, zero, zero))  # a payoff of v sets the top
    assert not learner.state["losses"].any()
    learner.bids()
    drawn, before = learner.state["drawn"].copy(), learner.state["weights"].copy()
    learner.learn(Feedback(zero, zero, zero, zero, zero))
    losses = learner.state["losses"]
    likely = np.take_along_axis(before, drawn[..., None], -1)[..., 0]
    values = np.array([1.0, 2.0])
    gamma = np.sqrt(np.log(4) / (4 * 2 * values**2)) * values / 2
    charged = np.take_along_axis(losses, drawn[..., None], -1)[..., 0]
    np.testing.assert_allclose(charged, values / (likely + gamma), rtol=1e-12)
    assert (np.count_nonzero(losses, axis=-1) == 1).all()


@pytest.mark.parametrize("signal", ["expected", "realised"])
def test_bandits_find_bids_nearly_as_good_as_the_best(signal):
    population = people(vm=False)
    best = best_multiple(population, 1.0)
    reached = smooth_market(best * population.values, 1.0)
    most = population.values * reached[0] - reached[1]
    for name, rounds in (("exp3", 6000), ("reinforce", 2000)):
        learner = learner_of(name, population, signal=signal)
        play(learner, lambda b: smooth_market(b, 1.0), rounds, np.random.default_rng(5))
        support, weights = learner.strategy
        mean = (support * weights).sum(axis=-1)
        clicks, payments = smooth_market(mean, 1.0)
        lost = 1 - (population.values * clicks - payments) / most
        truthful = smooth_market(population.values, 1.0)
        assert np.allclose(population.values * truthful[0], truthful[1])  # truthful earns nothing
        assert lost.mean() < 0.1, (name, lost)


def test_reinforce_value_maximizers_settle_where_roi_binds():
    population = people()
    learner = learner_of("reinforce", population)
    bids, clicks, payments = play(learner, lambda b: smooth_market(b, 0.5), 6000)
    late = slice(2000, None)
    roi = population.values * clicks[late].sum(0) / payments[late].sum(0)
    np.testing.assert_allclose(roi / 1.5, 1, rtol=0.1)
    np.testing.assert_allclose(bids[late].mean(axis=0) / population.truthful_bids, 2, rtol=0.15)


def test_a_log_normal_policy_climbs_in_steps_of_the_natural_gradient():
    policy = LogNormalPolicy(step=0.2, spread=0.5, floor=0.1)
    state, reach = policy.start(np.ones(4000)), np.full(4000, 5.0)
    rng = np.random.default_rng(0)
    for _ in range(2):  # so that there is a mean and a spread of payoffs
        policy.act(state, reach, rng)
        policy.learn(state, reach, state["draw"])
    before = state["mean"].mean()
    for _ in range(20):
        policy.act(state, reach, rng)
        policy.learn(state, reach, state["draw"])
    # payoff = log m: E[A z] is about 1 where payoffs vary by the policy's own dice alone
    rates = 0.2 / np.sqrt(np.arange(3, 23))
    climbed = (state["mean"].mean() - before) / (rates.sum() * np.exp(state["log_spread"]).mean())
    assert 0.6 < climbed < 1.2
    flat = policy.start(np.ones(4000))
    for _ in range(20):
        policy.act(flat, reach, rng)
        policy.learn(flat, reach, rng.standard_normal(4000))  # payoffs that tell nothing
    assert abs(flat["mean"].mean()) < 0.02
    for bad in ({"step": 0}, {"floor": 0.6, "spread": 0.5}, {"floor": 0.0}):
        with pytest.raises(BadInput):
            LogNormalPolicy(**bad)
