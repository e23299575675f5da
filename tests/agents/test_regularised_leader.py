"""Hedge and dual averaging: the bound they share, and what sets them apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.learners import Feedback
from agents.learners.mirror import projected
from tests.agents.learning import R, learner_of, people, play, smooth_market


def hear(learner, payoffs):
    """Give a population of utility maximizers grid payoffs (R, N, G) as payments."""
    none = np.zeros(payoffs.shape[:2])
    learner.learn(Feedback(none, none, none, none, none, np.zeros(payoffs.shape), -payoffs))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    growth=st.floats(0.9, 1.1),
    adversary=st.sampled_from(["random", "spiteful", "alternating"]),
    name=st.sampled_from(["hedge", "dual-averaging"]),
    size=st.integers(2, 12),
    start=st.none() | st.floats(0, 1.5),
    step=st.floats(0.2, 5),
)
def test_regret_stays_below_its_bound(seed, growth, adversary, name, size, start, step):
    """Whatever the payoffs and however their scale drifts; the adversary sees the weights."""
    rng = np.random.default_rng(seed)
    learner = learner_of(name, people([1.0, 3.0], vm=False), grid_size=size, step=step)
    shape = (R, 2, size)
    if start is not None:
        learner.start_at(np.full(shape[:2], start))
    earned, best, widest = np.zeros(shape[:2]), np.zeros(shape), np.zeros(shape[:2])
    for t in range(120):
        weights = learner.state["weights"].copy()
        if adversary == "random":
            paid = rng.random(shape)
        elif adversary == "spiteful":
            paid = (weights == weights.max(axis=-1, keepdims=True)).astype(float)
        else:
            paid = np.broadcast_to((np.arange(size) + t) % 2, shape).astype(float)
        payoffs = -paid * growth**t
        hear(learner, payoffs)
        earned += (weights * payoffs).sum(axis=-1)
        best += payoffs
        norm = np.ptp(payoffs, axis=-1)
        if name == "dual-averaging":
            norm = 2 * np.linalg.norm(payoffs - payoffs.mean(axis=-1, keepdims=True), axis=-1)
        widest = np.maximum(widest, norm)
    regret = best.max(axis=-1) - earned
    assert (regret <= learner.regret_bound + 4.42 * widest + 1e-9).all()


def test_the_bound_is_not_idle():
    """Against alternating payoffs regret does come within a factor of 3 of the bound."""
    learner = learner_of("hedge", people([1.0], vm=False), grid_size=2)
    earned, best = 0.0, np.zeros((R, 1, 2))
    for t in range(2000):
        payoffs = np.broadcast_to((np.arange(2) + t) % 2, (R, 1, 2)).astype(float)
        earned = earned + (learner.state["weights"] * payoffs).sum(axis=-1)
        best += payoffs
        hear(learner, payoffs)
    assert (best.max(axis=-1) - earned > learner.regret_bound / 3).all()


def test_hedge_weights_are_the_formula():
    learner = learner_of("hedge", people([1.0, 3.0], vm=False), grid_size=5)
    rng = np.random.default_rng(0)
    total, squares = np.zeros((R, 2, 5)), np.zeros((R, 2))
    for _ in range(30):
        payoffs = rng.normal(size=total.shape)
        hear(learner, payoffs)
        total += payoffs
        squares += np.ptp(payoffs, axis=-1) ** 2
    weights = np.exp(np.sqrt(8 * np.log(5) / squares)[..., None] * total)
    weights /= weights.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(learner.state["weights"], weights, rtol=1e-10)


def test_entropic_dual_averaging_is_hedge():
    population = people(vm=[True, False, True])
    hedge = learner_of("hedge", population)
    other = learner_of("dual-averaging", population, regulariser="entropic")
    for learner in (hedge, other):
        play(learner, lambda b: smooth_market(b, 0.8), 60)
    np.testing.assert_array_equal(hedge.state["weights"], other.state["weights"])


@settings(max_examples=60, deadline=None)
@given(
    payoffs=st.lists(st.floats(-50, 50), min_size=2, max_size=9),
    eta=st.floats(0, 10),
    favourite=st.integers(0, 8),
)
def test_projection_is_the_nearest_point_of_the_simplex(payoffs, eta, favourite):
    payoffs = np.array(payoffs)
    prior = np.full(len(payoffs), 0.5 / (len(payoffs) - 1))
    prior[favourite % len(payoffs)] = 0.5
    weights = np.empty(len(payoffs))
    projected(payoffs, eta, prior, weights)
    point = prior + eta * payoffs
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1, abs=1e-9)
    # Nearest: no corner of the simplex lies further along point - weights.
    along = point - weights
    assert along.max() <= weights @ along + 1e-7 * (1 + np.abs(along).max())


def test_dual_averaging_reaches_the_best_bid_in_finitely_many_rounds():
    population = people(vm=False)
    learner = learner_of("dual-averaging", population, grid_size=6)
    play(learner, lambda b: smooth_market(b, 1.0), 1500)
    clicks, payments = smooth_market(learner.grid, 1.0)
    payoffs = population.values[:, None] * clicks - payments
    second, first = np.sort(payoffs, axis=-1)[:, -2:].T
    assert (first - second > 0.01 * first).all()  # a strict best bid
    best = np.tile(payoffs.argmax(axis=-1), (R, 1))[..., None]
    assert (np.take_along_axis(learner.state["weights"], best, -1) == 1).all()
    slow = learner_of("hedge", population, grid_size=6)
    play(slow, lambda b: smooth_market(b, 1.0), 1500)
    np.testing.assert_array_equal(slow.state["weights"].argmax(axis=-1), best[..., 0])
    assert (slow.state["weights"].max(axis=-1) < 1).all()


def test_a_lower_power_is_faster_where_payoffs_stay_the_same():
    def settled(power):
        learner = learner_of("dual-averaging", people(vm=False), power=power)
        play(learner, lambda b: smooth_market(b, 1.0), 40)
        return learner.state["weights"].max(axis=-1)

    assert (settled(0.05) > settled(0.5)).all()
