"""How fast regret grows: T^a, with a fitted over horizons and an interval over replications.

The external regret of a learner after T rounds with payoffs `u_t` (G,) and mixtures `w_t` is

    R_T = max_g Σ_t u_{t,g} − Σ_t ⟨w_t, u_t⟩,

its own dice averaged out. Theory promises `O(sqrt(T ln G))` for hedge, with full feedback, and
`O(sqrt(T G ln G))` for EXP3-IX, with bandit feedback, whatever the payoffs: exponents of at most ½
in the limit. What is measured here is the slope of `ln mean R_T` over `ln T`, T on a geometric grid
with a fresh run for each, against payoffs that are

    noise       fair coins for every arm, i.i.d.: the best arm is luck, of size sqrt(T)
    gap         coins, one arm better by 0.3: learnt soon by whoever sees all arms
    minimax     coins, one arm better by a gap that shrinks with T so as to be just not found out
                (the lower bound's construction: no learner does better than sqrt(T) here)
    alternating oblivious: two arms pay by turns, so that whoever follows the leader is always late
    spiteful    adaptive: of the same two arms the one with the greater weight pays nothing

or those of a market game (`MarketGame`) in which every advertiser learns at once.

At short horizons EXP3's regret is still linear: it has hardly tried its arms. So the grid should
begin well beyond G ln G rounds, and further still in a market, whose noisy rounds make the range of
payoffs wide beside what sets bids apart (docs/learners.md has figures). An exponent over finite
horizons is no theorem either way; the verdict says what the interval says.

Literature: Auer et al. 2002 (lower bound and EXP3); Neu 2015; Cesa-Bianchi & Lugosi 2006.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from agents.learners import LEARNERS, Feedback, Population, make_learner
from agents.learners.mixture import Mixture
from experiments.bootstrap import Estimate
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, ReplyPool

RATE = 0.5
MARGIN = 0.05
RESAMPLES = 2000
SEQUENCES = ("noise", "gap", "minimax", "alternating", "spiteful")
GAP = 0.3


class Environment(Protocol):
    """Where payoffs come from.

    Attributes:
        name: in words.
        population: the N advertisers that learn, utility maximizers.
    """

    name: str
    population: Population

    def curves(
        self, t: int, horizon: int, learner: Mixture, bids: Floats, rng: np.random.Generator
    ) -> tuple[Floats, Floats]:
        """(R, N, G) clicks and payments of every grid bid in round t of `horizon`."""


@dataclass(frozen=True)
class Sequence01:
    """Payoffs in [0, 1] for `arms` grid bids of one advertiser, by one of `SEQUENCES`.

    Raises:
        BadInput: an unknown name.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in SEQUENCES:
            raise BadInput(f"unknown payoffs {self.name!r}; choose one of {', '.join(SEQUENCES)}")

    @property
    def population(self) -> Population:
        """One utility maximizer of value 1 per click, so that clicks are payoffs."""
        one = np.ones(1)
        return Population(one, np.zeros(1, dtype=bool), one, np.full(1, np.inf))

    def curves(
        self, t: int, horizon: int, learner: Mixture, bids: Floats, rng: np.random.Generator
    ) -> tuple[Floats, Floats]:
        """The round's payoffs as clicks; payments are 0."""
        weights = learner.state["weights"]
        shape, arms = weights.shape, weights.shape[-1]
        payoffs = np.zeros(shape)
        if self.name == "spiteful":
            second = weights[..., 1] < weights[..., 0]
            payoffs[..., 0], payoffs[..., 1] = ~second, second
        elif self.name == "alternating":
            payoffs[..., t % 2] = 1.0
        else:
            hidden = arms if learner.feedback == "bandit" else np.log(arms)
            gap = {"noise": 0.0, "gap": GAP, "minimax": min(0.5 * np.sqrt(hidden / horizon), 0.25)}
            chance = np.full(arms, 0.5)
            chance[arms // 2] += gap[self.name]
            payoffs = (rng.random(shape) < chance).astype(float)
        return payoffs, np.zeros(shape)


@dataclass(frozen=True, eq=False)
class MarketGame:
    """Utility maximizers with `values` (N,) against each other on a pool, all of them learning.

    Attributes:
        mechanism: any.
        pool: requests are drawn from it, `requests` a round.
        values: per click.
        requests: per round.
    """

    mechanism: Mechanism
    pool: ReplyPool
    values: Floats
    requests: int = 8
    name: str = field(default="market game")

    @property
    def population(self) -> Population:
        """The advertisers, without budgets."""
        ones = np.ones(len(self.values))
        return Population(self.values, ones < 0, ones, ones * np.inf)

    def curves(
        self, t: int, horizon: int, learner: Mixture, bids: Floats, rng: np.random.Generator
    ) -> tuple[Floats, Floats]:
        """Expected clicks and payments along the grids, others' bids as played."""
        index = rng.integers(self.pool.shape[0], size=(len(bids), self.requests))
        return self.mechanism.counterfactual_sums(self.pool, index, bids, learner.support)


@dataclass(frozen=True, eq=False)
class RegretGrowth:
    """What `regret_growth` measured.

    Attributes:
        learner, environment: names.
        horizons: (H,) rounds T.
        regret: (H, R) mean over advertisers of the regret after T rounds, over value per click.
        bound: (H, R) mean over advertisers of the learner's own `regret_bound`, likewise.
        exponent: a of T^a by least squares on logs of the mean over replications, with its 95 %
            percentile bootstrap interval over replications; NaN where a mean is not positive.
    """

    learner: str
    environment: str
    horizons: Floats
    regret: Floats
    bound: Floats
    exponent: Estimate

    @property
    def verdict(self) -> str:
        """What the interval says about growth faster than the theorem's rate."""
        a, low, high = self.exponent
        if not np.isfinite(a):
            return "no positive regret to fit"
        if high <= RATE:
            said = "slower than T^1/2"
        elif high <= RATE + MARGIN:
            said = f"no faster than T^1/2, within {MARGIN:g}"
        elif low <= RATE:
            said = "not told apart from T^1/2"
        else:
            said = "faster than T^1/2 over these horizons"
        return f"T^{a:.3f} [{low:.3f}, {high:.3f}]: {said}"

    @property
    def share_of_bound(self) -> float:
        """Greatest mean regret at any horizon, over the mean bound there."""
        return float((self.regret.mean(axis=1) / self.bound.mean(axis=1)).max())

    def __str__(self) -> str:
        return (
            f"{self.learner} against {self.environment}: {self.verdict}; "
            f"at most {self.share_of_bound:.2f} of the theorem's bound"
        )


def regret_growth(
    learner: str,
    environment: Environment,
    horizons: Sequence[int],
    replications: int,
    rng: np.random.Generator,
    *,
    grid_size: int = 8,
    resamples: int = RESAMPLES,
) -> RegretGrowth:
    """Measure regret over horizons, and fit its exponent.

    Args:
        learner: a name of a learner that keeps a mixture: hedge, dual-averaging, exp3.
        environment: where payoffs come from.
        horizons: at least 3 numbers of rounds, ascending, on a geometric grid.
        replications: R >= 2 independent runs for each.
        rng: of learners, payoffs and the bootstrap.
        grid_size: G.
        resamples: of the bootstrap.

    Raises:
        BadInput: fewer horizons or replications, or a learner without a mixture.
    """
    T = np.asarray(horizons, dtype=np.int64)
    if len(T) < 3 or (np.diff(T) <= 0).any() or T[0] < 1 or replications < 2:
        raise BadInput("regret_growth: at least 3 ascending horizons and 2 replications")
    if not issubclass(LEARNERS.get(learner, Mixture), Mixture):
        raise BadInput(f"{learner} keeps no mixture; choose hedge, exp3 or dual-averaging")
    runs = [_regret(learner, environment, int(each), replications, rng, grid_size) for each in T]
    regret, bound = (np.stack(part) for part in zip(*runs, strict=True))
    exponent = _fit(T, regret, rng, resamples)
    return RegretGrowth(learner, environment.name, T, regret, bound, exponent)


def _regret(
    name: str,
    environment: Environment,
    horizon: int,
    replications: int,
    rng: np.random.Generator,
    grid_size: int,
) -> tuple[Floats, Floats]:
    """(R,) regret after one run of `horizon` rounds, and (R,) its bound."""
    people = environment.population
    own, theirs = rng.spawn(2)
    learner = make_learner(name, people, replications, own, grid_size=grid_size)
    total, earned = np.zeros(learner.state["weights"].shape), 0.0
    for t in range(horizon):
        bids = learner.bids()
        clicks, payments = environment.curves(t, horizon, learner, bids, theirs)
        payoffs = people.values[:, None] * clicks - payments
        total += payoffs
        earned = earned + (learner.state["weights"] * payoffs).sum(axis=-1)
        learner.learn(_feedback(learner, clicks, payments))
    regret = total.max(axis=-1) - earned
    return tuple((each / people.values).mean(axis=1) for each in (regret, learner.regret_bound))


def _feedback(learner: Mixture, clicks: Floats, payments: Floats) -> Feedback:
    """What the learner may see: its draw's outcome, which the dice repeat exactly, or all."""
    drawn = learner.state["drawn"][..., None]
    x, p = (np.take_along_axis(curve, drawn, axis=-1)[..., 0] for curve in (clicks, payments))
    along = (None, None) if learner.grid is None else (clicks, payments)
    return Feedback(x, p, x, p, np.ones(x.shape), *along)


def _fit(T: Floats, regret: Floats, rng: np.random.Generator, resamples: int) -> Estimate:
    """Slope of the log of mean regret (H, R) over log T, runs resampled for each T by itself."""
    H, R = regret.shape
    means = regret[np.arange(H)[:, None], rng.integers(R, size=(resamples, H, R))].mean(axis=2)
    if regret.mean(axis=1).min() <= 0 or means.min() <= 0:
        return Estimate(np.nan, np.nan, np.nan)
    x = np.log(T) - np.log(T).mean()
    slopes = np.log(means) @ x / (x @ x)
    low, high = np.quantile(slopes, [0.025, 0.975])
    return Estimate(float(np.log(regret.mean(axis=1)) @ x / (x @ x)), float(low), float(high))
