"""A file that one process has at a time, however the last one ended."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mechanisms.errors import BadInput

LOG = logging.getLogger(__name__)


def open_locked(path: Path, wait: Callable[[str], None] | None = None) -> BinaryIO | None:
    """Open the journal `path` for reading and writing, locked for us alone until it is closed.

    The system gives a lock up with the process that has it, killed or not.

    Args:
        path: made if it is not there.
        wait: told so if another process has it, which is then waited for; None: it is not.

    Returns:
        The file; None, with a warning, where another process has it or nothing can be locked.

    Raises:
        BadInput: it cannot be made or opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
            if refused := _lock(file, wait):
                file.close()
                LOG.warning(
                    "journal %s: %s; working without, so this run cannot be resumed", path, refused
                )
                return None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
            file.close()  # its last owner removed it between our opening and our locking
    except OSError as error:
        raise BadInput(
            f"cannot write journal {path} ({error.strerror}); "
            "set ADMARKET_CACHE to a folder that you can write to"
        ) from None


def _lock(file: BinaryIO, wait: Callable[[str], None] | None) -> str | None:
    """Lock `file`, or return why not."""
    try:
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait is None:
                return "another process is recording the same"
            wait("another process is recording the same replies; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError) as error:
        return f"it cannot be locked ({getattr(error, 'strerror', None) or error})"
    return None
