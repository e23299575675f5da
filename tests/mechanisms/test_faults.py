"""Recording with a server that fails in every way, and with a client that does: nothing is lost."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest
import torch

from agents.users import BehaviouralUsers
from mechanisms.errors import BadInput
from mechanisms.llm.journal import Journaled
from mechanisms.llm.openai_engine import OpenAIEngine
from mechanisms.policies import Rules
from mechanisms.recording import Design, Request, record
from tests.fake_server import (
    KINDS,
    SERVED,
    FakeServer,
    ServerProcess,
    TokenEngine,
    sometimes,
)
from tests.tiny_llm import ADS, HashEncoder

USERS = BehaviouralUsers(HashEncoder())
QUERIES = ("How do I sleep?", "Which tea is good?", "Do my shoes fit?", "Tea?")
RULES = Rules(max_tokens=24, loop=10**6, sentences=2)
GUIDED = Design(replies=6, temperature=1.0, rules=RULES)
CONTEXT = Design(replies=4, generation="context", temperature=1.0, rules=RULES)
DESIGNS = {"guided": GUIDED, "context": CONTEXT}
EACH_DESIGN = pytest.mark.parametrize("design", list(DESIGNS))


def recorded(engine, design="guided"):
    requests = [
        Request(f"Q{b}", query, f"U{b}", "A user.", ADS, range(len(ADS)))
        for b, query in enumerate(QUERIES)
    ]
    return record(requests, engine, USERS, DESIGNS[design], seed=5).content_hash


def client(url, model, **options):
    options = {"concurrency": 4, "retries": 30, "pause": 0.001, "timeout": 30} | options
    return OpenAIEngine(url, model, served_model=SERVED, **options)


@pytest.fixture(autouse=True)
def quiet_and_quick(caplog, monkeypatch):
    caplog.set_level(logging.ERROR, logger="mechanisms")
    monkeypatch.setattr("mechanisms.llm.server.LONGEST_PAUSE", 0.1)


@pytest.fixture(scope="module")
def served(tiny_llm):
    """On one thread, as in the processes: how many there are shows in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield TokenEngine(tiny_llm, dtype="fp32", device="cpu")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(served, tiny_llm, tmp_path_factory):
    """By design: content hash, how often each request was answered, what the journal holds."""
    out = {}
    for design in DESIGNS:
        path = tmp_path_factory.mktemp(design) / "journal"
        with FakeServer(served) as server:
            engine = client(server.url, tiny_llm)
            plain = recorded(engine, design)
            asked = server.served.copy()
            with Journaled(engine, path) as journaled:
                assert recorded(journaled, design) == plain
        out[design] = plain, asked, journaled_prompts(path)
    return out


def journaled_prompts(path):
    """How many lines of the journal have each prompt of each call."""
    lines = [json.loads(line.split(b" ", 1)[1]) for line in path.read_bytes().splitlines()[1:]]
    return Counter((line["call"], p) for line in lines for p in line["results"])


def check(path, design, undisturbed, content_hash):
    """The same pool, and in the journal every prompt of every call exactly once."""
    assert content_hash == undisturbed[design][0]
    prompts = journaled_prompts(path)
    assert set(prompts.values()) == {1}
    assert prompts == undisturbed[design][2]


@EACH_DESIGN
def test_every_fault(served, tiny_llm, tmp_path, undisturbed, design):
    """Every fourth request fails, in each way in turn; each is answered in full exactly once."""
    kinds = iter(list(KINDS) * 100)
    with FakeServer(served, lambda number: None if number % 4 else next(kinds)) as server:
        with Journaled(client(server.url, tiny_llm), tmp_path / "journal") as engine:
            got = recorded(engine, design)
        check(tmp_path / "journal", design, undisturbed, got)
        assert server.served == undisturbed[design][1]
        assert set(server.failed) == set(KINDS)


@pytest.mark.parametrize("seed", range(4))
def test_faults_at_random(served, tiny_llm, tmp_path, undisturbed, seed):
    """Up to two thirds of all requests fail."""
    design = random.Random(seed).choice(list(DESIGNS))
    with FakeServer(served, sometimes(seed, 0.1 + 0.18 * seed, KINDS)) as server:
        with Journaled(client(server.url, tiny_llm), tmp_path / "journal") as engine:
            got = recorded(engine, design)
        check(tmp_path / "journal", design, undisturbed, got)
        assert server.served == undisturbed[design][1]


