"""How fast the market is, and whether its memory stays flat.

All on synthetic pools, half of the advertisers value maximizers, stepping `MarketModel` with every
round recorded. Rates are those of the best of some stretches. They come with the project's target,
and with the ratio to the NumPy reference (`ADMARKET_KERNEL=numpy`) on the same market. Rates of
other simulators were measured with their own code on the machine on which the targets were set.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numba

from market.model import MarketModel
from market.scenario import Scenario
from mechanisms.kernels import VARIABLE
from mechanisms.pool import ReplyPool

MOSAIC = {"name": "mosaic", "parameters": {"tau": 0.3}}
GSP = {"name": "gsp", "parameters": {"slots": 2}}


@dataclass(frozen=True)
class Case:
    """A market to be timed; the synthetic pool has `queries` requests of M `replies` each.

    `rounds` are timed, and of the reference some stretches of `by_numpy`.
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
                "rounds": self.rounds,
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
    """Seconds that `rounds` took, in equal stretches, and what came after.

    Attributes:
        rounds: how many.
        stretches: seconds of each.
        frames: seconds in which all rounds become frames and a summary.
        reference: seconds a round of the NumPy reference.
    """

    rounds: int
    stretches: tuple[float, ...]
    frames: float
    reference: float

    @property
    def rate(self) -> float:
        """Rounds a second, in the best stretch: others are what else the machine had to do."""
        return self.rounds / (len(self.stretches) * min(self.stretches))

    @property
    def rate_with_frames(self) -> float:
        """Rounds a second, the time counted in which they become frames and a summary."""
        return 1 / (1 / self.rate + self.frames / self.rounds)

    @property
    def ratio(self) -> str:
        """To the reference, as a phrase."""
        return f"{self.rate * self.reference:.1f} x the NumPy reference"


def market(say: Callable[[str], None]) -> Iterator[str]:
    """Lines of what the market does a second, and of its memory."""
    yield f"market: {numba.config.NUMBA_NUM_THREADS} threads for rounds that are worth it"
    for part in (_memory, _hedge, _single_requests, _auctionnet, _large):
        yield from part(say)


def _hedge(say: Callable[[str], None]) -> Iterator[str]:
    case = Case(8, 8, 20, 200, requests=64, rounds=600, learner="hedge", by_numpy=30, grid_size=64)
    timed = _timed(case, say)
    yield (
        f"full-feedback hedge, 8 advertisers, 64 bids, 64 requests a round, mosaic: "
        f"{timed.rate:.0f} rounds/s (target 300), {timed.ratio}"
    )


def _single_requests(say: Callable[[str], None]) -> Iterator[str]:
    for learner in ("hedge", "pacing"):
        alone = Case(10, 6, 20, 200, 1, 20_000, learner, by_numpy=200)
        many = replace(alone, rounds=1500, replications=64, by_numpy=50)
        timed = _timed(alone, say)
        yield (
            f"Mesa market, 10 {learner} advertisers, 1 request a round, all recorded: "
            f"{timed.rate:.0f} rounds/s, {timed.rate_with_frames:.0f} with its frames "
            f"(target 25000; AuctionGym: under 9000 without records), {timed.ratio}"
        )
        timed = _timed(many, say)
        yield (
            f"  64 replications, each a market with its own dice: {64 * timed.rate:.0f} rounds/s, "
            f"{64 * timed.rate_with_frames:.0f} with its frames, {timed.ratio}"
        )


def _auctionnet(say: Callable[[str], None]) -> Iterator[str]:
    case = Case(48, 48, 24, 300, 10_417, 48, "pacing", by_numpy=1, budget=12_000.0)
    for mechanism in (MOSAIC, GSP):
        timed = _timed(replace(case, mechanism=mechanism), say)
        yield (
            f"48 pacing advertisers with budgets, 500,016 requests in 48 rounds, all 48 candidates "
            f"in each, {mechanism['name']}: {sum(timed.stretches):.2f} s "
            f"(target 3; AuctionNet's environment: 16.6), {timed.ratio}"
        )


def _large(say: Callable[[str], None]) -> Iterator[str]:
    for learner, grid_size in (("pacing", None), ("hedge", 32)):
        case = Case(1000, 8, 24, 2000, 10_000, 10, learner, by_numpy=1, grid_size=grid_size)
        timed = _timed(case, say)
        bids = "" if grid_size is None else f" on {grid_size} bids"
        yield (
            f"1,000 {learner} advertisers{bids}, 10,000 requests a round, mosaic: "
            f"{timed.rate:.1f} rounds/s (target 1), {timed.ratio}"
        )


def _memory(say: Callable[[str], None]) -> Iterator[str]:
    say("market: memory over 100,000 rounds")
    scenario = Case(10, 6, 20, 200, 1, 100_000, "hedge", by_numpy=0).scenario
    model = MarketModel(scenario, seed=0)
    held = {}
    for rounds in (10_000, 100_000):
        while model.round < rounds:
            model.step()
        held[rounds] = _resident()
    yield (
        f"memory of the process after 10,000 rounds of 10 hedge advertisers: "
        f"{held[10_000]:.0f} MB; after 100,000: {held[100_000]:.0f} MB"
    )


def _timed(case: Case, say: Callable[[str], None]) -> Timed:
    scenario = case.scenario
    say(f"market: {case.advertisers} x {case.learner}, {scenario.mechanism.name}, {case.rounds}")
    pool = scenario.make_pool()
    # compiles, and touches what is computed once a pool
    _model(scenario, pool).run(2)
    model = _model(scenario, pool)
    count = next(count for count in (10, 6, 5, 2, 1) if case.rounds % count == 0)
    stretches = tuple(_seconds(model, case.rounds // count) for _ in range(count))
    start = time.perf_counter()
    model.ledger.result()
    frames = time.perf_counter() - start
    with _numpy():
        reference = _model(scenario, pool)
        count = min(3, case.rounds // case.by_numpy)
        best = min(_seconds(reference, case.by_numpy) for _ in range(count))
    return Timed(case.rounds, stretches, frames, best / case.by_numpy)


def _model(scenario: Scenario, pool: ReplyPool) -> MarketModel:
    return MarketModel(scenario, seed=0, pool=pool)


def _seconds(model: MarketModel, rounds: int) -> float:
    start = time.perf_counter()
    for _ in range(rounds):
        model.step()
    return time.perf_counter() - start


@contextmanager
def _numpy() -> Iterator[None]:
    """Auctions by the NumPy reference within the block."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "numpy"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _resident() -> float:
    """Megabytes the process holds; the most it ever held where the system does not say."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
