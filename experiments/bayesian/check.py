"""Checks of learners' parameters, so that what is wrong is said before anything is computed."""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np

from mechanisms.errors import BadInput


def whole(who: str, least: int, **given: object) -> None:
    """Whole numbers of at least `least`.

    Raises:
        BadInput: any of `given` is not; `who` names whose parameters they are.
    """
    for name, number in given.items():
        if not isinstance(number, Integral) or isinstance(number, bool) or number < least:
            raise BadInput(
                f"{who}: {name} must be a whole number of at least {least}; got {number!r}"
            )


def finite(who: str, *, positive: bool, **given: object) -> None:
    """Finite numbers above 0, or if not `positive` of at least 0.

    Raises:
        BadInput: any of `given` is not; `who` names whose parameters they are.
    """
    for name, number in given.items():
        if not isinstance(number, Real) or isinstance(number, bool) or not np.isfinite(number):
            raise BadInput(f"{who}: {name} must be a finite number; got {number!r}")
        if number < 0 or (positive and number == 0):
            raise BadInput(
                f"{who}: {name} must be {'above' if positive else 'at least'} 0; got {number!r}"
            )
