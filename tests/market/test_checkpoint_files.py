"""Checkpoints as files: which are kept, and that none is read that is damaged or another run's."""

import json
import os
import pickle

import numpy as np
import pytest

from agents.tally import Unbalanced
from market import checkpoint
from market.checkpoint import Checkpoints
from market.errors import Stopped
from mechanisms.errors import BadInput
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism
from tests.market.stopping import ROUNDS, N, left_behind, market, stopped

OTHER_POOL = ReplyPool.synthetic(12, 8, 3, np.random.default_rng(2), advertisers=N)


def begun(folder, at=(3, 6, 9)):
    """A folder with checkpoints at these rounds, of which the last two are kept."""
    model = market()
    kept = Checkpoints(folder, model)
    for k in at:
        model.run(rounds=k - model.round)
        kept.write()
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_checkpoints_are_kept_and_all_rows(tmp_path):
    assert begun(tmp_path) == [
        "checkpoint-6.json", "checkpoint-9.json",
        "rounds-0-3.npy", "rounds-3-6.npy", "rounds-6-9.npy", "state-6.npz", "state-9.npz",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["checkpoint-9.json", "state-9.npz", "rounds-6-9.npy"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_checkpoint_falls_back_on_the_one_before(name, damage, tmp_path):
    begun(tmp_path)
    spoil(tmp_path / name, damage)
    said, model = [], market()
    kept = Checkpoints(tmp_path, model, say=said.append)
    assert kept.resume() == 6
    if name == "checkpoint-9.json" and damage == "gone":
        assert not said  # as if it had never been written
    else:
        assert len(said) == 1 and name in said[0] and "the checkpoint before it is whole" in said[0]
    assert not list(tmp_path.glob("*-9.*"))
    whole = market()
    whole.run()
    model.run(after_round=kept)
    assert left_behind(model) == left_behind(whole)
    assert (
        stopped(tmp_path, market, ROUNDS).ledger.rows().tobytes() == whole.ledger.rows().tobytes()
    )


def spoil(path, damage):
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
        return
    if damage == "flip":
        content[len(content) // 2] ^= 1
    kept = {"cut": len(content) // 2, "empty": 0}.get(damage, len(content))
    path.write_bytes(content[:kept])


def test_where_no_checkpoint_is_whole_it_says_so(tmp_path):
    begun(tmp_path)
    spoil(tmp_path / "rounds-0-3.npy", "flip")
    with pytest.raises(BadInput, match=r"holds no whole checkpoint \(checkpoint-9.json: rounds-0-"):
        Checkpoints(tmp_path, market()).resume()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 1}, r"another seed \(0 there, 1 here\)"),
        ({"pool": OTHER_POOL}, "another pool of replies"),
        ({"mechanism": Mosaic(0.31)}, r"another mechanism \(Mosaic\(tau=0.3"),
        ({"mechanism": make_mechanism("vcg")}, "another mechanism"),
        ({"rounds": 15}, r"another number of rounds \(14 there, 15 here\)"),
        ({"learners": ("hedge", "gradient")}, "another population"),
    ],
    ids=["seed", "pool", "parameters", "mechanism", "rounds", "learners"],
)
def test_a_checkpoint_of_another_run_is_refused(other, said, tmp_path):
    before = begun(tmp_path)
    with pytest.raises(BadInput, match=said + ".*; go on with that one, or remove .* to begin"):
        Checkpoints(tmp_path, market(**other)).resume()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_other_code_and_other_schemas_are_refused(tmp_path, monkeypatch):
    begun(tmp_path)
    made = checkpoint.made_with()
    for what in ("version of numpy", "version of botorch", "source code of admarket"):
        assert what in made
        monkeypatch.setattr(checkpoint, "made_with", lambda what=what: {**made, what: "other"})
        with pytest.raises(BadInput, match=f"another {what}"):
            Checkpoints(tmp_path, market()).resume()
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint, "SCHEMA", 2)
    with pytest.raises(BadInput, match="has schema 1, this version reads 2"):
        Checkpoints(tmp_path, market()).resume()


def test_no_pickle_is_read(tmp_path):
    """Even where all checksums are right."""
    begun(tmp_path)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    commit = tmp_path / "checkpoint-9.json"
    sound = commit.read_bytes()
    for name in ("state-9.npz", "rounds-6-9.npy"):
        path = tmp_path / name
        original = path.read_bytes()
        for content in (pickle.dumps(Evil()), pickled(tmp_path / "array.npy", Evil())):
            path.write_bytes(content)
            sealed = json.loads(sound)
            for each in (sealed["body"]["state"], *sealed["body"]["parts"]):
                if each["file"] == name:
                    each["sha256"] = checkpoint._digest(content)
            commit.write_bytes(checkpoint._sealed(sealed["body"]))
            with pytest.raises(BadInput, match="remove it to begin anew"):
                Checkpoints(tmp_path, market()).resume()
        path.write_bytes(original)
    assert not (tmp_path / "hacked").exists()


def pickled(path, thing):
    array = np.empty(1, dtype=object)
    array[0] = thing
    np.save(path, array, allow_pickle=True)
    return path.read_bytes()


def test_what_cannot_be_written_stops_the_run_and_leaves_what_was_there(tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    before = begun(folder)
    model = market()
    kept = Checkpoints(folder, model)
    kept.resume()
    model.run(rounds=2)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(Stopped, match=r"No space left on device\); .*it goes on at round 9"):
        kept.write()
    monkeypatch.undo()
    assert set(before) <= {path.name for path in folder.iterdir()}
    assert stopped(folder, market, 11).round == 11
    (tmp_path / "file").touch()
    with pytest.raises(Stopped, match="cannot write"):
        kept = Checkpoints(tmp_path / "file", model)
        kept.write()


def test_nothing_that_does_not_balance_is_kept(tmp_path):
    model = market()
    kept = Checkpoints(tmp_path, model)
    for _ in range(5):
        model.step()
    model.ledger._means[3] += 1.0
    with pytest.raises(Unbalanced, match="round 3"):
        kept.write()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_checkpoints_come_by_time_and_by_size_and_at_the_end(tmp_path, monkeypatch):
    def written(every, rows=10**6):
        folder = tmp_path / f"{every}-{rows}"
        model = market()
        kept = Checkpoints(folder, model, every=every)
        kept._most = rows
        model.run(after_round=kept)
        return [json.loads(path.read_text())["body"]["parts"][-1] for path in folder.glob("c*")]

    assert [part["file"] for part in written(1e9)] == ["rounds-0-14.npy"]
    by_size = sorted(part["file"] for part in written(1e9, 6))
    assert by_size == ["rounds-12-14.npy", "rounds-6-12.npy"]
    monkeypatch.setattr(checkpoint, "SHARE", np.inf)
    assert sorted(part["file"] for part in written(0)) == ["rounds-12-13.npy", "rounds-13-14.npy"]
    assert len(list((tmp_path / "0-1000000").glob("rounds-*"))) == ROUNDS
