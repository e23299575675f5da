"""EXP3-IX: exponential weights over a grid of bids, from nothing but its own outcomes.

A learner with bandit feedback sees the payoff `u_t` of the bid it drew, and of no other. It feeds
exponential weights with an estimate of every bid's loss that is nearly right on average,

    l_g = 1[g drawn] (top − u_t) / (w_g + γ),      w_g ∝ exp(−η Σ_s l_{s,g}),
    η = sqrt(ln G / (G V)),   V = Σ_s δ_s²,        γ = η δ / 2,

where `top` is the greatest payoff seen so far and δ the range seen so far (of which 0 is part: the
payoff of not taking part). The small γ is "implicit exploration": it keeps the estimates' variance
in bounds, so that the guarantee holds with high probability and not only on average. For payoffs in
[0, 1] with both ends seen, η is `sqrt(ln G / (G t))`, and after any number of rounds T

    regret against the best fixed bid  ≤  4 sqrt(G T ln G) + (2 sqrt(G T / ln G) + 1) ln(2/ε)

with probability 1 − ε (Neu 2015, theorem 1). What the range costs until it has been seen is extra.

Value maximizers have their ROI target priced by λ, moved by the slack of the bid drawn, as in
hedge. Budgets are left to the platform's hard stop (see pacing).

Literature: Auer, Cesa-Bianchi, Freund & Schapire 2002; Kocák, Neu, Valko & Munos 2014; Neu 2015.
"""

from __future__ import annotations

import numpy as np

from agents.learners.base import SIGNALS, Feedback, Population
from agents.learners.lagrangian import move_multiplier, worth
from agents.learners.mixture import Mixture
from mechanisms.checks import one_of
from mechanisms.pool import Floats


class Exp3(Mixture):
    """Exponential weights on bids `0 .. max_multiple` times truthful, with bandit feedback.

    Args:
        grid_size: G, number of bids, at least 2; few, since each has to be tried.
        max_multiple: highest bid in multiples of the truthful bid; default 1.5 for utility and 3
            for value maximizers.
        signal: `expected` learns from expected clicks and payments of the bid drawn; `realised`
            from clicks and charges, which is all that a real advertiser sees, and is noisier.

    State:
        losses (R, N, G) summed estimates; top, bottom (R, N) ends of the range of payoffs so far;
        squared_ranges (R, N) the V above; and a mixture's.

    Raises:
        BadInput: a parameter out of range.
    """

    name = "exp3"
    feedback = "bandit"

    def __init__(
        self,
        population: Population,
        replications: int,
        rng: np.random.Generator,
        *,
        grid_size: int = 21,
        max_multiple: float | None = None,
        signal: str = "expected",
    ) -> None:
        super().__init__(
            population, replications, rng, grid_size=grid_size, max_multiple=max_multiple
        )
        one_of("signal", signal, SIGNALS)
        self.signal = signal
        shape = self.state["weights"].shape
        self.state |= {"losses": np.zeros(shape)} | {
            name: np.zeros(shape[:2]) for name in ("top", "bottom", "squared_ranges")
        }

    @property
    def regret_bound(self) -> Floats:
        """(R, N) bound on regret so far, less its term in ln(2/ε).

        `4 sqrt(G V ln G)`, of which the first mixture is a quarter: from an uneven one (`start_at`)
        it costs `−ln` of its least weight instead of ln G.
        """
        G = self.support.shape[1]
        start = -np.log(self.state["prior"].min(axis=-1)) / np.log(G)
        return (3 + start) * np.sqrt(G * np.log(G) * self.state["squared_ranges"])

    def learn(self, feedback: Feedback) -> None:
        """Charge the bid drawn with its estimated loss, then move λ and the weights."""
        state, people = self.state, self.population
        clicks, paid = feedback.outcome(self.signal)
        value = people.values * clicks
        weights = state["weights"]
        state["average_weights"] += (weights - state["average_weights"]) / self._next_round()
        payoff = worth(people, state["multiplier"], value, paid)
        state["top"] = np.maximum(state["top"], payoff)
        state["bottom"] = np.minimum(state["bottom"], payoff)
        width = state["top"] - state["bottom"]
        state["squared_ranges"] += width**2
        rate = self._rate()
        drawn = state["drawn"][..., None]
        likely = np.take_along_axis(weights, drawn, axis=-1)[..., 0]
        # Before any payoff but 0 has been seen both loss and width are 0.
        charged = (state["top"] - payoff) / (likely + np.where(width > 0, rate * width / 2, 1.0))
        before = np.take_along_axis(state["losses"], drawn, axis=-1)
        np.put_along_axis(state["losses"], drawn, before + charged[..., None], axis=-1)
        state["weights"] = self._mixture(rate)
        move_multiplier(state, people, value, paid)

    def _rate(self) -> Floats:
        """(R, N) η; 0 while every payoff has been 0."""
        G = self.support.shape[1]
        seen = np.where(self.state["squared_ranges"] > 0, self.state["squared_ranges"], np.inf)
        return np.sqrt(np.log(G) / (G * seen))

    def _mixture(self, rate: Floats) -> Floats:
        losses = self.state["losses"]
        least = losses.min(axis=-1, keepdims=True)
        weights = self.state["prior"] * np.exp(rate[..., None] * (least - losses))
        return weights / weights.sum(axis=-1, keepdims=True)
