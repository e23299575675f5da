"""Snapshots: what changes in an object as a run goes on, as plain data that a file can hold.

Plain are None, truth values, numbers and text; NumPy arrays, scalars and generators; and lists,
tuples and dicts of these. Reading plain data back runs no code of anybody's (`market.packing`).

A copy has no views: of two arrays that share memory each would go on alone, and to other numbers.
Nor does a file keep any order in memory but C's and Fortran's, which sums are taken in. So neither
is taken from an object.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mechanisms.errors import BadInput

PLAIN = (type(None), bool, int, float, str)
BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (
        np.random.PCG64,
        np.random.PCG64DXSM,
        np.random.MT19937,
        np.random.Philox,
        np.random.SFC64,
    )
}


def snapshot_of(thing: Any, what: str) -> dict[str, Any]:
    """A copy of all attributes of `thing` that may change, by name.

    Frozen dataclasses are left out: the constructor has made them, and nothing changes them.

    Args:
        thing: an object with attributes.
        what: names it in errors.

    Raises:
        BadInput: an attribute that is not plain, or whose copy would not go on as it does: an array
            with gaps, part of another that is kept, or a list or dict kept twice.
    """
    kept = _changing(thing)
    for name, value in kept.items():
        if (foreign := not_plain(value, name)) is not None:
            raise BadInput(
                f"{what} keeps {foreign}, which a checkpoint cannot hold; keep numbers, text, "
                "arrays and generators, or give it a `snapshot` and `restore` of its own"
            )
    if (tied := _tied(kept)) is not None:
        raise BadInput(
            f"{what} keeps {tied}, which a checkpoint cannot bring back as it is; keep a "
            "`.copy()`, or give it a `snapshot` and `restore` of its own"
        )
    return copy.deepcopy(kept)


def restore_to(thing: Any, snapshot: Mapping[str, Any], what: str) -> None:
    """Give `thing` the attributes of a snapshot of one that was made alike.

    The snapshot has every attribute of `thing`, which is best as its constructor made it. It may
    have more, which were first set as the run went on; `thing` is given them too.

    Raises:
        BadInput: a snapshot that lacks an attribute.
    """
    if lacking := _changing(thing).keys() - snapshot.keys():
        raise BadInput(
            f"the snapshot is not one of {what}, it lacks {', '.join(sorted(lacking))}; "
            "make it as it was made then"
        )
    for name, value in copy.deepcopy(dict(snapshot)).items():
        setattr(thing, name, value)


def not_plain(value: Any, where: str) -> str | None:
    """The first thing within `value` that is not plain, in words; None if all is."""
    kind = type(value)  # a subclass would come back as its base class
    if kind in PLAIN or _plain_numpy(value):
        return None
    if kind not in (list, tuple, dict):
        return f"{where} (of type {kind.__name__})"
    return next(filter(None, (not_plain(each, at) for each, at in _inner(value, where))), None)


def _inner(value: list | tuple | dict, where: str) -> Iterator[tuple[Any, str]]:
    """What a list, tuple or dict holds, and where."""
    if type(value) is dict:
        for key, each in value.items():
            yield each, f"{where}[{key!r}]"
            yield key, f"a key of {where}"
    else:
        yield from ((each, f"{where}[{k}]") for k, each in enumerate(value))


def _tied(kept: Mapping[str, Any]) -> str | None:
    """The first plain thing in `kept` whose copy would not go on as it does, in words, or None."""
    places: dict[int, str] = {}  # by id, of arrays, lists and dicts
    arrays: list[tuple[int, int, str]] = []  # first byte, end, place
    left = [(value, name) for name, value in kept.items()]
    while left:
        value, where = left.pop()
        kind = type(value)
        if kind in (list, tuple, dict):
            left += _inner(value, where)
        if kind not in (list, dict, np.ndarray):
            continue
        there = places.setdefault(id(value), where)
        if there is not where:
            if kind is np.ndarray:
                continue  # one array in two places is one array again
            return f"{_both(there, where)}, the same {kind.__name__}"
        if kind is np.ndarray and value.size:
            if not value.flags.forc:
                return f"{where}, an array that does not lie in one piece (a view of another?)"
            first = value.__array_interface__["data"][0]
            arrays.append((first, first + value.nbytes, where))
    # in one piece each, arrays share memory if their bytes overlap
    arrays.sort()
    for (_, end, one), (first, _, other) in pairwise(arrays):
        if first < end:
            return f"{_both(one, other)}, arrays that share memory"
    return None


def _both(one: str, other: str) -> str:
    return " and ".join(sorted((one, other)))


def _plain_numpy(value: Any) -> bool:
    if type(value) is np.random.Generator:
        bits = value.bit_generator
        return BIT_GENERATORS.get(type(bits).__name__) is type(bits)
    if type(value) is np.ndarray or isinstance(value, np.generic):
        return not value.dtype.hasobject
    return False


def _changing(thing: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(thing).items() if not _constant(value)}


def _constant(value: Any) -> bool:
    return is_dataclass(value) and type(value).__dataclass_params__.frozen
