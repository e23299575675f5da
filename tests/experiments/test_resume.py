"""Runs that are interrupted or cannot write go on, and end with the same bytes."""

import errno
import os
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from experiments import run as running
from experiments.unfinished import Unfinished, folder_of
from market import checkpoint
from market.errors import Stopped
from market.model import MarketModel
from market.scenario import Scenario
from tests.experiments.killing import COMPARED, bare, digests
from tests.experiments.test_cli import SCENARIO, admarket
from tests.market import test_iamfm


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SCENARIO))
    return path


def broken_move(patch, error):
    """Raise `error` where complete results are moved to their place."""
    move = os.replace

    def moving(source, target):
        if Path(source).name == "ready":
            raise error
        return move(source, target)

    patch.setattr(os, "replace", moving)


@pytest.fixture
def stopped_at(monkeypatch):
    """Send this process a signal in round `k` of the market under `name`, once."""

    def at(name, k, number=signal.SIGINT, times=1):
        step, sent = MarketModel.step, []

        def stepping(self):
            if self.ledger.label == name and self.round == k and len(sent) < times:
                for _ in range(times):
                    sent.append(1)
                    os.kill(os.getpid(), number)
            step(self)

        monkeypatch.setattr(MarketModel, "step", stepping)

    return at


@pytest.fixture
def quick(monkeypatch):
    """No figures."""
    monkeypatch.setattr(running, "_fill", bare)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_finishes_its_round_and_says_how_to_go_on(
    number,
    monkeypatch,
    capsys,
    scenario,
    tmp_path,
    stopped_at,
    quick,
):
    out, whole = tmp_path / "results", tmp_path / "whole"
    assert admarket(monkeypatch, capsys, "run", scenario, "--out", whole)[0] == 0
    stopped_at("llm-auction-ideal", 11, number)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    code, printed, err = admarket(monkeypatch, capsys, "run", scenario, "--out", out)
    assert code == 1 and not printed
    assert err.strip().splitlines()[-1] == (
        "admarket: stopped after round 12 of llm-auction-ideal; "
        f"go on with: admarket run --resume {out}"
    )
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not out.exists()
    code, printed, err = admarket(monkeypatch, capsys, "run", "--resume", out)
    assert code == 0 and printed.strip() == str(out / "report.html")
    assert err.splitlines() == [
        "mosaic: all 30 rounds are played",
        f"going on at round 12 of llm-auction-ideal; remove {folder_of(out)} to begin anew",
        "market: 30 rounds x 2 under vcg",
        "figures and report",
    ]
    assert digests(out) == digests(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results", "small.yaml", "whole"]


def test_a_second_signal_stops_at_once_and_loses_no_checkpoint(
    monkeypatch,
    capsys,
    scenario,
    tmp_path,
    stopped_at,
    quick,
):
    out = tmp_path / "results"
    stopped_at("vcg", 3, times=2)
    code, _, err = admarket(monkeypatch, capsys, "run", scenario, "--out", out)
    assert code == 1
    assert err.strip().splitlines()[-1] == (
        f"admarket: interrupted; go on with: admarket run --resume {out}"
    )
    assert (folder_of(out) / "1-llm-auction-ideal" / "checkpoint-30.json").exists()
    # the same command, without --resume, goes on as well
    code, _, err = admarket(monkeypatch, capsys, "run", scenario, "--out", out)
    assert code == 0 and "llm-auction-ideal: all 30 rounds are played" in err
    assert not folder_of(out).exists()


def test_before_anything_is_kept_there_is_nothing_to_go_on_from(
    monkeypatch,
    capsys,
    scenario,
    tmp_path,
    stopped_at,
    quick,
):
    stopped_at("mosaic", 3, times=2)
    code, _, err = admarket(monkeypatch, capsys, "run", scenario, "--out", tmp_path / "results")
    assert code == 1
    assert "interrupted; nothing was overwritten, and replies recorded" in err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.yaml"]


def test_plans_of_periods_come_to_the_same_bytes(monkeypatch, capsys, tmp_path, stopped_at, quick):
    path, out, whole = tmp_path / "periods.yaml", tmp_path / "results", tmp_path / "whole"
    iamfm = {"name": "iamfm-elimination", "parameters": {"tokens": 2000, "period": 7, "cap": 40}}
    changes = {"replies": {"source": "recorded"}, "mechanism": iamfm, "beside": []}
    path.write_text(yaml.safe_dump({**SCENARIO, **changes}))
    monkeypatch.setattr(running, "pools_of", lambda *_: [replace(test_iamfm.POOL)])
    assert admarket(monkeypatch, capsys, "run", path, "--out", whole)[0] == 0
    stopped_at("iamfm-elimination", 16)  # in the midst of a period
    assert admarket(monkeypatch, capsys, "run", path, "--out", out)[0] == 1
    assert admarket(monkeypatch, capsys, "run", "--resume", out)[0] == 0
    assert "plans.parquet" in digests(whole) and digests(out) == digests(whole)


@pytest.fixture
def half(monkeypatch, capsys, scenario, tmp_path, stopped_at, quick):
    """A run that was stopped in its second market."""
    stopped_at("llm-auction-ideal", 11)
    assert admarket(monkeypatch, capsys, "run", scenario, "--out", tmp_path / "results")[0] == 1
    return tmp_path / "results"


def test_resume_takes_either_folder_and_nothing_else(monkeypatch, capsys, half, scenario):
    for arguments in ((scenario,), ("--seed", 0), ("--out", half), ("--catalog", "x")):
        code, _, err = admarket(monkeypatch, capsys, "run", *arguments, "--resume", half)
        assert code == 2 and "finds scenario, seed and folder by itself; drop" in err
    code, printed, _ = admarket(monkeypatch, capsys, "run", "--resume", folder_of(half))
    assert code == 0 and printed.strip() == str(half / "report.html")
    code, _, err = admarket(monkeypatch, capsys, "run", "--resume", half)
    assert code == 2
    assert f"holds no unfinished run; the run there is finished, see {half / 'report.html'}" in err
    for nowhere in (half / "nowhere", "/", half.with_name("x.unfinished")):
        code, _, err = admarket(monkeypatch, capsys, "run", "--resume", nowhere)
        assert code == 2 and len(err.splitlines()) == 1
        assert "holds no unfinished run; begin one" in err or "give a folder of its own" in err


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(monkeypatch, capsys, half, said, *arguments, code=2):
    before = files(folder_of(half))
    found, printed, err = admarket(monkeypatch, capsys, *arguments)
    assert found == code and not printed
    last = err.strip().splitlines()[-1]
    assert last.startswith("admarket: ") and said in last and "Traceback" not in err
    assert files(folder_of(half)) == before and not half.exists()


def test_another_run_does_not_take_the_place_of_unfinished_work(
    monkeypatch,
    capsys,
    half,
    scenario,
):
    said = f"{folder_of(half)} holds unfinished work of another run (small, seed 0)"
    arguments = ("run", scenario, "--out", half)
    refused(monkeypatch, capsys, half, said, *arguments, "--seed", "1")
    changed = Scenario.from_yaml(scenario).with_(rounds=31)
    scenario.write_text(changed.to_yaml())
    refused(monkeypatch, capsys, half, said, *arguments)


def test_two_at_once_are_kept_apart(monkeypatch, capsys, half, scenario):
    described = Scenario.from_yaml(scenario)
    with Unfinished(half, described, 0):
        refused(monkeypatch, capsys, half, "another process works on", "run", "--resume", half)
    assert admarket(monkeypatch, capsys, "run", "--resume", half)[0] == 0


def test_other_code_is_refused(monkeypatch, capsys, half):
    made = {**checkpoint.made_with(), "version of numpy": "1.0"}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "made_with", lambda: made)
        said = "begun with another version of numpy"
        refused(monkeypatch, capsys, half, said, "run", "--resume", half)
    assert admarket(monkeypatch, capsys, "run", "--resume", half)[0] == 0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:40], "run.json is damaged; remove"),
        (lambda text: text.replace('"seed": 0', '"seed": 1'), "run.json is damaged; remove"),
        (lambda text: text.replace('"schema": 1', '"schema": 9'), "schema 9, this version reads 1"),
        (lambda _: "[]", "run.json is damaged; remove"),
    ],
    ids=["cut", "changed", "schema", "list"],
)
def test_a_damaged_description_of_the_run_is_refused(damage, said, monkeypatch, capsys, half):
    about = folder_of(half) / "run.json"
    about.write_text(damage(about.read_text()))
    refused(monkeypatch, capsys, half, said, "run", "--resume", half)


