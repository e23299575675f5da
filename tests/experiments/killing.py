"""Kills runs with SIGKILL at random moments and goes on with them; prints what came of each.

    python -m tests.experiments.killing SCENARIO FOLDER KILLS SEED [bare]

It imports the program once and forks a process for every run, each of which is what `admarket run`
is. `bare` leaves out figures and report, which take most of the time of a small run.
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
from pathlib import Path

from experiments import run as running
from experiments.cli import main
from experiments.unfinished import folder_of
from market import checkpoint

LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT

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
    (folder / "scenario.yaml").write_text(finished.scenario.to_yaml())
    (folder / "manifest.json").write_text(json.dumps({"seed": finished.seed}))
    (folder / "report.html").write_text("done")


def begin(log, *arguments):
    """A process that runs `admarket ARGUMENTS`, its output appended to `log`."""
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
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


def seen(folder, pattern, child):
    """Wait until there is such a file in `folder`, or the child has ended; when that was."""
    while not any(folder.glob(pattern)) and os.waitid(os.P_PID, child, LOOK) is None:
        time.sleep(0.005)
    return time.perf_counter()


def play(scenario, folder, kills, seed):
    """An undisturbed run, then `kills` that are killed once each and gone on with."""
    whole, log = folder / "whole", folder / "log"
    options = ("--checkpoint-every", "0.01")
    child = begin(log, "run", scenario, "--out", whole, *options)
    begun = seen(folder_of(whole), "run.json", child)
    code = ended(child)
    took = time.perf_counter() - begun
    yield {"code": code, "seconds": took, "files": digests(whole)}
    moments = random.Random(seed)
    for k in range(kills):
        out, moment, killed = folder / f"killed-{k}", moments.uniform(0, took), 0
        while killed == 0:  # once more, and sooner, where the run was faster than the first
            shutil.rmtree(out, ignore_errors=True)
            if k % 2:  # an earlier run in the same folder
                shutil.copytree(whole, out)
            child = begin(log, "run", scenario, "--out", out, *options)
            # in one of four runs the first checkpoint may not have been written yet
            seen(folder_of(out), "run.json" if k % 4 == 3 else "*/checkpoint*", child)
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)
            killed, moment = ended(child), moment / 2
        kept = sorted(path.parent.name for path in folder_of(out).glob("*/checkpoint*"))
        meanwhile = digests(out)
        way = ("--resume", out) if folder_of(out).exists() else (scenario, "--out", out)
        code = ended(begin(log, "run", *way))
        left = [path.name for path in folder.iterdir() if path.name.startswith(f".{out.name}")]
        yield {
            "moment": 2 * moment / took,
            "killed": killed,
            "kept": kept,
            "meanwhile": meanwhile,
            "code": code,
            "files": digests(out),
            "left": [*left, *map(str, filter(Path.exists, [folder_of(out)]))],
        }


if __name__ == "__main__":
    given, where, kills, seed = sys.argv[1:5]
    checkpoint.SHARE = 1.0  # many checkpoints, and kills amid their writing
    checkpoint.made_with()  # once, of the code that was imported: it may be edited meanwhile
    if "bare" in sys.argv[5:]:
        running._fill = bare
    for line in play(given, Path(where), int(kills), int(seed)):
        print(json.dumps(line), flush=True)
