"""Results folders are replaced in two moves, and nothing is lost that comes between these."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from mechanisms.errors import BadInput


def swap(ready: Path, folder: Path) -> None:
    """Move `ready` to `folder`; what was there ends in `ready`'s parent, which the caller removes.

    Where that fails or is interrupted, `folder` is what it was. After a `kill -9` between the moves
    the earlier results lie beside it, hidden, until `put_back`.

    Args:
        ready: complete, in a scratch folder on the same file system.
        folder: of the results; there or not.

    Raises:
        OSError: it cannot be written.
    """
    _settle(*ready.rglob("*"), ready)
    put_back(folder)
    earlier = _earlier(folder)
    if earlier.exists():  # killed after the second move: they were replaced
        os.replace(earlier, ready.with_name("replaced"))
    try:
        if folder.exists():
            os.replace(folder, earlier)
        os.replace(ready, folder)
        _settle(folder.parent)
    finally:
        put_back(folder)
        if earlier.exists():
            os.replace(earlier, ready.with_name("old"))


def put_back(folder: Path) -> None:
    """Move earlier results back to `folder` if they were to be replaced, and nothing came of it.

    Raises:
        BadInput: a folder without a name.
        OSError: they cannot be moved.
    """
    earlier = _earlier(folder)
    if earlier.exists() and not (folder.exists() and any(folder.iterdir())):
        os.replace(earlier, folder)


def _earlier(folder: Path) -> Path:
    """Where results lie while new ones take their place.

    Raises:
        BadInput: a folder without a name, such as `.`, beside which there is no such place.
    """
    if folder.name in ("", ".."):
        raise BadInput(f"--out {folder}: a folder is replaced as a whole; give one by its name")
    return folder.with_name(f".{folder.name}.earlier")


def _settle(*paths: Path) -> None:
    """Have files, and entries of folders, on the disk: a power cut may come next."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems sync no folders
                raise
        finally:
            os.close(descriptor)
