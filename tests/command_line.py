"""The command line in this process, watched: what it may do with bad input, and what it may not."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from experiments.cli import main
from market import environment
from mechanisms.llm.base import Engine
from mechanisms.llm.engines import make_engine
from tests.tiny_llm import HashEncoder

SECONDS = 120
ROOM = 4 * 2**30
"""Bytes of address space that a command may take on top of what this process has."""


class Hangs(BaseException):
    """The command was still at it after `SECONDS`; nothing in between catches this."""


@dataclass(frozen=True)
class Said:
    """Exit code, and what was printed."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line of the error stream, which says what is wrong."""
        return (self.err.strip().splitlines() or [""])[-1]


def admarket(*arguments: object) -> Said:
    """Run the command within `SECONDS` and `ROOM`; what it prints, and `SystemExit`, are caught."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = ["admarket", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
        _limits(),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    return Said(code, out.getvalue(), err.getvalue())


def check_refusal(said: Said) -> None:
    """Bad input: exit code 2, one line, which is no traceback in disguise."""
    lines = [line for line in said.err.splitlines() if not line.startswith("candidate replies: ")]
    assert said.code == 2, said
    assert len(lines) == 1 and lines[0].startswith("admarket: "), said
    assert len(lines[0]) < 1000 and not said.out, said
    assert "Traceback" not in said.err, said


@contextlib.contextmanager
def small_world(engine: Engine, cache: Path) -> Iterator[None]:
    """A cache of its own, no text encoder, and `engine` where the default LLM is asked for."""

    def opened(kind: str = "transformers", *, model: str, **rest: Any) -> Engine:
        return engine if model == "smollm2-135m" else make_engine(kind, model=model, **rest)

    with (
        mock.patch.dict("os.environ", ADMARKET_CACHE=str(cache)),
        mock.patch.object(environment, "TextEncoder", HashEncoder),
        mock.patch.object(environment, "make_engine", opened),
    ):
        yield


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """What hangs raises `Hangs`, and what asks for too much memory fails (on Linux)."""

    def stop(*_: object) -> None:
        raise Hangs(f"no end after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with _address_space():
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _address_space() -> Iterator[None]:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    import resource

    taken = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
