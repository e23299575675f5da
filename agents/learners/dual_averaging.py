"""Dual averaging: follow the regularised leader over mixtures of bids, projected lazily.

    w_{t+1} = projection on the simplex of  prior + η_t Σ_s u_s,
    η_t = step · sqrt(8 C / V) · t^(½ − power),

with full feedback; V and C are those of `mixture.RegularisedLeader`, Euclidean. "Lazily", because
it is the *sum* of payoffs that is projected anew, not the last weights. With `step` 1 and `power` ½
the regret bound there holds, `1.36 sqrt(V C) + 4.42 max ‖u‖` with C < ½ and ‖u‖² up to G times the
squared range: in the worst case worse than hedge's by `sqrt(G / ln G)`.

How it differs from hedge, its entropic sibling (`regulariser="entropic"` with the other defaults
*is* hedge): bids that trail have weight exactly 0, not exp(−something). So a strict equilibrium is
reached, in pure bids, after finitely many rounds, and where payoffs are nearly flat the mixture
shrinks to the few best bids. `power` below ½ (as low as 0.05 in SODA's experiments) trades the
bound for speed where the game is kind: with the same payoffs every round any η may do.

This is the learner for *fixed* values. Over strategies that map a value to bids, with values
redrawn each round, the same iteration is in `experiments`.

Literature: Nesterov 2009; Xiao 2010; Mertikopoulos & Zhou 2019 (convergence to strict equilibria);
Bichler, Fichtl & Oberlechner 2023 (SODA).
"""

from __future__ import annotations

import numpy as np

from agents.learners.base import Population
from agents.learners.mixture import EUCLIDEAN, RegularisedLeader


class DualAveraging(RegularisedLeader):
    """Regularised leader on bids `0 .. max_multiple` times the truthful bid.

    Args:
        grid_size: G, number of bids, at least 2.
        max_multiple: highest bid in multiples of the truthful bid; default 1.5 for utility and 3
            for value maximizers.
        regulariser: `euclidean` or `entropic`.
        step: factor of the rate, > 0.
        power: the rate falls as `t^−power`, in [0, 1].

    State: see `RegularisedLeader`.

    Raises:
        BadInput: parameters out of range, or feedback without a grid.
    """

    name = "dual-averaging"

    def __init__(
        self,
        population: Population,
        replications: int,
        rng: np.random.Generator,
        *,
        grid_size: int = 61,
        max_multiple: float | None = None,
        regulariser: str = EUCLIDEAN,
        step: float = 1.0,
        power: float = 0.5,
    ) -> None:
        super().__init__(
            population,
            replications,
            rng,
            grid_size=grid_size,
            max_multiple=max_multiple,
            regulariser=regulariser,
            step=step,
            power=power,
        )
