import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import agents
import experiments
import market
import mechanisms
from experiments import parallel
from experiments.parallel import JobFailed, Kept, check_executor, run_all, stream
from market.checkpoint import source_digest
from mechanisms.errors import BadInput
from tests.experiments import parallel_jobs as jobs

SOME = [("a", 1, 0.5), ("b", 2, 0.25), ("a", 2, 0.5), ("c", 1, 1.0), ("d", 3, 0.0)]
SHARED = np.arange(5.0)


def test_results_depend_on_the_job_alone():
    found = run_all(jobs.draw, SOME, SHARED)
    assert run_all(jobs.draw, SOME[::-1], SHARED) == found[::-1]
    assert run_all(jobs.draw, SOME[2:3], SHARED) == found[2:3]
    assert len({tuple(each) for each in found}) == len(SOME)


@pytest.mark.slow  # as on Ray, below
def test_processes_give_what_serial_gives():
    found = run_all(jobs.draw, SOME, SHARED, executor="processes", workers=2)
    assert found == run_all(jobs.draw, SOME, SHARED)


@pytest.mark.slow  # by default test_compare shows the same bytes on Ray
def test_ray_gives_what_serial_gives():
    pytest.importorskip("ray")
    found = run_all(jobs.draw, SOME, SHARED, executor="ray", workers=2)
    assert found == run_all(jobs.draw, SOME, SHARED)


