"""Baselines of one fidelity: the unbiased level only, and no configuration is ever dropped.

`UniformAllocation` gives all configurations equally many pairs; `RandomSearch` gives random ones,
one after the other, a fixed number, and the last one what remains. Where an allowance is too
small for everybody, uniform allocation leaves some out at random; where it is large, random search
begins again and gives everybody as many once more. Both then play the best sample mean. (A Gaussian
process of one fidelity is in `mechanisms.iamfm.surrogate`.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mechanisms.checks import whole
from mechanisms.iamfm.evaluations import Evaluations
from mechanisms.iamfm.sampling import LEAST_PAIRS, BySampleMeans, Purse, shuffled
from mechanisms.pool import Floats, Ints


@dataclass(frozen=True)
class RandomSearch(BySampleMeans):
    """Random configurations, each at a fixed number of pairs.

    Attributes:
        pairs: of each configuration.
        most_pairs: of a configuration, however much there is to spend; bounds memory.
    """

    name: ClassVar[str] = "random-search"

    pairs: int = 16
    most_pairs: int = 4096

    def __post_init__(self) -> None:
        whole("pairs", self.pairs, LEAST_PAIRS)
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
        """Spend at most `tokens` more on random configurations; see `Method`."""
        purse = Purse.of(known, tokens, purpose, self.most_pairs)
        arms = shuffled(known, rng, among)
        for pairs in range(self.pairs, self.most_pairs + 1, self.pairs):
            # what pairs cost less than they may goes to further configurations
            while reached := purse.pays_for(arms, known.full, pairs, purse.left):
                before = known.counts[known.full, arms].sum()
                purse.extend(arms[:reached], known.full, pairs)
                if known.counts[known.full, arms].sum() == before:
                    break
            if reached < len(arms):
                break
        purse.exhaust(arms[reached : reached + 1], known.full)


@dataclass(frozen=True)
class UniformAllocation(BySampleMeans):
    """All configurations equally.

    Attributes:
        least_pairs: no more configurations are looked at than can have so many pairs each.
        most_pairs: of a configuration, however much there is to spend; bounds memory.
    """

    name: ClassVar[str] = "uniform-allocation"

    least_pairs: int = 4
    most_pairs: int = 4096

    def __post_init__(self) -> None:
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
        """Spend at most `tokens` more, equally; see `Method`."""
        purse = Purse.of(known, tokens, purpose, self.most_pairs)
        arms = shuffled(known, rng, among)
        arms = arms[: max(1, purse.pays_for(arms, known.full, self.least_pairs, purse.left))]
        purse.exhaust(arms, known.full)
