"""What a round is worth to an advertiser, with its ROI target priced by a multiplier.

    utility maximizer    u = v x − p
    value maximizer      u = v x + λ (v x − τ p),     τ the target ROI,

for clicks x and payment p. The dual variable λ ≥ 0 follows entropic mirror descent on the slack of
what was played,

    λ ← λ exp(−(v x − τ p) / (mean value · sqrt(t))),

which needs no unit of money. A primal learner and this dual one both have vanishing regret, so it
is the *time-averaged* strategy that approaches the constrained optimum; the last one may circle.

Literature: Feng, Padmanabhan & Wang 2023 (multiplicative ROI multiplier); Castiglioni, Celli &
Kroer 2022 (primal-dual with regret minimisers on both sides).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents.learners.base import Population
from mechanisms.pool import Floats

LOWEST, HIGHEST = 1e-3, 1e3
"""Range of λ."""


def initial_multiplier(population: Population, replications: int) -> dict[str, NDArray]:
    """The part of a learner's state that belongs to λ.

    Returns:
        multiplier (R, N) λ, 1 for value maximizers and 0 for utility maximizers; mean_value (R, N)
        mean value of a round; rounds () rounds learned from.
    """
    vm = population.value_maximizer
    return {
        "multiplier": np.tile(vm.astype(float), (replications, 1)),
        "mean_value": np.zeros((replications, len(vm))),
        "rounds": np.zeros((), dtype=np.int64),
    }


def worth(population: Population, multiplier: Floats, value: Floats, paid: Floats) -> Floats:
    """`u` of `value` v x and `paid` p, all (R, N): the Lagrangian, divided by 1 + λ.

    Divided, so that its scale is that of value and payment whatever λ is; utility maximizers have
    λ = 0 and lose nothing by it.
    """
    price = np.where(population.value_maximizer, multiplier * population.target_roi, 1.0)
    return value - price * paid / (1 + multiplier)


def move_multiplier(
    state: dict[str, NDArray], population: Population, value: Floats, paid: Floats
) -> None:
    """Move λ by the slack of a round that brought `value` (R, N) for `paid` (R, N).

    `state["rounds"]` counts this round already.
    """
    t = state["rounds"]
    mean = state["mean_value"] + (value - state["mean_value"]) / t
    scale = np.where(mean > 0, mean, np.inf)
    slack = (value - population.target_roi * paid) / scale
    # The range makes any exponent beyond ±50 the same; exp of a larger one would overflow.
    step = np.exp(np.clip(-slack / np.sqrt(t), -50, 50))
    moved = np.clip(state["multiplier"] * step, LOWEST, HIGHEST)
    state["mean_value"] = mean
    state["multiplier"] = np.where(population.value_maximizer, moved, 0.0)
