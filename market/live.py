"""Live mode: the LLM is asked again in every round, instead of once for all.

All requests of a round, of all replications, go to the engine in one call. What comes out is a
`ReplyPool` as any recording gives, so everything after it is the same code; `admarket live-check`
shows that outcomes agree with those of recorded mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from agents.users import BehaviouralUsers, Norms
from market.environment import make_requests, open_engine
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.llm.base import Engine
from mechanisms.pool import Floats, Ints, ReplyPool
from mechanisms.recording import Design, Request, record

FIRST_KEY = 1 << 32
"""Random streams of live replies are numbered from here, apart from those of a recording."""


class LiveReplies:
    """Candidate replies written when they are asked for.

    Args:
        requests: those of the recording, by index.
        engine: writes.
        users: judge, by the norms of the recording: what is fluent must not depend on the round.
        design: of the recording.
        seed: of the replies.
        num_advertisers: N.

    Attributes:
        asked: requests answered so far; numbers their random streams.
        tables: a table per round of all replies written: `mechanisms.recording.reply_table` with
            the `round`, and `request` as an index into the recording.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        engine: Engine,
        users: BehaviouralUsers,
        design: Design,
        seed: int,
        num_advertisers: int,
    ) -> None:
        self.requests = requests
        self.engine = engine
        self.users = users
        self.design = design
        self.seed = seed
        self.num_advertisers = num_advertisers
        self.asked = 0
        self.tables: list[pl.DataFrame] = []

    @classmethod
    def of(
        cls,
        scenario: Scenario,
        pool: ReplyPool,
        seed: int,
        generation: str | None = None,
        engine: Engine | None = None,
    ) -> LiveReplies:
        """Live replies to the requests of `pool`, the scenario's recording.

        Args:
            scenario: the market; its `replies` say which LLM writes, and how.
            pool: its recording.
            seed: of the replies.
            generation: how they are written, if not as the scenario says.
            engine: default the scenario's.

        Raises:
            BadInput: a pool that no LLM has recorded.
        """
        norms = pool.manifest.get("users", {}).get("norms")
        if norms is None:
            raise BadInput("live replies need a recorded pool; set replies.source to live")
        requests, users = make_requests(scenario)
        design = scenario.replies.design
        return cls(
            requests,
            engine or open_engine(scenario),
            replace(users, norms=Norms(**norms)),
            replace(design, generation=generation or design.generation),
            seed,
            scenario.num_advertisers,
        )

    def replies(self, requests: Ints, bids: Floats) -> ReplyPool:
        """M fresh replies to each of `requests` (k,), under `bids` (k, n) if they matter."""
        asked = [
            replace(self.requests[i], bids=tuple(row))
            for i, row in zip(requests, bids.tolist(), strict=True)
        ]
        keys = FIRST_KEY + self.asked + np.arange(len(asked))
        pool = record(
            asked,
            self.engine,
            self.users,
            self.design,
            seed=self.seed,
            num_advertisers=self.num_advertisers,
            keys=[int(key) for key in keys],
        )
        self.asked += len(asked)
        index = pl.Series("request", np.repeat(requests, pool.shape[1]))
        number = pl.lit(len(self.tables)).alias("round")
        self.tables.append(pool.replies.with_columns(index).with_columns(number))
        return pool

    def table(self) -> pl.DataFrame:
        """All replies written so far."""
        return pl.concat(self.tables, how="diagonal")
