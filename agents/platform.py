"""The platform: wraps a mechanism and serves all replications' requests in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import mesa
import numpy as np

from mechanisms.base import Mechanism, Outcome
from mechanisms.pool import Floats, Ints, ReplyPool


@dataclass(frozen=True, eq=False)
class Tally:
    """A round's outcome summed over requests, by replication and advertiser, each (R, N).

    Attributes:
        requests: requests in which the advertiser was a candidate.
        exposure: expected replies that show its ad.
        shown: replies that did show it.
        itctr: expected clicks.
        payments: expected payments.
        clicks: clicks.
        charges: charges.
    """

    requests: Floats
    exposure: Floats
    shown: Floats
    itctr: Floats
    payments: Floats
    clicks: Floats
    charges: Floats


class LiveSource(Protocol):
    """Where live replies come from."""

    def replies(self, requests: Ints, bids: Floats) -> ReplyPool:
        """Fresh candidate replies to `requests` (R, B), on which `bids` are (R * B, n)."""

    def show(self, chosen: Ints) -> None:
        """Told which of them are shown, `chosen` (R * B,)."""


class Platform(mesa.Agent):
    """Runs a mechanism on a pool for R replications at once.

    Requests are given as (R, B) indices into the pool and flattened, replication first, so that one
    call of the mechanism serves them all. With a `live` source their replies are written in the
    round, by one call of the LLM for all of them; else they are those of the pool.
    """

    def __init__(
        self,
        model: mesa.Model,
        mechanism: Mechanism,
        pool: ReplyPool,
        live: LiveSource | None = None,
    ) -> None:
        super().__init__(model)
        self.mechanism = mechanism
        self.pool = pool
        self.live = live
        self._batch: tuple[Ints, ReplyPool] | None = None

    def serve(self, requests: Ints, bids: Floats, rng: np.random.Generator) -> Outcome:
        """Auction `requests` (R, B) under `bids` (R, N); the outcome has R*B requests."""
        by_request = self._by_request(requests, bids)
        if self.live is None:
            return self.mechanism.run(self.batch(requests), by_request, rng)
        self._batch = (requests, self.live.replies(requests, by_request))
        outcome = self.mechanism.run(self.batch(requests), by_request, rng)
        self.live.show(outcome.chosen)
        return outcome

    def counterfactual(self, requests: Ints, bids: Floats, grids: Floats) -> tuple[Floats, Floats]:
        """Expected clicks and payments, both (R, N, G), had one advertiser bid along its grid.

        Args:
            requests: (R, B) indices into the pool.
            bids: (R, N) the bids played; those of the others stay.
            grids: (N, G) bids to try.
        """
        batch = self.batch(requests)
        if self.live is not None and not self.mechanism.tells_of_other_bids:
            # What the LLM would have written is known from the recording only.
            batch = self.pool.take(requests.ravel())
        clicks, payments = self.mechanism.counterfactual(
            batch, self._by_request(requests, bids), grids[batch.ads]
        )
        return self._sum(requests, clicks), self._sum(requests, payments)

    def tally(self, requests: Ints, outcome: Outcome) -> Tally:
        """Sum an outcome of `serve` over the requests of each replication."""
        batch = self.batch(requests)
        shown = batch.exposure[np.arange(len(outcome.chosen)), outcome.chosen]
        exposure = outcome.probabilities[:, None, :] @ batch.exposure.astype(np.float64)
        amounts = {
            "requests": np.ones(batch.ads.shape),
            "exposure": exposure[:, 0],
            "shown": shown,
            "itctr": outcome.itctr,
            "payments": outcome.payments,
            "clicks": outcome.clicks,
            "charges": outcome.charges,
        }
        return Tally(**{name: self._sum(requests, amount) for name, amount in amounts.items()})

    def batch(self, requests: Ints) -> ReplyPool:
        """The replies to the flattened `requests`; kept for the round, which asks for it thrice."""
        if self._batch is None or self._batch[0] is not requests:
            if self.live is not None:
                raise RuntimeError("live replies are those of the requests just served, no others")
            self._batch = (requests, self.pool.take(requests.ravel()))
        return self._batch[1]

    def _by_request(self, requests: Ints, bids: Floats) -> Floats:
        replication = np.repeat(np.arange(len(bids)), requests.shape[1])
        return bids[replication[:, None], self.pool.ads[requests.ravel()]]

    def _sum(self, requests: Ints, amounts: Floats) -> Floats:
        """(R, N, ...) sums of `amounts` (R*B, n, ...) by replication and advertiser."""
        R, B = requests.shape
        N = self.pool.num_advertisers
        tail = amounts.shape[2:]
        bins = self.pool.ads[requests.ravel()] + N * np.repeat(np.arange(R), B)[:, None]
        if tail:
            width = int(np.prod(tail))
            bins = bins[..., None] * width + np.arange(width)
            N *= width
        sums = np.bincount(bins.ravel(), weights=amounts.ravel(), minlength=R * N)
        return sums.reshape(R, -1, *tail)
