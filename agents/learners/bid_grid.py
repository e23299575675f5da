"""A grid of bids for every advertiser of a population: 0 and up, in steps of the truthful bid."""

from __future__ import annotations

import numpy as np

from agents.learners.base import UTILITY_REACH, Population
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, Ints

VALUE_GRID = 3.0
"""Top of a value maximizer's grid, in truthful bids; a utility maximizer's is `UTILITY_REACH`, for
it never gains above v. Value maximizers under Rochet payments are charged less than they bid and
settle at up to 2 (measured); a wider grid would be coarser."""
MOST_BIDS = 10_000


def bid_grid(
    learner: str, population: Population, grid_size: int, max_multiple: float | None
) -> Floats:
    """(N, G) bids, evenly from 0 to `max_multiple` times the truthful bid.

    Args:
        learner: whose grid it is, for messages.
        population: the N advertisers.
        grid_size: G, from 2 to `MOST_BIDS`.
        max_multiple: default 1.5 for utility and 3 for value maximizers.

    Raises:
        BadInput: a parameter out of range.
    """
    if isinstance(grid_size, bool) or int(grid_size) != grid_size or grid_size < 2:
        raise BadInput(f"{learner}: grid_size must be an integer >= 2; got {grid_size}")
    if grid_size > MOST_BIDS:
        raise BadInput(f"{learner}: grid_size is {grid_size}; give at most {MOST_BIDS}")
    if max_multiple is not None and not 0 < max_multiple < np.inf:
        raise BadInput(f"{learner}: max_multiple must be positive and finite; got {max_multiple}")
    vm = population.value_maximizer
    reach = np.where(vm, VALUE_GRID, UTILITY_REACH) if max_multiple is None else max_multiple
    return (population.truthful_bids * reach)[:, None] * np.linspace(0, 1, int(grid_size))


def nearest(grid: Floats, bids: Floats) -> Ints:
    """(R, N) number of the bid of `grid` (N, G) that is nearest to each of `bids` (R, N)."""
    step = grid[:, 1] - grid[:, 0]
    return np.clip(np.rint(bids / step).astype(np.int64), 0, grid.shape[1] - 1)
