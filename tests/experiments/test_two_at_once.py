"""Real processes that record the same replies into the same cache: each ends with the same pool."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

WRITES = "candidate replies: smollm2-135m writes 6 to each of 8 requests"
WAITS = "another process is recording the same replies; waiting for it"


@pytest.fixture(scope="module")
def found(tiny_llm, tmp_path_factory):
    """See `recorders`."""
    folder = tmp_path_factory.mktemp("recorders")
    command = [sys.executable, "-m", "tests.experiments.recorders", tiny_llm, str(folder)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def hash_of(recorder):
    assert recorder["code"] == 0, recorder
    return recorder["said"][-1].removeprefix("content_hash ")


def does(recorder, line):
    return any(said.startswith(line) for said in recorder["said"])


def test_two_at_once_do_the_work_once_and_both_have_it(found):
    first, second = found["two"]["ended"]
    [alone] = found["alone"]["ended"]
    assert hash_of(first) == hash_of(second) == hash_of(alone)
    assert found["two"]["pools"] == found["alone"]["pools"] == [hash_of(alone)]
    assert does(first, WRITES) and not does(first, WAITS)
    assert does(second, WAITS) and not does(second, WRITES)


def test_one_that_is_killed_with_the_lock_leaves_its_work_to_the_other(found):
    first, second = found["killed"]["ended"]
    assert first["code"] == -signal.SIGKILL and does(first, WRITES)
    assert does(second, WAITS) and does(second, WRITES)
    assert any("prompt(s) are already done" in line for line in second["said"])
    assert found["killed"]["pools"] == [hash_of(second)] == found["alone"]["pools"]
