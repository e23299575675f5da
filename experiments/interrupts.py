"""Ctrl-C and SIGTERM: a market finishes its round first, everything else stops at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Within, SIGTERM is a `KeyboardInterrupt`, as Ctrl-C is; in the main thread only."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt, signal.SIGTERM):
        yield


@contextlib.contextmanager
def noted() -> Iterator[Callable[[], bool]]:
    """Within, a first Ctrl-C or SIGTERM is only noted; a second is a `KeyboardInterrupt`.

    Yields what tells whether there was a first. In another thread than the main one signals do what
    they did.
    """
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        # `print` may have been in the midst of a line
        os.write(2, b"\nstopping after this round; once more stops at once\n")

    with _handled(note, *_SIGNALS):
        yield lambda: bool(asked)


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)
