"""The PettingZoo environment: its own tests, what it shows and pays, and a policy trained in it."""

import warnings

import numpy as np
import pytest
from pettingzoo.test import parallel_api_test, parallel_seed_test

from agents.learners import Population
from experiments.best_response import best_responses
from market.model import MarketModel
from market.parallel_env import OBSERVED, MarketEnv, train_reinforce
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism


def scenario_of(rounds=12, **changes):
    given = {
        "rounds": rounds,
        "requests_per_round": 6,
        "replications": 3,
        "requests": {"queries": 8, "ads": 3},
        "replies": {"source": "synthetic", "per_request": 10},
        "mechanism": {"name": "mosaic", "parameters": {"tau": 0.3}},
        "population": [
            {"objective": "utility", "count": 2, "value": [1.0, 2.0], "learner": "hedge"},
            {"objective": "value", "count": 2, "value": 1.5, "target_roi": 1.2, "budget": 2.0},
        ],
    }
    return Scenario.from_dict(given | changes)


def episode(env, seed, multiple=1.0):
    """All observations, rewards and infos of an episode of constant actions."""
    history = [env.reset(seed=seed)]
    while env.agents:
        history.append(env.step({agent: [multiple] for agent in env.agents}))
    return history


def test_it_passes_pettingzoos_own_tests():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        parallel_api_test(MarketEnv(scenario_of()), num_cycles=30)
    parallel_seed_test(lambda: MarketEnv(scenario_of()), num_cycles=30)


def test_same_seed_same_trajectory_and_another_seed_another():
    env = MarketEnv(scenario_of())
    first, again, other = (episode(env, seed) for seed in (3, 3, 4))
    assert len(first) == 13
    assert all(_same(a, b) for a, b in zip(first, again, strict=True))
    assert not all(_same(a, b) for a, b in zip(first, other, strict=True))
    env.reset()
    seed = env.market.seed
    env.reset()
    assert env.market.seed != seed and env.market.round == 0


def _same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return np.array_equal(one, other)


def test_truthful_actions_replay_the_market_of_truthful_learners():
    env = MarketEnv(scenario_of())
    episode(env, 5)
    given = scenario_of(replications=1)
    population = [
        group.model_copy(
            update={
                "learner": given.population[0].learner.model_copy(
                    update={"name": "truthful", "parameters": {}}
                )
            }
        )
        for group in given.population
    ]
    plain = MarketModel(
        given.model_copy(update={"population": population}), env.market.seed, pool=env.pool
    )
    plain.run()
    ours = env.market.ledger.advertisers_frame().drop("mechanism", "title")
    assert ours.equals(plain.ledger.advertisers_frame().drop("mechanism", "title"))


def test_rewards_are_utilities_and_priced_roi():
    for signal in ("realised", "expected"):
        env = MarketEnv(scenario_of(), signal=signal, roi_price=3.0)
        history = episode(env, 1, multiple=0.9)
        people = env.market.advertisers
        for _, rewards, terminated, _, infos in history[1:]:
            assert not any(terminated.values())
            for advertiser, agent in zip(people, env.possible_agents, strict=True):
                value, charge = infos[agent]["value"], infos[agent]["charge"]
                reward = value - charge
                if advertiser.kind == "value":
                    slack = value - advertiser.target_roi * charge
                    reward = (value + 3.0 * slack) / 4.0
                assert rewards[agent] == pytest.approx(reward / 6, abs=1e-12)
        assert all(history[-1][3].values()) and not env.agents
        if signal == "realised":
            charged = sum(step[4][a]["charge"] for step in history[1:] for a in step[4])
            np.testing.assert_allclose(charged, env.market.account.payments.sum())


def test_observations_tell_what_they_say():
    env = MarketEnv(scenario_of())
    history = episode(env, 2, multiple=1.25)
    for agent in env.possible_agents:
        rows = [step[0][agent] for step in history]
        assert all(env.observation_space(agent).contains(row) for row in rows)
        assert len(rows[0]) == len(OBSERVED)
        np.testing.assert_allclose([row[6] for row in rows], 1 - np.arange(13) / 12, atol=1e-6)
        np.testing.assert_allclose([row[0] for row in rows], [0] + 12 * [1.25])
    frame = env.market.ledger.advertisers_frame().filter(round=11)
    last = np.array([history[-1][0][agent] for agent in env.possible_agents])
    value = frame["value"].to_numpy()
    np.testing.assert_allclose(last[:, 2] * 6, frame["clicks"], rtol=1e-6)
    np.testing.assert_allclose(last[:, 3] * 6 * value, frame["charge"], rtol=1e-6, atol=1e-9)
    budget = env.market.budgets
    left = np.where(np.isfinite(budget), 1 - frame["spend"].to_numpy() / budget, 1)
    np.testing.assert_allclose(last[:, 5], left, rtol=1e-5, atol=1e-7)


def test_bad_actions_and_settings_are_refused():
    env = MarketEnv(scenario_of())
    with pytest.raises(RuntimeError, match="reset"):
        env.step({})
    env.reset(seed=0)
    with pytest.raises(BadInput, match="advertiser_3 has no action"):
        env.step({agent: [1.0] for agent in env.agents[:3]})
    with pytest.raises(BadInput, match="one finite bid multiple"):
        env.step({agent: [np.nan] for agent in env.agents})
    for bad, message in (({"signal": "loud"}, "realised"), ({"roi_price": -1.0}, "roi_price")):
        with pytest.raises(BadInput, match=message):
            MarketEnv(scenario_of(), **bad)
    with pytest.raises(BadInput, match="episodes"):
        train_reinforce(env, 0, np.random.default_rng(0))


def test_actions_beyond_the_space_are_brought_to_its_end():
    env = MarketEnv(scenario_of())
    env.reset(seed=0)
    env.step({agent: [99.0] for agent in env.agents})
    truthful = env.market.groups[0].learner.population.truthful_bids
    np.testing.assert_allclose(env.market.bids[0] / truthful, env.reach)
    assert sorted(set(env.reach)) == [1.5, 10.0]


@pytest.mark.parametrize("signal", ["expected", "realised"])
def test_policies_trained_through_it_move_towards_the_best_response(signal):
    """First price on a Gibbs allocation, where truthful bids are far above the equilibrium."""
    pool = ReplyPool.synthetic(12, 12, 3, np.random.default_rng(7), advertisers=3)
    mechanism = make_mechanism("llm-auction-ideal", tau=0.3)
    group = {"objective": "utility", "count": 3, "value": [1.0, 2.0], "learner": "truthful"}
    scenario = scenario_of(rounds=100, requests_per_round=24, population=[group])
    env = MarketEnv(scenario, pool=pool, mechanism=mechanism, signal=signal)
    values = np.array([spec.value for spec in scenario.advertisers])
    people = Population(values, np.zeros(3, bool), np.ones(3), np.full(3, np.inf))
    target = best_responses(mechanism, pool, people)
    assert target.converged and (target.bids < 0.8 * values).all()
    trained = train_reinforce(env, 20, np.random.default_rng(1))
    away = np.abs(trained.medians - target.bids / values).mean(axis=1)
    assert away[-1] < (0.1 if signal == "expected" else 0.25)
    assert away[-1] < 0.4 * away[0]
    assert trained.rewards[-3:].mean() > trained.rewards[:3].mean()
