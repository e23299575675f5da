"""Best response, fictitious play and gradient ascent; equilibria that full feedback finds."""

import numpy as np
import pytest

from agents.learners import Feedback, Population, make_learner
from experiments.best_response import best_responses
from experiments.game import Game
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism
from tests.agents.learning import R, learner_of, people, play, smooth_market


def hear(learner, clicks, payments):
    none = np.zeros(clicks.shape[:2])
    learner.learn(Feedback(none, none, none, none, none, clicks, payments))


def shown(name, **parameters):
    """(bids after each round, the rounds' random outcomes), for one advertiser of either kind."""
    population = people([1.0, 2.0], vm=[False, True])
    learner = learner_of(name, population, grid_size=7, **parameters)
    rng = np.random.default_rng(1)
    heard, bids = [], []
    for _ in range(12):
        clicks = np.sort(rng.random((R, 2, 7)), axis=-1)
        payments = clicks * rng.random((R, 2, 7)) * learner.grid
        hear(learner, clicks, payments)
        heard.append((clicks, payments))
        bids.append(learner.bids())
    return population, learner.grid, bids, heard


def best_of(population, grid, clicks, payments):
    value = population.values[:, None] * clicks
    meets = value >= population.target_roi[:, None] * payments
    vm = population.value_maximizer[:, None]
    score = np.where(vm, np.where(meets, value, -np.inf), value - payments)
    return np.take_along_axis(np.broadcast_to(grid, score.shape), score.argmax(-1)[..., None], -1)


@pytest.mark.parametrize(
    ("name", "parameters", "weight"),
    [
        ("best-response", {}, lambda age: age == 0),
        ("best-response", {"memory": 0.6}, lambda age: 0.6**age),
        ("fictitious-play", {}, lambda age: 1.0 + 0 * age),
    ],
)
def test_responses_are_best_to_the_mean_they_say(name, parameters, weight):
    population, grid, bids, heard = shown(name, **parameters)
    for t in range(len(bids)):
        weights = weight(np.arange(t, -1, -1)) / np.sum(weight(np.arange(t, -1, -1)))
        clicks, payments = (sum(w * heard[s][k] for s, w in enumerate(weights)) for k in (0, 1))
        best = best_of(population, grid, clicks, payments)[..., 0]
        np.testing.assert_array_equal(bids[t], best)


def test_ties_stay_and_otherwise_go_to_the_lowest():
    learner = learner_of("best-response", people([1.0], vm=False), grid_size=4)
    learner.start_at(np.full((R, 1), 1.0))
    flat = np.zeros((R, 1, 4))
    hear(learner, flat, flat)
    np.testing.assert_array_equal(learner.bids(), R * [[1.0]])
    clicks = flat + np.array([0.0, 1.0, 0.5, 1.0])
    hear(learner, clicks, flat)
    np.testing.assert_allclose(learner.bids(), R * [[0.5]])


def test_a_value_maximizer_that_cannot_meet_its_target_bids_nothing():
    learner = learner_of("best-response", people([1.0]), grid_size=4)
    hear(learner, np.ones((R, 1, 4)), np.full((R, 1, 4), 2.0))
    np.testing.assert_array_equal(learner.bids(), np.zeros((R, 1)))


def test_inertia_ends_a_cycle_of_simultaneous_moves():
    """Two who want to do what the other does not, each best replying to the other's last bid."""

    def together(inertia):
        learner = learner_of(
            "best-response", people([1.0, 1.0], vm=False), grid_size=2, inertia=inertia
        )
        learner.start_at(np.zeros((R, 2)))
        moves = []
        for _ in range(60):
            low = learner.bids() == 0
            clicks = np.stack([~low[:, ::-1], low[:, ::-1]], axis=-1).astype(float)
            hear(learner, clicks, np.zeros(clicks.shape))
            moves.append((learner.bids() == 0) != low)
        return np.array(moves)

    assert together(0.0).all()  # both move in every round, for ever
    assert not together(0.5)[-10:].any()


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_gradient_finds_the_best_bid_and_the_bid_where_roi_binds(share):
    population = people([1.0, 2.0, 0.5, 3.0], vm=[False, True, False, True])
    tried = np.linspace(0, 1.5, 30001)[:, None] * population.values
    clicks, payments = smooth_market(tried, share)
    best = tried[(population.values * clicks - payments).argmax(axis=0), np.arange(4)]
    target = np.where(population.value_maximizer, population.truthful_bids / share, best)
    for start in (0.2, 1.0, 1.5):
        learner = learner_of("gradient", population)
        learner.start_at(np.full((R, 4), start))
        bids, *_ = play(learner, lambda b: smooth_market(b, share), 300)
        np.testing.assert_allclose(bids[-1], np.tile(target, (R, 1)), rtol=0.01)


