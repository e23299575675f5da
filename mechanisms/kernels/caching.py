"""Compiled code kept on disk must not outlive the source it was made of.

Numba keeps what it compiled while the file of the *calling* function is unchanged. A function that
calls compiled functions of another module holds their code too, and would go on with an old one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from numba import njit

Compiled = TypeVar("Compiled")


def compiled_with(*modules: ModuleType) -> Callable[[Callable], Any]:
    """Decorate a function to be compiled at first use, and anew when `modules` change.

    Without the interpreter's lock, so that threads may run it, and with C's division: it does not
    look for zeros.
    """

    def decorate(function: Callable) -> Any:
        kept = njit(cache=True, nogil=True, error_model="numpy")(function)
        return renewed_with(*modules)(kept)

    return decorate


def renewed_with(*modules: ModuleType) -> Callable[[Compiled], Compiled]:
    """Decorate a function of `njit(cache=True)` to be compiled anew when `modules` change, too.

    Or when those modules change that their functions are renewed with in their turn.
    """

    def decorate(function: Compiled) -> Compiled:
        # numba has no public way to say so; a test watches over this one
        file = function._cache._cache_file  # type: ignore[attr-defined]
        file._source_stamp = (file._source_stamp, *map(_stamp, modules))
        return function

    return decorate


def _stamp(module: ModuleType) -> tuple:
    """Times of change and sizes of a module's file and of those its functions are made of."""
    status = os.stat(module.__file__ or "")
    kept = (getattr(each, "_cache", None) for each in vars(module).values())
    files = (getattr(cache, "_cache_file", None) for cache in kept)
    stamps = {file._source_stamp: None for file in files if file is not None}
    return status.st_mtime, status.st_size, *stamps
