"""Dual averaging over discretised bid distributions: equilibria of Bayesian auction games.

Strategies are conditional distributions s(l | k) over L bid cells given one of K value cells. After
t rounds with weights w the learner has the averaged interim outcome `x̄ = Σ w x / Σ w` and p̄, and
plays the leader regularised by entropy (Nesterov 2009; SODA: Bichler, Fichtl & Oberlechner 2023),

    s(·|k) = argmax_s Σ_l s_l (a_k x̄_l − p̄_l) + σ_k/θ · entropy(s) = softmax_l θ (a_k x̄_l − p̄_l)/σ_k

with a_k the worth of a click. All K x L dual variables are `a_k x̄_l − p̄_l`: the state is two
vectors. Three things differ from the textbook, each for a reason:

- *A rate for each value*, `θ/σ_k`, with σ_k the best payoff at that value. Low values win rarely;
  with one rate for all they would learn last by orders of magnitude.
- *Optimism*: the last outcome counts `optimism` times once more in the leader's problem (Rakhlin &
  Sridharan 2013; Syrgkanis et al. 2015). In first-price auctions, best responses respond to the
  rivals' bid *density*: linearised about equilibrium the dynamics rotates, at frequencies ω of up
  to about L/4 per unit of log t, and plain averaging amplifies that until t reaches ω²/2.
- *Value maximizers* enter with worth `κ v/roi`. Their stretch κ is the dual variable of their ROI
  constraint and moves by `κ ← κ exp(γ_t · slack)`, slack being `1 − roi E[p] / E[v x]`.

Rates: `w_t = t^weight_power`, `θ_t = temperature · (Σ_s w_s)^rate_power`. With rate power 1 that is
dual averaging at a constant step; with less, θ rises more slowly than the weight of evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.bayesian.check import finite, whole
from experiments.bayesian.functions import LEAST_VALUES
from experiments.bayesian.game import BayesianGame
from experiments.bayesian.interim import BidDistributions, Interim
from experiments.bayesian.response import (
    LEAST_PROFIT,
    MOST_STRETCH,
    Losses,
    greatest_that,
    losses,
)
from mechanisms.errors import BadInput
from mechanisms.pool import Floats

_LAST_TURNS = 3


@dataclass(frozen=True)
class DualAveraging:
    """The learner's parameters.

    Attributes:
        value_cells: K.
        bid_cells: L.
        rounds: T.
        temperature: scale of θ, the inverse temperature relative to what is at stake, > 0.
        rate_power: how θ grows with the weight of evidence, in (0, 1].
        weight_power: how the weight of a round grows with its number, >= 0.
        optimism: how many times more the last outcome counts in the leader's problem, >= 0.
        dual_step: γ of the stretch's steps `γ / sqrt(t)`, > 0.
        checks: times at which progress is kept.

    Raises:
        BadInput: a parameter out of range.
    """

    value_cells: int = 128
    bid_cells: int = 128
    rounds: int = 300
    temperature: float = 6.0
    rate_power: float = 0.8
    weight_power: float = 0.5
    optimism: float = 2.0
    dual_step: float = 2.0
    checks: int = 25

    def __post_init__(self) -> None:
        name = "dual-averaging"
        whole(name, LEAST_VALUES, value_cells=self.value_cells)
        whole(name, 2, bid_cells=self.bid_cells, rounds=self.rounds, checks=self.checks)
        finite(name, positive=True, temperature=self.temperature, dual_step=self.dual_step)
        finite(name, positive=True, rate_power=self.rate_power)
        finite(name, positive=False, weight_power=self.weight_power, optimism=self.optimism)
        if self.rate_power > 1:
            raise BadInput(f"{name}: rate_power must be at most 1; got {self.rate_power!r}")


@dataclass(frozen=True, eq=False)
class GridEquilibrium:
    """Where dual averaging ended.

    Attributes:
        edges: (C, L+1) of the bid cells.
        values: (C, K) means of the value cells.
        strategies: (C, K, L) probabilities of bid cells given value cells; the last iterate.
        stretch: (C,) κ of value maximizers; 1 for others.
        losses: in the grid game.
        path: (checks, C, K) mean bids as they went.
    """

    edges: Floats
    values: Floats
    strategies: Floats
    stretch: Floats
    losses: Losses
    path: Floats

    @property
    def distributions(self) -> BidDistributions:
        """What all classes bid."""
        return BidDistributions.on_cells(self.edges, self.strategies.mean(axis=1))

    @property
    def mean_bids(self) -> Floats:
        """(C, K) mean bid at each value."""
        return mean_bids(self.strategies, self.edges)


def learn(game: BayesianGame, interim: Interim, parameters: DualAveraging) -> GridEquilibrium:
    """Run dual averaging from uniform strategies.

    At the end the stretch of value maximizers is set once more, to the greatest that meets their
    targets against the others' last strategies (`_meet_targets`).

    Args:
        game: who bids for what.
        interim: computes outcomes.
        parameters: see there.
    """
    par = parameters
    values = game.values(par.value_cells)
    edges = game.top[:, None] * np.linspace(0, 1, par.bid_cells + 1)
    strategies = np.full((*values.shape, par.bid_cells), 1 / par.bid_cells)
    stretch = np.ones(game.classes)
    constrained = game.value_maximizer.any()
    sums, weights = (0.0, 0.0), 0.0
    checks = set(np.linspace(1, par.rounds, par.checks, dtype=int).tolist())
    path = []
    for t in range(1, par.rounds + 1):
        outcome = interim.cells(edges, BidDistributions.on_cells(edges, strategies.mean(axis=1)))
        if constrained:
            step = par.dual_step / np.sqrt(t) * roi_slack(game, values, strategies, outcome)
            stretch = np.clip(stretch * np.exp(np.clip(step, -0.5, 0.5)), 1.0, MOST_STRETCH)
        weight = t**par.weight_power
        weights += weight
        sums = tuple(total + weight * last for total, last in zip(sums, outcome, strict=True))
        leader = tuple(
            (total + par.optimism * weight * last) / (weights + par.optimism * weight)
            for total, last in zip(sums, outcome, strict=True)
        )
        rate = par.temperature * weights**par.rate_power
        strategies = respond(game.worth(values, stretch), *leader, rate)
        if t in checks:
            path.append(mean_bids(strategies, edges))
    for _ in range(_LAST_TURNS if constrained else 0):
        outcome = interim.cells(edges, BidDistributions.on_cells(edges, strategies.mean(axis=1)))
        stretch, strategies = _meet_targets(game, values, stretch, leader, rate, outcome)
    outcome = interim.cells(edges, BidDistributions.on_cells(edges, strategies.mean(axis=1)))
    own = outcome_of(strategies, outcome)
    found = losses(game, values, own, outcome)
    return GridEquilibrium(edges, values, strategies, stretch, found, np.stack(path))


def respond(worth: Floats, clicks: Floats, payments: Floats, rate: float) -> Floats:
    """(C, K, L) the leader regularised by entropy.

    Args:
        worth: (C, K) of a click.
        clicks: (C, L) of each bid cell.
        payments: (C, L) likewise.
        rate: θ, inverse temperature relative to the payoff of the best bid.
    """
    strategies = np.empty((*worth.shape, clicks.shape[1]))
    rows = np.arange(worth.shape[1])
    for a, x, p, payoffs in zip(worth, clicks, payments, strategies, strict=True):
        np.multiply(a[:, None], x, out=payoffs)
        payoffs -= p
        pick = payoffs.argmax(axis=1)
        best = payoffs[rows, pick]
        at_stake = np.maximum(best, LEAST_PROFIT * a * x[pick])
        payoffs -= best[:, None]
        # whom it does not pay to win may still lose, and where nobody wins any bid is as good
        lose = at_stake <= 0
        at_stake[lose] = -payoffs[lose].min(axis=1)
        at_stake[at_stake <= 0] = np.inf
        payoffs *= (rate / at_stake)[:, None]
        # far below what counts, and above the denormals that processors are slow with
        np.maximum(payoffs, -100.0, out=payoffs)
        np.exp(payoffs, out=payoffs)
        payoffs /= payoffs.sum(axis=1, keepdims=True)
    return strategies


def mean_bids(strategies: Floats, edges: Floats) -> Floats:
    """(C, K) mean bid at each value under `strategies` (C, K, L) on cells between `edges`."""
    centres = (edges[:, 1:] + edges[:, :-1]) / 2
    return (strategies @ centres[:, :, None])[:, :, 0]


def outcome_of(strategies: Floats, outcome: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """Expected clicks and payments (C, K) at each value, from those of each bid cell (C, L)."""
    clicks, payments = ((strategies @ of_bids[:, :, None])[:, :, 0] for of_bids in outcome)
    return clicks, payments


def roi_slack(
    game: BayesianGame, values: Floats, strategies: Floats, outcome: tuple[Floats, Floats]
) -> Floats:
    """(C,) `1 − roi E[p] / E[v x]` of value maximizers; 0 for others, and where nothing is won."""
    clicks, payments = outcome_of(strategies, outcome)
    won = (values * clicks).mean(axis=1)
    ratio = game.roi * payments.mean(axis=1) / np.where(won > 0, won, 1.0)
    return np.where(game.value_maximizer & (won > 0), 1.0 - ratio, 0.0)


def _meet_targets(
    game: BayesianGame,
    values: Floats,
    stretch: Floats,
    leader: tuple[Floats, Floats],
    rate: float,
    outcome: tuple[Floats, Floats],
) -> tuple[Floats, Floats]:
    """The greatest stretch (C,) that meets each target against `outcome`, and the strategies.

    Value per payment falls as the stretch rises, so bisection finds it; a target that does not bind
    leaves the stretch at `MOST_STRETCH`.
    """

    def feasible(tried: Floats) -> NDArray[np.bool_]:
        strategies = respond(game.worth(values, tried), *leader, rate)
        return roi_slack(game, values, strategies, outcome) >= 0

    greatest = greatest_that(feasible, np.ones_like(stretch), np.full_like(stretch, MOST_STRETCH))
    found = np.where(game.value_maximizer, greatest, 1.0)
    return found, respond(game.worth(values, found), *leader, rate)
