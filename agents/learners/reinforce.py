"""REINFORCE: policy gradient on the bid, from nothing but its own outcomes.

Every advertiser has a log-normal policy over multiples of its truthful bid, `log m ~ N(μ, σ²)`. It
draws, sees its payoff u, and moves μ and ln σ along `A ∇ log density`, with the advantage
`A = (u − mean of u) / spread of u`, which takes out the unit of money and the level that all bids
share. Taken as a *natural* gradient (divided by Fisher's information, 1/σ² for μ and 2 for ln σ)
that is, for a draw z standard deviations off,

    μ ← μ + η A σ z,        ln σ ← ln σ + η A (z² − 1) / 2,        η = step / sqrt(t),

so that no step depends on how bids are scaled either. σ shrinks where the best bid is in sight, and
never below a floor: without exploration the gradient would be nothing but noise.

In expectation this climbs `E u` under the policy, to a local maximum. `E ∇ log density = 0` is why
the baseline is free (Williams 1992). There is no regret bound; its use is that it asks for nothing
but a reward, hence trains through a PettingZoo environment as well as in the market
(`market.parallel_env.train_reinforce`). Value maximizers' ROI is priced by λ, as in exp3.

Literature: Williams 1992; Kakade 2001 (natural policy gradient); Sutton et al. 2000.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from agents.learners.base import (
    SIGNALS,
    UTILITY_REACH,
    Feedback,
    Learner,
    Population,
    Strategy,
)
from agents.learners.bid_grid import VALUE_GRID
from agents.learners.lagrangian import initial_multiplier, move_multiplier, worth
from mechanisms.checks import one_of, positive
from mechanisms.errors import BadInput
from mechanisms.pool import Floats

LOWEST = 0.01  # multiple of the truthful bid
QUANTILES = 9  # bids that `strategy` stands for the log-normal by
FRESH = 0.02  # least weight of a payoff in the running mean and spread of payoffs
LARGEST = 3.0  # advantage: one round in which everything happened must not throw the policy off


@dataclass(frozen=True)
class LogNormalPolicy:
    """A log-normal policy over multiples of the truthful bid, for advertisers in any shape S.

    It holds parameters; what changes is in a dict of arrays that `start` makes, each of shape S:
    mean μ, log_spread ln σ, draw (the last `log m`), payoff_mean and payoff_square (running means
    of payoffs and of squared deviations); and steps () the payoffs learned from.

    Attributes:
        step: η of the schedule `η / sqrt(t)`, > 0.
        spread: σ at the start, > floor.
        floor: least σ, > 0.

    Raises:
        BadInput: a parameter out of range.
    """

    step: float = 1.0
    spread: float = 0.3
    floor: float = 0.1

    def __post_init__(self) -> None:
        for name in ("step", "spread", "floor"):
            positive(name, getattr(self, name))
        if self.floor >= self.spread:
            raise BadInput(f"floor is {self.floor}; give less than spread, {self.spread:g}")

    def start(self, multiples: Floats) -> dict[str, NDArray]:
        """State of policies whose medians are `multiples` (S), at least `LOWEST`."""
        multiples = np.maximum(multiples, LOWEST)
        return {
            "mean": np.log(multiples),
            "log_spread": np.full(multiples.shape, np.log(self.spread)),
            "draw": np.log(multiples),
            "payoff_mean": np.zeros(multiples.shape),
            "payoff_square": np.zeros(multiples.shape),
            "steps": np.zeros((), dtype=np.int64),
        }

    def act(self, state: dict[str, NDArray], reach: Floats, rng: np.random.Generator) -> Floats:
        """(S) multiples drawn from the policies, at most `reach`."""
        noise = rng.standard_normal(state["mean"].shape)
        state["draw"] = state["mean"] + np.exp(state["log_spread"]) * noise
        return np.clip(np.exp(state["draw"]), LOWEST, reach)

    def learn(self, state: dict[str, NDArray], reach: Floats, payoff: Floats) -> None:
        """Move the policies by the payoffs (S) of what they drew last."""
        state["steps"] = t = state["steps"] + 1
        # Means fade, since payoffs of a policy since left are no measure of this one.
        fresh = max(1 / float(t), FRESH)
        surprise = payoff - state["payoff_mean"]
        state["payoff_mean"] = state["payoff_mean"] + fresh * surprise
        # The first payoff is its own mean and no surprise.
        square = (1 - fresh) * (state["payoff_square"] + fresh * surprise**2)
        state["payoff_square"] = square
        deviation = np.where(square > 0, np.sqrt(square), np.inf)
        advantage = np.clip(surprise / deviation, -LARGEST, LARGEST)
        spread = np.exp(state["log_spread"])
        z = (state["draw"] - state["mean"]) / spread
        rate = self.step / np.sqrt(t)
        moved = state["mean"] + rate * advantage * spread * z
        state["mean"] = np.clip(moved, np.log(LOWEST), np.log(reach))
        wider = state["log_spread"] + rate * advantage * (z**2 - 1) / 2
        state["log_spread"] = np.clip(wider, np.log(self.floor), np.log(self.spread))

    def quantiles(self, state: dict[str, NDArray], reach: Floats, count: int) -> Floats:
        """(S, count) multiples that stand for equal shares of the policies."""
        at = ndtri((np.arange(count) + 0.5) / count)
        logs = state["mean"][..., None] + np.exp(state["log_spread"])[..., None] * at
        return np.clip(np.exp(logs), LOWEST, np.asarray(reach)[..., None])


class Reinforce(Learner):
    """Policy gradient on a log-normal policy over multiples of the truthful bid.

    Args:
        max_multiple: highest bid in multiples of the truthful bid; default 1.5 for utility and 3
            for value maximizers.
        step: η of the schedule `η / sqrt(t)`, > 0.
        spread: standard deviation of a log bid at the start.
        floor: least standard deviation of a log bid.
        signal: `expected` learns from expected clicks and payments of the bid drawn; `realised`
            from clicks and charges, which is all that a real advertiser sees, and is noisier.

    State: see `LogNormalPolicy`; and multiplier, mean_value, rounds of `lagrangian`.

    Raises:
        BadInput: a parameter out of range.
    """

    name = "reinforce"
    feedback = "bandit"

    def __init__(
        self,
        population: Population,
        replications: int,
        rng: np.random.Generator,
        *,
        max_multiple: float | None = None,
        step: float = 1.0,
        spread: float = 0.3,
        floor: float = 0.1,
        signal: str = "expected",
    ) -> None:
        super().__init__(population, replications, rng)
        if max_multiple is not None:
            positive("max_multiple", max_multiple)
            if max_multiple <= LOWEST:
                raise BadInput(f"max_multiple is {max_multiple}; give more than {LOWEST}")
        one_of("signal", signal, SIGNALS)
        self.policy = LogNormalPolicy(step, spread, floor)
        self.signal = signal
        self.reach = np.where(population.value_maximizer, VALUE_GRID, UTILITY_REACH)
        if max_multiple is not None:
            self.reach = np.full(self.reach.shape, float(max_multiple))
        truthful = np.minimum(1.0, self.reach) * np.ones((replications, len(self.reach)))
        self.state = self.policy.start(truthful) | initial_multiplier(population, replications)

    @property
    def strategy(self) -> Strategy:
        """(R, N, 9) quantiles of the policies, of equal weight."""
        multiples = self.policy.quantiles(self.state, self.reach, QUANTILES)
        bids = multiples * self.population.truthful_bids[:, None]
        return bids, np.full(bids.shape, 1 / QUANTILES)

    def start_at(self, multiples: Floats) -> None:
        """The policies' medians in the first round, at least a hundredth of truthful."""
        self.state |= self.policy.start(np.minimum(self._checked_start(multiples), self.reach))

    def bids(self) -> Floats:
        """(R, N) bids drawn from the policies; every call draws afresh."""
        return self.policy.act(self.state, self.reach, self.rng) * self.population.truthful_bids

    def learn(self, feedback: Feedback) -> None:
        """Move the policies by the round's payoff, and λ by its slack."""
        state, people = self.state, self.population
        clicks, paid = feedback.outcome(self.signal)
        value = people.values * clicks
        self.policy.learn(state, self.reach, worth(people, state["multiplier"], value, paid))
        self._next_round()
        move_multiplier(state, people, value, paid)