def test_answers_that_never_come(served, tiny_llm, tmp_path, undisturbed):
    hanging = {0, 1, 2, 9, 30}
    with FakeServer(served, lambda number: "hang" if number in hanging else None) as server:
        engine = client(server.url, tiny_llm, timeout=1.5)
        with Journaled(engine, tmp_path / "journal") as engine:
            check(tmp_path / "journal", "guided", undisturbed, recorded(engine))
        assert server.served == undisturbed["guided"][1]
        assert server.failed == {"hang": len(hanging)}


@pytest.mark.parametrize(
    ("kind", "design"), [("500", "guided"), ("half-json", "context"), ("reset", "guided")]
)
def test_a_server_that_stays_down(served, tiny_llm, tmp_path, undisturbed, design, kind):
    """One line says so; what was finished is not asked for again."""
    path, total = tmp_path / "journal", sum(undisturbed[design][1].values())
    before: Counter[str] = Counter()
    for share in (0.3, 0.6):
        left = [int(share * total)]
        with FakeServer(served, lambda number, n=left[0]: kind if number >= n else None) as server:
            engine = client(server.url, tiny_llm, retries=2)
            with Journaled(engine, path) as engine, pytest.raises(BadInput) as caught:
                recorded(engine, design)
            assert "\n" not in str(caught.value)
            assert server.url in str(caught.value)
        before += server.served
    finished = len(journaled_prompts(path))
    assert finished > 0
    with FakeServer(served) as server, Journaled(client(server.url, tiny_llm), path) as engine:
        check(path, design, undisturbed, recorded(engine, design))
    again = sum((before + server.served).values()) - total
    # Only replies to the prompts that were under way are written again.
    assert 0 <= again < sum(before.values())
    assert sum(server.served.values()) < total


@pytest.mark.parametrize("seed", range(2))
def test_a_server_that_is_killed_and_comes_back(processes, tiny_llm, tmp_path, undisturbed, seed):
    """SIGKILL at random moments; the client waits for it. It may wait in vain twice."""
    path, rng, over = tmp_path / "journal", random.Random(seed), threading.Event()

    def disturb():
        while not over.wait(rng.uniform(0.1, 0.8)):
            processes.kill()
            kills.append(1)
            over.wait(rng.uniform(0.0, 0.15))
            processes.start()

    kills: list[int] = []
    processes.start()
    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for retries in (3, 3, 1000):
            engine = client(processes.url, tiny_llm, retries=retries)
            try:
                with Journaled(engine, path) as engine:
                    got = recorded(engine)
                break
            except BadInput as error:
                assert "\n" not in str(error)
    finally:
        over.set()
        thread.join()
    check(path, "guided", undisturbed, got)
    assert kills


@pytest.fixture(scope="module")
def processes(tiny_llm):
    process = ServerProcess(tiny_llm, slow=0.005)
    yield process
    process.close()


# Forks of one process, since loading torch takes longer than all the rest. Each is killed some time
# after it has added to the journal, so that all together come to an end.
CLIENT = """
import os, signal, sys, time
from mechanisms.llm.journal import Journaled
from tests.mechanisms.test_faults import client, recorded

url, model, path = sys.argv[1:]
engine = client(url, model, concurrency=3)
size = lambda: os.path.getsize(path) if os.path.exists(path) else 19
for line in sys.stdin:
    before, child = size(), os.fork()
    if not child:
        with Journaled(engine, path) as journaled:
            print(recorded(journaled), flush=True)
        os._exit(0)
    while size() <= before and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.001)
    time.sleep(float(line))
    os.kill(child, signal.SIGKILL)
    print("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_client_that_is_killed(served, tiny_llm, tmp_path, undisturbed):
    """SIGKILL at random moments until it comes through; it never begins anew."""
    path, rng = tmp_path / "journal", random.Random(1)
    with FakeServer(served, sometimes(1, 0.1, KINDS)) as server:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", CLIENT, server.url, tiny_llm, str(path)]
        process = subprocess.Popen(command, **pipes, env=os.environ | {"OMP_NUM_THREADS": "1"})
        said: list[str] = []
        killed = 0
        while not said:
            process.stdin.write(f"{rng.uniform(0, 0.1)}\n")
            process.stdin.flush()
            while not (line := process.stdout.readline()).startswith("exit"):
                assert line, "the client is gone"
                said.append(line.strip())
            killed += int(line.split()[1]) == -signal.SIGKILL
        process.stdin.close()
        process.wait(10)
    assert 1 <= killed <= len(QUERIES)
    assert said == [undisturbed["guided"][0]]
    # Once more, all from the journal: there is no server any more to ask.
    with Journaled(client("http://127.0.0.1:9", tiny_llm, retries=0), path) as engine:
        check(path, "guided", undisturbed, recorded(engine))
    assert set(server.served) == set(undisturbed["guided"][1])
