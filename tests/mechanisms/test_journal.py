"""Interrupted and resumed, a recording is to the last bit what it would have been."""

import errno
import logging
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from mechanisms.errors import BadInput
from mechanisms.llm import journal, locking
from mechanisms.llm.base import Mixed, Sample
from mechanisms.llm.journal import HEADER, Journaled
from mechanisms.llm.transformers_engine import TransformersEngine
from tests.mechanisms.interrupted import CONTEXT, GUIDED, TOKEN, Counting, recorded, same

DESIGNS = pytest.mark.parametrize(
    "design", [GUIDED, CONTEXT, TOKEN], ids=["guided", "context", "token"]
)


@pytest.fixture(scope="module")
def engine(tiny_llm):
    """Two or three batches of generation, and more of scoring."""
    return TransformersEngine(tiny_llm, dtype="fp32", device="cpu", batch_rows=16)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


def interrupt(engine, path, batches, design=GUIDED):
    with Journaled(Counting(engine, batches), path) as journaled, pytest.raises(KeyboardInterrupt):
        recorded(journaled, design)


@DESIGNS
def test_a_resumed_recording_is_the_undisturbed_one(engine, path, design):
    whole = recorded(engine, design)
    counter = Counting(engine)
    same(recorded(Journaled(counter, path.with_name("other")), design), whole)
    total = counter.batches
    assert total >= 3
    done = 0
    for more in (0, 1, 1):  # interrupted three times, once before anything was finished
        interrupt(engine, path, more, design)
        done += more
    counter = Counting(engine)
    with Journaled(counter, path) as journaled:
        same(recorded(journaled, design), whole)
    assert counter.batches == total - done
    counter = Counting(engine)
    with Journaled(counter, path) as journaled:
        same(recorded(journaled, design), whole)
    assert counter.batches == 0


@DESIGNS
def test_what_is_in_the_journal_reads_back_to_the_last_bit(engine, path, design):
    with Journaled(engine, path) as first:
        recorded(first, design)
    again = Journaled(engine, path)
    assert again._known.keys() == first._known.keys()
    for call, results in first._known.items():
        assert again._known[call].keys() == results.keys()
        for p, row in results.items():
            for kept, read in zip(row, again._known[call][p], strict=True):
                assert isinstance(kept, Mixed) == isinstance(read, Mixed)
                if isinstance(kept, Mixed):
                    assert kept.under.dtype == read.under.dtype
                    np.testing.assert_array_equal(kept.under, read.under)
                    kept, read = kept.sample, read.sample
                fields = ("tokens", "log_probs", "forced") if isinstance(kept, Sample) else ()
                for name in fields:
                    x, y = getattr(kept, name), getattr(read, name)
                    assert x.dtype == y.dtype
                    np.testing.assert_array_equal(x, y)
                if fields:
                    assert kept.ended is read.ended
                else:
                    assert kept.dtype == read.dtype == np.float64
                    np.testing.assert_array_equal(kept, read)


def test_strange_numbers_survive(path):
    row = [np.array([-np.inf, np.nan, -0.0, 5e-324, -0.1 - 0.2, np.float32(-1.1)]), np.zeros(0)]
    read = journal._unpack(journal.json.loads(journal.json.dumps(journal._pack(row))))
    for x, y in zip(row, read, strict=True):
        assert x.tobytes() == y.tobytes()


