"""Hedge: exponential weights over a grid of bids, with full counterfactual feedback.

After round t the learner knows, for every grid bid g, the clicks `x_g` and payments `p_g` that bid
would have had, hence its payoff `u_g` (`lagrangian`: value less payment, or value with the ROI
target priced by λ). The next bid is drawn from

    w_g ∝ exp(η Σ_s u_{s,g}),        η = sqrt(8 ln G / V),      V = Σ_s δ_s²,

δ_s being the range of round s over the grid. Where δ = 1 this is the textbook anytime rate
`sqrt(8 ln G / t)`; it is the entropic case of `mixture.RegularisedLeader`, whose proof gives

    regret against the best fixed bid after T rounds  ≤  1.36 sqrt(V ln G) + 4.42 max_s δ_s.

(`step` s multiplies η; for 1.36 it is then `0.36 / s + s`.) With λ moving, this holds for payoffs
as they were priced in each round; λ's own regret vanishes too, so the *time-averaged* strategy
approaches the constrained optimum. Budgets are left to the platform's hard stop (see pacing).

Literature: Freund & Schapire 1997; Cesa-Bianchi & Lugosi 2006, section 2.3; for rates from observed
ranges Cesa-Bianchi, Mansour & Stoltz 2007 and de Rooij et al. 2014 (AdaHedge, lemma 2).
"""

from __future__ import annotations

import numpy as np

from agents.learners.base import Population
from agents.learners.mixture import RegularisedLeader


class Hedge(RegularisedLeader):
    """Exponential weights on bids `0 .. max_multiple` times the truthful bid.

    Args:
        grid_size: G, number of bids, at least 2.
        max_multiple: highest bid in multiples of the truthful bid; default 1.5 for utility and 3
            for value maximizers.
        step: factor of the rate η, > 0. Where rounds resemble each other, as in a game on a whole
            pool, 10 settles sooner than 1, which guards against the worst case.

    State: see `RegularisedLeader`.

    Raises:
        BadInput: parameters out of range, or feedback without a grid.
    """

    name = "hedge"

    def __init__(
        self,
        population: Population,
        replications: int,
        rng: np.random.Generator,
        *,
        grid_size: int = 61,
        max_multiple: float | None = None,
        step: float = 1.0,
    ) -> None:
        super().__init__(
            population,
            replications,
            rng,
            grid_size=grid_size,
            max_multiple=max_multiple,
            step=step,
        )
