"""The hot kernel against what one would write without it, as ratios in one run.

Measured is what mechanisms call: `allocate` and `counterfactual`, checks included. Times are the
best of several repeats, taken in turns, so that a busy machine disturbs all sides alike. Ratios of
processor time, of all threads together, stand beside those of the clock: what others do on the
machine hardly shows in them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numba
import numpy as np

from mechanisms.base import Mechanism
from mechanisms.kernels import VARIABLE
from mechanisms.kernels.threads import limited
from mechanisms.pool import Floats, ReplyPool
from mechanisms.registry import make_mechanism

TAU = 0.1
AUCTIONS = 20_000
REPEATS = 15


def kernel(say: Callable[[str], None]) -> Iterator[str]:
    """Lines with rates and ratios: allocation, deviations, and slot auctions."""
    threads = numba.config.NUMBA_NUM_THREADS
    yield f"float64, compiled on {threads} threads or one; best of {REPEATS} or more, in turns"
    say("allocation, normalisers and payments")
    yield from allocation()
    say("counterfactual bid grids")
    yield from bid_grids()
    say("slot auctions")
    yield from slot_auctions()


def allocation(auctions: int = AUCTIONS, repeats: int = REPEATS) -> Iterator[str]:
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

    seconds = best(
        repeats,
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
        ("ours", f"ours, {numba.config.NUMBA_NUM_THREADS} threads"),
        ("one", "ours, one thread"),
        ("plain", "plain NumPy"),
        ("reference", "our NumPy reference"),
        ("torch", "torch float64"),
    ):
        yield (
            f"  {what:24} {auctions / seconds[name][0]:12,.0f} auctions/s, "
            f"{seconds['plain'][0] / seconds[name][0]:6.1f} x plain NumPy by the clock, "
            f"{seconds['plain'][1] / seconds[name][1]:6.1f} x by processor time"
        )


def bid_grids(requests: int = 64, repeats: int = 4 * REPEATS) -> Iterator[str]:
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

    seconds = best(repeats, ours=ours, one=one_thread, reference=reference)
    seconds |= best(2, again=again)
    yield f"bid grids: mosaic, {requests} requests, n = 8 ads, 64 bids, M = 24, synthetic pool"
    for name, what in (
        ("ours", f"ours, {numba.config.NUMBA_NUM_THREADS} threads"),
        ("one", "ours, one thread"),
        ("reference", "our NumPy reference"),
        ("again", "an auction for each bid"),
    ):
        yield (
            f"  {what:24} {seconds[name][0] * 1e3:8.2f} ms, the first is "
            f"{seconds[name][0] / seconds['ours'][0]:6.1f} x as fast by the clock, "
            f"{seconds[name][1] / seconds['ours'][1]:6.1f} x by processor time"
        )


def slot_auctions(requests: int = 64, repeats: int = 2 * REPEATS) -> Iterator[str]:
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

    compiled = best(repeats, **{name: run(each, "numba") for name, each in auctions.items()})
    numpys = best(3, **{name: run(each, "numpy") for name, each in auctions.items()})
    for name, (seconds, _) in compiled.items():
        yield (
            f"  {name:24} {seconds * 1e3:8.2f} ms, {seconds / compiled['mosaic'][0]:5.2f} x "
            f"mosaic's time, {numpys[name][0] / seconds:6.1f} x our NumPy reference's speed"
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


def best(repeats: int, **calls: Callable[[], object]) -> dict[str, tuple[float, float]]:
    """Least seconds of each call by name, by the clock and of processor time.

    Args:
        repeats: turns to take, after a first one that warms up.
        calls: what to measure.
    """
    taken = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            clock, processor = time.perf_counter(), time.process_time()
            call()
            taken[name].append((time.perf_counter() - clock, time.process_time() - processor))
    return {name: tuple(np.min(turns[1:], axis=0)) for name, turns in taken.items()}


def _reference(mosaic: Mechanism, pool: ReplyPool, bids: Floats) -> None:
    with chosen("numpy"):
        mosaic.allocate(pool, bids)
