"""The computations that auctions are made of, compiled; `mechanisms.gibbs` is their specification.

`ADMARKET_KERNEL` chooses who computes:

    numba   (default) compiled, visiting exposures only (`gibbs_numba`, `slots_numba`)
    numpy   the reference: dense, a few array expressions, to be read and compared with
    torch   the reference's expressions, for Gibbs mechanisms, on a GPU where there is one

All agree to 1e-10, or to what float64 can say of scores that large. The variable is read at every
call, so that a test or a notebook can switch. Code compiles at first use (about 15 s for all of it)
and is kept on disk.
"""

from __future__ import annotations

import os
from typing import Literal, cast

from mechanisms.errors import BadInput

VARIABLE = "ADMARKET_KERNEL"
KERNELS = ("numba", "numpy", "torch")


def kernel() -> Literal["numba", "numpy", "torch"]:
    """The kernel chosen by `ADMARKET_KERNEL`.

    Raises:
        BadInput: it names none.
    """
    chosen = os.environ.get(VARIABLE, "numba")
    if chosen not in KERNELS:
        raise BadInput(f"{VARIABLE} is {chosen!r}; give one of {', '.join(KERNELS)}")
    return cast(Literal["numba", "numpy", "torch"], chosen)


def unless_changed(subclass: type, **stand_for: set[str]) -> None:
    """Unset the compiled rules of a subclass that changes what they stand for.

    A subclass that overrides a payment rule, say, must not be served by the compiled code of the
    rule it replaced; it may name a compiled rule of its own.

    Args:
        subclass: to be called in `__init_subclass__`.
        stand_for: by attribute that names a compiled rule, the methods it replaces.
    """
    changed = vars(subclass).keys()
    for rule, methods in stand_for.items():
        if methods & changed and rule not in changed:
            setattr(subclass, rule, None)
