"""Hedge: exponential weights over a grid of bids, with full counterfactual feedback.

After round t the learner knows, for every grid bid g, the clicks `x_g` and payments `p_g` that bid
would have had. Its payoff is

    utility maximizer    u_g = v x_g − p_g
    value maximizer      u_g = v x_g + λ (v x_g − τ p_g),     τ the target ROI,

and the next bid is drawn from `w_g ∝ exp(η Σ_s u_{s,g})`. The rate is the textbook anytime one,
`η = sqrt(8 ln G / t)`, for payoffs whose range is 1. Ranges here depend on click rates and rivals
and nobody knows them beforehand, so t gives way to `V = Σ_s δ_s²`, δ_s being the range of round s
over the grid: the same rate where δ = 1, and no constant to tune in any unit of money.

Regret against the best fixed bid after T rounds:  `≤ 1.36 sqrt(V ln G) + 4.42 max_s δ_s`.
Proof: regret ≤ ln G / η + Σ mixability gaps, each gap ≤ min(δ_s, η_s δ_s² / 8) (Hoeffding). Where
δ_s² ≤ V_{s−1} the gaps add up to sqrt(V ln G); where not, V doubles, a geometric series.

The dual variable λ ≥ 0 of the ROI constraint follows entropic mirror descent on the expected slack
of the current mixture, `λ ← λ exp(−slack / (mean value · sqrt(t)))`. Primal and dual both have
vanishing regret, so it is the *time-averaged* strategy that approaches the constrained optimum;
the last iterate may circle around it. Budgets are left to the platform's hard stop (see pacing).

Literature: Freund & Schapire 1997; Cesa-Bianchi & Lugosi 2006, section 2.3; for rates from observed
ranges Cesa-Bianchi, Mansour & Stoltz 2007 and de Rooij et al. 2014 (AdaHedge, lemma 2); for the
multiplicative ROI multiplier Feng, Padmanabhan & Wang 2023.
"""

from __future__ import annotations

import numpy as np

from agents.learners.base import UTILITY_REACH, Feedback, Learner, Population
from mechanisms.errors import BadInput
from mechanisms.pool import Floats

# Reach of the grid in multiples of the truthful bid. Utility maximizers never gain above v. Value
# maximizers under Rochet payments are charged less than they bid and settle at up to 2 (measured).
VALUE_GRID = 3.0  # value maximizers' grid, in truthful bids; wider would be coarser
MULTIPLIER_RANGE = (1e-3, 1e3)


