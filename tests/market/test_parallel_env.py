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
    frame = env.market.ledger.advertisers_frame()
    truthful = env.market.groups[0].learner.population.truthful_bids
    bids = np.array([step[0][a][0] for step in history for a in env.possible_agents])
    expected = frame["bid"].to_numpy().reshape(12, 4) / truthful
    np.testing.assert_allclose(bids.reshape(13, 4)[1:], expected, rtol=1e-6)
    # what was asked for, until a budget is gone
    assert set(np.unique(expected.round(9))) == {0.0, 1.25} and (bids[:4] == 0).all()
    frame = frame.filter(round=11)
    last = np.array([history[-1][0][agent] for agent in env.possible_agents])
    value = frame["value"].to_numpy()
    np.testing.assert_allclose(last[:, 2] * 6, frame["clicks"], rtol=1e-6)
    np.testing.assert_allclose(last[:, 3] * 6 * value, frame["charge"], rtol=1e-6, atol=1e-9)
    budget = env.market.budgets
    left = np.where(np.isfinite(budget), 1 - frame["spend"].to_numpy() / budget, 1)
    np.testing.assert_allclose(last[:, 5], left, rtol=1e-5, atol=1e-7)


def test_money_that_the_platform_pays_is_seen():
    mechanism = make_mechanism("mosaic", tau=0.3, settlement="realised")
    env = MarketEnv(scenario_of(rounds=30), mechanism=mechanism)
    history = episode(env, 2)
    charges = env.market.ledger.advertisers_frame()["charge"].to_numpy().reshape(30, 4)
    assert (charges < 0).any()
    values = env.market.values
    seen = np.array([[step[0][a][3] for a in env.possible_agents] for step in history[1:]])
    np.testing.assert_allclose(seen, charges / 6 / values, rtol=1e-5, atol=1e-8)
    for step in history:
        assert all(env.observation_space(a).contains(step[0][a]) for a in env.possible_agents)


def test_bad_actions_and_settings_are_refused():
    env = MarketEnv(scenario_of())
    with pytest.raises(RuntimeError, match="reset"):
        env.step({})
    env.reset(seed=0)
    with pytest.raises(BadInput, match="advertiser_3 has no action"):
        env.step({agent: [1.0] for agent in env.agents[:3]})
    with pytest.raises(BadInput, match="one finite bid multiple"):
        env.step({agent: [np.nan] for agent in env.agents})
    for action in ("loud", [[1.0], [1.0, 2.0]], None, [1.0, 2.0]):
        with pytest.raises(BadInput, match="advertiser_0: an action is one finite"):
            env.step(dict.fromkeys(env.agents, action))
    for bad, message in (
        ({"signal": "loud"}, "realised"),
        ({"roi_price": -1.0}, "roi_price"),
        ({"roi_price": np.nan}, "roi_price"),
        ({"roi_price": "fixed"}, "moving"),
    ):
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


class Rochet:
    """Two utility maximizers and a value maximizer under Mosaic, and where they best respond."""

    def __init__(self):
        self.pool = ReplyPool.synthetic(12, 12, 3, np.random.default_rng(7), advertisers=3)
        self.mechanism = make_mechanism("mosaic", tau=0.3)
        population = [
            {"objective": "utility", "count": 2, "value": [1.0, 2.0]},
            {"objective": "value", "count": 1, "value": 1.5, "target_roi": 1.3},
        ]
        self.scenario = scenario_of(rounds=100, requests_per_round=24, population=population)
        values = np.array([spec.value for spec in self.scenario.advertisers])
        vm = np.array([spec.objective == "value" for spec in self.scenario.advertisers])
        people = Population(values, vm, np.where(vm, 1.3, 1.0), np.full(3, np.inf))
        found = best_responses(self.mechanism, self.pool, people)
        assert found.converged
        [self.who] = np.flatnonzero(vm)
        self.multiple = (found.bids / people.truthful_bids)[self.who]

    def trained(self, roi_price, episodes):
        """The value maximizer's median bid multiples by episode, and its last ROI over target."""
        given = {"pool": self.pool, "mechanism": self.mechanism, "signal": "expected"}
        env = MarketEnv(self.scenario, roi_price=roi_price, **given)
        medians = train_reinforce(env, episodes, np.random.default_rng(1)).medians
        return medians[:, self.who], env.market.account.roi[0, self.who] / 1.3


def test_a_moving_price_trains_value_maximizers_to_their_best_response():
    market = Rochet()
    assert market.multiple > 2  # far from the truthful bid, where training starts
    medians, _ = market.trained("moving", 100)
    # play circles around it, closer and closer
    assert medians[50:].mean() == pytest.approx(market.multiple, rel=0.1)


def test_a_fixed_price_does_so_only_if_it_is_the_shadow_price():
    """Rochet payments make a utility maximizer of value w bid w = v (1 + λ) / (λ τ)."""
    market = Rochet()
    shadow = 1 / (market.multiple - 1)
    for factor in (0.5, 1.0, 10.0):
        medians, roi = market.trained(factor * shadow, 25)
        price = factor * shadow
        assert medians[15:].mean() == pytest.approx((1 + price) / price, rel=0.15)
        met = {0.5: roi < 0.95, 1.0: abs(roi - 1) < 0.1, 10.0: roi > 1.5}
        assert met[factor], roi


def test_moving_prices_go_on_only_where_told_to():
    env = MarketEnv(scenario_of(), roi_price="moving")
    episode(env, 1, multiple=3.0)
    moved = env.roi_prices.copy()
    vm = np.array([spec.objective == "value" for spec in env.scenario.advertisers])
    assert (moved[~vm] == 0).all() and (moved[vm] != 1).any()
    env.reset(seed=2, options={"keep_prices": True})
    np.testing.assert_array_equal(env.roi_prices, moved)
    env.reset(seed=2)
    np.testing.assert_array_equal(env.roi_prices, vm)
