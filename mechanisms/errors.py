"""The one error for input that a person can mend, and how it says where it is and what would do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

MOST = 40
"""Names that one line lists."""
SURE = 0.8
"""Likeness of what is misspelt rather than lengthened."""


class BadInput(ValueError):
    """Says in one line what is wrong, where, and how to mend it; the command line exits with 2."""


@contextmanager
def at(where: object) -> Iterator[None]:
    """Put where it is in front of what is refused within.

    >>> with at("mechanism"):
    ...     raise BadInput("tau is 0; give a finite number > 0")
    Traceback (most recent call last):
    mechanisms.errors.BadInput: mechanism: tau is 0; give a finite number > 0
    """
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def instead(given: str, known: Iterable[str], otherwise: str = "there are") -> str:
    """How to mend a name that is none of `known`: by the one it is close to, or any of them.

    >>> instead("mozaic", ("mosaic", "vcg"))
    "did you mean 'mosaic'?"
    >>> instead("lottery", ("mosaic", "vcg"))
    'there are mosaic, vcg'
    """
    names = list(known)
    if near := closest(given, names):
        return f"did you mean {near!r}?"
    listed = names[:MOST] + ["..."] * (len(names) > MOST)
    return f"{otherwise} {', '.join(listed) or 'none'}"


def closest(given: str, known: Iterable[str]) -> str | None:
    """The one of `known` that is spelt nearly so, or that `given` is with words behind; or None.

    >>> closest("vcg-auction", ("llm-auction", "vcg"))
    'vcg'
    """
    names = {name.casefold(): name for name in known}
    given = given.casefold()
    # two letters swapped in three are a likeness of 0.67; first-price is as like second-price
    cutoff = 0.6 if len(given) < 5 else 0.7
    near = difflib.get_close_matches(given, names, n=1, cutoff=cutoff)
    begun = [name for name in names if given.startswith(tuple(name + each for each in "-_. "))]
    if begun and not difflib.get_close_matches(given, near, cutoff=SURE):
        near = [max(begun, key=len)]
    return names[near[0]] if near else None
