"""Gradient ascent on the bid itself, from counterfactual feedback.

The bid is `m` times truthful. Every round the learner reads the slope of what it wants at m off the
counterfactual outcomes of a fixed grid (between grid bids they are interpolated),

    utility maximizer    g = [u(m + h) − u(m − h)] / 2h,       u = v x − p
    value maximizer      g = v x(m) − τ p(m),

and steps by adaptive gradient ascent, projected on [0, max_multiple]:

    m ← m + step · g / sqrt(Σ_s g_s²).

Dividing by the root of summed squares needs no unit of money and falls as 1/sqrt(t) where slopes
are noisy, and hardly at all where they vanish: on a smooth game convergence is linear. The window h
starts at `width` and narrows as 1/sqrt(t) to one cell of the grid: first hills, then pebbles.

A value maximizer's clicks rise with its bid, so its best bid is the greatest that meets its target:
where slack turns negative. That is the maximum of `m ↦ ∫_0^m slack`, and slack its slope.

For payoffs concave in m the regret against the best fixed bid is at most
`(D² / 2 step + step) sqrt(Σ g²)`, D being `max_multiple` (AdaGrad; h aside). Without concavity it
finds a local maximum. Slot auctions are flat between jumps: their slope is that of the window.

Literature: Zinkevich 2003; Duchi, Hazan & Singer 2011; Streeter & McMahan 2010.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from agents.learners.base import Feedback, Learner, Population
from agents.learners.bid_grid import bid_grid
from mechanisms.checks import non_negative, positive
from mechanisms.pool import Bools, Floats


class Gradient(Learner):
    """Adaptive projected gradient ascent on the bid.

    Args:
        grid_size: G, number of bids whose outcomes are asked for, at least 2; a finer grid makes
            better slopes.
        max_multiple: highest bid in multiples of the truthful bid; default 1.5 for utility and 3
            for value maximizers.
        step: of the first round, in multiples of the truthful bid, > 0.
        width: h of the first round, in multiples of the truthful bid, >= 0.

    State:
        multiple (R, N) m; squared_slopes (R, N) sums Σ g²; slope (R, N) the last g; rounds ().

    Raises:
        BadInput: parameters out of range, or feedback without a grid.
    """

    name = "gradient"
    feedback = "full"

    def __init__(
        self,
        population: Population,
        replications: int,
        rng: np.random.Generator,
        *,
        grid_size: int = 121,
        max_multiple: float | None = None,
        step: float = 0.2,
        width: float = 0.3,
    ) -> None:
        super().__init__(population, replications, rng)
        self._grid = bid_grid(population, grid_size, max_multiple)
        positive("step", step)
        non_negative("width", width)
        self.step, self.width = float(step), float(width)
        self.reach = self._grid[:, -1] / population.truthful_bids
        shape = (replications, len(self.reach))
        self.state = {
            "multiple": np.minimum(1.0, self.reach) * np.ones(shape),
            "squared_slopes": np.zeros(shape),
            "slope": np.zeros(shape),
            "rounds": np.zeros((), dtype=np.int64),
        }

    @property
    def grid(self) -> Floats:
        """(N, G) bids whose outcomes are interpolated."""
        return self._grid

    def start_at(self, multiples: Floats) -> None:
        """m of the first round."""
        self.state["multiple"] = np.minimum(self._checked_start(multiples), self.reach)

    def bids(self) -> Floats:
        """(R, N) `m` times truthful."""
        return self.state["multiple"] * self.population.truthful_bids

    def learn(self, feedback: Feedback) -> None:
        """Read the slopes and climb."""
        clicks, payments = feedback.along_grid(self.name)
        state, people = self.state, self.population
        _climb(
            np.ascontiguousarray(clicks),
            np.ascontiguousarray(payments),
            people.values,
            people.value_maximizer,
            people.target_roi,
            self.reach,
            self.step,
            self.width / np.sqrt(self._next_round()),
            state["multiple"],
            state["squared_slopes"],
            state["slope"],
        )


@njit(cache=True, nogil=True)
def _climb(
    clicks: Floats,
    payments: Floats,
    values: Floats,
    value_maximizer: Bools,
    target_roi: Floats,
    reach: Floats,
    step: float,
    width: float,
    multiple: Floats,
    squared_slopes: Floats,
    slope: Floats,
) -> None:
    """One round of `Gradient.learn`, in place: arguments as in its state."""
    R, N, G = clicks.shape
    for r in range(R):
        for i in range(N):
            cell = reach[i] / (G - 1)
            x, p, v = clicks[r, i], payments[r, i], values[i]
            at = multiple[r, i] / cell
            if value_maximizer[i]:
                g = v * _between(x, at) - target_roi[i] * _between(p, at)
            else:
                h = max(width / cell, 1.0)
                low, high = max(at - h, 0.0), min(at + h, G - 1.0)
                gain = v * (_between(x, high) - _between(x, low))
                g = (gain - _between(p, high) + _between(p, low)) / ((high - low) * cell)
            slope[r, i] = g
            squared_slopes[r, i] += g * g
            if g != 0:
                moved = multiple[r, i] + step * g / np.sqrt(squared_slopes[r, i])
                multiple[r, i] = min(max(moved, 0.0), reach[i])


@njit(cache=True, nogil=True)
def _between(curve: Floats, at: float) -> float:
    """The curve (G,) at a place between 0 and G − 1, interpolated linearly."""
    g = min(int(at), len(curve) - 2)
    return curve[g] + (at - g) * (curve[g + 1] - curve[g])
