"""How fast the market is, and whether its memory stays flat.

All on synthetic pools, half of the advertisers value maximizers, stepping `MarketModel` with every
round recorded. The rounds are timed in a few stretches, taken in turns with as many of the NumPy
reference (`ADMARKET_KERNEL=numpy`) on the same market. Rates are medians over stretches, with the
best in brackets. Rates of other simulators are *not of this run*: they were measured with their own
code on the machine on which the targets were set.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numba

from experiments.bench_kernel import chosen
from market.model import MarketModel
from market.scenario import Scenario
from mechanisms.pool import ReplyPool

MOSAIC = {"name": "mosaic", "parameters": {"tau": 0.3}}
GSP = {"name": "gsp", "parameters": {"slots": 2}}
STRETCHES = 3


@dataclass(frozen=True)
class Case:
    """A market to be timed; the synthetic pool has `queries` requests of M `replies` each.

    Timed are `STRETCHES` of `rounds` each, and as many of the reference of `by_numpy` rounds.
    """

    advertisers: int
    ads: int
    replies: int
    queries: int
    requests: int
    rounds: int
    learner: str
    by_numpy: int
    replications: int = 1
    grid_size: int | None = None
    mechanism: dict[str, Any] | None = None
    budget: float | None = None

    @property
    def scenario(self) -> Scenario:
        """As a scenario of the market."""
        grid = {} if self.grid_size is None else {"grid_size": self.grid_size}
        common = {
            "value": [1.0, 3.0],
            "learner": {"name": self.learner, "parameters": grid},
            "budget": self.budget,
        }
        half = self.advertisers // 2
        return Scenario.from_dict(
            {
                "name": "bench",
                "rounds": STRETCHES * self.rounds,
                "requests_per_round": self.requests,
                "replications": self.replications,
                "mechanism": self.mechanism or MOSAIC,
                "replies": {"source": "synthetic", "per_request": self.replies},
                "requests": {"queries": self.queries, "ads": self.ads},
                "population": [
                    {"objective": "utility", "count": self.advertisers - half, **common},
                    {"objective": "value", "count": half, "target_roi": [1.0, 1.5], **common},
                ],
            }
        )


@dataclass(frozen=True)
class Timed:
    """Seconds a round, by stretch, and what came after.

    Attributes:
        ours: of the compiled market.
        reference: of the NumPy reference, as many stretches.
        frames: seconds a round in which all rounds become frames and a summary.
        replications: markets that are played at once.
    """

    ours: tuple[float, ...]
    reference: tuple[float, ...]
    frames: float
    replications: int = 1

    @property
    def rate(self) -> float:
        """Rounds a second, of all replications."""
        return self.replications / median(self.ours)

    @property
    def best(self) -> float:
        """The same in the best stretch: others are what else the machine had to do."""
        return self.replications / min(self.ours)

    @property
    def with_frames(self) -> float:
        """Rounds a second, the time counted in which they become frames and a summary."""
        return self.replications / (median(self.ours) + self.frames)

    @property
    def ratio(self) -> str:
        """To the reference, as a phrase."""
        usual, best = (of(self.reference) / of(self.ours) for of in (median, min))
        return f"{usual:.1f} ({best:.1f}) x the NumPy reference"


def market(say: Callable[[str], None]) -> Iterator[str]:
    """Lines of what the market does a second, and of its memory."""
    yield (
        f"market: {numba.config.NUMBA_NUM_THREADS} threads for rounds that are worth it; medians "
        f"of {STRETCHES} stretches (best in brackets); other simulators measured elsewhere"
    )
    for part in (_memory, _hedge, _single_requests, _auctionnet, _large):
        yield from part(say)


def _hedge(say: Callable[[str], None]) -> Iterator[str]:
    case = Case(8, 8, 20, 200, requests=64, rounds=300, learner="hedge", by_numpy=30, grid_size=64)
    timed = _timed(case, say)
    yield (
        f"full-feedback hedge, 8 advertisers, 64 bids, 64 requests a round, mosaic: "
        f"{timed.rate:.0f} ({timed.best:.0f}) rounds/s (target 300), {timed.ratio}"
    )


def _single_requests(say: Callable[[str], None]) -> Iterator[str]:
    for learner in ("hedge", "pacing"):
        alone = Case(10, 6, 20, 200, 1, 10_000, learner, by_numpy=400)
        many = replace(alone, rounds=1000, replications=64, by_numpy=50)
        timed = _timed(alone, say)
        yield (
            f"Mesa market, 10 {learner} advertisers, 1 request a round, all recorded: "
            f"{timed.rate:.0f} ({timed.best:.0f}) rounds/s, {timed.with_frames:.0f} with its "
            f"frames (target 25000; AuctionGym, elsewhere: under 9000 without records), "
            f"{timed.ratio}"
        )
        timed = _timed(many, say)
        yield (
            f"  64 replications, each a market with its own dice: {timed.rate:.0f} "
            f"({timed.best:.0f}) rounds/s, {timed.with_frames:.0f} with its frames, {timed.ratio}"
        )


def _auctionnet(say: Callable[[str], None]) -> Iterator[str]:
    case = Case(48, 48, 24, 300, 10_417, 48 // STRETCHES, "pacing", by_numpy=1, budget=12_000.0)
    for mechanism in (MOSAIC, GSP):
        case = replace(case, mechanism=mechanism)
        timed = _timed(case, say)
        shown = case.scenario.make_pool().exposure.any(axis=1).sum(axis=1).mean()
        yield (
            f"48 pacing advertisers with budgets, 500,016 requests (of {case.queries} again and "
            f"again) in 48 rounds, 48 candidates in each, of whom {shown:.0f} can be shown by some "
            f"reply, {mechanism['name']}: {48 * sum(timed.ours) / STRETCHES:.2f} s (target 3; "
            f"AuctionNet's environment, elsewhere: 16.6), {timed.ratio}"
        )


def _large(say: Callable[[str], None]) -> Iterator[str]:
    for learner, grid_size in (("pacing", None), ("hedge", 32)):
        case = Case(1000, 8, 24, 2000, 10_000, 3, learner, by_numpy=1, grid_size=grid_size)
        timed = _timed(case, say)
        bids = "" if grid_size is None else f" on {grid_size} bids"
        yield (
            f"1,000 {learner} advertisers{bids}, 10,000 requests a round, mosaic: "
            f"{timed.rate:.1f} ({timed.best:.1f}) rounds/s (target 1), {timed.ratio}"
        )


def _memory(say: Callable[[str], None]) -> Iterator[str]:
    say("market: memory over 100,000 rounds")
    scenario = Case(10, 6, 20, 200, 1, 100_000, "hedge", by_numpy=0).scenario
    model = MarketModel(scenario, seed=0)
    held = {}
    for rounds in (10_000, 100_000):
        while model.round < rounds:
            model.step()
        held[rounds] = resident()
    result = model.ledger.result()
    yield (
        f"memory of the process while stepping 10 hedge advertisers: {held[10_000]:.0f} MB after "
        f"10,000 rounds, {held[100_000]:.0f} MB after 100,000; with the result, which is in memory "
        f"({len(result.advertisers):,} rows): {resident():.0f} MB, {peak():.0f} MB at the most"
    )


def _timed(case: Case, say: Callable[[str], None]) -> Timed:
    scenario = case.scenario
    say(f"market: {case.advertisers} x {case.learner}, {scenario.mechanism.name}, {case.rounds}")
    pool = scenario.make_pool()
    # compiles, and touches what is computed once a pool
    _model(scenario, pool).run(2)
    model = _model(scenario, pool)
    with chosen("numpy"):
        reference = _model(scenario, pool)
    ours, theirs = [], []
    for _ in range(STRETCHES):
        ours.append(_seconds_a_round(model, case.rounds))
        with chosen("numpy"):
            theirs.append(_seconds_a_round(reference, case.by_numpy))
    start = time.perf_counter()
    model.ledger.result()
    frames = (time.perf_counter() - start) / model.round
    return Timed(tuple(ours), tuple(theirs), frames, case.replications)


def _model(scenario: Scenario, pool: ReplyPool) -> MarketModel:
    return MarketModel(scenario, seed=0, pool=pool)


def _seconds_a_round(model: MarketModel, rounds: int) -> float:
    start = time.perf_counter()
    for _ in range(rounds):
        model.step()
    return (time.perf_counter() - start) / rounds


def resident() -> float:
    """Megabytes the process holds; the most it ever held where the system does not say."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 2**20
    return peak()


def peak() -> float:
    """Megabytes the process held at the most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
