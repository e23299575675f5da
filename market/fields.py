"""What a key of a scenario may hold: amounts within bounds, ranges, names with their parameters.

What is written short (`value: 3`, `learner: hedge`) is spelled out here, before it is checked.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from market.sections import Section
from mechanisms.errors import closest

LEAST = 1e-12
"""Of money and ratios: above it, products and ratios of a few of them are far from 0."""
Money = Annotated[float, Field(ge=LEAST, le=1e12)]
Ratio = Annotated[float, Field(ge=LEAST, le=1e6)]


def _as_range(given: Any) -> Any:
    if isinstance(given, list | tuple) and len(given) == 2:
        return given
    if isinstance(given, int | float):
        return given, given
    raise PydanticCustomError("range", "give a number, or a range [low, high]")


MoneyRange = Annotated[tuple[Money, Money], BeforeValidator(_as_range)]
"""An amount, or `[low, high]` to draw uniformly from."""
RatioRange = Annotated[tuple[Ratio, Ratio], BeforeValidator(_as_range)]
"""A ratio, or `[low, high]` to draw uniformly from."""


class Named(Section):
    """A mechanism or a learner: its name, or `{name: ..., parameters: {...}}`."""

    name: str
    parameters: dict[str, Any] = Field({})

    @classmethod
    def _mend(cls, unknown: str) -> str:
        if closest(unknown, cls.model_fields):
            return super()._mend(unknown)
        return f"parameters go under parameters: {{{unknown}: ...}}"


def _by_name(given: Any) -> Any:
    if isinstance(given, str):
        return {"name": given}
    if isinstance(given, dict | Named):
        return given
    raise PydanticCustomError("named", "give a name, or {name: ..., parameters: {...}}")


def _only_one(given: Any) -> Any:
    if isinstance(given, list):
        raise PydanticCustomError("one", "give one mechanism; further ones go under beside")
    return given


NamedSpec = Annotated[Named, BeforeValidator(_by_name)]
FirstNamedSpec = Annotated[NamedSpec, BeforeValidator(_only_one)]
"""A mechanism that has others beside it."""
