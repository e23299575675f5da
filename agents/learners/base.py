"""What every learner is: `bids()` before a round, `learn(feedback)` after it.

One learner object holds the state of *all* advertisers that use it, in all replications, as arrays
with leading axes (replications R, advertisers N of this learner). A Mesa advertiser is an identity,
an objective and an account, with a view on that state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mechanisms.errors import BadInput
from mechanisms.pool import Floats

UTILITY_REACH, VALUE_REACH = 1.5, 10.0
"""Highest bids considered, in multiples of truthful ones. Value maximizers need the room: under
Rochet payments they bid well above, and where the target never binds no finite bid is best."""


@dataclass(frozen=True, eq=False)
class Population:
    """Private types of the N advertisers that share a learner.

    Attributes:
        values: (N,) value per click, > 0.
        value_maximizer: (N,) bool; False is a utility maximizer.
        target_roi: (N,) least value per unit paid (`tau_roi`); used by value maximizers only.
        budget: (N,) most an advertiser may spend per round, on average; infinite for none.
    """

    values: Floats
    value_maximizer: NDArray[np.bool_]
    target_roi: Floats
    budget: Floats

    def __post_init__(self) -> None:
        for name, low in (("values", 0.0), ("target_roi", 0.0), ("budget", 0.0)):
            array = getattr(self, name)
            if array.shape != self.values.shape or not (array > low).all():
                raise BadInput(f"{name} must be positive, one per advertiser; got {array}")

    @property
    def truthful_bids(self) -> Floats:
        """(N,) `v`, and `v / tau_roi` for value maximizers (DESIGN 3.6)."""
        return np.where(self.value_maximizer, self.values / self.target_roi, self.values)


@dataclass(frozen=True, eq=False)
class Feedback:
    """What a learner may see of a round; sums over the round's requests, per replication.

    Attributes:
        clicks: (R, N) realised clicks.
        charges: (R, N) realised charges.
        itctr: (R, N) expected clicks of the bids played.
        payments: (R, N) expected payments of the bids played.
        requests: (R, N) requests in which the advertiser was a candidate.
        grid_itctr: (R, N, G) expected clicks had it bid each grid bid; None under bandit feedback.
        grid_payments: (R, N, G) expected payments likewise.
    """

    clicks: Floats
    charges: Floats
    itctr: Floats
    payments: Floats
    requests: Floats
    grid_itctr: Floats | None = None
    grid_payments: Floats | None = None


class Learner(ABC):
    """Adapts the bids of its population over rounds.

    Subclasses set `name` and `feedback`, implement `bids` and `learn`, and keep all that changes in
    `self.state`, a dict of arrays, so that a checkpoint is `state` and the generator, nothing else.
    """

    name: ClassVar[str]
    feedback: ClassVar[Literal["full", "bandit", "none"]]

    def __init__(self, population: Population, replications: int, rng: np.random.Generator) -> None:
        self.population = population
        self.replications = replications
        self.rng = rng
        self.state: dict[str, NDArray] = {}

    @property
    def grid(self) -> Floats | None:
        """(N, G) bids whose counterfactual outcomes the learner wants; None if it wants none."""
        return None

    @abstractmethod
    def bids(self) -> Floats:
        """(R, N) bids for the coming round."""

    @abstractmethod
    def learn(self, feedback: Feedback) -> None:
        """Take in the round that was played with the last `bids()`."""
