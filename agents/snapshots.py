"""Snapshots: what changes in an object as a run goes on, as plain data that a file can hold.

Plain are None, truth values, numbers and text; NumPy arrays, scalars and generators; and lists,
tuples and dicts of these. Reading plain data back runs no code of anybody's (`market.packing`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import is_dataclass
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
        BadInput: an attribute that is not plain.
    """
    kept = _changing(thing)
    for name, value in kept.items():
        if (foreign := not_plain(value, name)) is not None:
            raise BadInput(
                f"{what} keeps {foreign}, which a checkpoint cannot hold; keep numbers, text, "
                "arrays and generators, or give it a `snapshot` and `restore` of its own"
            )
    return copy.deepcopy(kept)


def restore_to(thing: Any, snapshot: Mapping[str, Any], what: str) -> None:
    """Give `thing` the attributes of a snapshot of one that was made alike.

    Raises:
        BadInput: a snapshot with other attributes.
    """
    if snapshot.keys() != _changing(thing).keys():
        raise BadInput(f"the snapshot is not one of {what}; make it as it was made then")
    for name, value in copy.deepcopy(dict(snapshot)).items():
        setattr(thing, name, value)


def not_plain(value: Any, where: str) -> str | None:
    """The first thing within `value` that is not plain, in words; None if all is."""
    kind = type(value)  # a subclass would come back as its base class
    if kind in PLAIN or _plain_numpy(value):
        return None
    if kind in (list, tuple):
        inner = [(each, f"{where}[{k}]") for k, each in enumerate(value)]
    elif kind is dict:
        inner = [(each, f"{where}[{key!r}]") for key, each in value.items()]
        inner += [(key, f"a key of {where}") for key in value]
    else:
        return f"{where} (of type {kind.__name__})"
    return next(filter(None, (not_plain(each, at) for each, at in inner)), None)


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
