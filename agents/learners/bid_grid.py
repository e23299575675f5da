"""A grid of bids for every advertiser of a population: 0 and up, in steps of the truthful bid."""

from __future__ import annotations

import numpy as np

from agents.learners.base import UTILITY_REACH, Population
from mechanisms.checks import positive, whole
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, Ints

VALUE_GRID = 3.0
"""Top of a value maximizer's grid, in truthful bids; a utility maximizer's is `UTILITY_REACH`, for
it never gains above v. Value maximizers under Rochet payments are charged less than they bid and
settle at up to 2 (measured); a wider grid would be coarser."""
MOST_BIDS = 10_000


def bid_grid(population: Population, grid_size: int, max_multiple: float | None) -> Floats:
    """(N, G) bids, evenly from 0 to `max_multiple` times the truthful bid.

    Args:
        population: the N advertisers.
        grid_size: G, from 2 to `MOST_BIDS`.
        max_multiple: default 1.5 for utility and 3 for value maximizers.

    Raises:
        BadInput: a parameter out of range.
    """
    whole("grid_size", grid_size, least=2)
    if grid_size > MOST_BIDS:
        raise BadInput(f"grid_size is {grid_size}; give at most {MOST_BIDS}")
    if max_multiple is not None:
        positive("max_multiple", max_multiple)
    vm = population.value_maximizer
    reach = np.where(vm, VALUE_GRID, UTILITY_REACH) if max_multiple is None else max_multiple
    return (population.truthful_bids * reach)[:, None] * np.linspace(0, 1, grid_size)


def nearest(grid: Floats, bids: Floats) -> Ints:
    """(R, N) number of the bid of `grid` (N, G) that is nearest to each of `bids` (R, N)."""
    step = grid[:, 1] - grid[:, 0]
    return np.clip(np.rint(bids / step).astype(np.int64), 0, grid.shape[1] - 1)
