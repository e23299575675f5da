"""Results folders: complete or not there at all, escaped, and never over somebody else's work."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from experiments import plots
from experiments.page import Column, Subject, Table, Verdict, Verdicts, check_folder, write_page
from market.scenario import Scenario
from mechanisms.errors import BadInput

HOSTILE = "<script>alert(1)</script>"
SUBJECT = Subject("audit", Scenario.from_yaml("synthetic"), 3, {"mechanisms": ("vcg", "gsp")})
FRAME = pl.DataFrame(
    {
        "title": [HOSTILE, "Tea"],
        "gain": [0.25, None],
        "gain_low": [0.125, None],
        "gain_high": [0.5, None],
        "clicks": [3, 4],
    }
)


def figure():
    with plots.style():
        from matplotlib.figure import Figure

        drawn = Figure(figsize=(2, 1))
        drawn.subplots().plot([0, 1])
    return drawn


def write(folder, subject=SUBJECT, **changes):
    content = {
        "title": f"Audit {HOSTILE}",
        "label": "replies: synthetic",
        "verdicts": Verdicts(
            columns=("property", "evidence", "verdict"),
            rows=[
                Verdict(("truth", HOSTILE), "fails", "bad"),
                Verdict(("IR", "12"), "holds", "good"),
            ],
            note="of 28 requests",
        ),
        "facts": [("Seed", "3"), ("Catalog", HOSTILE)],
        "figures": {"lines": (figure(), f"A line {HOSTILE}")},
        "shown": [
            Table(
                "People",
                FRAME,
                [
                    Column("title", "Ad"),
                    Column("gain", "Gain", "money"),
                    Column("clicks", "Clicks"),
                ],
                note="per request",
            )
        ],
        "tables": {"people": FRAME},
        "manifest": {"pool_hash": "abc"},
        "summary": {"regret": np.float64(np.inf), "count": np.int64(3), "all": np.arange(2.0)},
    }
    return write_page(folder, subject, **{**content, **changes})


def test_page_shows_everything_and_runs_nothing(tmp_path):
    path = write(tmp_path / "out")
    page = path.read_text("utf-8")
    assert "<script>" not in page
    assert page.count("data:image/png;base64,") == 1
    assert '<td class="verdict bad">fails</td>' in page
    assert "of 28 requests" in page
    assert "0.250<small>[0.125, 0.500]</small>" in page
    assert ">–</td>" in page  # null
    assert "Gain<small>money</small>" in page


def test_folder_holds_what_its_manifest_says(tmp_path):
    folder = write(tmp_path / "out").parent
    manifest = json.loads((folder / "manifest.json").read_text())
    there = {each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file()}
    assert there == set(manifest["files"])
    assert {"report.html", "scenario.yaml", "people.parquet", "figures/lines.png"} < there
    assert (manifest["kind"], manifest["seed"], manifest["pool_hash"]) == ("audit", 3, "abc")
    assert manifest["asked"] == {"mechanisms": ["vcg", "gsp"]}
    assert pl.read_parquet(folder / "people.parquet").equals(FRAME)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == {"regret": None, "count": 3, "all": [0.0, 1.0]}
    assert Scenario.from_yaml(folder / "scenario.yaml") == SUBJECT.scenario


def test_the_same_content_gives_the_same_bytes(tmp_path):
    one, two = write(tmp_path / "a").parent, write(tmp_path / "b").parent
    for path in one.rglob("*.*"):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()


def test_the_same_inquiry_is_replaced_and_a_failure_leaves_it(tmp_path):
    folder = tmp_path / "out"
    write(folder)
    write(folder, facts=[("Seed", "again")])
    assert "again" in (folder / "report.html").read_text()

    class Broken:
        def __getattr__(self, _):
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write(folder, tables={"people": Broken()})
    assert "again" in (folder / "report.html").read_text()
    assert [each.name for each in tmp_path.iterdir()] == ["out"]  # nothing is left behind


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_the_earlier_result_is_there_when_the_new_one_cannot_be_moved(error, monkeypatch, tmp_path):
    folder, move = write(tmp_path / "out").parent, os.replace

    def moving(source, target):
        if source.name == "ready":
            raise error
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", moving)
        with pytest.raises(type(error)):
            write(folder, facts=[("Seed", "again")])
    assert "again" not in (folder / "report.html").read_text()
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_what_a_kill_between_the_moves_leaves_is_put_back_or_removed(tmp_path):
    folder, hidden = write(tmp_path / "out").parent, tmp_path / ".out.earlier"
    before = (folder / "report.html").read_bytes()
    folder.rename(hidden)  # killed after the first move
    check_folder(folder, SUBJECT)
    assert (folder / "report.html").read_bytes() == before and not hidden.exists()
    shutil.copytree(folder, hidden)  # after the second
    check_folder(folder, SUBJECT)
    write(folder, facts=[("Seed", "again")])
    assert "again" in (folder / "report.html").read_text()
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_results_are_on_the_disk_before_they_replace_others(monkeypatch, tmp_path):
    synced, move, sync = [], os.replace, os.fsync

    def syncing(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def moving(source, target):
        if source.name == "ready":
            assert {each.stat().st_ino for each in [source, *source.rglob("*")]} <= set(synced)
        move(source, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", moving)
    write(tmp_path / "out")
    assert synced[-1] == tmp_path.stat().st_ino  # the move itself


@pytest.mark.parametrize(
    "other",
    [
        replace(SUBJECT, seed=4),
        replace(SUBJECT, kind="equilibrium"),
        replace(SUBJECT, scenario=SUBJECT.scenario.with_(environment_seed=9)),
        replace(SUBJECT, asked={"mechanisms": ["vcg"]}),
    ],
)
def test_another_inquiry_is_refused(tmp_path, other):
    folder = write(tmp_path / "out").parent
    check_folder(folder, SUBJECT)
    with pytest.raises(BadInput, match=f"holds another {SUBJECT.kind}"):
        check_folder(folder, other)


def test_foreign_folders_are_left_alone(tmp_path):
    folder = tmp_path / "out"
    check_folder(folder, SUBJECT)
    folder.mkdir()
    check_folder(folder, SUBJECT)  # empty
    write(folder)
    for name in ("thesis.txt", "figures/mine.png", "figures/deeper/data.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
        with pytest.raises(BadInput, match=f"holds {name}, which is no part of this audit"):
            write(folder)
        assert (folder / name).read_text() == "x"
        (folder / name).unlink()
    with pytest.raises(BadInput, match="holds figures/deeper"):
        check_folder(folder, SUBJECT)
    (folder / "figures" / "deeper").rmdir()
    for text in ("", "[]", "{}", '{"files": 3}'):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(BadInput, match="no part of this audit"):
            check_folder(folder, SUBJECT)
    (folder / "manifest.json").unlink()
    with pytest.raises(BadInput, match="no part of this audit"):
        check_folder(folder, SUBJECT)
    with pytest.raises(BadInput, match="cannot be written"):
        check_folder(folder / "report.html", SUBJECT)
