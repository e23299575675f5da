"""Files that are there whole or not at all: a name that exists means that the work is done."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def keep_text(text: str, file: Path) -> None:
    """Write `text` to `file` in one move."""
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, file)


def keep_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write `tensors` to `file` in one move."""
    fresh = file.with_name(f".{file.name}.new")
    save_file(dict(tensors), fresh)
    os.replace(fresh, file)


class Clock:
    """Seconds by phase, over all the runs that it took: kept in a file, one line a note."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self._at = time.perf_counter()

    def note(self, name: str) -> None:
        """The time since the last note went into `name`."""
        now = time.perf_counter()
        with self.file.open("a", encoding="utf-8") as opened:
            opened.write(f"{name} {now - self._at:.2f}\n")
        self._at = now

    @property
    def seconds(self) -> dict[str, float]:
        """By phase, in the order of first notes."""
        found: dict[str, float] = {}
        for line in self.file.read_text(encoding="utf-8").splitlines():
            name, _, took = line.rpartition(" ")
            if name:
                found[name] = round(found.get(name, 0.0) + float(took), 2)
        return found
