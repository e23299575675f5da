"""What every method of search is: it spends tokens on evaluations, and then believes something."""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np

from mechanisms.iamfm.evaluations import Belief, Evaluations
from mechanisms.pool import Floats, Ints


class Method(Protocol):
    """A way to look for the configuration of the highest weighted outcome.

    Methods hold parameters and no state: all they know is in the `Evaluations`. So a search can be
    taken up where another one, for other weights, has ended (a warm start).
    """

    name: ClassVar[str]

    def search(
        self,
        known: Evaluations,
        weights: Floats,
        tokens: float,
        purpose: str,
        rng: np.random.Generator,
        among: Ints | None = None,
    ) -> None:
        """Spend at most `tokens` more on finding the best configuration.

        Args:
            known: all samples so far; more are added.
            weights: (n + 1,) of an outcome, see `mechanisms.iamfm.evaluations.weights_of`.
            tokens: allowance; the budget of `known` is a limit besides.
            purpose: what they are booked on.
            rng: for ties and random choices.
            among: (k,) configurations to look at; default all.
        """

    def belief(self, known: Evaluations) -> Belief:
        """What the samples say of all configurations at the unbiased level."""

    def choose(self, known: Evaluations, weights: Floats) -> int:
        """The configuration it would play."""
