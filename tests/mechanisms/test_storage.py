"""Pools on disk: all comes back, and what is damaged or foreign is refused in one line."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mechanisms.errors import BadInput
from mechanisms.pool import ReplyPool
from mechanisms.recording import load_pool, save_pool, storage

TABLES = ("replies.parquet", "requests.parquet")
ARRAYS = ("ctr", "log_ref", "log_gen", "quality", "ads", "exposure", "malformed")


def make(seed=0, B=3, M=5, n=2, tables=True):
    rng = np.random.default_rng(seed)
    exposure = rng.random((B, M, n)) < 0.5
    replies = pl.DataFrame({"text": [f"Reply {i} – “good” 😀" for i in range(B * M)]})
    requests = pl.DataFrame({"query": [f"query {b}" for b in range(B)]})
    return ReplyPool.from_arrays(
        np.where(exposure, rng.random((B, M, n)), 0),
        *rng.normal(-50, 9, (2, B, M)),
        rng.random((B, M)),
        np.array([rng.permutation(4)[:n] for _ in range(B)]).reshape(B, n),
        exposure=exposure,
        malformed=rng.integers(0, 2, (B, M)),
        num_advertisers=7,
        replies=replies if tables else None,
        requests=requests if tables else None,
        manifest={"source": "test", "seed": seed},
    )


@pytest.fixture
def saved(tmp_path):
    return save_pool(make(), tmp_path / "pool")


@pytest.fixture
def unsummed(saved):
    """A pool as it was saved before there were checksums."""
    manifest = json.loads((saved / "manifest.json").read_text())
    del manifest["sha256"]
    (saved / "manifest.json").write_text(json.dumps(manifest))
    return saved


def refusal(folder):
    with pytest.raises(BadInput) as caught:
        load_pool(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@pytest.mark.parametrize("shape", [(3, 5, 2), (1, 1, 1), (2, 3, 0), (4, 1, 3)])
@pytest.mark.parametrize("tables", [True, False])
def test_round_trip(tmp_path, shape, tables):
    pool = make(1, *shape, tables=tables)
    folder = save_pool(pool, tmp_path / "deep" / "down" / "pool")
    loaded = load_pool(str(folder))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(pool, name))
        assert getattr(loaded, name).dtype == getattr(pool, name).dtype
    assert loaded.content_hash == pool.content_hash == loaded.manifest["content_hash"]
    assert loaded.num_advertisers == 7
    assert loaded.manifest["source"] == "test"
    for name in ("replies", "requests"):
        before, after = getattr(pool, name), getattr(loaded, name)
        assert after is before is None if not tables else after.equals(before)
    again = load_pool(save_pool(loaded, tmp_path / "again"))
    assert again.content_hash == pool.content_hash
    assert again.manifest == loaded.manifest


def test_saving_replaces(saved):
    save_pool(make(2, 2, 2, 2), saved)
    assert load_pool(saved).content_hash == make(2, 2, 2, 2).content_hash
    assert [path.name for path in saved.parent.iterdir()] == ["pool"]
    (saved / "replies.parquet").unlink()
    save_pool(make(), saved)
    assert load_pool(saved).content_hash == make().content_hash


def test_a_pool_that_is_there_already_stays(saved):
    before = {path.name: path.stat().st_ino for path in saved.iterdir()}
    save_pool(make(), saved)
    assert {path.name: path.stat().st_ino for path in saved.iterdir()} == before
    (saved / "manifest.json").write_text("{}")
    save_pool(make(), saved)  # damaged, and so not the same
    assert load_pool(saved).content_hash == make().content_hash


def test_saving_deletes_nothing_else(tmp_path, saved):
    """A folder with other things in it, such as a results folder, is not replaced."""
    (saved / "thesis.txt").write_text("years of work")
    for folder, what in ((saved, "thesis.txt"), (tmp_path, "pool")):
        with pytest.raises(BadInput, match=f"holds {what}, which is no part of a pool"):
            save_pool(make(2), folder)
    with pytest.raises(BadInput, match="is not a folder"):
        save_pool(make(2), saved / "thesis.txt")
    assert (saved / "thesis.txt").read_text() == "years of work"
    assert load_pool(saved).content_hash == make().content_hash
    empty = tmp_path / "empty"
    empty.mkdir()
    load_pool(save_pool(make(2), empty))


def test_what_cannot_be_saved_leaves_nothing(tmp_path):
    pool = make()
    pool.manifest["seed"] = object()
    with pytest.raises(TypeError):
        save_pool(pool, tmp_path / "pool")
    assert not list(tmp_path.iterdir())


def test_no_pool(tmp_path):
    assert "manifest.json is missing" in refusal(tmp_path)
    assert "manifest.json is missing" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    refusal(tmp_path / "file")


@pytest.mark.parametrize("name", [*TABLES, "manifest.json"])
def test_missing_file(saved, name):
    (saved / name).unlink()
    assert f"{name} is missing" in refusal(saved)


@pytest.mark.parametrize("name", [*TABLES, "manifest.json"])
def test_truncated_file(saved, name):
    whole = (saved / name).read_bytes()
    for share in (0.0, 0.1, 0.5, 0.9, 0.99):
        (saved / name).write_bytes(whole[: int(share * len(whole))])
        assert "damaged" in refusal(saved)


def flipped(whole):
    for at in np.linspace(0, len(whole) - 1, 60).astype(int):
        broken = bytearray(whole)
        broken[at] ^= 0xFF
        yield bytes(broken)


@pytest.mark.parametrize("name", TABLES)
def test_a_flipped_byte_is_refused(saved, name):
    for broken in flipped((saved / name).read_bytes()):
        (saved / name).write_bytes(broken)
        assert f"{name} does not match its checksum" in refusal(saved)


@pytest.mark.parametrize("name", TABLES)
def test_flipped_bytes_without_checksums(unsummed, name):
    """They are refused, or did not matter: never another pool, never a traceback."""
    expected = make().content_hash
    for broken in flipped((unsummed / name).read_bytes()):
        (unsummed / name).write_bytes(broken)
        try:
            assert load_pool(unsummed).content_hash == expected
        except BadInput as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("change", [{"source": "else"}, {"more": 1}, {"sha256": []}])
def test_a_manifest_that_was_changed_is_refused(saved, change):
    path = saved / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest))  # other white space is the same manifest
    load_pool(saved)
    path.write_text(json.dumps({**manifest, **change}))
    assert "damaged" in refusal(saved)


def test_checksums_are_no_part_of_what_a_pool_says_of_itself(saved):
    assert "sha256" not in load_pool(saved).manifest


def test_changed_values(unsummed):
    table = pl.read_parquet(unsummed / "replies.parquet")
    changes = [
        pl.col("pool_log_gen") + 1e-9,
        pl.col("pool_quality").neg() + 1,
        pl.col("pool_ctr").list.eval(pl.element() * 0.5),
        pl.col("pool_malformed") + 1,
        pl.col("text").str.replace("Reply 3", "Reply 4"),
    ]
    for change in changes:
        table.with_columns(change).write_parquet(unsummed / "replies.parquet")
        assert "content hash" in refusal(unsummed)
    table.reverse().write_parquet(unsummed / "replies.parquet")
    assert "content hash" in refusal(unsummed)
    table.write_parquet(unsummed / "replies.parquet")
    load_pool(unsummed)


@pytest.mark.parametrize(
    "change",
    [
        pl.lit(None, dtype=pl.Float64).alias("pool_log_ref"),
        pl.lit("x").alias("pool_log_ref"),
        pl.lit(float("nan")).alias("pool_quality"),
        pl.lit(None, dtype=pl.List(pl.Float64)).alias("pool_ctr"),
        pl.col("pool_ctr").list.head(1),
        pl.col("pool_ctr").list.eval(pl.element() + 1),
        pl.lit(None, dtype=pl.String).alias("text"),
        pl.lit(3).alias("text"),
    ],
    ids=str,
)
def test_values_that_make_no_sense(unsummed, change):
    pl.read_parquet(unsummed / "replies.parquet").with_columns(change).write_parquet(
        unsummed / "replies.parquet"
    )
    assert "damaged" in refusal(unsummed)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("schema", 99, "has schema 99, this version reads 1"),
        ("schema", None, "has schema None"),
        ("shape", [3, 5], "damaged"),
        ("shape", [5, 3, 2], "content hash|damaged"),
        ("shape", "big", "damaged"),
        ("content_hash", "0" * 64, "content hash"),
        ("num_advertisers", 1, "damaged"),
        ("num_advertisers", "many", "damaged"),
        ("tables", None, "damaged"),
    ],
)
def test_edited_manifest(unsummed, key, value, says):
    path = unsummed / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, key: value}))
    assert any(part in refusal(unsummed) for part in says.split("|"))
    del manifest[key]
    path.write_text(json.dumps(manifest))
    assert "damaged" in refusal(unsummed)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 50, "\ud800"])
def test_manifest_that_is_none(saved, text):
    (saved / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert "damaged" in refusal(saved)


def test_saves_at_once(tmp_path):
    """Whoever saves last wins; nobody fails, and nothing is left beside the pool."""
    pools = [make(seed) for seed in range(4)]
    start, failures = threading.Barrier(4), []

    def save(pool):
        try:
            for _ in range(15):
                start.wait()
                save_pool(pool, tmp_path / "pool")
        except BaseException as error:
            failures.append(error)
            start.abort()

    threads = [threading.Thread(target=save, args=(pool,)) for pool in pools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]
    assert load_pool(tmp_path / "pool").content_hash in {pool.content_hash for pool in pools}


def test_a_pool_saved_meanwhile_by_another_is_not_taken_away(tmp_path, monkeypatch):
    """Both found nothing there; the other was faster, and may be reading what it saved."""
    folder, checked = tmp_path / "pool", []
    holds = storage._holds

    def slow(*args):
        found = holds(*args)
        if not checked:
            checked.append(found)
            save_pool(make(), folder)
            checked.append(manifest.stat().st_ino)
        return found

    monkeypatch.setattr(storage, "_holds", slow)
    manifest = folder / "manifest.json"
    save_pool(make(), folder)
    assert checked == [False, manifest.stat().st_ino]
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


RACE = """
import sys, time
from tests.mechanisms.test_storage import make
from mechanisms.recording import load_pool, save_pool
pool, saves = make(), 0
print("ready", flush=True)
end = float(sys.stdin.readline())
while time.time() < end:
    # A new folder a hundred times a second, so that the first save is raced for again and again.
    folder = f"{sys.argv[1]}/pool-{int(time.time() * 100)}"
    assert load_pool(save_pool(pool, folder)).content_hash == pool.content_hash
    saves += 1
print(saves)
"""


def test_two_processes_that_save_and_load_the_same_pool_do_not_fail(tmp_path):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(2)
    ]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 2
    end = time.time() + 2
    for racer in racers:
        racer.stdin.write(f"{end}\n")
        racer.stdin.flush()
    for racer in racers:
        saves, errors = racer.communicate(timeout=60)
        assert racer.returncode == 0, errors
        assert int(saves) > 20
    assert all(path.name.startswith("pool-") for path in tmp_path.iterdir())
