"""The computations that auctions are made of, compiled; `mechanisms.gibbs` is their specification.

`ADMARKET_KERNEL` chooses who computes:

    numba   (default) compiled, visiting exposures only (`gibbs_numba`, `slots_numba`)
    numpy   the reference: dense, a few array expressions, to be read and compared with
    torch   the reference's expressions, for Gibbs mechanisms, on a GPU where there is one

All agree to 1e-10, or to what float64 can say of scores that large. The variable is read at every
call of a mechanism, and by a market when it is made, so that a test or a notebook can switch. Code
compiles at first use (about 15 s for all of it) and is kept on disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
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


def as_declared(kind: type, rule: str, methods: Iterable[str]) -> bool:
    """Whether attribute `rule` of a class was declared for the `methods` that the class has.

    It was not where a subclass, or a mixin, overrides one of them and leaves the rule as it is. A
    compiled rule must then not stand for them: it would serve the code that they replaced.
    """

    def owner(name: str) -> type:
        return next(each for each in kind.__mro__ if name in vars(each))

    # not by `issubclass`, which abstract classes cannot answer while a class is being made
    return all(owner(method) in owner(rule).__mro__ for method in methods)
