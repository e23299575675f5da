"""Best response and fictitious play: the best grid bid against what has been seen.

Both keep a running mean of the counterfactual clicks `x_g` and payments `p_g` of every grid bid g,
and bid what is best on it:

    utility maximizer    max_g  v x_g − p_g
    value maximizer      max_g  v x_g      subject to   v x_g ≥ τ p_g       (hence on average)

`best-response` means over the recent past, weight `memory^age`: with `memory` 0, the last round
alone, all advertisers at once: simultaneous iterated best response. Where it settles on requests
that stay the same, nobody gains by another grid bid: a Nash equilibrium on the grid. It may cycle;
with `inertia` an advertiser stays where it is with that probability, which breaks cycles that only
simultaneous moves have (and reaches equilibrium in weakly acyclic games, Young 2004).

`fictitious-play` means over all rounds alike: the best response to the empirical average of
counterfactual payoffs (which in a game of two is that to the other's empirical mixture). Its regret
can grow linearly against an adversary; in potential, zero-sum and 2 × 2 games its averages converge
to equilibrium (Robinson 1951; Monderer & Shapley 1996).

Where bids tie, an advertiser stays with the one it has, and otherwise takes the lowest.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from agents.learners.base import Feedback, Learner, Population
from agents.learners.bid_grid import bid_grid, nearest
from mechanisms.checks import non_negative
from mechanisms.errors import BadInput
from mechanisms.pool import Floats

TIE = 1e-12  # gains below this fraction of the score are none
SLACK = 1e-9  # of what a target ROI asks for, for rounding


class GridResponse(Learner):
    """The best bid of a grid on a running mean of outcomes; subclasses say what they average.

    State:
        itctr, payments (R, N, G) running means; current (R, N) number of the grid bid; rounds ().
    """

    feedback = "full"

    def __init__(
        self,
        population: Population,
        replications: int,
        rng: np.random.Generator,
        *,
        grid_size: int,
        max_multiple: float | None,
    ) -> None:
        super().__init__(population, replications, rng)
        self._grid = bid_grid(population, grid_size, max_multiple)
        shape = (replications, *self._grid.shape)
        truthful = np.tile(population.truthful_bids, (replications, 1))
        self.state = {
            "itctr": np.zeros(shape),
            "payments": np.zeros(shape),
            "current": nearest(self._grid, truthful),
            "rounds": np.zeros((), dtype=np.int64),
        }

    @property
    def grid(self) -> Floats:
        """(N, G) bids of the grid, from 0 up."""
        return self._grid

    def start_at(self, multiples: Floats) -> None:
        """The first bids are those of the grid nearest to `multiples` times truthful."""
        bids = self._checked_start(multiples) * self.population.truthful_bids
        self.state["current"] = nearest(self._grid, bids)

    def bids(self) -> Floats:
        """(R, N) best responses so far; truthful, to the grid, in the first round."""
        return self._grid[np.arange(len(self._grid)), self.state["current"]]

    def learn(self, feedback: Feedback) -> None:
        """Take the round into the means, and respond."""
        clicks, payments = feedback.along_grid(self.name)
        state = self.state
        fresh = self._weight(self._next_round())
        state["itctr"] += fresh * (clicks - state["itctr"])
        state["payments"] += fresh * (payments - state["payments"])
        state["current"] = self._respond()

    @abstractmethod
    def _weight(self, t: int) -> float:
        """Weight of round t in the means."""

    def _respond(self) -> np.ndarray:
        """(R, N) numbers of the best grid bids."""
        state, people = self.state, self.population
        value = people.values[:, None] * state["itctr"]
        owed = people.target_roi[:, None] * state["payments"]
        meets = value >= owed - SLACK * np.abs(owed)
        score = np.where(
            people.value_maximizer[:, None],
            np.where(meets, value, -np.inf),
            value - state["payments"],
        )
        best = score.max(axis=-1, keepdims=True)
        tied = score >= best - TIE * np.abs(best)
        # A value maximizer that misses its target with every bid bids nothing.
        tied = np.where(np.isneginf(best), np.arange(score.shape[-1]) == 0, tied)
        current = state["current"]
        stays = np.take_along_axis(tied, current[..., None], axis=-1)[..., 0]
        return np.where(stays, current, tied.argmax(axis=-1))


class BestResponse(GridResponse):
    """Best responds to the last round, or to a mean in which older rounds fade.

    Args:
        grid_size: G, number of bids, at least 2.
        max_multiple: highest bid in multiples of the truthful bid; default 1.5 for utility and 3
            for value maximizers.
        inertia: probability to stay, in [0, 1).
        memory: weight of a round relative to the next one, in [0, 1); 0 is the last round alone.

    State: see `GridResponse`.

    Raises:
        BadInput: parameters out of range, or feedback without a grid.
    """

    name = "best-response"

    def __init__(
        self,
        population: Population,
        replications: int,
        rng: np.random.Generator,
        *,
        grid_size: int = 61,
        max_multiple: float | None = None,
        inertia: float = 0.0,
        memory: float = 0.0,
    ) -> None:
        super().__init__(
            population, replications, rng, grid_size=grid_size, max_multiple=max_multiple
        )
        for what, share in (("inertia", inertia), ("memory", memory)):
            non_negative(what, share)
            if share >= 1:
                raise BadInput(f"{what} is {share}; give less than 1")
        self.inertia, self.memory = float(inertia), float(memory)

    def _weight(self, t: int) -> float:
        # 1, 1/(1 + memory), ...: weights memory^age that sum to 1, from the first round on.
        return (1 - self.memory) / (1 - self.memory**t)

    def _respond(self) -> np.ndarray:
        best = super()._respond()
        if self.inertia:
            stays = self.rng.random(best.shape) < self.inertia
            return np.where(stays, self.state["current"], best)
        return best


class FictitiousPlay(GridResponse):
    """Best responds to the mean of all rounds.

    Args:
        grid_size: G, number of bids, at least 2.
        max_multiple: highest bid in multiples of the truthful bid; default 1.5 for utility and 3
            for value maximizers.

    State: see `GridResponse`.

    Raises:
        BadInput: parameters out of range, or feedback without a grid.
    """

    name = "fictitious-play"

    def __init__(
        self,
        population: Population,
        replications: int,
        rng: np.random.Generator,
        *,
        grid_size: int = 61,
        max_multiple: float | None = None,
    ) -> None:
        super().__init__(
            population, replications, rng, grid_size=grid_size, max_multiple=max_multiple
        )

    def _weight(self, t: int) -> float:
        return 1 / t
