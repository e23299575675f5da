"""Elimination: many configurations are looked at cheaply, few thoroughly.

`SuccessiveHalving` (Karnin, Koren & Somekh 2013; Jamieson & Talwalkar 2016) climbs rungs. From S
configurations each rung keeps one in η of the last, so there are R = ⌈log_η S⌉, and each gets an
equal share of the tokens not yet spent. The first rungs are evaluated at biased levels, cheapest
first, and the others at the unbiased one; who stays is decided by `sample_belief`. All of a rung
have the same pairs, so a query that is good for everybody favours nobody.

`ConfidenceElimination` is LUCB (Kalyanakrishnan, Tewari, Auer & Stone 2012) on differences: after
a look at all at the biased levels, it evaluates at the unbiased level the incumbent h and those
rivals whose upper bound

    U_s = D_s + z·σ_s,      D_s ≈ W(s) − W(h)

is highest, on common pairs. Rivals with U_s <= 0 get no more of them. z is the normal quantile of
`confidence`, one-sided and for one comparison: with a fixed allowance it says how widely to look,
and is no guarantee over all of them.

Both start from all that is known, whatever weights it was sampled for, and pay for missing pairs
only. Configurations that an allowance is too small for are left out at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import ndtri

from mechanisms.checks import whole
from mechanisms.errors import BadInput
from mechanisms.iamfm.evaluations import Evaluations
from mechanisms.iamfm.sampling import (
    LEAST_PAIRS,
    BySampleMeans,
    Purse,
    paired_gaps,
    ranked,
    sample_belief,
    shuffled,
)
from mechanisms.pool import Floats, Ints


@dataclass(frozen=True)
class SuccessiveHalving(BySampleMeans):
    """Rungs of fewer and fewer configurations with more and more pairs.

    Attributes:
        eta: η > 1; a rung keeps one in η of the last.
        biased_share: of the rungs that are evaluated at biased levels, in [0, 1].
        least_pairs: a rung takes no more configurations than can have so many pairs each.
        most_pairs: of a configuration, however much there is to spend; bounds memory.
    """

    name: ClassVar[str] = "successive-halving"

    eta: float = 3.0
    biased_share: float = 0.5
    least_pairs: int = 2
    most_pairs: int = 4096

    def __post_init__(self) -> None:
        if not 1 < self.eta < np.inf:
            raise BadInput(f"eta is {self.eta}; give a number above 1")
        _within_unit("biased_share", self.biased_share)
        whole("least_pairs", self.least_pairs, LEAST_PAIRS)
        whole("most_pairs", self.most_pairs, self.least_pairs)

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
        rungs = self._rungs(len(arms))
        level = self._level(0, rungs, known.full)
        arms = arms[: max(1, purse.pays_for(arms, level, self.least_pairs, purse.left / rungs))]
        rungs = self._rungs(len(arms))
        for rung in range(rungs):
            level = self._level(rung, rungs, known.full)
            share = purse.left / (rungs - rung)
            if rung:
                arms = ranked(known, arms, weights)[: int(np.ceil(len(arms) / self.eta))]
                arms = arms[: max(1, purse.pays_for(arms, level, self.least_pairs, share))]
            purse.spread(arms, level, share)
        purse.exhaust(ranked(known, arms, weights), known.full)

    def _rungs(self, arms: int) -> int:
        """R, for so many configurations."""
        return max(1, int(np.ceil(np.log(max(arms, 1)) / np.log(self.eta) - 1e-9)))

    def _level(self, rung: int, rungs: int, full: int) -> int:
        """The level of a rung: the biased ones take turns on their share of the rungs."""
        biased = int(self.biased_share * rungs)
        return full if rung >= biased else rung * full // biased


@dataclass(frozen=True)
class ConfidenceElimination(BySampleMeans):
    """The incumbent and those rivals that may be better, until none may or tokens end.

    Attributes:
        confidence: of an upper bound, one-sided, in (0.5, 1).
        biased_share: of the allowance that the look at biased levels may take, in [0, 1].
        width: configurations evaluated at a time, the incumbent included.
        growth: factor > 1 by which a rival's pairs grow at a time.
        least_pairs: the first pairs that a configuration gets at any level.
        most_pairs: of a configuration, however much there is to spend; bounds memory.
    """

    name: ClassVar[str] = "confidence-elimination"

    confidence: float = 0.9
    biased_share: float = 0.5
    width: int = 8
    growth: float = 1.5
    least_pairs: int = 4
    most_pairs: int = 4096

    def __post_init__(self) -> None:
        if not 0.5 < self.confidence < 1:
            raise BadInput(f"confidence is {self.confidence}; give a number between 0.5 and 1")
        _within_unit("biased_share", self.biased_share)
        if not 1 < self.growth < np.inf:
            raise BadInput(f"growth is {self.growth}; give a number above 1")
        whole("width", self.width, 2)
        whole("least_pairs", self.least_pairs, LEAST_PAIRS)
        whole("most_pairs", self.most_pairs, self.least_pairs)

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
        for level in range(known.full):
            share = self.biased_share * tokens / known.full
            seen = arms[: purse.pays_for(arms, level, self.least_pairs, share)]
            purse.spread(seen, level, share)
        self._open(known, purse, arms, weights)
        arms = arms[known.counts[:, arms].max(axis=0) >= LEAST_PAIRS]
        if known.counts[known.full, arms].max(initial=0) < LEAST_PAIRS:
            return  # the allowance has no room for the unbiased level
        while True:
            contenders, undecided = self._contenders(known, arms, weights)
            if not (undecided and self._evaluate(known, purse, contenders)):
                break
        purse.exhaust(contenders, known.full)

    def _open(self, known: Evaluations, purse: Purse, arms: Ints, weights: Floats) -> None:
        """First pairs at the unbiased level: whom the biased ones recommend, or else everybody."""
        if known.counts[known.full, arms].max() >= LEAST_PAIRS:
            return
        best = ranked(known, arms, weights)[: self.width if known.full else None]
        best = best[: max(1, purse.pays_for(best, known.full, self.least_pairs, purse.left))]
        purse.spread(best, known.full, purse.known.cost(best, known.full, self.least_pairs))

    def _contenders(self, known: Evaluations, arms: Ints, weights: Floats) -> tuple[Ints, bool]:
        """The incumbent, then its rivals, most hopeful first; and whether one may be better."""
        counts = known.counts[known.full, arms]
        seen = counts >= LEAST_PAIRS
        mean, error = sample_belief(known).welfare(weights)
        firm = arms[seen & (counts >= self.trust * counts.max())]
        incumbent = int(firm[np.argmax(mean[firm])])

        gap = mean[arms] - mean[incumbent]
        error = np.hypot(error[arms], error[incumbent])
        gap[seen], error[seen] = paired_gaps(known, arms[seen], incumbent, weights)
        upper = gap + ndtri(self.confidence) * error
        upper[arms == incumbent] = -np.inf
        rivals = np.argsort(-upper, kind="stable")[: min(self.width, len(arms)) - 1]
        hopeful = rivals[upper[rivals] > 0]
        undecided = len(hopeful) > 0
        return np.append(incumbent, arms[hopeful if undecided else rivals[:1]]), undecided

    def _evaluate(self, known: Evaluations, purse: Purse, contenders: Ints) -> bool:
        """Give rivals more pairs, and the incumbent as many; whether there were tokens for it."""
        counts = known.counts[known.full, contenders]
        pairs = np.maximum(self.least_pairs, np.ceil(self.growth * counts).astype(np.int64))
        pairs[0] = max(counts[0], pairs[1:].max())
        pairs = np.minimum(pairs, self.most_pairs)
        done = [purse.extend(contenders[pairs == m], known.full, int(m)) for m in np.unique(pairs)]
        return all(done) and bool((pairs > counts).any())


def _within_unit(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise BadInput(f"{name} is {value}; give a number from 0 to 1")
