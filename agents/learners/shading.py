"""Fixed shading: every bid is the same fraction of the truthful one."""

from __future__ import annotations

import numpy as np

from agents.learners.base import Feedback, Learner, Population
from mechanisms.checks import positive
from mechanisms.errors import BadInput
from mechanisms.pool import Floats

HIGHEST = 10.0


class Shading(Learner):
    """Bids `factor` times the truthful bid for ever; above 1 it overbids.

    Args:
        factor: in (0, 10].

    Raises:
        BadInput: `factor` out of range.
    """

    name = "shading"
    feedback = "none"

    def __init__(
        self,
        population: Population,
        replications: int,
        rng: np.random.Generator,
        *,
        factor: float = 0.8,
    ) -> None:
        super().__init__(population, replications, rng)
        positive("factor", factor)
        if factor > HIGHEST:
            raise BadInput(f"factor is {factor}; give at most {HIGHEST:g}")
        self.factor = float(factor)

    def bids(self) -> Floats:
        """(R, N) shaded bids, the same in every round."""
        return np.tile(self.factor * self.population.truthful_bids, (self.replications, 1))

    def learn(self, feedback: Feedback) -> None:
        """Nothing to learn."""
