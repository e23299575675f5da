"""`admarket live-check`: do recorded and live mode agree in what advertisers get and pay?

The same requests are served twice under the same truthful bids: from a recording that went to disk
and came back, and live, by one engine call a round. The two use different random streams of the
LLM, so outcomes differ by chance; per request they have the same distribution if the modes agree.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from experiments.bootstrap import intervals
from market.environment import LazyEngine, pools_of, titles
from market.live import LiveReplies
from market.scenario import Scenario
from mechanisms.base import Mechanism, Outcome
from mechanisms.errors import BadInput
from mechanisms.llm.base import Engine
from mechanisms.llm.streams import derived_seed
from mechanisms.pool import Floats, Ints, ReplyPool
from mechanisms.recording import load_pool, record, save_pool
from mechanisms.registry import make_mechanism


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

    @property
    def telling(self) -> bool:
        """Whether a difference of half the revenue would have been seen."""
        revenue = self.table.row(0, named=True)
        return bool(revenue["reach"] <= 0.5 * revenue["recorded"])

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if not self.agree:
            return "DISAGREE"
        return "agree" if self.telling else "too few requests to tell"


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
    if scenario.replies.source == "synthetic":
        raise BadInput(f"scenario {scenario.name} has no LLM; give one with recorded replies")
    mechanism = make_mechanism(arm.name, **arm.parameters)
    lazy = LazyEngine(scenario)
    lazy.engine = engine
    (pool,) = pools_of(scenario, [mechanism], say, lazy)
    live = LiveReplies.of(scenario, pool, seed, mechanism.writing, lazy)
    values = np.array([spec.value / spec.target_roi for spec in scenario.advertisers])
    asked = np.arange(count) % pool.shape[0]
    return agreement(live, mechanism, values, asked, titles(pool), per_round, say)


def agreement(
    live: LiveReplies,
    mechanism: Mechanism,
    values: Floats,
    asked: Ints,
    names: Sequence[str],
    per_round: int = 16,
    say: Callable[[str], None] = lambda _: None,
) -> LiveCheck:
    """Record `asked` once, write them live in rounds, and compare what the mechanism does.

    Args:
        live: writes; a recording by the same engine and design has streams of its own.
        mechanism: run on both, under the same bids.
        values: (N,) bids.
        asked: (k,) requests of `live`, in order.
        names: (N,) of the advertisers.
        per_round: live requests per engine call.
        say: told in a line what is going on.
    """
    count = len(asked)
    say(f"recorded: {count} requests x {live.design.replies} replies")
    recorded = _through_disk(_record(live, asked))
    say(f"live: the same, {per_round} requests a round")
    bids = values[recorded.ads]
    fresh = [
        live.replies(asked[None, at : at + per_round], bids[at : at + per_round])
        for at in range(0, count, per_round)
    ]
    rng = np.random.default_rng([live.seed, 1])
    was = _amounts(mechanism.run(recorded, values, rng), recorded)
    now = np.concatenate([_amounts(mechanism.run(p, values, rng), p) for p in fresh])
    found = intervals(now - was, np.random.default_rng([live.seed, 2]))
    table = pl.DataFrame(
        {
            "quantity": ["revenue", *(f"ITCTR of {name}" for name in names)],
            "recorded": was.mean(axis=0),
            "live": now.mean(axis=0),
            "difference": found.mean,
            "low": found.low,
            "high": found.high,
            "reach": found.reach,
        }
    )
    return LiveCheck(table, count)


def _record(live: LiveReplies, asked: Ints) -> ReplyPool:
    return record(
        [live.requests[i] for i in asked],
        live.engine,
        live.users,
        live.design,
        seed=derived_seed(live.seed, "recorded"),
        num_advertisers=live.num_advertisers,
        writer=live.writer,
    )


def _through_disk(pool: ReplyPool) -> ReplyPool:
    with tempfile.TemporaryDirectory() as scratch:
        return load_pool(save_pool(pool, Path(scratch) / "pool"))


def _amounts(outcome: Outcome, pool: ReplyPool) -> Floats:
    """(k, 1 + N) expected payment of all, and ITCTR by advertiser, of each request."""
    found = np.zeros((len(outcome.itctr), 1 + pool.num_advertisers))
    found[:, 0] = outcome.payments.sum(axis=1)
    np.put_along_axis(found[:, 1:], pool.ads, outcome.itctr, axis=1)
    return found