def test_a_damaged_checkpoint_falls_back_and_ends_with_the_same_bytes(
    monkeypatch,
    capsys,
    half,
    scenario,
    tmp_path,
):
    arm = folder_of(half) / "0-mosaic"
    (arm / "checkpoint-30.json").write_text("{")
    refused(monkeypatch, capsys, half, "holds no whole checkpoint", "run", "--resume", half)
    for path in arm.iterdir():
        path.unlink()  # as that line says
    code, _, err = admarket(monkeypatch, capsys, "run", "--resume", half)
    assert code == 0 and "going on at round 12 of llm-auction-ideal" in err
    assert admarket(monkeypatch, capsys, "run", scenario, "--out", tmp_path / "whole")[0] == 0
    assert digests(half) == digests(tmp_path / "whole")


def test_a_folder_that_is_none_of_ours_is_left_alone(
    monkeypatch,
    capsys,
    scenario,
    tmp_path,
    quick,
):
    out = tmp_path / "results"
    folder_of(out).mkdir()
    (folder_of(out) / "thesis.txt").write_text("years of work")
    refused(
        monkeypatch, capsys, out, "is no unfinished run; rename it", "run", scenario, "--out", out
    )
    (folder_of(out) / "thesis.txt").unlink()
    assert admarket(monkeypatch, capsys, "run", scenario, "--out", out)[0] == 0


