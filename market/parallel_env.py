"""The market as a PettingZoo environment: whoever can act in one can be an advertiser here.

An agent is an advertiser, a step is a round of a `MarketModel` with one replication, an episode is
the scenario's rounds. Learners are replaced by the actions; everything else (arrivals, mechanism,
users, budgets, records) is the market's own.

    action        the bid, in multiples of the truthful one: Box [0, reach], reach 1.5 for utility
                  and 10 for value maximizers; truthful is v, and v / τ for value maximizers
    reward        per request, of what was realised or expected (`signal`):
                  utility maximizer   v x − p
                  value maximizer     v x + λ (v x − τ p), over 1 + λ, with a fixed price λ of ROI
    observation   see `OBSERVED`; only what an advertiser may know, and no unit of money

A fixed λ keeps rewards stationary: a value maximizer that maximises them meets its target to the
extent that λ is high enough for its market. (Learner `reinforce` moves λ by itself.)

`train_reinforce` trains the policy of that learner through this interface alone.

The interface: Terry et al. 2021, "PettingZoo: Gym for multi-agent reinforcement learning".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from agents.learners import Feedback, Learner
from agents.learners.base import SIGNALS, UTILITY_REACH, VALUE_REACH
from agents.learners.lagrangian import worth
from agents.learners.reinforce import LogNormalPolicy
from market.model import MarketModel
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, ReplyPool
from mechanisms.registry import make_mechanism

OBSERVED = (
    "bid multiple of the last round",
    "share of the last round's requests in which it was a candidate",
    "clicks per request, last round",
    "charge per request, last round, over value per click",
    "ROI so far over target ROI (1 for utility maximizers), at most 10; 0 before any charge",
    "share of the budget left; 1 without a budget",
    "share of rounds left",
    "1 for a value maximizer, else 0",
)
"""Entries of an observation, in order. Before the first round the first four are 0."""
HIGHEST_ROI = 10.0

Observations = dict[str, NDArray[np.float32]]


class MarketEnv(ParallelEnv):
    """A market whose advertisers' bids come from outside.

    Args:
        scenario: as for `MarketModel`; its learners and replications are left out of account.
        pool: candidate replies; default the scenario's, recorded or synthetic.
        mechanism: default the scenario's.
        signal: `realised` rewards clicks and charges, `expected` what was expected of the round.
        roi_price: λ in the rewards of value maximizers, >= 0.

    Attributes:
        market: the `MarketModel` of this episode, with its ledger; None before `reset`.
        reach: (N,) highest multiple of the truthful bid.

    Raises:
        BadInput: a live scenario, an unknown signal, a negative price, or what `MarketModel` says.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "admarket_v0", "render_modes": []}

    def __init__(
        self,
        scenario: Any,
        *,
        pool: ReplyPool | None = None,
        mechanism: Mechanism | None = None,
        signal: str = "realised",
        roi_price: float = 1.0,
    ) -> None:
        if signal not in SIGNALS:
            raise BadInput(f"signal must be one of {', '.join(SIGNALS)}; got {signal!r}")
        if not 0 <= roi_price < np.inf:
            raise BadInput(f"roi_price must be finite and >= 0; got {roi_price}")
        if mechanism is None:
            wanted = scenario.mechanism
            mechanism = make_mechanism(wanted.name, **dict(wanted.parameters))
        if pool is None:
            pool, live = scenario.replies_for(mechanism, 0)
            if live is not None:
                raise BadInput("MarketEnv trades on recorded replies; set replies.source")
        self.scenario = _steered(scenario)
        self.pool, self.mechanism = pool, mechanism
        self.signal, self.roi_price = signal, float(roi_price)
        self.market: MarketModel | None = None
        specs = self.scenario.advertisers
        vm = np.array([spec.objective == "value" for spec in specs])
        self.reach = np.where(vm, VALUE_REACH, UTILITY_REACH)
        self.possible_agents = [f"advertiser_{i}" for i in range(len(specs))]
        self.agents: list[str] = []
        high = np.full(len(OBSERVED), np.inf, np.float32)
        # PettingZoo wants the same object for an agent each time: seeding a space must last.
        self._actions = {
            agent: Box(0.0, np.float32(reach), (1,), np.float32)
            for agent, reach in zip(self.possible_agents, self.reach, strict=True)
        }
        self._observations = {
            agent: Box(np.zeros_like(high), high) for agent in self.possible_agents
        }
        self._seeds = np.random.default_rng(0)

    def action_space(self, agent: str) -> Box:
        """Bid multiples, of shape (1,)."""
        return self._actions[agent]

    def observation_space(self, agent: str) -> Box:
        """Vectors of `OBSERVED`."""
        return self._observations[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, dict]]:
        """Open a new market. Episodes after a `seed` differ, by seeds that follow from it."""
        if seed is not None:
            self._seeds = np.random.default_rng(seed)
        drawn = int(self._seeds.integers(2**31))
        self.market = MarketModel(
            self.scenario, drawn, pool=self.pool, mechanism=self.mechanism, label="market"
        )
        [group] = self.market.groups
        self._steered = Steered(group.learner.population, 1, self._seeds)
        self.market.groups = [replace(group, learner=self._steered)]
        self.agents = list(self.possible_agents)
        return self._observe(), {agent: {} for agent in self.agents}

    def step(
        self, actions: Mapping[str, Any]
    ) -> tuple[Observations, dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict]]:
        """Play a round; actions beyond an action space are brought to its end.

        Returns:
            By agent: observations, rewards, terminations (never), truncations (all of them after
            the last round), and infos with `value` v x and `charge` p of the round, in money, as
            the rewards see them.

        Raises:
            BadInput: an agent without an action, or one that is not a number.
            RuntimeError: before `reset`, or after the last round.
        """
        if self.market is None or not self.agents:
            raise RuntimeError("the episode is over or has not begun; call reset")
        multiples = np.array([_number(actions, agent) for agent in self.agents])
        self._steered.multiples[0] = np.clip(multiples, 0.0, self.reach)
        self.market.step()
        people = self._steered.population
        clicks, charges = self._steered.last.outcome(self.signal)
        value = people.values * clicks
        prices = np.where(people.value_maximizer, self.roi_price, 0.0)
        rewards = worth(people, prices, value, charges)[0] / self.scenario.requests_per_round
        over = self.market.round >= self.scenario.rounds
        agents = self.agents
        result = (
            self._observe(),
            dict(zip(agents, rewards.tolist(), strict=True)),
            dict.fromkeys(agents, False),
            dict.fromkeys(agents, over),
            {
                agent: {"value": float(value[0, i]), "charge": float(charges[0, i])}
                for i, agent in enumerate(agents)
            },
        )
        if over:
            self.agents = []
        return result

    def _observe(self) -> Observations:
        market, people, last = self.market, self._steered.population, self._steered.last
        N, B = len(people.values), self.scenario.requests_per_round
        seen = np.zeros((N, len(OBSERVED)))
        if last is not None:
            seen[:, 0] = self._steered.multiples[0]
            seen[:, 1] = last.requests[0] / B
            seen[:, 2] = last.clicks[0] / B
            seen[:, 3] = last.charges[0] / B / people.values
        value, paid = market.account.value[0], market.account.payments[0]
        target = np.where(people.value_maximizer, people.target_roi, 1.0)
        roi = np.divide(value, target * paid, out=np.zeros(N), where=paid > 0)
        seen[:, 4] = np.minimum(roi, HIGHEST_ROI)
        seen[:, 5] = np.where(np.isfinite(market.budgets), 1 - paid / market.budgets, 1.0)
        seen[:, 6] = 1 - market.round / self.scenario.rounds
        seen[:, 7] = people.value_maximizer
        # Charging exactly what is left of a budget may miss it by a rounding error.
        rows = np.maximum(seen, 0.0).astype(np.float32)
        return dict(zip(self.possible_agents, rows, strict=True))


