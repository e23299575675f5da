"""The market as a PettingZoo environment: whoever can act in one can be an advertiser here.

An agent is an advertiser, a step is a round of a `MarketModel` with one replication (under a
mechanism that reads bids once a period: a period, in means over its rounds), an episode is the
scenario's rounds. Learners are replaced by the actions; everything else (arrivals, mechanism,
users, budgets, records) is the market's own.

    action        the bid, in multiples of the truthful one: Box [0, reach], reach 1.5 for utility
                  and 10 for value maximizers; truthful is v, and v / τ for value maximizers
    reward        per request, of what was realised or expected (`signal`):
                  utility maximizer   v x − p
                  value maximizer     v x + λ (v x − τ p), over 1 + λ, λ the price of ROI
    observation   see `OBSERVED`; only what an advertiser may know, and no unit of money

What a value maximizer earns is `v x − λ τ p / (1 + λ)`: at a *fixed* λ it is a utility maximizer
who values a click at `v (1 + λ) / (λ τ)`, and rewards are stationary. It bids like a value
maximizer only if λ is the shadow price of the target in its market: at a lower one it misses the
target, at a higher one it gives up value that the target leaves room for. `roi_price="moving"`
finds that price as learners do (`agents.learners.lagrangian`): λ rises with every round that misses
the target and falls with every one that beats it.

`train_reinforce` trains the policy of that learner through this interface alone.

The interface: Terry et al. 2021, "PettingZoo: Gym for multi-agent reinforcement learning".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from agents.learners import Feedback, Learner
from agents.learners.base import SIGNALS, UTILITY_REACH, VALUE_REACH
from agents.learners.lagrangian import initial_multiplier, move_multiplier, worth
from agents.learners.reinforce import LogNormalPolicy
from market.model import MarketModel
from mechanisms.base import Mechanism
from mechanisms.checks import one_of, whole
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, ReplyPool
from mechanisms.registry import make_mechanism

OBSERVED = (
    "bid of the last round over the truthful one; 0 once the budget is gone",
    "share of the last round's requests in which it was a candidate",
    "clicks per request, last round",
    "charge per request, last round, over value per click; below 0 where the platform paid",
    "ROI so far over target ROI (1 for utility maximizers), at most 10; 0 if nothing is paid",
    "share of the budget left; 1 without a budget",
    "share of rounds left",
    "1 for a value maximizer, else 0",
)
"""Entries of an observation, in order. Before the first round the first four are 0."""
CHARGE = 3  # its place in an observation
HIGHEST_ROI = 10.0
MOVING = "moving"

Observations = dict[str, NDArray[np.float32]]


class MarketEnv(ParallelEnv):
    """A market whose advertisers' bids come from outside.

    Args:
        scenario: as for `MarketModel`; its learners and replications are left out of account.
        pool: candidate replies; default the scenario's, recorded or synthetic.
        mechanism: default the scenario's.
        signal: `realised` rewards clicks and charges, `expected` what was expected of the round.
        roi_price: λ in the rewards of value maximizers: a number >= 0, or `moving`, which starts
            at 1 in every episode (but see `reset`).

    Attributes:
        market: the `MarketModel` of this episode, with its ledger; None before `reset`.
        roi_prices: (N,) λ of the next reward; 0 for utility maximizers.
        reach: (N,) highest multiple of the truthful bid.

    Raises:
        BadInput: a live scenario, an unknown signal, a price that is none, or what `MarketModel`
            says.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "admarket_v0", "render_modes": []}

    def __init__(
        self,
        scenario: Any,
        *,
        pool: ReplyPool | None = None,
        mechanism: Mechanism | None = None,
        signal: str = "realised",
        roi_price: float | Literal["moving"] = 1.0,
    ) -> None:
        one_of("signal", signal, SIGNALS)
        moving = roi_price == MOVING
        if not moving and not (isinstance(roi_price, Real) and 0 <= roi_price < np.inf):
            raise BadInput(f"roi_price is {roi_price!r}; give a finite number >= 0, or {MOVING!r}")
        if mechanism is None:
            wanted = scenario.mechanism
            mechanism = make_mechanism(wanted.name, **dict(wanted.parameters))
        if pool is None:
            pool, live = scenario.replies_for(mechanism, 0)
            if live is not None:
                raise BadInput(
                    "replies.source: is live, which MarketEnv does not play; record them"
                )
        self.scenario = _steered(scenario)
        self.pool, self.mechanism = pool, mechanism
        self.signal, self._moving = signal, moving
        self.market: MarketModel | None = None
        specs = self.scenario.advertisers
        vm = np.array([spec.objective == "value" for spec in specs])
        self.reach = np.where(vm, VALUE_REACH, UTILITY_REACH)
        self.roi_prices = np.where(vm, 1.0 if moving else float(roi_price), 0.0)
        self._dual: dict[str, NDArray] | None = None  # of λ, where it moves
        self.possible_agents = [f"advertiser_{i}" for i in range(len(specs))]
        self.agents: list[str] = []
        low, high = np.zeros(len(OBSERVED), np.float32), np.full(len(OBSERVED), np.inf, np.float32)
        low[CHARGE] = -np.inf  # a settlement may pay an advertiser
        # PettingZoo wants the same object for an agent each time: seeding a space must last.
        self._actions = {
            agent: Box(0.0, np.float32(reach), (1,), np.float32)
            for agent, reach in zip(self.possible_agents, self.reach, strict=True)
        }
        self._observations = {
            agent: Box(low, high, dtype=np.float32) for agent in self.possible_agents
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
        """Open a new market. Episodes after a `seed` differ, by seeds that follow from it.

        Args:
            seed: of this episode's market and of what follows.
            options: `{"keep_prices": True}` lets a moving λ go on from where the last episode left
                it, for training over many.
        """
        if seed is not None:
            self._seeds = np.random.default_rng(seed)
        drawn = int(self._seeds.integers(2**31))
        self.market = MarketModel(
            self.scenario, drawn, pool=self.pool, mechanism=self.mechanism, label="market"
        )
        [group] = self.market.groups
        self._steered = Steered(group.learner.population, 1, self._seeds)
        self.market.groups = [replace(group, learner=self._steered)]
        keep = self._dual is not None and (options or {}).get("keep_prices", False)
        if self._moving and not keep:
            self._dual = initial_multiplier(group.learner.population, 1)
            self.roi_prices = self._dual["multiplier"][0]
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
        last_round = False
        while not last_round:
            last_round = self.market.period_ends
            self.market.step()
        people = self._steered.population
        clicks, charges = self._steered.last.outcome(self.signal)
        value = people.values * clicks
        rewards = worth(people, self.roi_prices, value, charges)[0]
        rewards = rewards / self.scenario.requests_per_round
        if self._dual is not None:
            self._dual["rounds"] = self._dual["rounds"] + 1
            move_multiplier(self._dual, people, value, charges)
            self.roi_prices = self._dual["multiplier"][0]
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
            seen[:, 0] = market.bids[0] / people.truthful_bids
            seen[:, 1] = last.requests[0] / B
            seen[:, 2] = last.clicks[0] / B
            seen[:, CHARGE] = last.charges[0] / B / people.values
        value, paid = market.account.value[0], market.account.payments[0]
        target = np.where(people.value_maximizer, people.target_roi, 1.0)
        roi = np.divide(value, target * paid, out=np.zeros(N), where=paid > 0)
        seen[:, 4] = np.minimum(roi, HIGHEST_ROI)
        # Charging exactly what is left of a budget may miss it by a rounding error.
        left = np.maximum(1 - paid / market.budgets, 0.0)
        seen[:, 5] = np.where(np.isfinite(market.budgets), left, 1.0)
        seen[:, 6] = 1 - market.round / self.scenario.rounds
        seen[:, 7] = people.value_maximizer
        return dict(zip(self.possible_agents, seen.astype(np.float32), strict=True))


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

    Prices of ROI that move go on from episode to episode.

    Args:
        env: an environment with bid multiples as actions.
        episodes: how many to play, at least 1.
        rng: draws the episodes' seeds and the actions.
        policy: default `LogNormalPolicy()`.

    Raises:
        BadInput: fewer than 1 episode.
    """
    whole("episodes", episodes, least=1)
    policy = policy or LogNormalPolicy()
    state = policy.start(np.ones(len(env.possible_agents)))
    medians, rewards = [np.exp(state["mean"])], []
    for episode in range(episodes):
        env.reset(seed=int(rng.integers(2**31)), options={"keep_prices": episode > 0})
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
    try:
        action = np.asarray(actions[agent], dtype=np.float64)
    except (TypeError, ValueError):  # text, say, or rows of different lengths
        action = np.empty(0)
    if action.size != 1 or not np.isfinite(action).all():
        raise BadInput(f"{agent}: an action is one finite bid multiple; got {actions[agent]!r}")
    return float(action.reshape(()))
