"""Arbitrary reports: what a utility maximizer gains by reporting any reward for any reply.

Where a mechanism takes a reward for every reply (`allocate_reports`, as MOSAIC does), a bid per
click is only one line through the space of reports, R^M in each request. Here the others report
`b_i·f_i(y)` and one advertiser lies: by rules of thumb, at random, and by a search, which climbs
the advertiser's utility in R^M along its numerical gradient, from the best of all others and from
random reports. Everything is exact, request by request.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from agents.learners.base import Population
from experiments.audit.deviations import worth
from mechanisms.base import Allocation, Mechanism
from mechanisms.candidates import expectation
from mechanisms.pool import Floats, Ints, ReplyPool

FACTORS = (0.0, 0.5, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 2.0)
NOISE = (0.03, 0.1, 0.3, 1.0, 3.0)
STEPS = 20
STRIDES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
SEARCHED = 200  # requests of a large pool on which all this is tried, at most
_HELD = 10_000_000  # numbers in the auctions of one search step, for memory


@runtime_checkable
class TakesReports(Protocol):
    """A mechanism that hears a reward for every reply, not only a bid."""

    def allocate_reports(self, pool: ReplyPool, rewards: ArrayLike) -> Allocation:
        """Expected outcome of reported rewards (B, M, n)."""
        ...


@dataclass(frozen=True, eq=False)
class Liars:
    """Every pair of a request and a utility maximizer in it: K auctions with one liar each.

    Attributes:
        mechanism: that takes reports.
        pool: K requests, some of them several times.
        own: (K,) the liar's place among the candidate ads.
        value: (K,) its value per unit.
        units: (K, M) what it values a unit of, reply by reply.
        reports: (K, M, n) what all report when it is truthful.
    """

    mechanism: Mechanism
    pool: ReplyPool
    own: Ints
    value: Floats
    units: Floats
    reports: Floats

    @classmethod
    def of(cls, mechanism: Mechanism, pool: ReplyPool, people: Population, bids: Floats) -> Liars:
        """All of a pool, where the others bid `bids` (N,)."""
        request, own = np.nonzero(~people.value_maximizer[pool.ads])
        copies = pool.take(request)
        rows = np.arange(len(request))
        liar = pool.ads[request, own]
        profile = bids[copies.ads]
        profile[rows, own] = people.truthful_bids[liar]
        features = worth(mechanism, copies)
        return cls(
            mechanism=mechanism,
            pool=copies,
            own=own,
            value=people.values[liar],
            units=features[rows, :, own],
            reports=profile[:, None, :] * features,
        )

    @property
    def truth(self) -> Floats:
        """(K, M) what the liars would report truthfully."""
        return self.reports[np.arange(len(self.own)), :, self.own]

    @property
    def scale(self) -> Floats:
        """(K, 1) by how much a reward usually differs from reply to reply."""
        spread = self.truth.std(axis=1)
        return np.where(spread > 0, spread, 0.1 * self.value)[:, None]

    def outcome(self, reported: Floats) -> tuple[Floats, Floats]:
        """(K,) true value attained, and utility, when the liars report `reported` (K, M)."""
        rows = np.arange(len(self.own))
        rewards = self.reports.copy()
        rewards[rows, :, self.own] = reported
        found = self.mechanism.allocate_reports(self.pool, rewards)
        value = self.value * expectation(found.probabilities, self.units[:, :, None])[:, 0]
        return value, value - found.payments[rows, self.own]

    def take(self, rows: Ints) -> Liars:
        """The auctions `rows` of them, repeats allowed."""
        return Liars(
            self.mechanism,
            self.pool.take(rows),
            self.own[rows],
            self.value[rows],
            self.units[rows],
            self.reports[rows],
        )


def searched(pool: ReplyPool) -> int:
    """On how many requests of a pool all this is tried."""
    B, M, n = pool.shape
    return min(B, max(1, min(SEARCHED, _HELD // (M * n) ** 2)))


def misreports(
    mechanism: Mechanism,
    pool: ReplyPool,
    people: Population,
    bids: Floats,
    rng: np.random.Generator,
) -> pl.DataFrame:
    """Gains from reports of all kinds, with everybody else at `bids` (N,).

    On `searched(pool)` requests, drawn at random where that is not all of them.

    Returns:
        A row per kind and utility maximizer: `kind`, `advertiser`, `requests` tried, `gain` (money,
        summed over them), `value` attained under truth, `largest` gain in one request as a fraction
        of the value per click.
    """
    B, most = len(pool.ads), searched(pool)
    some = pool if most == B else pool.take(np.sort(rng.choice(B, most, replace=False)))
    liars = Liars.of(mechanism, some, people, bids)
    who = liars.pool.ads[np.arange(len(liars.own)), liars.own]
    value, honest = liars.outcome(liars.truth)
    stake = np.abs(value)
    reported = dict(_kinds(liars, rng))
    gains = {kind: liars.outcome(each)[1] - honest for kind, each in reported.items()}
    pick = np.argmax(list(gains.values()), axis=0)
    best = np.stack(list(reported.values()))[pick, np.arange(len(who))]
    best = np.where((np.max(list(gains.values()), axis=0) > 0)[:, None], best, liars.truth)
    random = 2 * liars.scale * rng.standard_normal(best.shape)
    for start, name in ((best, "the best of these"), (random, "random")):
        gains[f"searched from {name}"] = liars.outcome(climb(liars, start))[1] - honest
    return pl.concat(
        pl.DataFrame(
            {"advertiser": who, "gain": gain, "value": stake, "largest": gain / liars.value}
        )
        .group_by("advertiser")
        .agg(pl.len().alias("requests"), pl.col("gain", "value").sum(), pl.col("largest").max())
        .sort("advertiser")
        .select(pl.lit(kind).alias("kind"), pl.all())
        for kind, gain in gains.items()
    )


def climb(liars: Liars, start: Floats) -> Floats:
    """(K, M) reports after steps up the gradient of each liar's utility, never below the start's.

    Strides are multiples of the scale of its rewards; the best of several is taken, or none.
    """
    K, M = start.shape
    reported, best = start.copy(), liars.outcome(start)[1]
    scale = liars.scale
    probe = 1e-4 * scale[:, :, None] * np.eye(M)
    each_way = liars.take(np.repeat(np.arange(K), M))
    every_stride = liars.take(np.tile(np.arange(K), len(STRIDES)))
    for _ in range(STEPS):
        up, down = (
            each_way.outcome((reported[:, None] + side).reshape(K * M, M))[1].reshape(K, M)
            for side in (probe, -probe)
        )
        slope = up - down
        length = np.linalg.norm(slope, axis=1, keepdims=True)
        ahead = scale * np.divide(slope, length, out=np.zeros_like(slope), where=length > 0)
        tried = reported + np.array(STRIDES)[:, None, None] * ahead
        utility = every_stride.outcome(tried.reshape(-1, M))[1].reshape(len(STRIDES), K)
        pick = utility.argmax(axis=0)
        better = utility[pick, np.arange(K)] > best
        if not better.any():
            break
        reported[better] = tried[pick, np.arange(K)][better]
        best = np.maximum(best, utility[pick, np.arange(K)])
    return reported


def _kinds(liars: Liars, rng: np.random.Generator) -> Iterator[tuple[str, Floats]]:
    """Names and reports (K, M)."""
    truth, scale = liars.truth, liars.scale
    rows = np.arange(len(liars.own))
    exposure = liars.pool.exposure
    rival = exposure.sum(axis=2) > exposure[rows, :, liars.own]
    yield from ((f"scaled by {factor:g}", factor * truth) for factor in FACTORS)
    yield "raised for all replies", truth + scale
    yield "lowered for all replies", truth - scale
    yield "sign flipped", -truth
    yield "nothing for replies with rivals", np.where(rival, 0.0, truth)
    yield "blame for replies with rivals", truth - scale * rival
    top = truth == truth.max(axis=1, keepdims=True)
    yield "all on its best reply", np.where(top, truth, 0.0)
    yield from (
        (f"noise of {size:g}", truth + size * scale * rng.standard_normal(truth.shape))
        for size in NOISE
    )
    yield "random", 2 * scale * rng.standard_normal(truth.shape)