def test_workers_are_other_processes_with_one_thread_each(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    found = run_all(jobs.who, [(k,) for k in range(4)], executor="processes", workers=2)
    pids = {pid for pid, _ in found}
    assert os.getpid() not in pids and 1 <= len(pids) <= 2
    assert {threads for _, threads in found} == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_failing_job_names_itself(executor):
    with pytest.raises(JobFailed, match="job 2, gsp: ValueError: two is too many") as failed:
        run_all(
            jobs.fail_at_two, [(1, "gsp"), (2, "gsp"), (3, "gsp")], executor=executor, workers=1
        )
    assert "fail_at_two" in failed.value.__notes__[0]


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_bad_input_stays_bad_input(executor):
    with pytest.raises(BadInput, match="job mosaic: tau is -1"):
        run_all(jobs.refuse, [("mosaic",)], executor=executor, workers=1)


def killed_mid_sweep(tmp_path, executor):
    """A sweep of 6 jobs by two workers, one of which gets SIGKILL over the third."""
    kept, marks = Kept(tmp_path / "kept", ""), tmp_path / "marks"
    todo = [(k,) for k in range(1, 7)]
    found = run_all(jobs.die_once, todo, str(marks), executor=executor, workers=2, kept=kept)
    assert [k for k, _ in found] == [1, 2, 3, 4, 5, 6]
    assert [kept.load(jobs.die_once, job).result for job in todo] == found
    times = Counter(map(int, marks.read_text().split()))
    victim = int((tmp_path / "killed").read_text())
    assert times[3] == 2 and victim not in {pid for _, pid in found[2:]}
    return times, {pid for _, pid in found}


def test_a_worker_that_is_killed_costs_nothing_that_was_finished(tmp_path, caplog):
    times, _ = killed_mid_sweep(tmp_path, "processes")
    again = {job for job, count in times.items() if count > 1}
    assert len(again) <= 2  # what the two workers were at
    ours = (record for record in caplog.records if record.name.startswith("experiments"))
    [said] = [record.message for record in ours]
    assert said.startswith("a worker process died (out of memory?); done again: ")
    assert "job 3" in said


def test_a_ray_worker_that_is_killed_costs_nothing_that_was_finished(tmp_path):
    """On a cluster of two workers on this machine."""
    pytest.importorskip("ray")
    times, workers = killed_mid_sweep(tmp_path, "ray")
    assert {job for job, count in times.items() if count > 1} == {3}
    assert os.getpid() not in workers


def test_a_job_that_kills_every_worker_is_given_up_and_named():
    with pytest.raises(JobFailed, match="job 1: a worker process died 3 times while it was open"):
        run_all(jobs.die, [(1,), (2,)], executor="processes", workers=1)


def test_a_run_that_broke_goes_on_where_it_was(tmp_path):
    marks, armed = tmp_path / "marks", tmp_path / "armed"
    todo, kept = [(k,) for k in range(1, 6)], Kept(tmp_path / "kept", "pool 1")
    armed.touch()
    with pytest.raises(JobFailed, match="job 3: RuntimeError: interrupted"):
        run_all(jobs.count, todo, str(marks), kept=kept)
    armed.unlink()
    said = []
    found = run_all(jobs.count, todo, str(marks), kept=kept, say=said.append)
    assert marks.read_text().split() == ["1", "2", "3", "3", "4", "5"]
    assert said == ["5 jobs, serial, 2 finished earlier"]
    assert found == run_all(jobs.count, todo, str(marks))  # with and without: the same bytes


def test_what_is_kept_belongs_to_its_content_and_its_program(tmp_path, monkeypatch):
    marks, todo = tmp_path / "marks", [(1,)]

    def calls(content):
        run_all(jobs.count, todo, str(marks), kept=Kept(tmp_path / "kept", content))
        return len(marks.read_text().split())

    assert [calls("pool 1"), calls("pool 1"), calls("pool 2"), calls("pool 2")] == [1, 1, 2, 2]
    monkeypatch.setattr(parallel, "_sources", lambda: "another version")
    assert calls("pool 2") == 3


def test_a_program_is_another_as_soon_as_a_line_of_it_is(tmp_path):
    home = tmp_path / "pack"
    (home / "inner").mkdir(parents=True)
    for name in ("__init__.py", "inner/one.py", "inner/two.py"):
        (home / name).write_text("ONE = 1\n")
    package = ModuleType("pack")
    package.__path__ = [str(home)]
    first = source_digest(package)
    (home / "notes.txt").write_text("no program")
    assert source_digest(package) == first
    (home / "inner" / "two.py").write_text("ONE = 1\nTWO = 2\n")
    second = source_digest(package)
    (home / "inner" / "two.py").rename(home / "two.py")
    assert len({first, second, source_digest(package)}) == 3
    with_experiments = source_digest(agents, experiments, market, mechanisms)
    assert parallel._sources() == with_experiments != source_digest(agents, market, mechanisms)


@pytest.mark.parametrize("text", ['{"job": [1], "res', "", "[]", '{"job": [1]}', "\x80"])
def test_a_file_that_is_damaged_is_done_again(tmp_path, text):
    kept = Kept(tmp_path / "kept", "")
    run_all(jobs.count, [(1,)], str(tmp_path / "marks"), kept=kept)
    kept.path(jobs.count, (1,)).write_text(text, encoding="latin-1")
    found = run_all(jobs.count, [(1,)], str(tmp_path / "marks"), kept=kept)
    assert found == [{"square": 1, "third": 1 / 3}]


def test_a_killed_run_leaves_its_finished_jobs_and_no_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_sources", lambda: "1")  # whoever edits the tree meanwhile
    todo, kept = [(k,) for k in range(200)], Kept(tmp_path / "kept", "")
    script = f"""
from pathlib import Path
from experiments import parallel
from experiments.parallel import Kept, run_all
from tests.experiments import parallel_jobs as jobs
parallel._sources = lambda: "1"
kept = Kept(Path({str(kept.folder)!r}), "")
run_all(jobs.slowly, [(k,) for k in range(200)], 0.2, executor="processes", workers=1, kept=kept)
"""
    run = subprocess.Popen([sys.executable, "-c", script], cwd=Path(parallel.__file__).parents[1])
    until(lambda: len(list(kept.folder.glob("*.json"))) >= 3)
    run.kill()
    run.wait()
    done = [json.loads(path.read_text())["result"] for path in kept.folder.glob("*.json")]
    assert 3 <= len(done) < 200
    until(lambda: not any(alive(pid) for _, pid in done))
    again = run_all(jobs.slowly, todo, 0.0, kept=kept)
    assert [k for k, _ in again] == list(range(200))
    assert all(tuple(each) in {tuple(one) for one in again} for each in done)


def until(there, seconds=60):
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.1)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_streams_go_by_name():
    same = stream(3, "learning", "hedge", 1).random(4)
    assert (stream(3, "learning", "hedge", 1).random(4) == same).all()
    others = [(4, "learning", "hedge", 1), (3, "learning", "hedge", 2), (3, "learninghedge", 1)]
    assert all((stream(*key).random(4) != same).all() for key in others)


def test_bad_input():
    for wrong, words in (
        ({"executor": "threads"}, "no executor 'threads'"),
        ({"workers": 0}, "workers is 0"),
    ):
        with pytest.raises(BadInput, match=words):
            run_all(jobs.draw, SOME, SHARED, **wrong)
    with pytest.raises(BadInput, match="listed twice"):
        run_all(jobs.draw, [("a",), ("a",)], SHARED)


def test_executors_are_checked_before_there_is_work(monkeypatch):
    for wrong in ({"executor": "threads"}, {"executor": "serial", "workers": 0}):
        with pytest.raises(BadInput):
            check_executor(**wrong)
    check_executor("processes", 1)
    with monkeypatch.context() as hidden:
        hidden.setitem(sys.modules, "ray", None)
        with pytest.raises(BadInput, match="not installed"):
            check_executor("ray")


def test_no_jobs_no_workers():
    assert run_all(jobs.draw, [], SHARED, executor="processes") == []


def test_ray_missing(monkeypatch):
    with monkeypatch.context() as hidden:
        hidden.setitem(sys.modules, "ray", None)
        with pytest.raises(BadInput, match=r"pip install \"admarket\[ray\]\""):
            run_all(jobs.draw, SOME, SHARED, executor="ray")
