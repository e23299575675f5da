"""Learners that keep a mixture over a grid of bids and draw from it, every round anew.

`Mixture` holds what they share: grid, weights, their average, the draw. `RegularisedLeader` is the
family with full feedback. With `U = Σ_s u_s` the summed payoffs of all grid bids, it plays

    w = argmax over the simplex of  η ⟨w, U⟩ − h(w),       η = sqrt(8 C / V),

for a regulariser h that is strongly convex and 0 at the prior. `C = max h` over the simplex's
corners; `V = Σ_s ‖u_s‖²` adds up the rounds' payoffs in a norm that suits h:

    entropic     h = KL(w ‖ prior)        ‖u‖ = max u − min u        w ∝ prior · exp(η U)   (hedge)
    Euclidean    h = ½ |w − prior|²       ‖u‖ = 2 |u − mean u|       w = projection of prior + η U

Payoffs' ranges depend on click rates and rivals and nobody knows them beforehand; hence V, which is
seen, where textbooks have T: no constant to tune in any unit of money.

Regret against the best fixed bid after T rounds:  `≤ 1.36 sqrt(V C) + 4.42 max_s ‖u_s‖`.
Proof: regret ≤ C / η + Σ_s gaps (be the leader), each gap ≤ min(‖u_s‖, η_s ‖u_s‖² / 8) by strong
convexity (entropic: Hoeffding). Where ‖u_s‖² ≤ V_{s−1} the gaps add up to sqrt(V C); where not, V
doubles, a geometric series. (A rate `step` times as high: `0.36 / step + step` for 1.36.)

Literature: Cesa-Bianchi & Lugosi 2006, section 2.3; Shalev-Shwartz 2012, section 2; for rates from
observed ranges Cesa-Bianchi, Mansour & Stoltz 2007 and Orabona & Pál 2018 (scale-free learning).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from agents.learners import lagrangian, mirror
from agents.learners.base import Feedback, Learner, Population, Strategy
from agents.learners.bid_grid import bid_grid, nearest
from agents.learners.lagrangian import HIGHEST, LOWEST, initial_multiplier
from agents.learners.mirror import exponential, projected, reordered
from mechanisms.checks import non_negative, one_of, positive
from mechanisms.errors import BadInput
from mechanisms.kernels.caching import renewed_with
from mechanisms.pool import Floats, Ints

ENTROPIC, EUCLIDEAN = REGULARISERS = ("entropic", "euclidean")


class Mixture(Learner):
    """A mixture over bids `0 .. max_multiple` times the truthful bid; subclasses say how it moves.

    Args:
        grid_size: G, number of bids, at least 2.
        max_multiple: highest bid in multiples of the truthful bid; default 1.5 for utility and 3
            for value maximizers.

    State:
        weights (R, N, G) the current mixture; average_weights (R, N, G) its mean over the rounds
        learned from; prior (R, N, G) the mixture of the first round; drawn (R, N) number of the
        grid bid drawn last; multiplier, mean_value, rounds: see `lagrangian`.
    """

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
        self.support = bid_grid(population, grid_size, max_multiple)
        N, G = self.support.shape
        even = np.full((replications, N, G), 1 / G)
        self.state = {
            "weights": even,
            "average_weights": even.copy(),
            "prior": even.copy(),
            "drawn": np.zeros((replications, N), dtype=np.int64),
        } | initial_multiplier(population, replications)

    @property
    def strategy(self) -> Strategy:
        """The grid (N, G), and the current mixture (R, N, G)."""
        return self.support, self.state["weights"].copy()

    @property
    def mean_bids(self) -> Floats:
        """(R, N) mean of the current mixture."""
        return (self.state["weights"] * self.support).sum(axis=-1)

    @property
    def average_bids(self) -> Floats:
        """(R, N) mean of the time-averaged mixture."""
        return (self.state["average_weights"] * self.support).sum(axis=-1)

    def start_at(self, multiples: Floats) -> None:
        """Half of the first round's weight on the grid bid nearest to `multiples` times truthful.

        The other half is spread evenly over the other bids, so that none is ruled out.
        """
        bids = self._checked_start(multiples) * self.population.truthful_bids
        G = self.support.shape[1]
        prior = np.full((*bids.shape, G), 0.5 / (G - 1))
        np.put_along_axis(prior, nearest(self.support, bids)[..., None], 0.5, axis=-1)
        self.state |= {"prior": prior, "weights": prior.copy(), "average_weights": prior.copy()}

    def bids(self) -> Floats:
        """(R, N) bids drawn from the mixture; every call draws afresh."""
        u = self.rng.random(self.state["drawn"].shape)
        return _draw(self.state["weights"], self.support, u, self.state["drawn"])


class RegularisedLeader(Mixture):
    """The mixture that does best so far, less a regulariser; see the module.

    Args:
        regulariser: one of `REGULARISERS`.
        step: factor of the rate η, > 0.
        power: the rate falls as `t^−power`, in [0, 1]; the bound is that of ½.

    State:
        payoffs (R, N, G) the summed payoffs U; squared_norms (R, N) the V above; complexity () the
        C above; and a mixture's.
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
        regulariser: str = ENTROPIC,
        step: float = 1.0,
        power: float = 0.5,
    ) -> None:
        super().__init__(
            population, replications, rng, grid_size=grid_size, max_multiple=max_multiple
        )
        one_of("regulariser", regulariser, REGULARISERS)
        positive("step", step)
        non_negative("power", power)
        if power > 1:
            raise BadInput(f"power is {power}; give at most 1")
        self.regulariser, self.step, self.power = regulariser, float(step), float(power)
        shape = self.state["weights"].shape
        self.state |= {
            "payoffs": np.zeros(shape),
            "squared_norms": np.zeros(shape[:2]),
            "complexity": self._complexity(),
        }

    @property
    def grid(self) -> Floats:
        """(N, G) bids of the grid, from 0 up."""
        return self.support

    @property
    def regret_bound(self) -> Floats:
        """(R, N) bound on regret so far, less the `4.42 max ‖u‖` of the opening rounds.

        NaN where `power` is not ½.
        """
        factor = 0.36 / self.step + self.step if self.power == 0.5 else np.nan
        return factor * np.sqrt(self.state["squared_norms"] * self.state["complexity"])

    def start_at(self, multiples: Floats) -> None:
        """As `Mixture.start_at`; the regulariser is then 0 at that mixture, and C greater."""
        super().start_at(multiples)
        self.state["complexity"] = self._complexity()

    def learn(self, feedback: Feedback) -> None:
        """Add the round's payoffs of every grid bid, then move λ and the weights."""
        clicks, payments = feedback.along_grid(self.name)
        state, people = self.state, self.population
        _follow(
            np.ascontiguousarray(clicks),
            np.ascontiguousarray(payments),
            people.values,
            people.value_maximizer,
            people.target_roi,
            self._next_round(),
            float(state["complexity"]),
            self.step,
            self.power,
            self.regulariser == ENTROPIC,
            state["prior"],
            state["payoffs"],
            state["squared_norms"],
            state["weights"],
            state["average_weights"],
            state["multiplier"],
            state["mean_value"],
        )

    def _complexity(self) -> Floats:
        # Priors differ by replication and advertiser in which bid they favour, and in no weight.
        prior = self.state["prior"][0, 0]
        if self.regulariser == ENTROPIC:
            return np.array(-np.log(prior.min()))
        return np.array((prior @ prior + 1) / 2 - prior.min())


