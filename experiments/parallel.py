"""Many independent jobs, one after another, over processes, or over a Ray cluster.

A job is a tuple of plain values that says all there is to do, given what all jobs share: it names
the job where it fails, and seeds it (`stream`). So a result depends on the job alone, not on the
order of the jobs, the number of workers or who does it, and results are the same bytes under every
executor (on processors of one kind: mathematical libraries may round differently on others).

    serial      in this process: for debugging
    processes   fresh ones (`spawn`: threads of torch and numba do not survive a fork)
    ray         on the cluster at RAY_ADDRESS, else on this machine; admarket is installed on all

Workers compute on one thread each, and are sent what jobs share once. A worker that dies (out of
memory, `kill -9`, a machine that is gone) takes no finished job with it: what it was at is done
again by another, until it has cost `DEATHS` workers. Results of finished jobs can be kept as files,
by job and by a hash of all they depend on, so that a run that was interrupted, or killed as a
whole, goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from tqdm import tqdm

import agents
import experiments
import market
import mechanisms
from market.checkpoint import source_digest
from mechanisms.errors import BadInput

LOG = logging.getLogger(__name__)

Job: TypeAlias = tuple[str | int | float, ...]
Function: TypeAlias = Callable[[Job, Any], Any]
Executor = Literal["serial", "processes", "ray"]
ONE_THREAD = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA", "POLARS_MAX")
}
DEATHS = 3
"""Workers that may die over a job: it is given up with the last of them."""


class JobFailed(RuntimeError):
    """A job raised; the message names it."""


@dataclass(frozen=True)
class Attempt:
    """What became of a job: its result, or what went wrong."""

    result: Any = None
    error: str = ""
    trace: str = ""
    bad_input: bool = False


@dataclass(frozen=True)
class Kept:
    """Where finished jobs are kept, as JSON: results must hold nothing else.

    Attributes:
        folder: made when there is something to keep, and left to the caller to delete.
        content: a hash, or words, for all that results depend on beside their job: what jobs share.
    """

    folder: Path
    content: str

    def path(self, function: Function, job: Job) -> Path:
        """The file of a job's result; another one as soon as anything it depends on changes."""
        name = f"{function.__module__}.{function.__qualname__}"
        text = repr((name, job, self.content, np.__version__, _sources()))
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def load(self, function: Function, job: Job) -> Attempt | None:
        """The result of a job that was finished earlier; None if it was not."""
        try:
            found = json.loads(self.path(function, job).read_text("utf-8"))
            return Attempt(found["result"])
        except (OSError, ValueError, TypeError, KeyError):  # none, or damaged: done again
            return None

    def save(self, function: Function, job: Job, result: Any) -> Any:
        """Keep a result, and return it as it would be loaded."""
        path = self.path(function, job)
        text = json.dumps({"job": job, "result": result})
        self.folder.mkdir(parents=True, exist_ok=True)
        ready = path.with_suffix(f".{os.getpid()}.part")  # another run may keep the same job
        ready.write_text(text, encoding="utf-8")
        ready.replace(path)
        return json.loads(text)["result"]


def run_all(
    function: Function,
    jobs: Sequence[Job],
    shared: Any = None,
    *,
    executor: Executor = "serial",
    workers: int | None = None,
    kept: Kept | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: bool = False,
) -> list[Any]:
    """Results of `function(job, shared)`, in the order of `jobs`.

    Args:
        function: of a module, so that workers can import it.
        jobs: plain values each, no two alike.
        shared: what all jobs read, sent to each worker once; has to be picklable.
        executor: see above. A script that asks for processes needs the usual
            `if __name__ == "__main__"`.
        workers: jobs done at a time, at least 1; default one per core, or all that Ray has.
        kept: where finished jobs are looked up and kept.
        say: told in a line what is going on.
        progress: show a progress bar (on a terminal only).

    Raises:
        JobFailed: a job raised, or cost `DEATHS` workers; finished jobs are in `kept`.
        BadInput: the same, where a job raised that; an unknown executor, no workers, Ray missing or
            out of reach, or a job listed twice.
    """
    check_executor(executor, workers)
    if len(set(jobs)) < len(jobs):
        raise BadInput("a job is listed twice; list each once")
    done = {job: kept.load(function, job) for job in jobs} if kept else {}
    done = {job: attempt for job, attempt in done.items() if attempt is not None}
    open_ = [job for job in jobs if job not in done]
    say(f"{len(jobs)} jobs, {executor}" + (f", {len(done)} finished earlier" if done else ""))
    does = _EXECUTORS[executor] if open_ else _serially
    attempts = does(function, open_, shared, workers)
    bar = tqdm(total=len(jobs), initial=len(done), unit="job", disable=None if progress else True)
    with bar, closing(attempts):
        for job, attempt in attempts:
            if attempt.error:
                _raise(job, attempt)
            result = kept.save(function, job, attempt.result) if kept else attempt.result
            done[job] = Attempt(result)
            bar.update()
    return [done[job].result for job in jobs]


def check_executor(executor: Executor, workers: int | None = None) -> None:
    """Refuse what `run_all` would refuse of these; for callers with much to do before it.

    Raises:
        BadInput: an unknown executor, no workers, or Ray missing.
    """
    if executor not in get_args(Executor):
        raise BadInput(f"no executor {executor!r}; give one of {', '.join(get_args(Executor))}")
    if workers is not None and workers < 1:
        raise BadInput(f"workers is {workers}; give at least 1")
    if executor == "ray":
        _ray()


