"""What mechanisms check of the parameters and arrays handed to them, and how they list the former.

Every check returns nothing or the array it has checked, and raises `BadInput` in one line that says
what was given and what would do.
"""

from __future__ import annotations

import math
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mechanisms.errors import BadInput
from mechanisms.pool import Floats, ReplyPool


class Parametric:
    """Gives a dataclass its parameters as a dictionary, for manifests and error messages."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters by name, in the order in which they are declared."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def positive(name: str, value: Any) -> None:
    """Refuse anything but a finite number above 0."""
    if not (_number(value) and value > 0):
        raise BadInput(f"{name} is {value!r}; give a finite number > 0")


def non_negative(name: str, value: Any) -> None:
    """Refuse anything but a finite number of at least 0."""
    if not (_number(value) and value >= 0):
        raise BadInput(f"{name} is {value!r}; give a finite number >= 0")


def whole(name: str, value: Any, least: int) -> None:
    """Refuse anything but a whole number of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise BadInput(f"{name} is {value!r}; give a whole number >= {least}")


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Refuse anything that is not, type included, one of `choices`."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise BadInput(f"{name} is {value!r}; give one of {', '.join(map(repr, choices))}")


def claims_weights(name: str, pool: ReplyPool) -> None:
    """Refuse replies that no importance weights lead back from (generation "auction").

    Their weights are all 1 by want of any other, which is not what the mechanism `name` would make
    of them: each was written under bids of its own.
    """
    if not pool.weighted:
        raise BadInput(
            f"{name} needs importance weights, which replies of generation 'auction' lack; "
            "record them with replies.generation 'guided'"
        )


def bid_grid(pool: ReplyPool, alternatives: ArrayLike) -> Floats:
    """(B, n, G) alternative bids as float64, or BadInput."""
    grid = np.asarray(alternatives, dtype=np.float64)
    B, _, n = pool.shape
    if grid.ndim != 3 or grid.shape[:2] != (B, n):
        raise BadInput(f"alternatives have shape {grid.shape}; give ({B}, {n}, grid bids G)")
    # min and max are NaN if any entry is, so two passes look for all that is wrong
    if grid.size and not (grid.min() >= 0 and grid.max() < np.inf):
        raise BadInput("alternatives hold a bid that is negative, NaN or infinite; bids are >= 0")
    return grid


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