class Hedge(Learner):
    """Exponential weights on bids `0 .. max_multiple` times the truthful bid.

    Args:
        grid_size: G, number of bids, at least 2.
        max_multiple: highest bid in multiples of the truthful bid; default 1.5 for utility and 3
            for value maximizers.

    State:
        payoffs (R, N, G) summed payoffs; squared_range (R, N) the V above; weights (R, N, G) the
        current mixture; average_weights (R, N, G) its mean over the rounds learned from;
        multiplier (R, N) λ, 0 for utility maximizers; mean_value (R, N) mean expected value of a
        round; rounds () rounds learned from.

    Raises:
        BadInput: parameters out of range, or feedback without a grid.
    """

    name = "hedge"
    feedback = "full"

    def __init__(
        self,
        population: Population,
        replications: int,
        rng: np.random.Generator,
        *,
        grid_size: int = 61,
        max_multiple: float | None = None,
    ) -> None:
        super().__init__(population, replications, rng)
        if isinstance(grid_size, bool) or int(grid_size) != grid_size or grid_size < 2:
            raise BadInput(f"hedge: grid_size must be an integer >= 2; got {grid_size}")
        if max_multiple is not None and not 0 < max_multiple < np.inf:
            raise BadInput(f"hedge: max_multiple must be positive and finite; got {max_multiple}")
        G = int(grid_size)
        vm = population.value_maximizer
        reach = np.where(vm, VALUE_GRID, UTILITY_REACH) if max_multiple is None else max_multiple
        top = population.truthful_bids * reach
        self._grid = top[:, None] * np.linspace(0, 1, G)
        shape = (replications, len(top))
        self.state = {
            "payoffs": np.zeros((*shape, G)),
            "squared_range": np.zeros(shape),
            "weights": np.full((*shape, G), 1 / G),
            "average_weights": np.full((*shape, G), 1 / G),
            "multiplier": np.tile(vm.astype(float), (replications, 1)),
            "mean_value": np.zeros(shape),
            "rounds": np.zeros((), dtype=np.int64),
        }

    @property
    def grid(self) -> Floats:
        """(N, G) bids of the grid, from 0 up."""
        return self._grid

    @property
    def mean_bids(self) -> Floats:
        """(R, N) mean of the current mixture."""
        return (self.state["weights"] * self._grid).sum(axis=-1)

    @property
    def average_bids(self) -> Floats:
        """(R, N) mean of the time-averaged mixture."""
        return (self.state["average_weights"] * self._grid).sum(axis=-1)

    @property
    def regret_bound(self) -> Floats:
        """(R, N) bound on regret so far, less the `4.42 max δ` of the opening rounds."""
        return 1.36 * np.sqrt(self.state["squared_range"] * np.log(self._grid.shape[1]))

    def bids(self) -> Floats:
        """(R, N) bids drawn from the mixture; every call draws afresh."""
        cumulative = np.cumsum(self.state["weights"], axis=-1)
        u = self.rng.random(cumulative.shape[:2])[..., None] * cumulative[..., -1:]
        drawn = np.minimum((cumulative <= u).sum(axis=-1), self._grid.shape[1] - 1)
        return self._grid[np.arange(len(self._grid)), drawn]

    def learn(self, feedback: Feedback) -> None:
        """Add the round's payoffs of every grid bid, then move λ and the weights."""
        if feedback.grid_itctr is None or feedback.grid_payments is None:
            raise BadInput("hedge learns from full feedback; give grid_itctr and grid_payments")
        state, people = self.state, self.population
        state["rounds"] = t = state["rounds"] + 1
        state["average_weights"] += (state["weights"] - state["average_weights"]) / t
        value = people.values[:, None] * feedback.grid_itctr
        multiplier = state["multiplier"]
        price = np.where(people.value_maximizer, multiplier * people.target_roi, 1.0)
        payoff = (1 + multiplier)[..., None] * value - price[..., None] * feedback.grid_payments
        state["payoffs"] += payoff
        state["squared_range"] += np.ptp(payoff, axis=-1) ** 2
        self._move_multiplier(value, feedback.grid_payments, t)
        state["weights"] = self._mixture()

    def _move_multiplier(self, value: Floats, payments: Floats, t: int) -> None:
        state, people = self.state, self.population
        expected = (state["weights"] * value).sum(axis=-1)
        paid = (state["weights"] * payments).sum(axis=-1)
        state["mean_value"] += (expected - state["mean_value"]) / t
        scale = np.where(state["mean_value"] > 0, state["mean_value"], np.inf)
        slack = (expected - people.target_roi * paid) / scale
        # UMs have λ = 0 and stay there: only the clip must leave them out.
        step = np.exp(np.clip(-slack / np.sqrt(t), -50, 50))
        moved = np.clip(state["multiplier"] * step, *MULTIPLIER_RANGE)
        state["multiplier"] = np.where(people.value_maximizer, moved, 0.0)

    def _mixture(self) -> Floats:
        state = self.state
        seen = np.where(state["squared_range"] > 0, state["squared_range"], np.inf)
        rate = np.sqrt(8 * np.log(self._grid.shape[1]) / seen)[..., None]
        exponent = rate * (state["payoffs"] - state["payoffs"].max(axis=-1, keepdims=True))
        weights = np.exp(exponent)
        return weights / weights.sum(axis=-1, keepdims=True)
