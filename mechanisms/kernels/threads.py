"""Threads for compiled kernels: requests are split among a few, each writing rows of its own.

Kernels release the interpreter's lock and no row depends on another, so the number of threads
changes no byte. Plain threads, not numba's own: its OpenMP layer must not be forked, and processes
are forked where markets are compared. `NUMBA_NUM_THREADS` limits them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import numba

# Below this much work, in units of about a nanosecond, a second thread costs more than it saves.
_WORTH = 500_000
# Parts a thread: whoever is free takes the next, so that a busy core does not keep all waiting.
_PARTS = 8

_executor: ThreadPoolExecutor | None = None
_limit: int | None = None


def split(rows: int, work: float, run: Callable[[int, int], bool]) -> bool:
    """Whether `run(first, last)` is true of every part of 0..rows, run in threads if it pays.

    Args:
        rows: requests, or whatever the parts are made of.
        work: about how long all of it takes one thread, in nanoseconds.
        run: a compiled kernel's call for rows `first` to `last`.
    """
    threads = int(min(_threads(), rows, work // _WORTH))
    if threads < 2:
        return run(0, rows)
    parts = threads * _PARTS
    left = iter(list(pairwise(rows * k // parts for k in range(parts + 1))))

    def serve() -> bool:
        return all([run(*part) for part in left])

    others = [_pool().submit(serve) for _ in range(threads - 1)]
    done = serve()
    # whoever has not begun by now finds nothing left to do
    return all([other.cancel() or other.result() for other in others]) and done


@contextmanager
def limited(threads: int):
    """At most so many threads within the block; for measurements and tests."""
    global _limit
    before, _limit = _limit, threads
    try:
        yield
    finally:
        _limit = before


def _threads() -> int:
    return _limit or numba.config.NUMBA_NUM_THREADS


def _pool() -> ThreadPoolExecutor:
    global _executor
    if _executor is None:
        _executor = ThreadPoolExecutor(max(1, numba.config.NUMBA_NUM_THREADS), "kernel")
    return _executor


def _forget() -> None:
    global _executor
    _executor = None  # threads do not survive a fork


os.register_at_fork(after_in_child=_forget)