@njit(cache=True, nogil=True)
def _draw(weights: Floats, support: Floats, u: Floats, drawn: Ints) -> Floats:
    """(R, N) bids of `support` (N, G) drawn by `weights` (R, N, G); their numbers into `drawn`.

    NaN where the weights are.
    """
    R, N, G = weights.shape
    bids = np.empty((R, N))
    for r in range(R):
        for i in range(N):
            # The weights sum to 1 up to rounding, so the last bid takes what is left.
            left, g = u[r, i], 0
            while g < G - 1 and left >= weights[r, i, g]:
                left -= weights[r, i, g]
                g += 1
            drawn[r, i] = g
            bids[r, i] = np.nan if np.isnan(weights[r, i, g]) else support[i, g]
    return bids


@renewed_with(lagrangian, mirror)  # whose range of λ, and maps, are compiled in
@njit(cache=True, nogil=True)
def _follow(
    clicks: Floats,
    payments: Floats,
    values: Floats,
    value_maximizer: NDArray[np.bool_],
    target_roi: Floats,
    t: int,
    complexity: float,
    step: float,
    power: float,
    entropic: bool,
    prior: Floats,
    payoffs: Floats,
    squared_norms: Floats,
    weights: Floats,
    average: Floats,
    multiplier: Floats,
    mean_value: Floats,
) -> None:
    """One round of `RegularisedLeader.learn`, in place: arguments as in its state."""
    R, N, G = weights.shape
    rate = step * np.sqrt(8 * complexity) * float(t) ** (0.5 - power)
    share = 1.0 / t
    u = np.empty(G)
    for r in range(R):
        for i in range(N):
            w = weights[r, i]
            _approach(average[r, i], w, share)
            if _absent(clicks[r, i]) and _absent(payments[r, i]):
                # No part in the round: every payoff is 0, and so are slack and range. The weights
                # stay what they are too, unless the rate depends on the round.
                mean_value[r, i] -= mean_value[r, i] * share
                if power == 0.5:
                    continue
            else:
                lam, vm = multiplier[r, i], value_maximizer[i]
                price = lam * target_roi[i] / (1 + lam) if vm else 1.0
                won, paid = _played(w, clicks[r, i], payments[r, i])
                won *= values[i]
                squared_norms[r, i] += _earn(
                    clicks[r, i], payments[r, i], values[i], price, entropic, payoffs[r, i], u
                )
                mean_value[r, i] += (won - mean_value[r, i]) * share
                if vm and mean_value[r, i] > 0:
                    slack = (won - target_roi[i] * paid) / mean_value[r, i]
                    moved = lam * np.exp(min(max(-slack / np.sqrt(t), -50.0), 50.0))
                    multiplier[r, i] = min(max(moved, LOWEST), HIGHEST)
            if squared_norms[r, i] > 0:
                eta = rate / np.sqrt(squared_norms[r, i])
                if entropic:
                    exponential(payoffs[r, i], eta, prior[r, i], w)
                else:
                    projected(payoffs[r, i], eta, prior[r, i], w)


