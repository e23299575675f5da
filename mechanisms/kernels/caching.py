"""Compiled code kept on disk must not outlive the source it was made of.

Numba keeps what it compiled while the file of the *calling* function is unchanged. A function that
calls compiled functions of another module holds their code too, and would go on with an old one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

Compiled = TypeVar("Compiled")


def renewed_with(*modules: ModuleType) -> Callable[[Compiled], Compiled]:
    """Decorate a function of `njit(cache=True)` to be compiled anew when `modules` change, too."""

    def decorate(function: Compiled) -> Compiled:
        # numba has no public way to say so; a test watches over this one
        file = function._cache._cache_file  # type: ignore[attr-defined]
        file._source_stamp = (file._source_stamp, *map(_stamp, modules))
        return function

    return decorate


def _stamp(module: ModuleType) -> tuple[float, int]:
    """Time of change and size of a module's file, as numba looks at."""
    status = os.stat(module.__file__ or "")
    return status.st_mtime, status.st_size
