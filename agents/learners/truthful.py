"""Truthful bidding: the yardstick every other learner is measured against.

A utility maximizer bids its value `v`; a value maximizer bids `v / tau_roi`, the largest bid that
keeps its ROI target under every rule that never charges more than the bid.
"""

from __future__ import annotations

import numpy as np

from agents.learners.base import Feedback, Learner
from mechanisms.pool import Floats


class Truthful(Learner):
    """Bids `population.truthful_bids` for ever."""

    name = "truthful"
    feedback = "none"

    def bids(self) -> Floats:
        """(R, N) truthful bids, the same in every round."""
        return np.tile(self.population.truthful_bids, (self.replications, 1))

    def learn(self, feedback: Feedback) -> None:
        """Nothing to learn."""
