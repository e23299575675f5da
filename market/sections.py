"""What the sections of a scenario have in common, and how what is wrong with one is told.

A section's own checks raise `BadInput` with a line that begins with one of its keys; where the
section stands is put in front: `population.1.target_roi: has range [2.0, 1.0]; ...`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from mechanisms.errors import BadInput, instead

_NEEDED = {
    "bool_parsing": "give true or false",
    "bool_type": "give true or false",
    "dict_type": "give keys and values",
    "finite_number": "give a finite number",
    "float_parsing": "give a number",
    "float_type": "give a number",
    "greater_than": "give a number > {gt:.10g}",
    "greater_than_equal": "give a number >= {ge:.10g}",
    "int_from_float": "give a whole number",
    "int_parsing": "give a whole number",
    "int_parsing_size": "give a smaller number",
    "int_type": "give a whole number",
    "less_than": "give a number < {lt:.10g}",
    "less_than_equal": "give a number <= {le:.10g}",
    "list_type": "give a list, such as [...]",
    "literal_error": "give {expected}",
    "model_type": "give keys and values",
    "string_type": "give text, in quotes if it looks like a number",
    "string_pattern_mismatch": "use letters A-Z a-z, digits and _ . -",
    "too_short": "give at least one",
}
"""What would do: pydantic's own words are of Python rather than of scenarios."""


class Section(BaseModel):
    """A part of a scenario: these keys and no others, finite numbers, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_other_keys_and_no_stand_ins(cls, given: Any) -> Any:
        for key, value in given.items() if isinstance(given, dict) else ():
            if key not in cls.model_fields:
                word = _word(key)
                raise BadInput(f"{word}: unknown key; {cls._mend(word)}")
            if _holds_numbers(cls.model_fields[key].annotation):
                _refuse_stand_ins(key, value)
        return given

    @classmethod
    def _mend(cls, unknown: str) -> str:
        """What to do about an unknown key."""
        return instead(unknown, cls.model_fields)


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
    got = "nothing" if first["input"] is None else repr(first["input"])
    return f"{where}{_needed(first)}; got {got:.60}"


def _needed(error: ErrorDetails) -> str:
    if error["type"] in _NEEDED:
        return _NEEDED[error["type"]].format_map(error.get("ctx", {}))
    # not lower() throughout: a message may quote what is allowed
    return error["msg"][:1].lower() + error["msg"][1:]


def _holds_numbers(annotation: Any) -> bool:
    """Whether a key is for numbers alone, ranges of them included."""
    leaves = set(_leaves(annotation))
    return bool(leaves & {int, float}) and leaves <= {int, float, type(None)}


def _leaves(annotation: Any) -> Iterator[Any]:
    """What an annotation is made of."""
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts[:1] if get_origin(annotation) is Annotated else parts:
        yield from _leaves(part)


def _refuse_stand_ins(key: str, value: Any) -> None:
    """Refuse what pydantic would take for a number: true and false, and text."""
    for part in value if isinstance(value, list | tuple) else (value,):
        if isinstance(part, bool):
            raise BadInput(f"{key}: give a number, not true or false (nor yes or no)")
        if isinstance(part, str) and _is_number(part):
            raise BadInput(f"{key}: {part!r:.60} is text; write the number without quotes")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _key(place: Sequence[str | int], given: Any) -> str:
    """The key at `place`; of what was written short, as one word or number, the key of that."""
    parts, here = [], given
    for part in place:
        if isinstance(here, str | int | float):
            break
        parts.append(_word(part))
        if isinstance(here, Mapping):
            here = here.get(part)
        elif isinstance(here, list | tuple) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            here = None  # neither long nor short: a default, or a section made in Python
    return ".".join(parts)


def _word(key: object) -> str:
    return " ".join(str(key).split())[:60]
