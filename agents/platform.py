"""The platform: wraps a mechanism and serves all replications' requests in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import mesa
import numpy as np

from agents import tally as specification
from agents.compiled import CompiledRound, add_up
from agents.streams import PLANNING, Dice, stream
from agents.tally import Tally, Unbalanced
from mechanisms.base import Mechanism, Outcome
from mechanisms.errors import BadInput
from mechanisms.kernels import kernel
from mechanisms.periods import PeriodicMechanism, Terms
from mechanisms.pool import Floats, Ints, ReplyPool


class LiveSource(Protocol):
    """Where live replies come from.

    One whose market is checkpointed has `snapshot`, `restore` and `settled` too, as
    `market.live.LiveReplies`.
    """

    def replies(self, requests: Ints, bids: Floats) -> ReplyPool:
        """Fresh candidate replies to `requests` (R, B), on which `bids` are (R * B, n)."""

    def show(self, chosen: Ints) -> None:
        """Told which of them are shown, `chosen` (R * B,)."""


class Platform(mesa.Agent):
    """Runs a mechanism on a pool for R replications at once.

    Requests are given as (R, B) indices into the pool and flattened, replication first, so that one
    call of the mechanism serves them all. With a `live` source their replies are written in the
    round, by one call of the LLM for all of them; else they are those of the pool.

    A mechanism that reads bids once a period (`mechanisms.periods`) is asked for its terms in the
    first round of each; until the next they alone decide, and the bids of a round are not looked
    at.

    Args:
        model: the market.
        mechanism: runs the auctions.
        pool: candidate replies.
        live: where replies are written anew in every round.
        seed: of the run; terms are planned with streams of it.

    Attributes:
        period: rounds for which bids are read at once; mostly 1.
        terms: those in force, by replication; None for a mechanism without.
        plans: what was planned so far, a row per period and replication (`Plan.record`).
    """

    def __init__(
        self,
        model: mesa.Model,
        mechanism: Mechanism,
        pool: ReplyPool,
        live: LiveSource | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model)
        self.seed = seed
        self.mechanism = mechanism
        self._periodic = mechanism if isinstance(mechanism, PeriodicMechanism) else None
        self.period = 1 if self._periodic is None else self._periodic.period
        self.terms: Terms | None = None
        self.plans: list[dict[str, Any]] = []
        self.pool = pool
        self.live = live
        self._compiled = CompiledRound.of(mechanism, pool) if live is None else None
        self._batch: tuple[Ints, ReplyPool] | None = None

    def reads_bids(self, round: int) -> bool:
        """Whether a period begins with `round`."""
        return round % self.period == 0

    def commit(self, bids: Floats, round: int) -> None:
        """Plan the period that `round` lies in under `bids` (R, N); without periods, nothing.

        What is random in it belongs to the seed and the period.
        """
        if self._periodic is None:
            return
        period = round // self.period
        self.terms = self._planned(bids, period)
        self.plans += _rows(self.terms, period, round)

    def snapshot(self) -> dict[str, Any]:
        """The bids that the terms in force were planned under, if there are terms."""
        return {"bids": None if self.terms is None else self.terms.bids.copy()}

    def restore(
        self, snapshot: Mapping[str, Any], plans: Iterable[dict[str, Any]], round: int
    ) -> None:
        """Go on in `round` from a `snapshot`, and the `plans` made until then.

        The terms are planned again, which comes to the same: what is random in them belongs to the
        seed and the period.

        Raises:
            BadInput: it has not come to the same, as on another processor.
        """
        self.plans, self.terms = list(plans), None
        if snapshot["bids"] is None or self.reads_bids(round):
            return
        period, begun = self.plans[-1]["period"], self.plans[-1]["round"]
        self.terms = self._planned(snapshot["bids"], period)
        again = _rows(self.terms, period, begun)
        for now, then in zip(again, self.plans[-len(again) :], strict=True):
            # in text, which tells all digits of a number, and in which NaN is NaN
            if differing := [key for key in now if repr(now[key]) != repr(then.get(key))]:
                raise BadInput(
                    f"the plan of round {begun} came out otherwise when made again "
                    f"({', '.join(differing)} of replication {now['replication']}); go on with the "
                    "processor and libraries it was made with, or begin anew"
                )

    def _planned(self, bids: Floats, period: int) -> Terms:
        seeds = stream(self.seed, PLANNING, period).integers(2**62, size=len(bids)).tolist()
        return self._periodic.commit(self.pool, bids.copy(), seeds)

    def serve(
        self, requests: Ints, bids: Floats, dice: Dice, round: int, grids: Floats | None = None
    ) -> Tally:
        """Auction `requests` (R, B) under `bids` (R, N) with the dice of a round, and add up.

        Args:
            requests, bids, dice, round: of this round.
            grids: (N, G) bids to try; the tally's `along` is then what `counterfactual` gives.

        Raises:
            Unbalanced: naming the round, if the books do not balance; see `agents.tally.check`.
        """
        if self._periodic is not None and (self.terms is None or self.reads_bids(round)):
            self.commit(bids, round)
        try:
            if self._compiled is not None:
                served = self._compiled.serve(requests, bids, dice.uniforms(round), grids)
                if served is not None:
                    return served
                # else the mechanism itself says what is wrong with bids or requests
            tally = self.tally(requests, self.auction(requests, bids, dice.generator(round)))
        except Unbalanced as error:
            raise Unbalanced(f"round {round}: {error}") from None
        if grids is not None:
            tally.along = self.counterfactual(requests, bids, grids)
        return tally

    def auction(self, requests: Ints, bids: Floats, rng: np.random.Generator) -> Outcome:
        """The outcome of `requests` (R, B) under `bids` (R, N); it has R*B requests."""
        by_request = self._by_request(requests, bids)
        if self.live is not None:
            self._batch = (requests, self.live.replies(requests, by_request))
        batch = self.batch(requests)
        if self.terms is None:
            outcome = self.mechanism.run(batch, by_request, rng)
        else:
            replication = np.repeat(np.arange(len(requests)), requests.shape[1])
            outcome = self.terms.run(batch, replication, rng)
        if self.live is not None:
            self.live.show(outcome.chosen)
        return outcome

    def tally(self, requests: Ints, outcome: Outcome) -> Tally:
        """Sum an outcome of `auction` over the requests of each replication, and check it.

        Raises:
            Unbalanced: as `agents.tally.check`.
        """
        # replies that no reference wrote have none to diverge from
        referenced = self.mechanism.generation != "auction"
        if self.live is None and kernel() == "numba":
            return add_up(self.pool, requests, outcome, referenced)
        batch = self.batch(requests)
        found = specification.add_up(batch, outcome, len(requests), referenced)
        specification.check(batch, outcome, found)
        return found

    def counterfactual(self, requests: Ints, bids: Floats, grids: Floats) -> tuple[Floats, Floats]:
        """Expected clicks and payments, both (R, N, G), had one advertiser bid along its grid.

        In a period: had it been planned under that bid, as the mechanism estimates it.

        Args:
            requests: (R, B) indices into the pool.
            bids: (R, N) the bids played; those of the others stay.
            grids: (N, G) bids to try.
        """
        pool = self.pool
        if self.terms is not None:
            index = requests if pool.index is None else pool.index[requests]
            return self.terms.counterfactual_sums(index, grids)
        if self.live is not None and self.mechanism.tells_of_other_bids:
            # else what the LLM would have written is known from the recording only
            pool = self.batch(requests)
            requests = np.arange(requests.size).reshape(requests.shape)
        return self.mechanism.counterfactual_sums(pool, requests, bids, grids)

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


def _rows(terms: Terms, period: int, round: int) -> list[dict[str, Any]]:
    """What is recorded of `terms`, a row per replication."""
    return [
        {"period": period, "round": round, "replication": r, **plan.record}
        for r, plan in enumerate(terms.plans)
    ]
