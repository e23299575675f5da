"""Advertisers: an identity, an objective, an account, and a view on what their learner bids.

No learning happens here: a learner holds the state of all advertisers that share it as arrays, and
the market writes the bids of a round into one (R, N) array of which each advertiser sees a column.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import mesa
import numpy as np

from agents.learners.base import Learner
from agents.tally import Tally
from mechanisms.pool import Floats


class Account:
    """What happened so far, realised: (R, N) for a whole market, (R,) views for one advertiser.

    Args:
        totals: (4, ...) exposures, requests, clicks and payments; each has a property.
        worth: of a click: the advertisers' values (N,), or the value of one.
    """

    __slots__ = ("_worth", "totals")

    def __init__(self, totals: Floats, worth: Floats) -> None:
        self.totals = totals
        self._worth = worth

    @classmethod
    def open(cls, values: Floats, replications: int) -> Account:
        """An empty account of advertisers with `values` (N,) per click."""
        return cls(np.zeros((4, replications, len(values))), values)

    def of(self, index: int) -> Account:
        """The account of one advertiser, as views that follow this one."""
        return Account(self.totals[..., index], self._worth[index])

    def settle(self, tally: Tally) -> None:
        """Book a round, in place."""
        self.totals += tally.amounts[:4]

    @property
    def exposures(self) -> Floats:
        """Replies that showed its ad."""
        return self.totals[0]

    @property
    def requests(self) -> Floats:
        """Requests in which the advertiser was a candidate."""
        return self.totals[1]

    @property
    def clicks(self) -> Floats:
        """Clicks on it."""
        return self.totals[2]

    @property
    def payments(self) -> Floats:
        """What it was charged."""
        return self.totals[3]

    @property
    def value(self) -> Floats:
        """Value of its clicks."""
        return self._worth * self.clicks

    @property
    def roi(self) -> Floats:
        """Value per unit paid; NaN before anything is paid."""
        paid = np.where(self.payments > 0, self.payments, np.nan)
        return self.value / paid


class Advertiser(mesa.Agent):
    """Somebody with a product, a private value per click and a wish.

    Attributes:
        index: number of its ad in the catalog and in `pool.ads`.
        title: title of its ad.
        value: private value per click.
        target_roi: least value per unit paid.
        budget: most it may pay in the run, in each replication; infinite for none.
        learner: what bids for it.
        account: its (R,) account.
    """

    kind: ClassVar[Literal["utility", "value"]]

    def __init__(
        self,
        model: mesa.Model,
        *,
        index: int,
        title: str,
        value: float,
        target_roi: float,
        budget: float,
        learner: Learner,
        account: Account,
        bid: Floats,
    ) -> None:
        super().__init__(model)
        self.index = index
        self.title = title
        self.value = value
        self.target_roi = target_roi
        self.budget = budget
        self.learner = learner
        self.account = account
        self._bid = bid

    @property
    def bid(self) -> Floats:
        """(R,) bid of the current round, a read-only view."""
        view = self._bid.view()
        view.flags.writeable = False
        return view

    @property
    def bid_over_value(self) -> Floats:
        """(R,) bid of the current round as a fraction of the value per click."""
        return self._bid / self.value

    @property
    def utility(self) -> Floats:
        """(R,) value of clicks less charges, so far."""
        return self.account.value - self.account.payments

    @property
    def spend(self) -> Floats:
        """(R,) charges so far."""
        return self.account.payments

    @property
    def roi(self) -> Floats:
        """(R,) value per unit paid so far; NaN before anything is paid."""
        return self.account.roi


class UtilityMaximizer(Advertiser):
    """Maximises value less payment."""

    kind = "utility"


class ValueMaximizer(Advertiser):
    """Maximises value, as long as every unit paid brings at least `target_roi` of it."""

    kind = "value"
