"""Advertisers of a market that share a learner."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from agents.learners import Feedback, Learner
from agents.tally import Tally
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, Ints


@dataclass(frozen=True, eq=False)
class Group:
    """The advertisers at `index` (k,), which share a learner; `everybody`: all of the market."""

    index: Ints
    learner: Learner
    everybody: bool

    @cached_property
    def members(self) -> slice | Ints:
        """What picks the group's columns of an array; a slice where nothing need be copied."""
        return slice(None) if self.everybody else self.index

    def bids(self) -> Floats:
        """(R, k) bids of the coming round.

        Raises:
            BadInput: the learner bids what is no bid.
        """
        found = np.asarray(self.learner.bids())
        shape = (self.learner.replications, len(self.index))
        if found.shape != shape:
            raise BadInput(
                f"learner {self.learner.name} gives bids of shape {found.shape}; give {shape}: "
                "replications x advertisers"
            )
        fine = np.isfinite(found) & (found >= 0)
        if not fine.all():
            r, k = (int(part[0]) for part in np.nonzero(~fine))
            raise BadInput(
                f"learner {self.learner.name} bids {found[r, k]} for advertiser {self.index[k]} "
                f"in replication {r}; bids are finite and >= 0"
            )
        return found

    def feedback(self, tally: Tally) -> Feedback:
        """What the learner may see of a round, and along its grid if it has one."""
        amounts, grid = tally.amounts, self.learner.grid
        if not self.everybody:
            amounts = amounts.take(self.index, axis=2)
        _, requests, clicks, charges, _, itctr, payments = amounts
        seen = Feedback(clicks, charges, itctr, payments, requests)
        if grid is not None and tally.along is not None:
            clicks, payments = tally.along
            if not self.everybody:  # others' grids may be wider
                width = slice(grid.shape[1])
                clicks, payments = clicks[:, self.index, width], payments[:, self.index, width]
            seen.grid_itctr, seen.grid_payments = clicks, payments
        return seen
