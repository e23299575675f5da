"""A mechanism with periods whose every outcome is known: the highest bidder leads, at second price.

Replies that show the leader's ad are drawn, all alike; where none does, any reply. A click on the
leader costs the second highest bid, one on any other ad nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mechanisms.candidates import expectation
from mechanisms.checks import Parametric
from mechanisms.periods import Alternatives, PeriodicMechanism, Plan
from mechanisms.pool import Floats, ReplyPool


@dataclass(frozen=True)
class Leader(Parametric, PeriodicMechanism):
    name: ClassVar[str] = "leader"
    period: int = 4

    def plan(self, pool: ReplyPool, bids: Floats, seed: int) -> Plan:
        return Lead(pool, bids, seed)


class Lead(Plan):
    def __init__(self, origin: ReplyPool, bids: Floats, seed: int) -> None:
        self.origin, self.bids, self.seed = origin, bids, seed
        self.leader = int(bids.argmax())
        self.prices = np.zeros(len(bids))
        self.prices[self.leader] = np.delete(bids, self.leader).max(initial=0.0)

    @property
    def record(self):
        return {"leader": self.leader, "seed": self.seed}

    def probabilities(self, pool: ReplyPool) -> Floats:
        return led_by(pool, self.leader)

    def along(self, grids: Floats) -> Alternatives:
        N, G = grids.shape
        K = len(self.origin.ads)
        itctr = np.zeros((N, K, N))
        for leader in range(N):
            found = expectation(led_by(self.origin, leader), self.origin.ctr)
            itctr[leader][np.arange(K)[:, None], self.origin.ads] = found
        outcome, prices = np.empty((N, G), dtype=np.int64), np.zeros((N, G))
        for i in range(N):
            for g in range(G):
                bids = self.bids.copy()
                bids[i] = grids[i, g]
                other = Lead(self.origin, bids, self.seed)
                outcome[i, g], prices[i, g] = other.leader, other.prices[i]
        return Alternatives(outcome, prices, itctr)


def led_by(pool: ReplyPool, leader: int) -> Floats:
    shows = (pool.exposure & (pool.ads == leader)[:, None, :]).any(axis=2)
    drawn = np.where(shows.any(axis=1, keepdims=True), shows, True).astype(np.float64)
    return drawn / drawn.sum(axis=1, keepdims=True)