class Steered(Learner):
    """Bids what it is told to, and keeps what it hears."""

    name = "steered"
    feedback = "bandit"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.multiples = np.ones((self.replications, len(self.population.values)))
        self.last: Feedback | None = None

    def bids(self) -> Floats:
        """(R, N) `multiples` times truthful."""
        return self.multiples * self.population.truthful_bids

    def learn(self, feedback: Feedback) -> None:
        """Keep it."""
        self.last = feedback


@dataclass(frozen=True, eq=False)
class Trained:
    """What `train_reinforce` ends with, for the N agents in order.

    Attributes:
        policy: parameters of the policies.
        state: their state, arrays (N,).
        medians: (episodes + 1, N) median bid multiples, at first and after each episode.
        rewards: (episodes, N) mean rewards.
    """

    policy: LogNormalPolicy
    state: dict[str, NDArray]
    medians: Floats
    rewards: Floats


def train_reinforce(
    env: MarketEnv,
    episodes: int,
    rng: np.random.Generator,
    policy: LogNormalPolicy | None = None,
) -> Trained:
    """Train every agent of `env` by policy gradient on its rewards, all at once, from truthful.

    Args:
        env: an environment with bid multiples as actions.
        episodes: how many to play, at least 1.
        rng: draws the episodes' seeds and the actions.
        policy: default `LogNormalPolicy()`.

    Raises:
        BadInput: fewer than 1 episode.
    """
    if episodes < 1:
        raise BadInput(f"episodes must be at least 1; got {episodes}")
    policy = policy or LogNormalPolicy()
    state = policy.start(np.ones(len(env.possible_agents)))
    medians, rewards = [np.exp(state["mean"])], []
    for _ in range(episodes):
        env.reset(seed=int(rng.integers(2**31)))
        earned = []
        while env.agents:
            multiples = policy.act(state, env.reach, rng)
            drawn = dict(zip(env.agents, multiples[:, None].astype(np.float32), strict=True))
            _, reward, _, _, _ = env.step(drawn)
            earned.append([reward[agent] for agent in env.possible_agents])
            policy.learn(state, env.reach, np.array(earned[-1]))
        medians.append(np.exp(state["mean"]))
        rewards.append(np.mean(earned, axis=0))
    return Trained(policy, state, np.array(medians), np.array(rewards))


def _steered(scenario: Any) -> SimpleNamespace:
    """What `MarketModel` reads of a scenario, with one replication and one learner for all."""
    learner = SimpleNamespace(name="truthful", parameters={})
    return SimpleNamespace(
        rounds=scenario.rounds,
        requests_per_round=scenario.requests_per_round,
        replications=1,
        advertisers=[
            SimpleNamespace(
                objective=spec.objective,
                value=spec.value,
                target_roi=spec.target_roi,
                budget=spec.budget,
                title=getattr(spec, "title", None),
                learner=learner,
            )
            for spec in scenario.advertisers
        ],
    )


def _number(actions: Mapping[str, Any], agent: str) -> float:
    if agent not in actions:
        raise BadInput(f"{agent} has no action; give a bid multiple for every agent")
    action = np.asarray(actions[agent], dtype=np.float64)
    if action.size != 1 or not np.isfinite(action).all():
        raise BadInput(f"{agent}: an action is one finite bid multiple; got {actions[agent]}")
    return float(action.reshape(()))
