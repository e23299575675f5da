"""Model-based search: a Gaussian process says where the next pairs are worth most.

All samples are points of one process over configurations, levels and numbers of pairs
(`mechanisms.iamfm.gaussian_process`); the outcomes' weights enter afterwards, so one model serves
the allocation and all n counterfactual problems. A search begins with a space-filling design, most
of it at a cheap level if there is one. Then it always takes the evaluation
a = (configuration, level, pairs) of the highest knowledge gradient per token (Frazier, Powell &
Dayanik 2009; with fidelities: Poloczek, Wang & Frazier 2017). A pair shows the whole vector of
outcomes, so what a moves the posterior mean of W(s) − W(h) by is normal, with variance

    σ_a(s)² = Σ_k w_k²·[Cov(f_k(s), a_k) − Cov(f_k(h), a_k)]² / Var(a_k),

where h has the highest mean. With two configurations, s and h, whose means are δ apart, what one
expects to gain by a before choosing is `σ·η(δ/σ)`, η(x) = φ(x) − x·(1 − Φ(x)). The gradient with
all configurations is at least the highest of these over s, and that is what is used: it has a
closed form, whatever the number of outcomes, and still ranks evaluations whose gain is tiny.
(BoTorch's knowledge gradients are by Monte Carlo, which would rank those by chance.)

`belief` is the posterior at the unbiased level. Outcomes are independent in it, so its covariance
is diagonal. `choose` takes the highest posterior mean of all configurations, evaluated or not.

Hyperparameters are fitted anew when the pairs have grown by `refit`, from where they were; between
fits, new samples are conditioned on. They are kept with the `Evaluations` that they were fitted to,
so a method still has no state of its own. If a fit fails, the last ones stand, with a warning.

Shapes: configurations S, advertisers n, outcomes K = n + 1, levels L, evaluations A.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
from scipy.special import erfcx

from mechanisms.checks import whole
from mechanisms.errors import BadInput
from mechanisms.iamfm import sampling_error
from mechanisms.iamfm.evaluations import Belief, Evaluations
from mechanisms.iamfm.sampling import Purse, shuffled
from mechanisms.pool import Floats, Ints

if TYPE_CHECKING:  # torch takes seconds to load, and not everybody needs it
    from mechanisms.iamfm.gaussian_process import Process
    from mechanisms.iamfm.process_data import Points

CHEAP = 1 / 3
"""Share of the unbiased level's tokens up to which another one is worth a design."""


