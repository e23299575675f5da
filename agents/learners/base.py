"""What every learner is: `bids()` before a round, `learn(feedback)` after it.

One learner object holds the state of *all* advertisers that use it, in all replications, as arrays
with leading axes (replications R, advertisers N of this learner). A Mesa advertiser is an identity,
an objective and an account, with a view on that state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agents.snapshots import restore_to, snapshot_of
from mechanisms.errors import BadInput
from mechanisms.pool import Floats

UTILITY_REACH, VALUE_REACH = 1.5, 10.0
"""Highest bids considered, in multiples of truthful ones. Value maximizers need the room: under
Rochet payments they bid well above, and where the target never binds no finite bid is best."""


Strategy: TypeAlias = tuple[Floats, Floats]
"""Support (N, K) or (R, N, K) of bids, and weights (R, N, K) >= 0 that sum to 1 over K."""

SIGNALS = ("expected", "realised")
"""What learners with bandit feedback may go by: see `Feedback.outcome`."""


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

    @cached_property
    def truthful_bids(self) -> Floats:
        """(N,) `v`, and `v / tau_roi` for value maximizers; read-only."""
        bids = np.where(self.value_maximizer, self.values / self.target_roi, self.values)
        bids.flags.writeable = False
        return bids


def meets(value: Floats, payment: Floats, roi: Floats | float) -> NDArray[np.bool_]:
    """Whether `value >= roi·payment`, any shapes that broadcast; 1e-9 of it forgiven as rounding.

    Truth meets a target with equality under first prices.
    """
    owed = roi * payment
    return value >= owed - 1e-9 * np.abs(owed)


@dataclass(slots=True, eq=False)  # not frozen: made anew in every round, and freezing is slow
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

    def outcome(self, signal: str) -> tuple[Floats, Floats]:
        """(R, N) clicks and payments of the bids played: `expected`, or `realised` by the dice."""
        if signal == "expected":
            return self.itctr, self.payments
        return self.clicks, self.charges

    def along_grid(self, learner: str) -> tuple[Floats, Floats]:
        """(R, N, G) clicks and payments of every grid bid; BadInput under bandit feedback."""
        if self.grid_itctr is None or self.grid_payments is None:
            raise BadInput(f"{learner} learns from full feedback; give grid_itctr, grid_payments")
        return self.grid_itctr, self.grid_payments


class Learner(ABC):
    """Adapts the bids of its population over rounds.

    Subclasses set `name` and `feedback`, implement `bids` and `learn`, and keep all that changes in
    `self.state`, a dict of arrays, so that a checkpoint is `state` and the generator, nothing else.
    (A checkpoint takes every attribute, so a learner that keeps numbers or arrays elsewhere goes on
    just as well; see `snapshot`.) Learners whose `bids` draw at random also give their `strategy`;
    those that have somewhere to start from, `start_at`.
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
        """(N, G) bids whose counterfactual outcomes the learner wants; None if it wants none.

        The same in all rounds: a market reads it once.
        """
        return None

    @property
    def strategy(self) -> Strategy:
        """What the coming bids are drawn from, without drawing: here, the bids with weight 1.

        Support (N, K) or (R, N, K), and weights (R, N, K) that sum to 1 over K.
        """
        pure = self.bids()[..., None]
        return pure, np.ones_like(pure)

    def start_at(self, multiples: Floats) -> None:
        """Begin from `multiples` (R, N) of the truthful bids; before the first round.

        Multiples beyond the learner's reach are brought to its end.

        Raises:
            BadInput: the learner has no starting point, or has learned already; multiples of
                another shape, negative or not finite.
        """
        raise BadInput(f"{self.name} has no starting point; its bids are always the same")

    def snapshot(self) -> dict[str, Any]:
        """All that may have changed since it was made: every attribute, of which `restore` is told.

        Attributes are numbers, text, arrays, generators, and lists, tuples and dicts of these;
        frozen dataclasses, such as the population, are taken to be constants. No array is a view
        of another that is kept. A learner that keeps anything else (a neural network, say)
        overrides both methods.

        Raises:
            BadInput: an attribute that is none of these, or a view.
        """
        return snapshot_of(self, f"learner {self.name}")

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a `snapshot` of a learner that was made with the same arguments.

        Attributes may be in it that are first set in `bids` or `learn`.

        Raises:
            BadInput: a snapshot of another kind of learner.
        """
        restore_to(self, snapshot, f"learner {self.name}")

    @abstractmethod
    def bids(self) -> Floats:
        """(R, N) bids for the coming round."""

    @abstractmethod
    def learn(self, feedback: Feedback) -> None:
        """Take in the round that was played with the last `bids()`."""

    def _next_round(self) -> int:
        """Count the round being learned from in `state["rounds"]`; its number, from 1."""
        # adding to the array itself takes numpy a microsecond
        t = int(self.state["rounds"]) + 1
        self.state["rounds"] = np.array(t)
        return t

    def _checked_start(self, multiples: Floats) -> Floats:
        """`multiples` as an array of floats, or BadInput: the first lines of a `start_at`."""
        multiples = np.asarray(multiples, dtype=np.float64)
        shape = (self.replications, len(self.population.values))
        if multiples.shape != shape or not (np.isfinite(multiples) & (multiples >= 0)).all():
            raise BadInput(f"{self.name}: start_at takes {shape} finite multiples >= 0")
        if self.state["rounds"]:
            raise BadInput(
                f"{self.name} has learned already; start_at comes before the first round"
            )
        return multiples