def test_gradient_regret_stays_below_its_bound_on_concave_payoffs():
    """Payoffs -|b - c| with c drawn anew: concave, rough, noisy; averaged over its window."""
    rng = np.random.default_rng(0)
    learner = learner_of("gradient", people([1.0], vm=False), width=0.0)
    cell = learner.grid[0, 1]
    total, earned = np.zeros((R, 1, 121)), np.zeros((R, 1))
    for _ in range(1000):
        centre = rng.choice(learner.grid[0], size=(R, 1, 1))
        payoffs = -np.abs(learner.grid - centre)
        earned -= np.abs(learner.bids() - centre[..., 0])
        total += payoffs
        hear(learner, 0 * payoffs, -payoffs)
    D, step = 1.5, 0.2
    bound = (D**2 / (2 * step) + step) * np.sqrt(learner.state["squared_slopes"])
    regret = total.max(axis=-1) - earned
    assert (regret <= bound + 1000 * cell).all()
    assert (regret < 0.1 * 1000 * 0.375).all()  # 0.375 is what the best bid loses a round


@pytest.fixture(scope="module")
def games():
    pool = ReplyPool.synthetic(16, 14, 3, np.random.default_rng(11), advertisers=5)
    ones = np.ones(5)
    vm = np.array([False, True, False, True, False])
    population = Population(np.array([1.0, 2.0, 3.0, 1.5, 2.5]), vm, 1.3 * ones, np.inf * ones)
    mechanisms = [make_mechanism(name, tau=0.4) for name in ("llm-auction-ideal", "mosaic")]
    return [Game(mechanism, pool, population) for mechanism in mechanisms]


@pytest.mark.parametrize(
    ("name", "parameters", "rounds", "exploitability"),
    [
        ("gradient", {}, 300, 1e-4),
        ("hedge", {"step": 10.0}, 1500, 0.005),
        ("dual-averaging", {"power": 0.25}, 1500, 0.005),
        ("best-response", {}, 30, 0.01),  # a value maximizer's grid is coarse
        ("fictitious-play", {}, 200, 0.01),
    ],
)
def test_full_feedback_learns_the_equilibrium_of_a_gibbs_auction(
    games, name, parameters, rounds, exploitability
):
    """Nobody gains by another fixed bid, or owes to its ROI target: fractions of all value."""
    starts = np.array([np.full(5, 1.0), np.full(5, 0.4)])
    for game in games:
        learner = make_learner(name, game.people, R, np.random.default_rng(3), **parameters)
        learner.start_at(starts)
        index = np.tile(np.arange(game.pool.shape[0]), (R, 1))
        mean, none = [], np.zeros((R, 5))
        for _ in range(rounds):
            support, weights = learner.strategy
            mean.append((support * weights).sum(axis=-1))
            bids, grid = learner.bids(), learner.grid
            along = game.mechanism.counterfactual_sums(game.pool, index, bids, grid)
            learner.learn(Feedback(none, none, none, none, none, *along))
        settled = np.mean(mean[-rounds // 2 :], axis=0)
        found = game.gains(settled).exploitability
        assert (found < exploitability).all(), (game.mechanism.name, found)
        assert (game.gains(starts * game.people.truthful_bids).exploitability > 0.05).all()


def test_gradient_agrees_with_the_independent_search_for_best_responses(games):
    for game in games:
        target = best_responses(game.mechanism, game.pool, game.people)
        assert target.converged
        learner = make_learner("gradient", game.people, 1, np.random.default_rng(3))
        index = np.arange(game.pool.shape[0])[None]
        none = np.zeros((1, 5))
        for _ in range(300):
            along = game.mechanism.counterfactual_sums(
                game.pool, index, learner.bids(), learner.grid
            )
            learner.learn(Feedback(none, none, none, none, none, *along))
        np.testing.assert_allclose(learner.bids()[0], target.bids, rtol=0.01)
