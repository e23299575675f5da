"""What sample means say of configurations, and how a search spends its allowance.

**Belief.** A configuration with two pairs or more at the unbiased level is believed to be as its
sample mean there. One seen at a biased level only gets that level's mean ȳ_s, corrected by the mean
difference of the K configurations that were evaluated at both,

    m_s = ȳ_s + d̄,      d_s = mean over common pairs of (full − biased),

and since its own d_s is not known, the spread Σ_d of theirs is added to the error of ȳ_s, as
(1 + 1/K)·Σ_d. With K < 2 the bias may be anything that outcomes in [0, 1] allow: variance 1 each.
The d_s are noisy, so Σ_d holds sampling errors too and errs on the careful side. The K are those
that a search went on with because they looked well at the biased level, partly by luck: d̄ is too
low for the rest, to which it is applied.

**Errors.** The covariance of a pair is pooled over configurations as far as pairs are few: with the
pooled Σ counting as ν pairs,  Σ_s = (ν·Σ + (m_s − 1)·S_s) / (ν + m_s − 1),  and the mean's error is
Σ_s/m_s. By themselves, two pairs without a click would seem certain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mechanisms.errors import BadInput
from mechanisms.iamfm.evaluations import Belief, Evaluations
from mechanisms.pool import Floats, Ints

LEAST_PAIRS = 2  # that make a configuration known: one has no error to tell
_POOLED = 4.0  # ν


def sample_belief(known: Evaluations) -> Belief:
    """What the sample means say at the unbiased level; see the module."""
    mean, covariance = _level_belief(known, known.full)
    for level in reversed(range(known.full)):
        here, error = _level_belief(known, level)
        use = np.isnan(mean).any(axis=1) & ~np.isnan(here).any(axis=1)
        if use.any():
            shift, spread = _bias(known, level)
            mean[use] = here[use] + shift
            covariance[use] = error[use] + spread
    unknown = np.isnan(mean).any(axis=1)
    covariance[unknown] = np.diag(np.full(mean.shape[1], np.inf))
    return Belief(mean, covariance)


def paired_gaps(
    known: Evaluations, which: Ints, incumbent: int, weights: Floats
) -> tuple[Floats, Floats]:
    """Weighted outcomes less the incumbent's, on common pairs at the unbiased level.

    Args:
        known: all samples; `which` and the incumbent have `LEAST_PAIRS` at least.
        which: (k,) configurations.
        incumbent: to compare with.
        weights: (n + 1,).

    Returns:
        Mean differences and their standard errors (k,), variances pooled as in the module.
    """
    level = known.full
    common = np.minimum(known.counts[level, which], known.counts[level, incumbent])
    mean, variance = np.empty(len(which)), np.empty(len(which))
    for pairs in np.unique(common):
        mine = np.flatnonzero(common == pairs)
        ours = known.outcomes(level, which[mine], pairs) @ weights
        gap = ours - known.outcomes(level, np.array([incumbent]), pairs) @ weights
        mean[mine], variance[mine] = gap.mean(axis=1), gap.var(axis=1, ddof=1)
    others = which != incumbent
    pooled = np.average(variance[others], weights=common[others] - 1) if others.any() else 0.0
    shrunk = (_POOLED * pooled + (common - 1) * variance) / (_POOLED + common - 1)
    return mean, np.where(others, np.sqrt(shrunk / common), 0.0)


def trusted(known: Evaluations, share: float) -> Ints:
    """Configurations whose means are not the luck of a few pairs.

    They have at least `share` times as many unbiased pairs as any configuration has, and two; if
    none has two, the same at the dearest biased level where one has.

    Raises:
        BadInput: no configuration has two pairs at any level.
    """
    for counts in known.counts[::-1]:
        if counts.max() >= LEAST_PAIRS:
            return np.flatnonzero(counts >= max(LEAST_PAIRS, share * counts.max()))
    raise BadInput(
        "no configuration has two evaluations to choose by: give more tokens, at least "
        f"{LEAST_PAIRS * known.evaluator.levels[0].tokens:g} to the allocation"
    )


def shuffled(known: Evaluations, rng: np.random.Generator, among: Ints | None) -> Ints:
    """All configurations, or `among`, in random order; first those that most is known of."""
    S = len(known.evaluator.configurations)
    arms = rng.permutation(np.arange(S) if among is None else np.asarray(among, dtype=np.int64))
    if not len(arms):
        raise BadInput("there is no configuration to look at: `among` is empty")
    return arms[np.argsort(-known.counts[0, arms], kind="stable")]


def ranked(known: Evaluations, arms: Ints, weights: Floats) -> Ints:
    """`arms` by believed weighted outcome, highest first, and the unknown last."""
    mean, _ = sample_belief(known).welfare(weights)
    return arms[np.argsort(-np.where(np.isnan(mean), -np.inf, mean)[arms], kind="stable")]


class BySampleMeans:
    """Belief and choice of all methods that go by sample means.

    The best mean among many is the luckiest, and most of all among thinly sampled ones. So the
    incumbent h is the best of those with the most unbiased pairs (`trusted`), and another
    configuration is played in its place only where its lead on common pairs (`paired_gaps`) exceeds
    its error: the choice is the highest D_s − caution·σ_s, which is 0 for h itself. After a search
    for one problem, that finds the best of another one, whose candidates have fewer pairs.

    Attributes:
        trust: share of the unbiased pairs of the most sampled one that an incumbent must have.
        caution: standard errors by which a lead must exceed 0.
    """

    trust: ClassVar[float] = 0.5
    caution: ClassVar[float] = 1.0

    def belief(self, known: Evaluations) -> Belief:
        """What the samples say of all configurations at the unbiased level."""
        return sample_belief(known)

    def choose(self, known: Evaluations, weights: Floats) -> int:
        """The configuration it would play; the first, of equals.

        Raises:
            BadInput: no configuration has two pairs at any level.
        """
        firm = trusted(known, self.trust)
        incumbent = int(firm[np.argmax(sample_belief(known).mean[firm] @ weights)])
        seen = np.flatnonzero(known.counts[known.full] >= LEAST_PAIRS)
        if not len(seen):
            return incumbent
        gap, error = paired_gaps(known, seen, incumbent, weights)
        return int(seen[np.argmax(gap - self.caution * error)])


@dataclass(frozen=True, eq=False)
class Purse:
    """The allowance of one search: what is left of it, and evaluations that it pays for.

    Attributes:
        known: the samples, to which more are added.
        allowed: total of the token budget that may have been spent at the end.
        purpose: what tokens are booked on.
        most_pairs: that any configuration gets at a level, however much there is to spend.
    """

    known: Evaluations
    allowed: float
    purpose: str
    most_pairs: int

    @classmethod
    def of(cls, known: Evaluations, tokens: float, purpose: str, most_pairs: int) -> Purse:
        """One with `tokens` to spend from now on."""
        return cls(known, known.budget.total + tokens, purpose, most_pairs)

    @property
    def left(self) -> float:
        """Tokens that may still be spent."""
        budget = self.known.budget
        return max(0.0, min(self.allowed - budget.total, budget.left))

    def pays_for(self, which: Ints, level: int, pairs: int, tokens: float) -> int:
        """How many of `which`, from the first on, `tokens` could bring to `pairs` pairs."""
        missing = np.maximum(pairs - self.known.counts[level, which], 0)
        cost = np.cumsum(missing) * self.known.evaluator.levels[level].tokens
        return int(np.searchsorted(cost, min(tokens, self.left), side="right"))

    def extend(self, which: Ints, level: int, pairs: int) -> bool:
        """Bring `which` to `pairs` pairs; whether there were tokens for it."""
        pairs = min(pairs, self.most_pairs)
        return self.known.extend(which, level, pairs, self.purpose, self.left)

    def spread(self, which: Ints, level: int, tokens: float) -> None:
        """Spend up to `tokens` on `which`, those with the fewest pairs first."""
        if len(which):
            tokens = min(tokens, self.left, self.known.cost(which, level, self.most_pairs))
            self.extend(which, level, self.known.affordable_pairs(which, level, tokens))

    def exhaust(self, which: Ints, level: int) -> None:
        """Spend all that is left on `which`, best first, again and again.

        Pairs cost less than the most they may cost, so each time something remains; in the end
        it is enough for one more pair of the first few.
        """
        while len(which):
            spent = self.known.budget.total
            self.spread(which, level, self.left)
            if self.known.budget.total == spent:
                few = int(self.left // self.known.evaluator.levels[level].tokens)
                which = which[: min(few, len(which) - 1)]


def _level_belief(known: Evaluations, level: int) -> tuple[Floats, Floats]:
    """Means and pooled covariances of their errors at a level; NaN with fewer than two pairs."""
    mean, covariance = known.means(level)
    counts = known.counts[level]
    seen = counts >= LEAST_PAIRS
    mean[~seen], covariance[~seen] = np.nan, np.nan
    if seen.any():
        m = counts[seen, None, None].astype(np.float64)
        by_pair = covariance[seen] * m
        pooled = ((m - 1) * by_pair).sum(axis=0) / (m - 1).sum()
        covariance[seen] = (_POOLED * pooled + (m - 1) * by_pair) / (_POOLED + m - 1) / m
    return mean, covariance


def _bias(known: Evaluations, level: int) -> tuple[Floats, Floats]:
    """Mean (n + 1,) of full − biased, and covariance of one configuration's error about it.

    It is over those that a search went on with, often lucky ones: too low for the others.
    """
    common = np.minimum(known.counts[level], known.counts[known.full])
    both = np.flatnonzero(common >= LEAST_PAIRS)
    n = known.evaluator.configurations.shape[1]
    differences = np.empty((len(both), n + 1))
    for pairs in np.unique(common[both]):
        mine = common[both] == pairs
        full = known.outcomes(known.full, both[mine], pairs)
        differences[mine] = (full - known.outcomes(level, both[mine], pairs)).mean(axis=1)
    K = len(both)
    if K < 2:
        return differences.sum(axis=0), np.eye(n + 1)
    return differences.mean(axis=0), np.cov(differences.T) * (1 + 1 / K)
