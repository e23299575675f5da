import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from matplotlib.patches import Rectangle

from experiments.compare import figures, page, report, run_compare
from mechanisms.errors import BadInput
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism
from tests.experiments.test_compare import SCENARIO, SMALL, once

ASKED = {name: given for name, given in SMALL.items() if name not in ("seed", "learners")}


def write(folder, **changes):
    said = []
    arguments = {**ASKED, "learners": ["gradient"], "executor": "serial", **changes}
    return run_compare(SCENARIO, 5, folder, said.append, **arguments), said


def test_the_folder_holds_page_tables_and_provenance(tmp_path):
    path, said = write(tmp_path / "out")
    text = path.read_text("utf-8")
    assert "replies: synthetic, no LLM" in text and "gradient, mosaic" in text
    names = ["differences-gradient", "lines-gradient", "map-gradient"]
    assert sorted(each.stem for each in (tmp_path / "out" / "figures").iterdir()) == names
    cells = pl.read_parquet(tmp_path / "out" / "cells.parquet")
    assert cells.equals(once().frame.filter(pl.col("learner") == "gradient"))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    assert manifest["kind"] == "comparison" and manifest["asked"]["draws"] == 2
    assert len(manifest["pool_hash"]["mosaic"]) == 64
    assert [each.name for each in tmp_path.iterdir()] == ["out"]  # nothing is left beside it
    assert said[0] == "12 jobs, serial"


def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(page, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    path, said = write(tmp_path / "out")
    assert said[0] == "12 jobs, serial, 12 finished earlier"
    cells = pl.read_parquet(path.with_name("cells.parquet"))
    assert cells.equals(once().frame.filter(pl.col("learner") == "gradient"))


def test_another_comparison_is_not_overwritten(tmp_path):
    write(tmp_path / "out", shares=(0.0,), draws=1)
    with pytest.raises(BadInput, match="holds another comparison"):
        write(tmp_path / "out", shares=(1.0,), draws=1)


def test_the_note_says_what_was_measured_and_on_which_replies():
    found = once()
    words = page.note(found)
    assert "keep mixtures (hedge)" in words and "one bid at a time (gradient), the last" in words
    assert "All mechanisms trade on the same requests and replies." in words
    assert "show at most: vcg 1." in words and "same auction" not in words
    assert page._pool_facts(found)[0][0] == "Replies"
    pool = found.setting.pools["mosaic"]
    own = ReplyPool.from_arrays(pool.ctr / 2, quality=pool.quality, ads=pool.ads)
    arms = {name: make_mechanism(name) for name in ("gsp", "vcg")} | found.setting.mechanisms
    pools = {**dict.fromkeys(arms, pool), "gsp": own}
    frame = found.frame.with_columns(
        mechanism=pl.col("mechanism").replace("mosaic", "gsp"),
        first_best=pl.when(pl.col("mechanism") == "mosaic").then(2.0).otherwise(3.0),
    )
    setting = replace(found.setting, mechanisms=arms, pools=pools)
    words = page.note(report.Comparison(frame, setting))
    assert "not all with the same replies: those of gsp; those of vcg, mosaic." in words
    assert "gsp 1, vcg 1" in words and "gsp and vcg are the same auction wherever" in words
    facts = page._pool_facts(report.Comparison(frame, setting))
    assert {name.split(":")[0] for name, _ in facts} == {"gsp", "vcg, mosaic"}
    best = page._first_best(report.Comparison(frame, setting))
    assert best.startswith("gsp: 2.00; vcg, mosaic: 3.00 money per request")


def test_verdicts_tell_paired_changes_and_convergence():
    lines = page.verdicts(once())
    assert [each.cells[0] for each in lines] == [
        *("hedge, mosaic", "hedge, vcg", "gradient, mosaic", "gradient, vcg")
    ]
    frame = once().frame.filter((pl.col("mechanism") == "mosaic") & (pl.col("learner") == "hedge"))
    ends = [frame.filter(pl.col("share") == share)["revenue"].mean() for share in (0, 1)]
    assert f"revenue {page.number(ends[0])} → {page.number(ends[1])}, " in lines[0].cells[1]
    settled = (frame["status"] == "converged").sum()
    assert lines[0].verdict == f"{settled} of 6"


def test_heat_maps_hatch_what_did_not_converge_and_number_every_cell():
    table = once().table.filter(pl.col("learner") == "hedge")
    figure = figures.heat_maps(table)
    missed = int((table["converged"] < table["draws"]).sum())
    for ax, (title, *_) in zip(figure.axes, figures.PANELS.values(), strict=False):
        assert ax.get_title(loc="left") == title
        hatched = [each for each in ax.patches if isinstance(each, Rectangle) and each.get_hatch()]
        assert len(hatched) == missed
        numbers = [each.get_text() for each in ax.texts if "±" in each.get_text()]
        assert len(numbers) == table.height
    revenue = float(figure.axes[0].texts[0].get_text().split("\n")[0])
    assert revenue == pytest.approx(table["revenue"][0], abs=5e-3)


def test_rows_and_columns_of_heat_maps_are_where_they_belong():
    shuffled = once().table.filter(pl.col("learner") == "hedge").sample(fraction=1, shuffle=True)
    found = figures._grid(shuffled, "revenue")
    for row, name in enumerate(shuffled["mechanism"].unique(maintain_order=True)):
        ours = shuffled.filter(pl.col("mechanism") == name).sort("share")["revenue"].to_numpy()
        assert (found[row] == ours).all()


def test_lines_differ_without_colour():
    looks = figures._looks(report.MECHANISMS)
    assert len({(str(look["linestyle"]), look["marker"]) for look in looks.values()}) == 6
    table = once().table.filter(pl.col("learner") == "hedge")
    figure = figures.lines(table)
    assert len(figure.axes[0].lines) == 2
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(
        line.get_ydata(), table.filter(pl.col("mechanism") == "mosaic").sort("share")["revenue"]
    )
