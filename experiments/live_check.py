"""`admarket live-check`: do recorded and live mode agree in what advertisers get and pay?

The same requests are served twice under the same truthful bids: from a recording that went to disk
and came back, and live, by one engine call a round. The two use different random streams of the
LLM, so outcomes differ by chance; per request they have the same distribution if the modes agree.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from experiments.bootstrap import intervals
from market.environment import make_pool, make_requests, open_engine, titles
from market.live import LiveReplies
from market.scenario import Scenario
from mechanisms.llm.base import Engine
from mechanisms.pool import Floats, Ints, ReplyPool
from mechanisms.recording import load_pool, record, save_pool
from mechanisms.registry import make_mechanism

RECORDED_KEY = 1 << 40
"""Random streams of the recording, apart from those of live replies and of the scenario's pool."""


@dataclass(frozen=True, eq=False)
class LiveCheck:
    """Recorded against live.

    Attributes:
        table: a row per quantity (revenue, ITCTR of each advertiser, per request): `recorded`,
            `live`, `difference`, its 95 % interval `low`, `high`, and `reach`, the half-width that
            holds for all rows together.
        requests: how many there were.
    """

    table: pl.DataFrame
    requests: int

    @property
    def agree(self) -> bool:
        """Every difference is within the joint 95 % interval of what chance does."""
        return bool((self.table["difference"].abs() <= self.table["reach"] + 1e-12).all())


def live_check(
    scenario: Scenario,
    count: int = 208,
    seed: int = 0,
    *,
    engine: Engine | None = None,
    per_round: int = 16,
    say: Callable[[str], None] = lambda _: None,
) -> LiveCheck:
    """Serve `count` requests in both modes under the scenario's mechanism and truthful bids.

    Args:
        scenario: its requests take turns.
        count: requests served in each mode.
        seed: of the LLM's streams and the bootstrap.
        engine: default the scenario's.
        per_round: live requests per engine call.
        say: told in a line what is going on.
    """
    arm = scenario.mechanism
    mechanism = make_mechanism(arm.name, **arm.parameters)
    pool = make_pool(scenario, say, mechanism.generation)
    engine = engine or open_engine(scenario)
    live = LiveReplies.of(scenario, pool, seed, mechanism.generation, engine)
    values = np.array([spec.value / spec.target_roi for spec in scenario.advertisers])
    asked = np.arange(count) % pool.shape[0]

    say(f"recorded: {count} requests x {live.design.replies} replies")
    recorded = _through_disk(_record(scenario, live, asked, seed))
    say(f"live: the same, {per_round} requests a round")
    rounds = [asked[at : at + per_round] for at in range(0, count, per_round)]
    fresh = [live.replies(part, values[pool.ads[part]]) for part in rounds]
    rng = np.random.default_rng([seed, 1])
    was = _amounts(mechanism.run(recorded, values, rng), recorded)
    now = np.concatenate([_amounts(mechanism.run(p, values, rng), p) for p in fresh])
    found = intervals(now - was, np.random.default_rng([seed, 2]))
    names = ["revenue", *(f"ITCTR of {title}" for title in titles(pool))]
    table = pl.DataFrame(
        {
            "quantity": names,
            "recorded": was.mean(axis=0),
            "live": now.mean(axis=0),
            "difference": found.mean,
            "low": found.low,
            "high": found.high,
            "reach": found.reach,
        }
    )
    return LiveCheck(table, count)


def _record(scenario: Scenario, live: LiveReplies, asked: Ints, seed: int) -> ReplyPool:
    requests, _ = make_requests(scenario)
    return record(
        [requests[i] for i in asked],
        live.engine,
        live.users,
        live.design,
        seed=seed,
        num_advertisers=scenario.num_advertisers,
        keys=[RECORDED_KEY + k for k in range(len(asked))],
    )


def _through_disk(pool: ReplyPool) -> ReplyPool:
    with tempfile.TemporaryDirectory() as scratch:
        return load_pool(save_pool(pool, Path(scratch) / "pool"))


def _amounts(outcome, pool: ReplyPool) -> Floats:
    """(k, 1 + N) expected payment of all, and ITCTR by advertiser, of each request."""
    found = np.zeros((len(outcome.itctr), 1 + pool.num_advertisers))
    found[:, 0] = outcome.payments.sum(axis=1)
    np.put_along_axis(found[:, 1:], pool.ads, outcome.itctr, axis=1)
    return found