@dataclass(frozen=True)
class ModelBased:
    """Search by a Gaussian process over configurations and all levels.

    Attributes:
        design: share of an allowance that the first design may take, in (0, 1].
        pairs: of an evaluation, at least.
        evaluations: after which an allowance is used up, at most: of a large one, each takes more
            pairs than `pairs`. It bounds the time that a search takes.
        shortlist: configurations whose evaluation is considered, those of the highest upper bounds.
        refit: factor > 1 by which pairs grow between fits.
        most_pairs: of a configuration, however much there is to spend; bounds memory.
    """

    name: ClassVar[str] = "model-based"

    design: float = 0.4
    pairs: int = 2
    evaluations: int = 60
    shortlist: int = 40
    refit: float = 1.5
    most_pairs: int = 4096

    def __post_init__(self) -> None:
        if not 0 < self.design <= 1:
            raise BadInput(f"design is {self.design}; give a share above 0, at most 1")
        if not 1 < self.refit < np.inf:
            raise BadInput(f"refit is {self.refit}; give a number above 1")
        whole("pairs", self.pairs, 2)
        whole("evaluations", self.evaluations, 1)
        whole("shortlist", self.shortlist, 2)
        whole("most_pairs", self.most_pairs, self.pairs)

    def search(
        self,
        known: Evaluations,
        weights: Floats,
        tokens: float,
        purpose: str,
        rng: np.random.Generator,
        among: Ints | None = None,
    ) -> None:
        """Spend at most `tokens` more on finding the best configuration; see `Method`."""
        purse = Purse.of(known, tokens, purpose, self.most_pairs)
        arms = shuffled(known, rng, among)
        step = self._step(known, tokens)
        self._first_design(purse, arms, step)
        if not known.counts[self._levels(known)].any():
            return  # too few tokens for anything
        arms = np.sort(arms)
        while evaluation := self._most_worth(purse, arms, np.asarray(weights, np.float64), step):
            which, level, pairs = evaluation
            if not purse.extend(np.array([which]), level, pairs):
                return

    def belief(self, known: Evaluations) -> Belief:
        """The posterior of all configurations at the unbiased level."""
        levels = self._levels(known)
        S, n = known.evaluator.configurations.shape
        if not known.counts[levels].any():
            nothing = np.diag(np.full(n + 1, np.inf))
            return Belief(np.full((S, n + 1), np.nan), np.tile(nothing, (S, 1, 1)))
        mean, variance = _fitted(known, levels, self.refit).truth
        covariance = np.zeros((S, n + 1, n + 1))
        covariance[:, np.arange(n + 1), np.arange(n + 1)] = variance.T
        return Belief(mean.T.copy(), covariance)

    def choose(self, known: Evaluations, weights: Floats) -> int:
        """The configuration of the highest posterior mean; the first, of equals.

        Raises:
            BadInput: nothing has been evaluated.
        """
        mean, _ = self.belief(known).welfare(np.asarray(weights, np.float64))
        if np.isnan(mean).all():
            least = self.pairs * known.evaluator.levels[self._levels(known)[0]].tokens
            raise BadInput(
                "no configuration has been evaluated: give more tokens, at least "
                f"{least:g} to the allocation"
            )
        return int(np.argmax(mean))

    def _levels(self, known: Evaluations) -> list[int]:
        """The levels that are looked at, cheapest first."""
        return list(range(len(known.evaluator.levels)))

    def _step(self, known: Evaluations, tokens: float) -> int:
        """Pairs of an evaluation."""
        units = min(tokens, known.budget.left) / known.evaluator.levels[known.full].tokens
        return int(min(max(self.pairs, np.ceil(units / self.evaluations)), self.most_pairs))

    def _first_design(self, purse: Purse, arms: Ints, step: int) -> None:
        """Spread configurations over the space; a third of them at the unbiased level too.

        At the unbiased level alone, unless the cheapest is cheap: at most `CHEAP` of its cost.
        """
        known, levels = purse.known, self._levels(purse.known)
        strengths = known.evaluator.configurations
        cost = [known.evaluator.levels[level].tokens * step for level in levels]
        if cost[0] > CHEAP * cost[-1]:
            levels, cost = levels[-1:], cost[-1:]
        each = cost[0] + (cost[-1] / 3 if len(levels) > 1 else 0.0)
        size = min(int(self.design * purse.left / each), 4 * (strengths.shape[1] + 1), len(arms))
        seen = known.counts[levels][:, arms].max(axis=0) >= self.pairs
        if seen.sum() >= size > 0:
            return
        chosen = arms[_spread_out(strengths[arms], max(1, size))]
        if purse.extend(chosen, levels[0], step) and len(levels) > 1:
            both = chosen[: -(-len(chosen) // 3)]
            purse.extend(both, levels[-1], step)

    def _most_worth(
        self, purse: Purse, arms: Ints, weights: Floats, step: int
    ) -> tuple[int, int, int] | None:
        """Configuration, level and pairs of the best affordable evaluation, if there is one."""
        known, levels = purse.known, self._levels(purse.known)
        fitted = _fitted(known, levels, self.refit)
        mean, variance = fitted.truth
        welfare = weights @ mean[:, arms]
        error = np.sqrt(weights**2 @ variance[:, arms])
        hopeful = np.argsort(-(welfare + 2 * error), kind="stable")[: self.shortlist]
        hopeful = np.union1d(hopeful, np.argmax(welfare))
        which, level, pairs = self._evaluations(purse, arms[hopeful], step)
        if not len(which):
            return None
        gain = _log_gain(
            fitted.process,
            fitted.points(arms[hopeful], np.full(len(hopeful), known.full), np.inf),
            fitted.points(which, level, pairs),
            welfare[hopeful],
            weights,
        )
        tokens = np.array([each.tokens for each in known.evaluator.levels])[level]
        best = int(np.argmax(gain - np.log(tokens * (pairs - known.counts[level, which]))))
        return int(which[best]), int(level[best]), int(pairs[best])

    def _evaluations(self, purse: Purse, arms: Ints, step: int) -> tuple[Ints, Ints, Ints]:
        """(A,) configurations, levels and pairs to consider; `_sizes` says how many pairs more."""
        known = purse.known
        found = []
        for level in self._levels(known):
            have = known.counts[level, arms]
            room = int(purse.left // known.evaluator.levels[level].tokens)
            for more in self._sizes(have, step, room):
                pairs = np.minimum(have + more, self.most_pairs)
                fits = (pairs > have) & (pairs - have <= room)
                found.append((arms[fits], np.full(fits.sum(), level), pairs[fits]))
        which, level, pairs = (np.concatenate(each) for each in zip(*found, strict=True))
        return which, level, pairs

    def _sizes(self, have: Ints, step: int, room: int) -> Sequence[Ints]:
        """Numbers of pairs (k,) that an evaluation may add; the last tokens buy what they can."""
        small = np.full_like(have, min(step, max(room, 1)))
        return [small, np.maximum(small, have), np.maximum(small, 3 * have)]


@dataclass(frozen=True)
class SingleFidelityGP(ModelBased):
    """The same model and search at the unbiased level only."""

    name: ClassVar[str] = "single-fidelity-gp"

    def _levels(self, known: Evaluations) -> list[int]:
        return [known.full]


@dataclass(eq=False)
class _Fit:
    """What is kept with evaluations: the process of their samples, and when it was fitted.

    Attributes:
        process: conditioned on all samples so far.
        counts: (L, S) pairs that it was conditioned on.
        fitted_pairs: their number when hyperparameters were fitted last.
        warned: a failed fit has been told of.
        configurations: (S, n) strengths.
        truth: posterior means and variances (K, S) at the unbiased level.
    """

    process: Process
    counts: Ints
    fitted_pairs: int
    warned: bool
    configurations: Ints
    truth: tuple[Floats, Floats]

    def points(self, which: Ints, levels: Ints, pairs: Ints | float) -> Points:
        """Points of the process."""
        return _points(self.configurations, self.process.data.error, which, levels, pairs)


_FITS: WeakKeyDictionary[Evaluations, dict[tuple[int, ...], _Fit]] = WeakKeyDictionary()


def _fitted(known: Evaluations, levels: Sequence[int], refit: float) -> _Fit:
    """The process of all samples at `levels`, of which there is one at least."""
    from mechanisms.iamfm.gaussian_process import FitFailed, Prior, Process, fit
    from mechanisms.iamfm.process_data import Data

    kept = _FITS.setdefault(known, {})
    last = kept.get(tuple(levels))
    counts = known.counts[levels]
    if last is not None and np.array_equal(last.counts, counts):
        return last

    error = sampling_error.estimate(known, levels)
    configurations = known.evaluator.configurations
    level, which = np.nonzero(counts)
    level = np.asarray(levels)[level]
    points = _points(configurations, error, which, level, known.counts[level, which])
    means = np.concatenate([known.means(each)[0][which[level == each]] for each in levels])
    data = Data.of(points, means, error)
    prior = Prior(tuple(each.biased for each in known.evaluator.levels))

    total = int(counts.sum())
    logs = prior.moments[0] if last is None else last.process.logs
    fitted_pairs, warned = (0, False) if last is None else (last.fitted_pairs, last.warned)
    if total >= refit * fitted_pairs:
        fitted_pairs = total
        try:
            logs = fit(data, prior, logs)
        except FitFailed as failure:
            if not warned:
                warnings.warn(
                    f"a surrogate was not fitted anew to {total} pairs, its last hyperparameters "
                    f"stand: {failure}",
                    RuntimeWarning,
                    stacklevel=3,
                )
            warned = True
    process = Process.given(data, prior, logs)
    S = len(configurations)
    everything = _points(configurations, error, np.arange(S), np.full(S, known.full), np.inf)
    truth = process.believed(everything)
    kept[tuple(levels)] = _Fit(process, counts.copy(), fitted_pairs, warned, configurations, truth)
    return kept[tuple(levels)]


def _points(
    configurations: Ints,
    error: sampling_error.SamplingError,
    which: Ints,
    levels: Ints,
    pairs: Ints | float,
) -> Points:
    from mechanisms.iamfm.process_data import Points

    strengths = configurations[which]
    times = np.broadcast_to(1 / np.asarray(pairs, np.float64), which.shape)
    strongest = int(configurations.max())
    return Points(which, strengths, strongest, levels, times, error.of(strengths, levels))


def _log_gain(
    process: Process, targets: Points, evaluations: Points, welfare: Floats, weights: Floats
) -> Floats:
    """(A,) logarithms of the lower bounds of the knowledge gradient, see the module."""
    covariance, variance = process.covariances(targets, evaluations)  # (K, C, A), (K, A)
    # an evaluation whose outcome is certain moves nothing; divide by something
    least = 1e-12 * process.data.scale[:, None] ** 2
    moves = covariance * (weights[:, None] / np.sqrt(np.maximum(variance, least)))[:, None]
    best = int(np.argmax(welfare))
    sigma = np.sqrt(((moves - moves[:, best : best + 1]) ** 2).sum(axis=0))  # (C, A)
    gap = (welfare[best] - welfare)[:, None]
    with np.errstate(divide="ignore"):
        ratio = np.where(sigma > 0, gap / np.where(sigma > 0, sigma, 1.0), np.inf)
        gain = np.log(sigma) + _log_expected_excess(ratio)
    gain[best] = -np.inf
    return gain.max(axis=0)


def _log_expected_excess(x: Floats) -> Floats:
    """Logarithm of `E[max(Z − x, 0)] = φ(x) − x·(1 − Φ(x))`, x >= 0, Z standard normal."""
    log_density = -0.5 * x**2 - 0.5 * np.log(2 * np.pi)
    with np.errstate(divide="ignore", invalid="ignore"):
        # 1 − Φ(x) = φ(x)·√(π/2)·erfcx(x/√2); far out the difference cancels, and is 1/x² − 3/x⁴
        mills = np.sqrt(np.pi / 2) * erfcx(x / np.sqrt(2))
        far = (1 - 3 / x**2) / x**2
        excess = np.where(x < 30, 1 - x * mills, far)
        return np.where(np.isinf(x), -np.inf, log_density + np.log(excess))


def _spread_out(strengths: Ints, size: int) -> Ints:
    """`size` rows, each the farthest from those before.

    Far is what differs in many strengths, then by how much. The first row begins, and of equals
    the first is taken, so their order decides.
    """
    chosen = [0]
    nearest = np.full(len(strengths), np.inf)
    while len(chosen) < size:
        apart = np.abs(strengths - strengths[chosen[-1]])
        nearest = np.minimum(nearest, (apart > 0).sum(axis=1) + 1e-3 * apart.sum(axis=1))
        chosen.append(int(np.argmax(nearest)))
    return np.array(chosen)
