"""What the sections of a scenario have in common, and how what is wrong with one is told.

A section's own checks raise `BadInput` with a line that begins with one of its keys; where the
section stands is put in front: `population.1.target_roi: has range [2.0, 1.0]; ...`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mechanisms.errors import BadInput, instead

_NEEDED = {
    "dict_type": "give keys and values",
    "model_type": "give keys and values",
    "tuple_type": "give a number, or a range [low, high]",
    "too_long": "give a number, or a range [low, high]",
    "too_short": "give at least one",
    "string_pattern_mismatch": "use letters A-Z a-z, digits and _ . -",
}
"""What would do, where pydantic's own words are of Python rather than of scenarios."""


class Section(BaseModel):
    """A part of a scenario: these keys and no others, finite numbers, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_other_keys(cls, given: Any) -> Any:
        for key in given if isinstance(given, dict) else ():
            if key not in cls.model_fields:
                word = _word(key)
                raise BadInput(f"{word}: unknown key; {instead(word, cls.model_fields)}")
        return given


def in_words(error: ValidationError, given: Any) -> str:
    """The first thing that is wrong with what was `given`, in one line that begins with its key."""
    first = error.errors()[0]
    key = _key(first["loc"], given)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, BadInput):
        return f"{key}.{cause}" if key else str(cause)
    where = f"{key}: " if key else ""
    if first["type"] == "missing":
        return f"{where}is missing; add it"
    # not lower() throughout: a message may quote what is allowed
    message = _NEEDED.get(first["type"]) or first["msg"][:1].lower() + first["msg"][1:]
    got = "nothing" if first["input"] is None else repr(first["input"])
    return f"{where}{message}; got {got:.60}"


def _key(place: Sequence[str | int], given: Any) -> str:
    """The key at `place`; of what was written short, as one word or number, the key of that."""
    parts, here = [], given
    for part in place:
        if isinstance(here, str | int | float):
            break
        parts.append(_word(part))
        if isinstance(here, dict):
            here = here.get(part)
        elif isinstance(here, list | tuple) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            here = None  # neither long nor short: a default, or a section made in Python
    return ".".join(parts)


def _word(key: object) -> str:
    return " ".join(str(key).split())[:60]
