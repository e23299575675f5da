"""Plain data (`agents.snapshots`) as bytes and back, exactly, and without pickle.

The bytes are NumPy's `.npz`: the arrays, and a tree in JSON that says where they belong. Floats are
written so that they read back as the same number, arrays and generators that stood in two places
are one object again. Arrays lie in memory as C or Fortran has them, each on its own.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.snapshots import BIT_GENERATORS, PLAIN, not_plain
from mechanisms.errors import BadInput

TREE = "tree"


def pack(plain: Any) -> bytes:
    """Plain data as bytes.

    Raises:
        BadInput: data that is not plain, naming it.
    """
    if (foreign := not_plain(plain, "state")) is not None:
        raise BadInput(f"{foreign} is nothing that a checkpoint can hold; keep plain data")
    packer = _Packer()
    tree = json.dumps(packer.pack(plain)).encode()
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, tree=np.frombuffer(tree, np.uint8), **packer.arrays)
    return file.getvalue()


def unpack(packed: bytes) -> Any:
    """What `pack` was given.

    Raises:
        ValueError, KeyError, OSError: bytes that it did not write.
    """
    with np.load(io.BytesIO(packed), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return _Unpacker(arrays).unpack(json.loads(arrays.pop(TREE).tobytes()))


class _Packer:
    """Writes trees; what is no JSON is an object of one key, which says what it is."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray] = {}
        self._names: dict[int, str] = {}
        self._alive: list[Any] = []  # so that no other object takes over an id

    def pack(self, value: Any) -> Any:
        if type(value) in PLAIN:
            return value
        if type(value) is list:
            return [self.pack(each) for each in value]
        if type(value) is tuple:
            return {"tuple": [self.pack(each) for each in value]}
        if type(value) is dict:
            return {"dict": [[self.pack(key), self.pack(each)] for key, each in value.items()]}
        if type(value) is np.random.Generator:
            name, seen = self._name(value)
            bits = value.bit_generator
            state = None if seen else [type(bits).__name__, self.pack(dict(bits.state))]
            return {"generator": [name, state]}
        name, seen = self._name(value)
        if not seen:
            self.arrays[name] = np.asarray(value)
        return {"array" if type(value) is np.ndarray else "scalar": name}

    def _name(self, value: Any) -> tuple[str, bool]:
        seen = id(value) in self._names
        if not seen:
            self._alive.append(value)
            self._names[id(value)] = f"a{len(self._names)}"
        return self._names[id(value)], seen


class _Unpacker:
    def __init__(self, arrays: Mapping[str, NDArray]) -> None:
        self._arrays = arrays
        self._generators: dict[str, np.random.Generator] = {}

    def unpack(self, tree: Any) -> Any:
        if isinstance(tree, list):
            return [self.unpack(each) for each in tree]
        if not isinstance(tree, dict):
            return tree
        ((kind, held),) = tree.items()
        if kind == "tuple":
            return tuple(self.unpack(each) for each in held)
        if kind == "dict":
            return {self.unpack(key): self.unpack(each) for key, each in held}
        if kind == "array":
            return self._arrays[held]
        if kind == "scalar":
            return self._arrays[held][()]
        if kind == "generator":
            return self._generator(*held)
        raise ValueError(f"unknown kind {kind!r}")

    def _generator(self, name: str, state: Any) -> np.random.Generator:
        if name not in self._generators:
            kind, inner = state
            generator = np.random.Generator(BIT_GENERATORS[kind]())
            generator.bit_generator.state = self.unpack(inner)
            self._generators[name] = generator
        return self._generators[name]