def test_results_that_cannot_be_written_leave_the_earlier_ones(
    monkeypatch,
    capsys,
    scenario,
    tmp_path,
    quick,
):
    out = tmp_path / "results"
    assert admarket(monkeypatch, capsys, "run", scenario, "--out", out)[0] == 0
    before = files(out)

    def full(finished, folder):
        finished.result.save(folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(running, "_fill", full)
        code, printed, err = admarket(monkeypatch, capsys, "run", scenario, "--out", out)
    assert code == 1 and not printed
    assert err.strip().splitlines()[-1] == (
        f"admarket: cannot write {out} (No space left on device); mend that, then go on with: "
        f"admarket run --resume {out}"
    )
    assert files(out) == before
    code, _, err = admarket(monkeypatch, capsys, "run", "--resume", out)
    assert code == 0 and files(out) == before and not folder_of(out).exists()
    assert "market:" not in err  # no round was played again


def test_a_real_limit_to_files_is_one_line(monkeypatch, capsys, scenario, tmp_path, quick):
    out, whole = tmp_path / "results", tmp_path / "whole"
    assert admarket(monkeypatch, capsys, "run", scenario, "--out", whole)[0] == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))
    try:
        code, _, err = admarket(monkeypatch, capsys, "run", scenario, "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1 and "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("admarket: cannot write") and "File too large" in last
    assert not out.exists()
    # where there is room again, it goes well
    assert admarket(monkeypatch, capsys, "run", scenario, "--out", out)[0] == 0
    assert digests(out) == digests(whole)


def test_without_checkpoints_a_run_is_the_same(monkeypatch, capsys, scenario, tmp_path, quick):
    for name, every in (("one", 0), ("two", 0.001)):
        arguments = ("run", scenario, "--out", tmp_path / name, "--checkpoint-every", every)
        assert admarket(monkeypatch, capsys, *arguments)[0] == 0
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert set(digests(tmp_path / "one")) <= set(COMPARED)


@pytest.mark.parametrize("every", [0, 5])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "(No space left on device); mend that"),
        (KeyboardInterrupt(), "interrupted"),
    ],
    ids=["full", "Ctrl-C"],
)
def test_results_that_cannot_be_moved_leave_the_earlier_ones(
    error, said, every, monkeypatch, capsys, scenario, tmp_path, quick
):
    out = tmp_path / "results"
    arguments = ("run", scenario, "--out", out, "--checkpoint-every", every)
    assert admarket(monkeypatch, capsys, *arguments)[0] == 0
    before = files(out)
    with monkeypatch.context() as patch:
        broken_move(patch, error)
        code, printed, err = admarket(monkeypatch, capsys, *arguments)
    assert code != 0 and not printed and said in err.splitlines()[-1]
    assert files(out) == before
    assert [each for each in tmp_path.iterdir() if each.name.startswith(".")] == []
    assert admarket(monkeypatch, capsys, *arguments)[0] == 0


def test_without_rounds_to_go_on_from_the_line_says_to_run_again(tmp_path, scenario, quick):
    finished = running.run(Scenario.from_yaml(scenario).with_(rounds=4, beside=[]), 0)
    out = tmp_path / "results"
    with pytest.MonkeyPatch.context() as patch, Unfinished(out, finished.scenario, 0) as work:
        broken_move(patch, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(Stopped, match=r"left on device\); mend that, then run it again$"):
            running.write(finished, out, work)


def test_resume_does_not_go_without_checkpoints(monkeypatch, capsys, half):
    arguments = ("run", "--resume", half, "--checkpoint-every", "0")
    refused(monkeypatch, capsys, half, "--resume goes on with checkpoints; drop", *arguments)


def test_results_being_replaced_when_a_run_is_killed_are_put_back(
    monkeypatch, capsys, scenario, tmp_path, quick
):
    out = tmp_path / "results"
    assert admarket(monkeypatch, capsys, "run", scenario, "--out", out)[0] == 0
    before = files(out)
    out.rename(out.with_name(".results.earlier"))  # killed after the first move
    running.check_folder(Scenario.from_yaml(scenario), 0, out)
    assert files(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results", "small.yaml"]
