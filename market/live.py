"""Live mode: the LLM is asked again in every round, instead of once for all.

All requests of a round, of all replications, go to the engine in one call. What comes out is a
`ReplyPool` as any recording gives, so everything after it is the same code; `admarket live-check`
shows that outcomes agree with those of recorded mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from market.audience import audience, norms_of, played
from market.environment import LazyEngine, make_pool, make_requests, pools_of, written_by
from market.scenario import Scenario
from mechanisms.base import Mechanism
from mechanisms.llm.base import Engine
from mechanisms.llm.streams import derived_seed
from mechanisms.pool import Floats, Ints, ReplyPool
from mechanisms.recording import Design, Request, Users, record


class LiveReplies:
    """Candidate replies written when they are asked for.

    Args:
        requests: those of the recording, by index.
        engine: writes.
        users: judge, as in the recording: what is fluent must not depend on the round.
        design: of the recording.
        seed: of the replies; their streams are (seed, request asked, reply).
        num_advertisers: N.
        writer: writes in place of `engine`, if an Ad-LLM does (`mechanisms.recording.record`).

    Attributes:
        asked: requests answered so far.
        tables: by round, all replies written: `mechanisms.recording.measure.reply_table` with the
            `round`, the `replication`, the `position` of the request among those of the
            replication, `request` as an index into the recording, and whether it was `chosen`.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        engine: Engine,
        users: Users,
        design: Design,
        seed: int,
        num_advertisers: int,
        writer: Engine | None = None,
    ) -> None:
        self.requests = requests
        self.engine = engine
        self.users = users
        self.design = design
        self.seed = seed
        self.num_advertisers = num_advertisers
        self.writer = writer
        self.asked = 0
        self.tables: list[pl.DataFrame] = []

    @classmethod
    def of(
        cls,
        scenario: Scenario,
        pool: ReplyPool,
        seed: int,
        writing: Mapping[str, Any] | None = None,
        engines: LazyEngine | None = None,
    ) -> LiveReplies:
        """Live replies to the requests of `pool`, the scenario's recording.

        Args:
            scenario: the market; its `replies` say which LLM writes, and how.
            pool: its recording.
            seed: of the run; the replies get one of their own from it.
            writing: how they are written, where not as the scenario says (`Mechanism.writing`).
            engines: default the scenario's.

        Raises:
            BadInput: a pool that no LLM has recorded.
        """
        norms = norms_of(pool)
        engines = engines or LazyEngine(scenario)
        requests, asking = make_requests(scenario, engines)
        compared = None
        if scenario.users.kind == "content":
            compared = make_pool(scenario, engine=engines)
        users = audience(scenario, asking, compared, norms)
        if writing:
            scenario = written_by(scenario, writing)
        return cls(
            requests,
            engines.open(),
            played(scenario, users, engines.open()),
            scenario.replies.design,
            derived_seed(seed, "live", scenario.environment_seed),
            scenario.num_advertisers,
            engines.writer(scenario),
        )

    def replies(self, requests: Ints, bids: Floats) -> ReplyPool:
        """M fresh replies to each of `requests` (R, B), under `bids` (R * B, n) if they matter."""
        flat = requests.ravel()
        asked = [
            replace(self.requests[i], bids=tuple(row))
            for i, row in zip(flat, bids.tolist(), strict=True)
        ]
        pool = record(
            asked,
            self.engine,
            self.users,
            self.design,
            seed=self.seed,
            num_advertisers=self.num_advertisers,
            keys=range(self.asked, self.asked + len(asked)),
            writer=self.writer,
        )
        self.asked += len(asked)
        R, B = requests.shape
        M = pool.shape[1]
        self.tables.append(
            pool.replies.with_columns(
                pl.Series("request", np.repeat(flat, M)),
                pl.Series("replication", np.repeat(np.arange(R), B * M)),
                pl.Series("position", np.tile(np.repeat(np.arange(B), M), R)),
                pl.lit(len(self.tables)).alias("round"),
                pl.lit(False).alias("chosen"),
            )
        )
        return pool

    def show(self, chosen: Ints) -> None:
        """Note which of the replies just written are shown, `chosen` (R * B,)."""
        table = self.tables[-1]
        M = table.height // len(chosen)
        shown = (np.arange(M) == chosen[:, None]).ravel()
        self.tables[-1] = table.with_columns(pl.Series("chosen", shown))

    def table(self) -> pl.DataFrame:
        """All replies written so far."""
        return pl.concat(self.tables, how="diagonal")


def replies_for(
    scenario: Scenario,
    mechanism: Mechanism,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[ReplyPool, LiveReplies | None]:
    """What a market under `mechanism` trades on: its pool, and where live replies come from."""
    engines = LazyEngine(scenario)
    (pool,) = pools_of(scenario, [mechanism], say, engines)
    if scenario.replies.source != "live":
        return pool, None
    return pool, LiveReplies.of(scenario, pool, seed, mechanism.writing, engines)