@reordered
def _absent(outcomes: Floats) -> bool:
    """Whether all are 0: looks at all of them, which is sooner done than finding the first."""
    total = 0.0
    for g in range(len(outcomes)):
        total += abs(outcomes[g])
    return total == 0


@reordered
def _approach(average: Floats, weights: Floats, share: float) -> None:
    """Move an average (G,) towards the weights of this round."""
    for g in range(len(average)):
        average[g] += (weights[g] - average[g]) * share


@reordered
def _played(weights: Floats, clicks: Floats, payments: Floats) -> tuple[float, float]:
    """Expected clicks and payment of a mixture."""
    won, paid = 0.0, 0.0
    for g in range(len(weights)):
        won += weights[g] * clicks[g]
        paid += weights[g] * payments[g]
    return won, paid


@reordered
def _earn(
    clicks: Floats,
    payments: Floats,
    value: float,
    price: float,
    entropic: bool,
    payoffs: Floats,
    u: Floats,
) -> float:
    """Add a round's payoffs u to `payoffs` (G,), and return its squared norm; `u` is scratch."""
    G = len(u)
    for g in range(G):
        u[g] = value * clicks[g] - price * payments[g]
        payoffs[g] += u[g]
    if entropic:
        low = high = u[0]
        for g in range(G):
            low, high = min(low, u[g]), max(high, u[g])
        return (high - low) ** 2
    mean = 0.0
    for g in range(G):
        mean += u[g] / G
    total = 0.0
    for g in range(G):
        total += (u[g] - mean) ** 2
    return 4 * total
