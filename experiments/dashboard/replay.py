"""What users read in a round: the auctions of the round over again, with its own dice.

Requests and dice of a round are streams of the seed (`agents.streams`), so the bids that are on
record give back the very replies, clicks and charges of a run, live or finished. Charges are what
the mechanism asks for; what a market then forgives where a budget ends is not taken off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from agents.streams import Arrivals, Dice
from experiments.dashboard.stage import StagedMarket, described
from experiments.report.records import Records
from experiments.samples import SampleReply, served_reply
from mechanisms.base import Outcome
from mechanisms.periods import PeriodicMechanism
from mechanisms.pool import Floats, Ints, ReplyPool
from mechanisms.registry import make_mechanism


@dataclass(frozen=True, eq=False)
class Served:
    """The auctions of a round.

    Attributes:
        pool: what was traded on.
        requests: (R, B) indices into it.
        bids: (R, N).
        outcome: of the R * B requests, replication first.
        round: its number, from 0.
    """

    pool: ReplyPool
    requests: Ints
    bids: Floats
    outcome: Outcome
    round: int

    @classmethod
    def last_of(cls, market: StagedMarket) -> Served | None:
        """The round that the market played last; None before its first."""
        with market.lock:
            if not market.round:
                return None
            last = market.round - 1
            requests, bids = market.arrivals.of(last), market.bids.copy()
            outcome = market.platform.auction(requests, bids, market.dice.generator(last))
            return cls(market.platform.pool, requests, bids, outcome, last)

    @classmethod
    def of_run(
        cls, run: Records, pools: Mapping[str, ReplyPool], mechanism: str, round: int
    ) -> Served | None:
        """A round of a finished run under one of its mechanisms.

        None where what it traded on is not in `pools`, or it was described by another version; and
        under a mechanism that plans for periods, as plans are not kept whole.
        """
        scenario = described(run)
        arm = next((a for a in scenario.arms if a.name == mechanism), None) if scenario else None
        if scenario is None or arm is None or mechanism not in pools:
            return None
        rules, pool = make_mechanism(arm.name, **arm.parameters), pools[mechanism]
        if isinstance(rules, PeriodicMechanism):
            return None
        bids = bids_of_round(run.advertisers, mechanism, round)
        seed, shape = run.manifest["seed"], (len(bids), scenario.requests_per_round)
        requests = Arrivals(seed, pool.shape[0], shape).of(round)
        dice = Dice(seed, requests.size, pool.shape[2])
        batch = pool.take(requests.ravel())
        by_request = np.take_along_axis(np.repeat(bids, shape[1], axis=0), batch.ads, axis=1)
        outcome = rules.run(batch, by_request, dice.generator(round))
        return cls(pool, requests, bids, outcome, round)

    def reply(self, k: int) -> SampleReply:
        """What became of request k (from 0) of the first replication."""
        batch = self.pool.take(self.requests[0])
        return served_reply(self.pool, batch, self.outcome, batch.bids_by_request(self.bids[0]), k)


def bids_of_round(advertisers: pl.DataFrame, mechanism: str, round: int) -> Floats:
    """(R, N) bids of a round, from a run's frame."""
    ours = advertisers.filter((pl.col("mechanism") == mechanism) & (pl.col("round") == round))
    ours = ours.sort("replication", "advertiser")
    return ours["bid"].to_numpy().reshape(ours["replication"].n_unique(), -1)
