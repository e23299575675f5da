"""A round added up: what happened to every advertiser, and how good the replies were.

This module is the specification, in NumPy, for the outcome of any mechanism. `agents.kernels` does
the same, request by request, in compiled code.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from mechanisms.base import Outcome
from mechanisms.gibbs import kl_from_reference
from mechanisms.pool import Floats, ReplyPool

AMOUNTS = ("shown", "requests", "clicks", "charges", "exposure", "itctr", "payments")
MEANS = ("user_satisfaction", "kl", "ess", "charged")
TOLERANCE = 1e-9


class Unbalanced(RuntimeError):
    """The books of a round do not balance."""


class Tally:
    """A round's sums by replication and advertiser, and means over its requests by replication.

    Attributes:
        amounts: (7, R, N), in the order of `AMOUNTS`; each has a property of its name.
        means: (4, R), in the order of `MEANS`; each has a property of its name.
        along: expected clicks and payments, both (R, N, G), had one advertiser bid along its grid
            and the others as they did; None if nobody asked.
    """

    __slots__ = ("along", "amounts", "means")

    def __init__(self, amounts: Floats, means: Floats) -> None:
        self.amounts = amounts
        self.means = means
        self.along: tuple[Floats, Floats] | None = None

    @classmethod
    def blank(cls, replications: int, advertisers: int) -> Tally:
        """All zeros."""
        amounts = np.zeros((len(AMOUNTS), replications, advertisers))
        return cls(amounts, np.zeros((len(MEANS), replications)))

    @property
    def shown(self) -> Floats:
        """(R, N) replies that did show the ad."""
        return self.amounts[0]

    @property
    def requests(self) -> Floats:
        """(R, N) requests in which the advertiser was a candidate."""
        return self.amounts[1]

    @property
    def clicks(self) -> Floats:
        """(R, N) clicks."""
        return self.amounts[2]

    @property
    def charges(self) -> Floats:
        """(R, N) charges."""
        return self.amounts[3]

    @property
    def exposure(self) -> Floats:
        """(R, N) expected replies that show the ad."""
        return self.amounts[4]

    @property
    def itctr(self) -> Floats:
        """(R, N) expected clicks."""
        return self.amounts[5]

    @property
    def payments(self) -> Floats:
        """(R, N) expected payments."""
        return self.amounts[6]

    @property
    def user_satisfaction(self) -> Floats:
        """(R,) mean expected user satisfaction."""
        return self.means[0]

    @property
    def kl(self) -> Floats:
        """(R,) mean KL divergence from the reference, in nats; NaN where no reference wrote."""
        return self.means[1]

    @property
    def ess(self) -> Floats:
        """(R,) mean effective sample size of the importance weights."""
        return self.means[2]

    @property
    def charged(self) -> Floats:
        """(R,) mean charge for a request, less what the platform forgives; charges add up to it."""
        return self.means[3]


class Period:
    """The rounds of a period, told as one: in the mean, so that units are those of a round."""

    def __init__(self) -> None:
        self._rounds = 0
        self._sum: Tally | None = None

    def add(self, tally: Tally) -> None:
        """One round more."""
        self._rounds += 1
        if self._sum is None:
            self._sum = Tally(tally.amounts.copy(), tally.means.copy())
            if tally.along is not None:
                clicks, payments = tally.along
                self._sum.along = clicks.copy(), payments.copy()
            return
        self._sum.amounts += tally.amounts
        self._sum.means += tally.means
        for mine, theirs in zip(self._sum.along or (), tally.along or (), strict=True):
            mine += theirs

    def close(self) -> Tally:
        """The mean over the rounds added, of which there is one at least; then starts anew."""
        mean, rounds = self._sum, self._rounds
        mean.amounts /= rounds
        mean.means /= rounds
        for amounts in mean.along or ():
            amounts /= rounds
        self._rounds, self._sum = 0, None
        return mean

    def snapshot(self) -> dict[str, Any]:
        """What was added since the period began, as plain data."""
        added = None if self._sum is None else (self._sum.amounts, self._sum.means, self._sum.along)
        return copy.deepcopy({"rounds": self._rounds, "sum": added})

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a `snapshot`."""
        self._rounds, added = snapshot["rounds"], copy.deepcopy(snapshot["sum"])
        self._sum = None
        if added is not None:
            self._sum = Tally(*added[:2])
            self._sum.along = added[2]


def add_up(batch: ReplyPool, outcome: Outcome, replications: int, referenced: bool) -> Tally:
    """Sum an outcome by replication and advertiser.

    Args:
        batch: the R*B requests served, replication first.
        outcome: of these requests.
        replications: R.
        referenced: whether a reference wrote the replies, to measure KL from.
    """
    R, N = replications, batch.num_advertisers
    shown = batch.exposure[np.arange(len(outcome.chosen)), outcome.chosen]
    exposure = outcome.probabilities[:, None, :] @ batch.exposure.astype(np.float64)
    by_request = {
        "shown": shown,
        "requests": np.ones(batch.ads.shape),
        "clicks": outcome.clicks,
        "charges": outcome.charges,
        "exposure": exposure[:, 0],
        "itctr": outcome.itctr,
        "payments": outcome.payments,
    }
    kl = np.full(len(outcome.chosen), np.nan)
    if referenced:
        kl = kl_from_reference(batch.log_weights, outcome.probabilities)
    satisfaction = (outcome.probabilities * batch.quality).sum(axis=1)
    charged = outcome.charges.sum(axis=1)
    means = np.stack([satisfaction, kl, batch.effective_sample_size, charged])
    bins = (batch.ads + N * np.repeat(np.arange(R), len(kl) // R)[:, None]).ravel()
    amounts = [
        np.bincount(bins, weights=by_request[name].ravel(), minlength=R * N) for name in AMOUNTS
    ]
    return Tally(
        np.stack(amounts).reshape(len(AMOUNTS), R, N),
        means.reshape(len(MEANS), R, -1).mean(axis=2),
    )


def check(batch: ReplyPool, outcome: Outcome, tally: Tally) -> None:
    """Refuse a round whose books do not balance.

    Raises:
        Unbalanced: if probabilities are negative or do not sum to 1, an ad that was not shown is
            clicked, charges by advertiser do not sum to the platform's revenue, or an amount is NaN
            or infinite.
    """
    totals = outcome.probabilities.sum(axis=1)
    if not (np.abs(totals - 1) <= TOLERANCE).all() or outcome.probabilities.min() < 0:
        worst = totals[np.argmax(np.abs(totals - 1))]
        raise Unbalanced(f"reply probabilities do not sum to 1 (e.g. {worst:g})")
    shown = batch.exposure[np.arange(len(outcome.chosen)), outcome.chosen]
    if (np.asarray(outcome.clicks, dtype=bool) & ~shown).any():
        raise Unbalanced("an ad that was not shown is clicked")
    for name, amounts in zip(AMOUNTS, tally.amounts, strict=True):
        if not np.isfinite(amounts).all():
            raise Unbalanced(f"{name} of an advertiser: NaN or infinite")
    revenue = outcome.charges.reshape(len(tally.charges), -1).sum(axis=1)
    gap = np.abs(tally.charges.sum(axis=1) - revenue)
    if (gap > TOLERANCE * (1 + np.abs(outcome.charges).sum())).any():
        raise Unbalanced(f"charges miss the revenue by {gap.max():g}")
