"""Jobs for test_parallel: workers import them."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from experiments.parallel import stream
from mechanisms.errors import BadInput


def draw(job, shared):
    """Numbers that depend on the job's name, and on what is shared."""
    rng = stream(7, *job)
    return [float(x) for x in rng.normal(size=3) + np.sum(shared)]


def who(job, shared):
    return [os.getpid(), os.environ.get("OMP_NUM_THREADS")]


def fail_at_two(job, shared):
    if job[0] == 2:
        raise ValueError("two is too many")
    return job[0]


def refuse(job, shared):
    raise BadInput("tau is -1; give a finite number > 0")


def die(job, shared):
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(job, shared):
    """Leaves a mark for each time it is called; job 3 kills its worker the first time."""
    with Path(shared).open("a") as file:
        file.write(f"{job[0]}\n")
    killed = Path(shared).with_name("killed")
    if job[0] == 3 and not killed.exists():
        killed.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return [job[0], os.getpid()]


def count(job, shared):
    """Leaves a mark for each time it is called."""
    with Path(shared).open("a") as file:
        file.write(f"{job[0]}\n")
    if job[0] == 3 and Path(shared).with_name("armed").exists():
        raise RuntimeError("interrupted")
    return {"square": job[0] ** 2, "third": job[0] / 3}


def slowly(job, shared):
    time.sleep(shared)
    return [job[0], os.getpid()]
