"""Priors over private values, and their cells.

A value per click v is drawn from a known distribution F in every round. Learners see F through K
cells of equal probability, each represented by its mean: interim utilities `v·x − p` are linear in
v, so for a strategy that is constant on a cell the mean loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mechanisms.errors import BadInput
from mechanisms.pool import Floats


@dataclass(frozen=True)
class Uniform:
    """Values uniform on [low, high], in money per click.

    Raises:
        BadInput: not `0 <= low < high < infinity`.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high < np.inf:
            raise BadInput(f"Uniform({self.low}, {self.high}): give 0 <= low < high, finite")

    def quantile(self, u: Floats) -> Floats:
        """(...) values below which a share `u` (...) in [0, 1] lies."""
        return self.low + (self.high - self.low) * np.asarray(u, dtype=np.float64)

    def means(self, cells: int) -> Floats:
        """(cells,) mean of each of so many cells of equal probability."""
        return self.quantile((np.arange(cells) + 0.5) / cells)
