"""Kills runs with SIGKILL at random moments and goes on with them; prints what came of each.

    python -m tests.experiments.killing SCENARIO FOLDER KILLS SEED [bare] [live]

It imports the program once and forks a process for every run, each of which is what `admarket run`
is. `bare` leaves out figures and report, which take most of the time of a small run. `live` is for
scenarios whose replies an LLM writes live: every run records in a cache of its own, and rounds are
several batches. The first three runs are killed amid a later round of one market each, the others
at any moment from their very beginning.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from experiments import run as running
from experiments.cli import main
from experiments.unfinished import folder_of
from market import checkpoint, environment
from mechanisms.llm.journal import HEADER

LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT
TRIES = 5

COMPARED = (
    "rounds.parquet", "advertisers.parquet", "best_responses.parquet", "plans.parquet",
    "live_replies.parquet", "gains.parquet", "summary.json", "samples.json",
)  # fmt: skip
"""Not the report and the manifest, which name the revision: somebody may commit meanwhile."""


def bare(finished, folder):
    """Stands in for `experiments.run._fill`: no figures, and a report of a line."""
    finished.result.save(folder)
    if finished.plans is not None:
        finished.plans.write_parquet(folder / "plans.parquet")
    if finished.live is not None:
        finished.live.write_parquet(folder / "live_replies.parquet")
    (folder / "scenario.yaml").write_text(finished.scenario.to_yaml())
    (folder / "manifest.json").write_text(json.dumps({"seed": finished.seed}))
    (folder / "report.html").write_text("done")


def small_world():
    """No text encoder, and engines that decode 24 replies at once; torch is there for all forks."""
    from mechanisms.llm.transformers_engine import TransformersEngine
    from tests.tiny_llm import HashEncoder

    environment.TextEncoder = HashEncoder
    environment.make_engine = lambda _, *, server, **options: TransformersEngine(
        batch_rows=24, **options
    )


def begin(log, cache, *arguments):
    """A process that runs `admarket ARGUMENTS`, its output appended to `log`."""
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    os.environ["ADMARKET_CACHE"] = str(cache)
    sys.argv = ["admarket", *map(str, arguments)]
    code = 1
    try:
        main()
    except SystemExit as stop:
        code = stop.code or 0
    os._exit(code)


def ended(child):
    """Its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def digests(folder):
    """Of the files that must be equal."""
    found = {name: folder / name for name in COMPARED}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in found.items()
        if path.exists()
    }


def amid(work):
    """Markets that have kept something of a round which is in no checkpoint yet."""
    journals = [path for path in work.glob("*/*journal") if path.stat().st_size > len(HEADER)]
    return sorted({path.parent.name for path in journals})


def until(there, child):
    """Wait until it is so, or the child has ended; when that was."""
    while not there() and os.waitid(os.P_PID, child, LOOK) is None:
        time.sleep(0.005)
    return time.perf_counter()


@dataclass
class Killer:
    """Kills runs of `scenario` below `folder`, which last `took` seconds undisturbed."""

    scenario: Path
    folder: Path
    live: bool
    took: float = 0.0

    def begin(self, out, *arguments):
        """A process that runs into `out`, or goes on there."""
        return begin(self.folder / "log", out.with_suffix(".cache"), "run", *arguments)

    def begin_anew(self, out, every=0.01):
        """A run with a checkpoint every so many seconds."""
        return self.begin(out, self.scenario, "--out", out, "--checkpoint-every", every)

    def undisturbed(self, out):
        """A run that nobody kills."""
        child = self.begin_anew(out)
        begun = until(lambda: any(folder_of(out).glob("run.json")), child)
        code = ended(child)
        self.took = time.perf_counter() - begun
        return {"code": code, "seconds": self.took, "files": digests(out)}

    def aimed(self, k):
        """Whether it is to be killed amid a round."""
        return self.live and k < 3

    def wait(self, child, work, k):
        """Until it is where its delay begins."""
        if self.aimed(k):  # behind a checkpoint, and then in a round that has got somewhere
            until(lambda: any(work.glob(f"{k}-*/checkpoint*")), child)
            time.sleep(0.05)  # meanwhile the journal begins anew
            until(lambda: any(name.startswith(f"{k}-") for name in amid(work)), child)
            return
        # in one of four runs the first checkpoint may not have been written yet
        pattern = "run.json" if self.live or k % 4 == 3 else "*/checkpoint*"
        until(lambda: any(work.glob(pattern)), child)

    def kill(self, out, k, part):
        """The `k`-th run, killed when `part` of it is over; sooner if it has ended by then."""
        work, delay = folder_of(out), 0 if self.aimed(k) else part * self.took
        # several live rounds, which are longer, between checkpoints
        every = 1 if self.live and not self.aimed(k) else 0.01
        for _ in range(TRIES):
            for left in (out, out.with_suffix(".cache")):
                shutil.rmtree(left, ignore_errors=True)
            if k % 2:  # an earlier run in the same folder
                shutil.copytree(self.folder / "whole", out)
            child = self.begin_anew(out, every)
            self.wait(child, work, k)
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            if code := ended(child):
                break
            delay /= 2
        kept = sorted(path.parent.name for path in work.glob("*/checkpoint*"))
        return {"after": delay, "killed": code, "kept": kept, "amid": amid(work)}

    def go_on(self, out):
        """What becomes of a run that was killed."""
        meanwhile = digests(out)
        way = ("--resume", out) if folder_of(out).exists() else (self.scenario, "--out", out)
        code = ended(self.begin(out, *way))
        left = [path.name for path in self.folder.iterdir() if path.name.startswith(f".{out.name}")]
        left += map(str, filter(Path.exists, [folder_of(out)]))
        return {"meanwhile": meanwhile, "code": code, "files": digests(out), "left": left}


def play(scenario, folder, kills, seed, live=False):
    """An undisturbed run, then `kills` that are killed once each and gone on with."""
    killer, moments = Killer(scenario, folder, live), random.Random(seed)
    whole = killer.undisturbed(folder / "whole")
    yield whole
    if whole["code"]:
        return
    for k in range(kills):
        out = folder / f"killed-{k}"
        yield {**killer.kill(out, k, moments.random()), **killer.go_on(out)}


if __name__ == "__main__":
    given, where, kills, seed = sys.argv[1:5]
    checkpoint.SHARE = 1.0  # many checkpoints, and kills amid their writing
    checkpoint.made_with()  # once, of the code that was imported: it may be edited meanwhile
    if "bare" in sys.argv[5:]:
        running._fill = bare
    live = "live" in sys.argv[5:]
    if live:
        small_world()
    for line in play(given, Path(where), int(kills), int(seed), live):
        print(json.dumps(line), flush=True)