def test_a_damaged_line_is_done_again_and_no_other(engine, path):
    with Journaled(Counting(engine), path) as journaled:
        whole = recorded(journaled)
    intact = path.read_bytes()
    lines = intact.splitlines(keepends=True)
    total = len(lines) - 1
    assert total == 3

    def flipped(line):
        return line[:100] + bytes([line[100] ^ 1]) + line[101:]

    cases = [
        (intact[:-1], 1),
        (intact[: -len(lines[-1]) // 2], 1),
        (intact[: len(intact) - len(lines[-1]) + 3], 1),
        (intact + b"\0" * 5000, 0),
        (intact + lines[-1][:50], 0),
        (b"".join([lines[0], flipped(lines[1]), *lines[2:]]), 1),
        (b"".join([lines[0], lines[1], b"\xff\n\n", flipped(lines[2]), lines[3]]), 1),
        (lines[0], total),
        (HEADER[:4], total),
        (b"", total),
    ]
    for damaged, missing in cases:
        path.write_bytes(damaged)
        for expected in (missing, 0):  # what is done again is kept, also behind what is damaged
            counter = Counting(engine)
            with Journaled(counter, path) as journaled:
                same(recorded(journaled), whole)
            assert counter.batches == expected, damaged[-60:]


@pytest.mark.parametrize("design", [GUIDED, TOKEN], ids=["guided", "token"])
def test_trying_again_in_the_same_process(engine, path, design):
    """As in a notebook: a guided call that broke off goes on where it was."""
    whole, counter = recorded(engine, design), Counting(engine, 1)
    with Journaled(counter, path) as journaled:
        for _ in range(2):  # in the middle of writing
            with pytest.raises(KeyboardInterrupt):
                recorded(journaled, design)
        counter.fuse = 10**6
        same(recorded(journaled, design), whole)
        total = counter.batches
    assert total == path.read_bytes().count(b"\n") - 1
    undisturbed = Counting(engine)
    with Journaled(undisturbed, path.with_name("other")) as journaled:
        recorded(journaled, design)
        assert undisturbed.batches == total
        # what is through is counted: once more is another call, since its guide may be another
        same(recorded(journaled, design), whole)
        assert undisturbed.batches > total


def test_two_recorders_at_once(engine, path, caplog):
    whole = recorded(engine)
    first = Journaled(engine, path)
    with caplog.at_level(logging.WARNING, logger="mechanisms"):
        second = Journaled(engine, path)
    assert "another process is recording the same; working without" in caplog.text
    same(recorded(second), whole)
    second.delete()
    assert path.read_bytes() == HEADER  # what is not ours is left alone
    same(recorded(first), whole)
    first.delete()
    assert not path.exists()
    counter = Counting(engine)
    with Journaled(counter, path) as third:
        same(recorded(third), whole)
    assert counter.batches == 3


def test_a_journal_that_its_owner_removes_while_we_wait(engine, path, monkeypatch):
    """We must not lock, and write, a file that is no longer there."""
    path.write_bytes(HEADER)
    lock, tries = locking._lock, []

    def late(file, wait):
        if not tries:
            path.unlink()
        tries.append(file.name)
        return lock(file, wait)

    monkeypatch.setattr(locking, "_lock", late)
    with Journaled(engine, path):
        assert path.read_bytes() == HEADER
    assert len(tries) == 2


def test_file_systems_without_locks(engine, path, monkeypatch, caplog):
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    same(recorded(Journaled(engine, path)), recorded(engine))
    assert "cannot be locked (No locks available)" in caplog.text


def test_paths_that_cannot_be_written(engine, tmp_path):
    (tmp_path / "file").write_text("x")
    for bad in (tmp_path, tmp_path / "file" / "journal", "/proc/journal"):
        with pytest.raises(BadInput, match="cannot write journal") as caught:
            Journaled(engine, bad)
        assert "\n" not in str(caught.value)
        assert str(bad) in str(caught.value)
    for text in ("notes of mine\n" * 9, "x", "admarket journal 0\n"):
        (tmp_path / "notes").write_text(text)
        with pytest.raises(BadInput, match="no journal of this version"):
            Journaled(engine, tmp_path / "notes")
        assert (tmp_path / "notes").read_text() == text


def test_disk_full(engine, path, monkeypatch):
    """Half a line goes through, then nothing: one line says so, and all before it is there."""
    whole = recorded(engine)
    room = 30_000
    write = os.pwrite

    def short(fd, data, at):
        if at + len(data) <= room:
            return write(fd, data, at)
        if at >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[: room - at], at)

    monkeypatch.setattr(os, "pwrite", short)
    with (
        Journaled(Counting(engine), path) as journaled,
        pytest.raises(BadInput, match=r"\(No space left on device\); make room") as caught,
    ):
        recorded(journaled)
    assert "\n" not in str(caught.value)
    assert path.stat().st_size == room
    monkeypatch.undo()
    counter = Counting(engine)
    with Journaled(counter, path) as journaled:
        same(recorded(journaled), whole)
    assert 0 < counter.batches < 3


# Forks of one process, since loading torch takes longer than all the rest.
KILLED = """
import os, signal, sys
from mechanisms.llm.journal import Journaled
from mechanisms.llm.transformers_engine import TransformersEngine
from tests.mechanisms.interrupted import Counting, recorded

class Deadly(Counting):
    def burning(self, done):
        def report(results):
            done(results)
            self.batches += 1
            if self.batches == self.fuse:
                os.kill(os.getpid(), signal.SIGKILL)
        return report

engine = TransformersEngine(sys.argv[1], dtype="fp32", device="cpu", batch_rows=16)
for fuse in (1, 1, 9):
    child = os.fork()
    if not child:
        with Journaled(Deadly(engine, fuse), sys.argv[2]) as journaled:
            print(recorded(journaled).content_hash, flush=True)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, open(sys.argv[2], "rb").read().count(b"\\n"), flush=True)
"""


def test_kill_9(engine, tiny_llm, path, monkeypatch):
    """In the middle of it, and again; the lock goes with the process."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    command = [sys.executable, "-c", KILLED, tiny_llm, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    killed = -signal.SIGKILL
    whole = recorded(engine).content_hash
    expected = [f"{killed} 2", f"{killed} 3", whole, "0 4"]
    assert done.stdout.splitlines() == expected, done.stderr
