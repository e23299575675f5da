"""Live mode: the LLM is asked again in every round, instead of once for all.

All requests of a round, of all replications, go to the engine in one call. What comes out is a
`ReplyPool` as any recording gives, so everything after it is the same code; `admarket live-check`
shows that outcomes agree with those of recorded mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from market.audience import audience, norms_of, played
from market.environment import LazyEngine, make_pool, make_requests, pools_of, written_by
from market.scenario import Scenario
from mechanisms.base import Mechanism
from mechanisms.llm.base import Engine
from mechanisms.llm.journal import Journaled
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
        rounds: calls so far, each of which is a round.
        tables: all replies written, one frame for each round or for many: columns are those of
            `mechanisms.recording.measure.reply_table`, the `round`, the `replication`, the
            `position` of the request among those of the replication, `request` as an index into
            the recording, and whether it was `chosen`.
        journals: where engines keep what they have done of a round (see `of`).
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
        self.asked = self.rounds = 0
        self.tables: list[pl.DataFrame] = []
        self.journals: list[Journaled] = []

    @classmethod
    def of(
        cls,
        scenario: Scenario,
        pool: ReplyPool,
        seed: int,
        writing: Mapping[str, Any] | None = None,
        engines: LazyEngine | None = None,
        journal: Path | None = None,
    ) -> LiveReplies:
        """Live replies to the requests of `pool`, the scenario's recording.

        Args:
            scenario: the market; its `replies` say which LLM writes, and how.
            pool: its recording.
            seed: of the run; the replies get one of their own from it.
            writing: how they are written, where not as the scenario says (`Mechanism.writing`).
            engines: default the scenario's.
            journal: a folder where engines keep what they have done of the present round, so that a
                run that is killed in it goes on in it.

        Raises:
            BadInput: a pool that no LLM has recorded, or a journal that cannot be written.
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
        journals: list[Journaled] = []

        def kept(engine: Engine | None, name: str) -> Engine | None:
            if engine is None or journal is None:
                return engine
            journals.append(Journaled(engine, journal / name))
            return journals[-1]

        engine = kept(engines.open(), "journal")
        live = cls(
            requests,
            engine,
            played(scenario, users, engine),
            scenario.replies.design,
            derived_seed(seed, "live", scenario.environment_seed),
            scenario.num_advertisers,
            kept(engines.writer(scenario), "writer.journal"),
        )
        live.journals = journals
        return live

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
                pl.lit(self.rounds).alias("round"),
                pl.lit(False).alias("chosen"),
            )
        )
        self.rounds += 1
        return pool

    def show(self, chosen: Ints) -> None:
        """Note which of the replies just written are shown, `chosen` (R * B,)."""
        table = self.tables[-1]
        M = table.height // len(chosen)
        shown = (np.arange(M) == chosen[:, None]).ravel()
        self.tables[-1] = table.with_columns(pl.Series("chosen", shown))

    def table(self, since: int = 0) -> pl.DataFrame:
        """All replies written from round `since` on."""
        late = [each for each in self.tables if each["round"][-1] >= since]
        if not late:
            return pl.DataFrame()
        return pl.concat(late, how="diagonal", rechunk=True).filter(pl.col("round") >= since)

    def snapshot(self) -> dict[str, Any]:
        """How far it is; replies are `table`'s."""
        return {"asked": self.asked, "rounds": self.rounds}

    def restore(self, snapshot: Mapping[str, Any], tables: Iterable[pl.DataFrame]) -> None:
        """Go on from a `snapshot`, and the replies written until then."""
        self.asked, self.rounds = snapshot["asked"], snapshot["rounds"]
        self.tables = [each for each in tables if each.height]

    def settled(self) -> None:
        """Told that the rounds so far are kept elsewhere: journals begin anew."""
        for journal in self.journals:
            journal.clear()


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
