"""Runs side by side: what differs, by how much, and whether the runs met the same chances."""

import json

import numpy as np
import polars as pl
import pytest
from scipy import stats

from experiments import plots
from experiments import side_by_side as module
from experiments.report.records import Records
from experiments.run_differences import Side, differing_chances, pairs, settings_that_differ
from experiments.side_by_side import side_by_side
from experiments.tables import by_replication, difference, movement
from market.result import Result
from mechanisms.errors import BadInput
from tests.experiments import small_folder, small_run
from tests.experiments.small_run import HOSTILE
from tests.experiments.test_cli import admarket


@pytest.fixture(scope="module", autouse=True)
def coarse():
    """Figures of few dots, which are written sooner."""
    with pytest.MonkeyPatch.context() as patch:
        save = plots.save
        patch.setattr(plots, "save", lambda figure, path: save(figure, path, dpi=40))
        yield


def raised(run, by=0.125):
    """The small market's result with more revenue, `by` in the first replication."""
    more = by + 0.01 * pl.col("replication")
    return Result.of(run.rounds.with_columns(revenue=pl.col("revenue") + more), run.advertisers)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The small market, one with another tau, and one of another seed with fewer replications."""
    base = tmp_path_factory.mktemp("runs")
    small_folder.write(base / "one")
    small_folder.write(
        base / "two",
        run=raised(small_run.result()),
        scenario={"mechanism": {"name": "mosaic", "parameters": {"tau": 0.9}}, "name": "two"},
    )
    small_folder.write(base / "three", run=small_run.result(2), manifest={"seed": 1})
    return [base / name for name in ("one", "two", "three")]


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory):
    return side_by_side(folders, tmp_path_factory.mktemp("out") / "page")


def side(folder):
    return Side(folder.name, Records.read(folder))


def test_the_page_says_what_differs_and_how_differences_were_made(page, folders):
    text = page.read_text("utf-8").replace("\u00a0", " ")
    assert "Runs side by side: one, two and three" in text
    assert "Those of two are paired, replication by replication" in text
    assert "three are not paired, since the two differ in seed and replications: Welch" in text
    assert "about one in twenty says “more” or “less” by chance alone" in text
    assert "Settings that differ (values below): seed, name, replications, mechanism" in text
    assert ">0.3</td>" in text and ">0.9</td>" in text  # tau
    assert text.count("data:image/png") == 2
    assert "In the last quarter: revenue" in text
    manifest = json.loads(page.with_name("manifest.json").read_text())
    assert manifest["kind"] == "comparison of runs" and set(manifest["runs"]) == {
        "one", "two", "three",
    }  # fmt: skip


def test_differences_are_those_of_the_frames(page, folders):
    found = pl.read_parquet(page.with_name("differences.parquet"))
    one, two, three = (
        by_replication(Records.read(folder).rounds).filter(pl.col("mechanism") == "mosaic")[
            "revenue"
        ]
        for folder in folders
    )
    rows = found.filter(
        pl.col("measure").eq("revenue") & pl.col("compared").str.starts_with("mosaic")
    ).to_dicts()
    less = (two - one).to_numpy()
    reach = stats.t.ppf(0.975, 2) * less.std(ddof=1) / np.sqrt(3)
    assert rows[0]["difference"] == pytest.approx(0.135)
    assert rows[0]["difference_low"] == pytest.approx(0.135 - reach) and rows[0]["paired"]
    welch = stats.ttest_ind(three, one, equal_var=False).confidence_interval()
    assert (rows[1]["difference_low"], rows[1]["difference_high"]) == pytest.approx(tuple(welch))
    assert not rows[1]["paired"]
    assert rows[0]["baseline"] == pytest.approx(one.mean())


def test_verdicts_follow_the_intervals():
    frame = pl.DataFrame(
        {
            "compared": ["b"] * 4,
            "measure": ["revenue"] * 4,
            **{f"{n}{e}": [1.0] * 4 for n in ("baseline", "other") for e in ("", "_low", "_high")},
            "difference": [0.2, -0.2, 0.0, 0.2],
            "difference_low": [0.1, -0.3, -0.1, None],
            "difference_high": [0.3, -0.1, 0.1, None],
        }
    )
    words = [line.verdict for line in module.verdicts(frame)]
    assert words == ["more", "less", "not told apart", "one replication"]


@pytest.mark.parametrize(
    ("changes", "unlike"),
    [
        ({}, []),
        ({"scenario": {"population": [{"objective": "value", "count": 6}]}}, []),
        ({"scenario": {"replies": {"per_request": 7}}, "manifest": {"pool_hash": "x"}}, []),
        ({"manifest": {"pool_hash": "x"}}, ["their pools, though these are of the same settings"]),
        ({"manifest": {"pool_hash": "x", "pool_hash_by_mechanism": {"vcg": "x"}}}, []),
        ({"manifest": {"seed": 3}}, ["seed"]),
        ({"scenario": {"requests_per_round": 5}}, ["requests per round"]),
        ({"scenario": {"environment_seed": 5}}, ["environment seed"]),
        ({"scenario": {"requests": {"queries": 9}}}, ["requests"]),
        ({"scenario": {"replies": {"source": "synthetic"}}}, ["source of replies"]),
    ],
)
def test_runs_are_paired_where_they_met_the_same_requests_and_dice(
    folders, tmp_path, changes, unlike
):
    other = small_folder.write(tmp_path / "other", **changes)
    assert list(differing_chances(Records.read(folders[0]), Records.read(other))) == unlike


def test_generated_requests_of_another_llm_are_others(tmp_path):
    asked = {"requests": {"queries": 8, "ads": 3, "source": "generated"}}
    found = [
        Records.read(small_folder.write(tmp_path / name, scenario=asked | {"replies": replies}))
        for name, replies in (
            ("a", {"per_request": 6}),
            ("b", {"per_request": 7}),
            ("c", {"per_request": 6, "model": "another"}),
        )
    ]
    assert list(differing_chances(found[0], found[1])) == []
    assert list(differing_chances(found[0], found[2])) == ["LLM that writes requests"]


def test_mechanisms_are_matched_by_name_or_else_the_first(folders):
    one, two, _ = map(side, folders)
    found = [(pair.one, pair.other) for pair in pairs([one, two])]
    assert found == [(name, name) for name in small_run.MECHANISMS]
    names = {"mosaic": "gsp", "llm-auction-ideal": "vcg"}
    others = Side("others", two.run.relabelled(names))
    assert [(pair.one, pair.other) for pair in pairs([one, others])] == [("mosaic", "gsp")]


def test_settings_of_lists_and_of_earlier_versions(tmp_path, folders):
    groups = [{"objective": "utility", "count": 3}, {"objective": "utility", "count": 4}]
    other = small_folder.write(tmp_path / "x", scenario={"population": groups[:1]})
    third = small_folder.write(tmp_path / "y", scenario={"population": groups})
    table = settings_that_differ([side(other), side(third)])
    assert "population.1.count" in table["setting"].to_list()
    assert table.filter(pl.col("setting") == "population.1.count").row(0)[1:] == ("–", "4")
    # what one does not tell is the default, which is what the other says
    said = small_folder.write(tmp_path / "z", scenario={"population": groups, "beside": []})
    assert not settings_that_differ([side(third), side(said)]).height


def test_hostile_names_are_escaped_and_told_apart(tmp_path):
    small_folder.write(tmp_path / "a" / "<b>run", scenario={"catalog": {"source": HOSTILE}})
    small_folder.write(tmp_path / "b" / "<b>run")
    path = side_by_side([tmp_path / x / "<b>run" for x in "ab"], tmp_path / "out")
    text = path.read_text("utf-8")
    assert "<script>" not in text and "<b>" not in text
    assert "a/&lt;b&gt;run and b/&lt;b&gt;run" in text


def test_what_is_refused(tmp_path, folders):
    with pytest.raises(BadInput, match="two folders or more"):
        side_by_side(folders[:1], tmp_path / "out")
    with pytest.raises(BadInput, match="given twice"):
        side_by_side([folders[0], folders[0].parent / "two" / ".." / "one"], tmp_path / "out")
    with pytest.raises(BadInput, match="no finished run"):
        side_by_side([folders[0], tmp_path], tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(BadInput, match="holds thesis"):
        side_by_side(folders[:2], tmp_path / "out")


def test_the_command_takes_a_scenario_or_folders(monkeypatch, capsys, tmp_path, folders):
    one, two, _ = folders
    for arguments, expected in (
        ([one], "is a folder; give a scenario, or two or more folders"),
        ([one, "default"], "default: no such folder; give one scenario, or two or more"),
        (["default", "synthetic"], "default: no such folder"),
        ([one, two, "--seed", 1], "--seed is for a scenario"),
        ([one, two, "--draws", 3], "--draws is for a scenario"),
        (["nowhere"], "nowhere: no such scenario"),
    ):
        code, printed, err = admarket(
            monkeypatch, capsys, "compare", *arguments, "--out", tmp_path / "x"
        )
        assert code == 2 and expected in err and not printed, arguments
        assert len(err.strip().splitlines()) == 1 and not (tmp_path / "x").exists()
    monkeypatch.setattr(module, "side_by_side", lambda folders, out: (folders, str(out)))
    code, printed, _ = admarket(monkeypatch, capsys, "compare", one, two)
    assert code == 0 and printed.strip().endswith("'results/side-by-side-one-two')")


def test_differences_of_independent_samples_are_welchs():
    rng = np.random.default_rng(0)
    one, other = rng.normal(1, 2, 5), rng.normal(0, 0.1, 9)
    found = difference(one, other, paired=False)
    interval = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    assert (found["low"], found["high"]) == pytest.approx(tuple(interval))
    assert found["mean"] == pytest.approx(one.mean() - other.mean())
    nan = np.append(other, np.nan)
    assert difference(one, nan, paired=False) == found
    same = difference(np.ones(3), np.ones(4), paired=False)
    assert (same["low"], same["high"]) == (0, 0)
    assert difference(one[:1], other, paired=False)["low"] is None


@pytest.mark.parametrize("paired", [True, False])
def test_differences_of_rounding_are_none(paired):
    x = np.random.default_rng(0).random(5) if paired else np.full(5, 0.3)
    noise = 1e-14 * np.array([1, 2, 1, 2, 3])
    found = difference(x * (1 + noise), x, paired=paired)
    assert found["mean"] == found["low"] == found["high"] == 0


def test_movement_wants_four_rounds():
    assert movement(small_run.result(1, 1).advertisers)["mosaic"]["mean"] is None
    assert movement(small_run.result().advertisers)["mosaic"]["clusters"] == 3
