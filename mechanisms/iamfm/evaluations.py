"""What is known of configurations, what it cost, and what may still be spent.

The platform of IAMFM (arXiv 2604.06263; `mechanisms.iamfm`) looks for the configuration s of
highest welfare

    W(s) = Σ_i b_i·E[ctr_i(s)] + μ·E[u(s)]

by evaluations that are noisy and cost tokens. One evaluation of s is a *pair*: a query and a reply
written to it under s, of which the whole vector (ctr_1, ..., ctr_n, u) is kept. It holds no bid, so
one sample informs the allocation and all n counterfactual problems, which differ in their
*weights* (b_1, ..., b_n, μ) only; without advertiser i its weight is 0.

Pairs are numbered. The same number stands for the same query and the same random numbers under
every configuration and level (common random numbers), so differences between configurations are
seen through less noise than either. Every configuration is evaluated on pairs 0, 1, ..., m − 1.

Shapes: configurations S, advertisers n, levels L, pairs P.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from mechanisms.errors import BadInput
from mechanisms.pool import Floats, Ints


class Level(NamedTuple):
    """A way to evaluate a pair.

    With the number of pairs it makes the fidelity z. `tokens` is the most that a pair may cost; a
    `biased` level (replies cut short, a cheap judge) tells of the truth, but not the truth.
    """

    name: str
    tokens: float
    biased: bool = False


class Evaluator(Protocol):
    """Where samples come from: synthetic, recorded or live.

    Attributes:
        configurations: (S, n) sponsorship strengths, in 0, 1, ...
        levels: cheapest first; the last is not biased.
    """

    configurations: Ints
    levels: Sequence[Level]

    def sample(self, which: Ints, level: int, start: int, stop: int) -> tuple[Floats, Floats]:
        """Outcomes (k, P, n + 1) and tokens (k, P) of pairs start..stop−1 under k configurations.

        Outcomes are ctr_1..ctr_n, by advertiser, and u; no pair costs more than the level's
        `tokens`.
        """

    def reseeded(self, seed: int) -> Evaluator:
        """The same configurations and the same truth, with other pairs behind the numbers."""


class Overspent(RuntimeError):
    """More tokens than there were: a defect of the program, never an input's."""


@dataclass(eq=False)
class TokenBudget:
    """A hard limit on tokens, itemised by what they were spent on.

    Attributes:
        limit: Λ, of the period; payments included.
        spent: by purpose, `allocation` or `payments`.
    """

    limit: float
    spent: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise BadInput(f"the token budget is {self.limit}; give a positive number of tokens")

    @property
    def total(self) -> float:
        """Tokens spent so far."""
        return sum(self.spent.values())

    @property
    def left(self) -> float:
        """Tokens left."""
        return self.limit - self.total

    def spend(self, purpose: str, tokens: float) -> None:
        """Book `tokens`.

        Raises:
            Overspent: there are not so many left; nothing is booked.
        """
        if tokens > self.left * (1 + 1e-12):
            raise Overspent(f"{tokens:.0f} tokens on {purpose}, but {self.left:.0f} are left")
        self.spent[purpose] = self.spent.get(purpose, 0.0) + tokens


@dataclass(frozen=True, eq=False)
class Belief:
    """What a method believes of all configurations after its evaluations.

    Attributes:
        mean: (S, n + 1) of the outcome at the unbiased level; NaN where nothing is known.
        covariance: (S, n + 1, n + 1) of the error of `mean`; infinite on the diagonal where
            nothing is known.
    """

    mean: Floats
    covariance: Floats

    def welfare(self, weights: Floats) -> tuple[Floats, Floats]:
        """Mean and standard error (S,) each of the outcome weighted by `weights` (n + 1,)."""
        known = np.isfinite(self.mean).all(axis=1)
        mean, error = np.full(len(known), np.nan), np.full(len(known), np.inf)
        mean[known] = self.mean[known] @ weights
        variance = np.einsum("sij,i,j->s", self.covariance[known], weights, weights)
        error[known] = np.sqrt(np.maximum(variance, 0.0))
        return mean, error


