"""Processes that record the same replies into one cache; `python recorders.py LLM FOLDER`.

Forks of one process, since loading torch takes longer than all the rest. Prints, as JSON, what
became of a process alone, of two at once, and of two of which the first was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

from experiments.cli import main
from mechanisms.llm.transformers_engine import TransformersEngine
from mechanisms.recording import load_pool
from tests.command_line import small_world

SCENARIO = {
    "requests": {"queries": 8, "ads": 2},
    "replies": {"per_request": 6, "max_tokens": 24, "context_probe": 0},
    "population": [{"objective": "utility", "count": 3}],
}
LONGEST = 240
"""Seconds."""
HELD = 3
"""The journal's write that the first of two does not begin before it is let go."""


class Recorder:
    """A process that runs `admarket record`; if `held`, it stops amid its work until let go."""

    def __init__(self, engine, folder, name, held=False):
        self.said, self.go = folder / f"{name}.txt", folder / "go"
        self.pid = os.fork()
        if self.pid:
            return
        signal.alarm(LONGEST)  # whatever becomes of its parent
        sys.stdout = sys.stderr = self.said.open("w", buffering=1)
        if held:
            self.hold()
        sys.argv = ["admarket", "record", str(folder / "small.yaml")]
        code = 1
        try:
            with small_world(engine, folder / "cache"):
                main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            os._exit(code)

    def hold(self):
        """Let the process wait in its `HELD`-th write."""
        write, count = os.pwrite, 0

        def held(*args):
            nonlocal count
            count += 1
            if count == HELD:
                until(self.go.exists)
            return write(*args)

        os.pwrite = held

    def end(self):
        """Exit code and what was said."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return {"code": code, "said": self.said.read_text().splitlines()}


def alone(engine, folder):
    """One process, undisturbed."""
    return [Recorder(engine, folder, "alone").end()]


def two(engine, folder, killed=False):
    """The second finds the first amid its work; then that is let go, or killed."""
    first = Recorder(engine, folder, "first", held=True)
    journals = folder / "cache" / "pools"
    until(lambda: [path for path in journals.glob(".*.journal") if path.stat().st_size > 100])
    second = Recorder(engine, folder, "second")
    until(lambda: second.said.exists() and "waiting for it" in second.said.read_text())
    if killed:
        os.kill(first.pid, signal.SIGKILL)
    else:
        first.go.touch()
    return [first.end(), second.end()]


def until(there, seconds=LONGEST):
    """Wait."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


if __name__ == "__main__":
    engine = TransformersEngine(sys.argv[1], dtype="fp32", device="cpu", batch_rows=8)
    found = {}
    for name, happens in {
        "alone": alone,
        "two": two,
        "killed": lambda *args: two(*args, killed=True),
    }.items():
        folder = Path(sys.argv[2], name)
        folder.mkdir()
        (folder / "small.yaml").write_text(yaml.safe_dump(SCENARIO))
        ended = happens(engine, folder)
        found[name] = {"ended": ended}
    for name, each in found.items():  # not before: polars has threads, and they survive no fork
        left = sorted(Path(sys.argv[2], name, "cache", "pools").iterdir())
        each["pools"] = [load_pool(path).content_hash for path in left]
    print(json.dumps(found))
