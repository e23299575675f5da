"""The hot kernel against what one would write without it, as ratios in one run.

Measured is what mechanisms call: `allocate` and `counterfactual`, checks included. All sides take
the same number of turns, one after the other, so that a busy machine disturbs them alike; figures
are medians over the turns, with the best turn's in brackets. Ratios of processor time, of all
threads together, stand beside those of the clock: what others do on the machine hardly shows in
them.

The first measurement is of what learning and audits do: many auctions on one pool whose replies
show few ads. `circumstances` measures what is less favourable: a pool met for the first time,
replies that show more, a temperature at which sums need logarithms.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numba
import numpy as np

from mechanisms.base import Mechanism
from mechanisms.kernels import VARIABLE
from mechanisms.kernels.threads import limited
from mechanisms.pool import Floats, ReplyPool
from mechanisms.registry import make_mechanism

TAU = 0.1
AUCTIONS = 20_000
TURNS = 15


@dataclass(frozen=True, eq=False)
class Times:
    """What the turns of a call took.

    Attributes:
        turns: (turns, 2) seconds by the clock and of processor time.
    """

    turns: Floats

    @property
    def median(self) -> Floats:
        """(2,) medians over the turns."""
        return np.median(self.turns, axis=0)

    @property
    def best(self) -> Floats:
        """(2,) the least of all turns."""
        return self.turns.min(axis=0)

    def rate(self, count: int) -> str:
        """So many things a second by the clock, as a phrase."""
        return f"{count / self.median[0]:,.0f} ({count / self.best[0]:,.0f})"

    def over(self, other: Times, kind: int = 0) -> str:
        """How much longer this took than `other`, by the clock or of processor time (1)."""
        usual, best = self.median / other.median, self.best / other.best
        return f"{usual[kind]:.1f} ({best[kind]:.1f})"


def kernel(say: Callable[[str], None]) -> Iterator[str]:
    """Lines with rates and ratios: allocation, deviations, and slot auctions."""
    yield f"float64; medians of {TURNS} turns for each side, in brackets the best turn"
    say("allocation, normalisers and payments")
    yield from allocation()
    yield from circumstances()
    say("counterfactual bid grids")
    yield from bid_grids()
    say("slot auctions")
    yield from slot_auctions()


def allocation(auctions: int = AUCTIONS, turns: int = TURNS) -> Iterator[str]:
    """Allocation, ITCTR, log Z, leave-one-out log Z and Rochet payments of a batch of requests."""
    rng = np.random.default_rng(0)
    pool = ReplyPool.synthetic(auctions, 20, 6, rng)
    bids = rng.random((auctions, 6))
    mosaic = make_mechanism("mosaic", tau=TAU)

    def ours() -> None:
        mosaic.allocate(pool, bids)

    def by_torch() -> None:
        with chosen("torch"):
            mosaic.allocate(pool, bids)

    def one_thread() -> None:
        with limited(1):
            ours()

    taken = times(
        turns,
        ours=ours,
        one=one_thread,
        reference=lambda: _reference(mosaic, pool, bids),
        plain=lambda: plain_numpy(pool.log_weights, pool.ctr, bids, TAU),
        torch=by_torch,
    )
    yield (
        f"allocation: {auctions} requests, M = 20, n = 6, mosaic payments, synthetic pool "
        f"({pool.exposure.sum(axis=2).mean():.2f} ads a reply)"
    )
    for name, what in (
        ("ours", f"ours, {_threads()}"),
        ("one", "ours, one thread"),
        ("plain", "plain NumPy"),
        ("reference", "our NumPy reference"),
        ("torch", "torch float64"),
    ):
        yield (
            f"  {what:22} {taken[name].rate(auctions):>23} auctions/s, "
            f"{taken['plain'].over(taken[name]):>11} x plain NumPy by the clock, "
            f"{taken['plain'].over(taken[name], 1):>11} x by processor time"
        )


def circumstances(auctions: int = AUCTIONS // 4, turns: int = TURNS) -> Iterator[str]:
    """The same where more is to be done for an auction than on a known pool of few exposures."""
    rng = np.random.default_rng(0)
    usual = ReplyPool.synthetic(auctions, 20, 6, rng)
    talkative = ReplyPool.synthetic(auctions, 20, 6, rng, mention_rate=1.0)
    dense = ReplyPool.from_arrays(rng.uniform(0.05, 0.5, (auctions, 20, 6)))
    bids = rng.random((auctions, 6))
    yield f"the same with {auctions} requests, plain NumPy's time over ours by the clock:"
    for what, pool, tau, fresh in (
        ("as above", usual, TAU, False),
        ("the first auctions on a pool", usual, TAU, True),
        (f"{talkative.exposure.sum(axis=2).mean():.2f} ads a reply", talkative, TAU, False),
        ("every ad in every reply", dense, TAU, False),
        ("tau = 0.001", usual, 0.001, False),
    ):
        taken = _against_plain(pool, bids, tau, fresh, turns)
        plain = taken["plain"]
        yield (
            f"  {what:30} {plain.over(taken['ours']):>11} x with {_threads()}, "
            f"{plain.over(taken['one']):>11} x with one"
        )


def _against_plain(
    pool: ReplyPool, bids: Floats, tau: float, fresh: bool, turns: int
) -> dict[str, Times]:
    """Times of mosaic on a pool (or on a `fresh` one of its arrays in every turn), and of plain."""
    mosaic = make_mechanism("mosaic", tau=tau)

    def ours() -> None:
        mosaic.allocate(replace(pool) if fresh else pool, bids)

    def one_thread() -> None:
        with limited(1):
            ours()

    def plain() -> None:
        weights = pool.log_ref - pool.log_gen if fresh else pool.log_weights
        plain_numpy(weights, pool.ctr, bids, tau)

    return times(turns, ours=ours, one=one_thread, plain=plain)


def bid_grids(requests: int = 64, turns: int = TURNS) -> Iterator[str]:
    """Every ad's outcome for every bid of a grid, the others' bids fixed."""
    rng = np.random.default_rng(1)
    pool = ReplyPool.synthetic(400, 24, 8, rng)
    index = rng.integers(400, size=requests)
    bids = rng.random((requests, 8))
    grid = np.ascontiguousarray(
        np.broadcast_to(np.linspace(0, 1.5, 64), (requests, 8, 64)) * rng.random((requests, 8, 1))
    )
    mosaic = make_mechanism("mosaic", tau=TAU)

    def ours() -> None:
        mosaic.counterfactual(pool.take(index), bids, grid)

    def one_thread() -> None:
        with limited(1):
            ours()

    def reference() -> None:
        with chosen("numpy"):
            ours()

    def again() -> None:
        with chosen("numpy"):
            Mechanism.counterfactual(mosaic, pool.take(index), bids, grid)

    taken = times(turns, ours=ours, one=one_thread, reference=reference, again=again)
    yield f"bid grids: mosaic, {requests} requests, n = 8 ads, 64 bids, M = 24, synthetic pool"
    for name, what in (
        ("ours", f"ours, {_threads()}"),
        ("one", "ours, one thread"),
        ("reference", "our NumPy reference"),
        ("again", "an auction for each bid"),
    ):
        yield (
            f"  {what:24} {taken[name].median[0] * 1e3:8.2f} ms, the first is "
            f"{taken[name].over(taken['ours']):>14} x as fast by the clock, "
            f"{taken[name].over(taken['ours'], 1):>14} x by processor time"
        )


def slot_auctions(requests: int = 64, turns: int = TURNS) -> Iterator[str]:
    """The same for slot auctions, beside mosaic."""
    rng = np.random.default_rng(2)
    pool = ReplyPool.synthetic(400, 24, 4, rng, advertisers=12)
    index = rng.integers(400, size=requests)
    bids = rng.random((requests, 4))
    grid = np.tile(np.linspace(0, 1.5, 61), (requests, 4, 1))
    yield f"bid grids: {requests} requests, n = 4 ads, 61 bids, M = 24, synthetic pool"
    auctions = {"mosaic": make_mechanism("mosaic", tau=TAU)}
    auctions |= {name: make_mechanism(name) for name in ("first-price", "gsp", "vcg")}

    def run(mechanism: Mechanism, by: str) -> Callable[[], None]:
        def call() -> None:
            with chosen(by):
                mechanism.counterfactual(pool.take(index), bids, grid)

        return call

    kernels = ("numba", "numpy")
    calls = {f"{name} {by}": run(each, by) for name, each in auctions.items() for by in kernels}
    taken = times(turns, **calls)
    for name in auctions:
        ours, reference = (taken[f"{name} {by}"] for by in kernels)
        yield (
            f"  {name:24} {ours.median[0] * 1e3:8.2f} ms, {ours.over(taken['mosaic numba'])} x "
            f"mosaic's time, {reference.over(ours):>14} x our NumPy reference's speed"
        )


def plain_numpy(
    log_weights: Floats, ctr: Floats, bids: Floats, tau: float
) -> tuple[Floats, Floats, Floats]:
    """Mosaic as one would write it: broadcasting, and log-sum-exp by subtracting the maximum.

    Args:
        log_weights: (B, M) log importance weights.
        ctr: (B, M, n) click probabilities.
        bids: (B, n) per click.
        tau: temperature.

    Returns:
        (B, M) probabilities, (B, n) click rates, (B, n) Rochet payments.
    """
    M = ctr.shape[1]
    rewards = bids[:, None, :] * ctr / tau
    total = rewards.sum(axis=2)
    scores = log_weights + total
    without = (log_weights + total)[:, :, None] - rewards
    peak = scores.max(axis=1, keepdims=True)
    weights = np.exp(scores - peak)
    sums = weights.sum(axis=1, keepdims=True)
    log_z = np.log(sums / M) + peak
    peaks = without.max(axis=1)
    log_z_without = np.log(np.exp(without - peaks[:, None]).mean(axis=1)) + peaks
    probabilities = weights / sums
    itctr = np.einsum("bm,bmn->bn", probabilities, ctr)
    payments = bids * itctr - tau * (log_z - log_z_without)
    return probabilities, itctr, payments


@contextmanager
def chosen(name: str) -> Iterator[None]:
    """The kernel `name` within the block."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


def times(turns: int, **calls: Callable[[], object]) -> dict[str, Times]:
    """What each call takes, by name.

    Args:
        turns: of every call, after a first one that warms up.
        calls: what to measure.
    """
    taken = {name: [] for name in calls}
    for _ in range(turns + 1):
        for name, call in calls.items():
            clock, processor = time.perf_counter(), time.process_time()
            call()
            taken[name].append((time.perf_counter() - clock, time.process_time() - processor))
    return {name: Times(np.array(each[1:])) for name, each in taken.items()}


def _threads() -> str:
    return f"{numba.config.NUMBA_NUM_THREADS} threads"


def _reference(mosaic: Mechanism, pool: ReplyPool, bids: Floats) -> None:
    with chosen("numpy"):
        mosaic.allocate(pool, bids)