def stream(seed: int, *key: str | int | float) -> np.random.Generator:
    """The generator of a job, or of what several jobs have in common: by name, not by turn."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    words = np.frombuffer(digest, dtype="<u4").tolist()
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=words))


def _raise(job: Job, attempt: Attempt) -> None:
    message = f"{_words(job)}: {attempt.error}"
    if attempt.bad_input:
        raise BadInput(message)
    failed = JobFailed(message)
    if attempt.trace:
        failed.add_note(attempt.trace)
    raise failed


def _attempt(function: Function, job: Job, shared: Any) -> Attempt:
    """Do a job. Errors come back as words: not every exception survives the way."""
    try:
        return Attempt(function(job, shared))
    except BadInput as error:
        return Attempt(error=str(error), bad_input=True)
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        return Attempt(error=words, trace=traceback.format_exc())


def _serially(
    function: Function, jobs: Sequence[Job], shared: Any, workers: int | None
) -> Iterator[tuple[Job, Attempt]]:
    for job in jobs:
        yield job, _attempt(function, job, shared)


def _over_processes(
    function: Function, jobs: Sequence[Job], shared: Any, workers: int | None
) -> Iterator[tuple[Job, Attempt]]:
    waiting, deaths = list(reversed(jobs)), Counter[Job]()
    count = min(workers or _cores(), len(jobs))
    with _environment(ONE_THREAD):
        while waiting:
            with ExitStack() as stack:
                pool = ProcessPoolExecutor(count, get_context("spawn"), _begin, (function, shared))
                stack.callback(pool.shutdown, wait=True, cancel_futures=True)
                lost = yield from _while_all_live(pool, count, waiting)
            deaths.update(lost)
            for job in lost:
                if deaths[job] == DEATHS:
                    died = f"a worker process died {DEATHS} times while it was open"
                    yield job, Attempt(error=f"{died} (out of memory?)")
            again = [job for job in lost if deaths[job] < DEATHS]
            if again:
                words = "; ".join(map(_words, again))
                LOG.warning("a worker process died (out of memory?); done again: %s", words)
            waiting += reversed(again)


def _while_all_live(
    pool: ProcessPoolExecutor, count: int, waiting: list[Job]
) -> Generator[tuple[Job, Attempt], None, list[Job]]:
    """Do jobs from the end of `waiting`, `count` at a time, until a worker dies, and the pool so.

    Returns the jobs that were open then; nothing says which of them it was at.
    """
    running: dict[Future[Attempt], Job] = {}
    lost: list[Job] = []
    alive = True
    while (waiting and alive) or running:
        try:
            while waiting and alive and len(running) < count:
                running[pool.submit(_attempt_here, waiting[-1])] = waiting[-1]
                waiting.pop()
        except BrokenProcessPool:  # a worker died that had nothing to do
            alive = False
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            if isinstance(future.exception(), BrokenProcessPool):
                alive = False
                lost.append(job)
            else:
                yield job, future.result()
    return lost


def _over_ray(
    function: Function, jobs: Sequence[Job], shared: Any, workers: int | None
) -> Iterator[tuple[Job, Attempt]]:
    ray = _ray()
    with _cluster(ray, workers):
        # Ray itself gives a job to another worker when one dies
        remotely = ray.remote(num_cpus=1, max_retries=DEATHS - 1)(_attempt)
        what, everywhere = ray.put(function), ray.put(shared)
        waiting, running = list(reversed(jobs)), {}
        while waiting or running:
            while waiting and len(running) < (workers or len(jobs)):
                job = waiting.pop()
                running[remotely.remote(what, job, everywhere)] = job
            (first, *_), _ = ray.wait(list(running))
            try:
                attempt = ray.get(first)
            except ray.exceptions.RayError as error:
                attempt = Attempt(error=f"Ray lost it, {type(error).__name__}")
            yield running.pop(first), attempt


def _ray() -> Any:
    """The module; it takes a second to import, so that only who asks for Ray does."""
    try:
        import ray
    except ImportError:
        raise BadInput(
            'executor ray needs Ray, which is not installed; pip install "admarket[ray]"'
        ) from None
    return ray


_EXECUTORS = {"serial": _serially, "processes": _over_processes, "ray": _over_ray}


@contextmanager
def _cluster(ray: Any, workers: int | None) -> Iterator[None]:
    """Ray as it runs already, at RAY_ADDRESS, or started here and stopped in the end."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    # nothing is reported to anybody, and local workers print nothing into ours
    here = {} if address else {"num_cpus": workers, "include_dashboard": False}
    environment = {"env_vars": ONE_THREAD}
    # by default Ray tries for ever what runs out of memory
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_task_oom_retries": str(DEATHS - 1)}
    with _environment(settings):
        try:
            ray.init(
                address or "local",
                runtime_env=environment,
                log_to_driver=False,
                logging_level="ERROR",
                **here,
            )
        except (ConnectionError, RuntimeError) as error:
            first = (str(error).splitlines() or [""])[0]
            where = (
                f"RAY_ADDRESS {address}: no cluster answers" if address else "Ray does not start"
            )
            mend = (
                "start one with `ray start --head`, set RAY_AUTH_MODE=token if it asks for tokens, "
                "or unset RAY_ADDRESS"
                if address
                else "use executor processes"
            )
            raise BadInput(f"{where} ({first}); {mend}") from None
        try:
            yield
        finally:
            ray.shutdown()


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for processes started meanwhile; libraries read them on import."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


_here: dict[str, Any] = {}


def _begin(function: Function, shared: Any) -> None:
    """Start of a worker process. Ctrl-C is its parent's business, whom it does not outlive."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    _here.update(function=function, shared=shared)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _attempt_here(job: Job) -> Attempt:
    return _attempt(_here["function"], job, _here["shared"])


@cache
def _sources() -> str:
    """Hash of the program: what another version of it has found is not taken over."""
    return source_digest(agents, experiments, market, mechanisms)


def _words(job: Job) -> str:
    return "job " + ", ".join(map(str, job))