class Evaluations:
    """All samples taken by one search, under one token budget.

    Attributes:
        evaluator: where they come from.
        budget: out of which they are paid.
        counts: (L, S) pairs of which each configuration's outcome is known, by level.
    """

    def __init__(self, evaluator: Evaluator, budget: TokenBudget) -> None:
        S, n = evaluator.configurations.shape
        self.evaluator = evaluator
        self.budget = budget
        self.counts = np.zeros((len(evaluator.levels), S), dtype=np.int64)
        self._kept = [np.empty((S, 0, n + 1)) for _ in evaluator.levels]

    @property
    def full(self) -> int:
        """The unbiased level."""
        return len(self.evaluator.levels) - 1

    def outcomes(self, level: int, which: Ints, pairs: int) -> Floats:
        """(k, pairs, n + 1) outcomes of the first `pairs` pairs, which must have been taken."""
        if (self.counts[level, which] < pairs).any():
            raise IndexError(f"some configurations have fewer than {pairs} pairs at level {level}")
        return self._kept[level][which, :pairs]

    def cost(self, which: Ints, level: int, pairs: int) -> float:
        """The most that `extend` would spend."""
        missing = np.maximum(pairs - self.counts[level, which], 0).sum()
        return float(missing * self.evaluator.levels[level].tokens)

    def extend(
        self, which: Ints, level: int, pairs: int, purpose: str, allowance: float = np.inf
    ) -> bool:
        """Evaluate configurations `which` (k,) on pairs up to `pairs`, if that is affordable.

        Args:
            which: distinct configurations.
            level: at which.
            pairs: each of them has at least so many afterwards.
            purpose: what the tokens are booked on.
            allowance: tokens that may be spent now, beside what is left of the budget.

        Returns:
            Whether it was done; if its `cost` is more than there is, nothing is done.
        """
        which = np.asarray(which, dtype=np.int64)
        if self.cost(which, level, pairs) > min(allowance, self.budget.left):
            return False
        self._make_room(level, pairs)
        have = self.counts[level, which]
        for start in np.unique(have[have < pairs]):
            mine = which[have == start]
            outcomes, tokens = self.evaluator.sample(mine, level, int(start), pairs)
            self.budget.spend(purpose, float(tokens.sum()))
            self._kept[level][mine, start:pairs] = outcomes
            self.counts[level, mine] = pairs
        return True

    def affordable_pairs(self, which: Ints, level: int, tokens: float) -> int:
        """The most pairs to which all of `which` can be extended for `tokens`."""
        have = np.sort(self.counts[level, which])
        units = min(tokens, self.budget.left) / self.evaluator.levels[level].tokens
        # with the k lowest raised to p pairs: k·p − Σ of the k lowest <= units
        k = np.arange(1, len(have) + 1)
        reach = np.floor((units + np.cumsum(have)) / k).astype(np.int64)
        ceiling = np.append(have[1:], np.iinfo(np.int64).max)
        return int(np.where(reach <= ceiling, reach, ceiling)[reach >= have].max(initial=have[0]))

    def means(self, level: int) -> tuple[Floats, Floats]:
        """(S, n + 1) means at a level and (S, n + 1, n + 1) covariances of their errors.

        NaN where there are no pairs; the covariance wants two.
        """
        S, _, k = self._kept[level].shape
        mean, covariance = np.full((S, k), np.nan), np.full((S, k, k), np.nan)
        counts = self.counts[level]
        for pairs in np.unique(counts[counts > 0]):
            mine = np.flatnonzero(counts == pairs)
            outcomes = self._kept[level][mine, :pairs]
            mean[mine] = outcomes.mean(axis=1)
            if pairs > 1:
                apart = outcomes - mean[mine][:, None]
                covariance[mine] = np.einsum("spi,spj->sij", apart, apart) / (pairs * (pairs - 1))
        return mean, covariance

    def _make_room(self, level: int, pairs: int) -> None:
        kept = self._kept[level]
        if kept.shape[1] >= pairs:
            return
        room = np.full((len(kept), max(pairs, 2 * kept.shape[1]), kept.shape[2]), np.nan)
        room[:, : kept.shape[1]] = kept
        self._kept[level] = room


def weights_of(bids: Floats, user_weight: float, without: int | None = None) -> Floats:
    """(n + 1,) weights of an outcome in W, or in `W_{-i} = W − v_i` without advertiser i."""
    weights = np.append(np.asarray(bids, dtype=np.float64), user_weight)
    if without is not None:
        weights[without] = 0.0
    return weights
