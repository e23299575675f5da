"""The command line on a synthetic pool: results, exit codes, and nothing lost. No LLM."""

import json
import subprocess
import sys

import polars as pl
import pytest
import yaml

from experiments.cli import main

SCENARIO = {
    "rounds": 30,
    "requests_per_round": 4,
    "replications": 2,
    "replies": {"source": "synthetic", "per_request": 8},
    "requests": {"queries": 6, "ads": 3},
    "mechanism": {"name": "mosaic", "parameters": {"tau": 0.1}},
    "beside": [{"name": "llm-auction-ideal", "parameters": {"tau": 0.1}}, "vcg"],
    "population": [
        {"objective": "utility", "count": 2, "learner": "hedge"},
        {"objective": "value", "count": 2, "target_roi": [1, 1.5], "learner": "pacing"},
    ],
}


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SCENARIO))
    return path


def admarket(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["admarket", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def test_run_writes_the_results_folder_and_ends_with_the_report(
    monkeypatch, capsys, scenario, tmp_path
):
    out = tmp_path / "results"
    code, printed, _ = admarket(monkeypatch, capsys, "run", scenario, "--out", out, "--seed", 3)
    assert code == 0
    assert printed.strip().splitlines()[-1] == str(out / "report.html")
    expected = {"scenario.yaml", "manifest.json", "rounds.parquet", "advertisers.parquet"}
    expected |= {"summary.json", "report.html", "figures", "best_responses.parquet"}
    assert {path.name for path in out.iterdir()} == expected
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["seed"] == 3
    assert manifest["replies"] == "synthetic"
    rounds = pl.read_parquet(out / "rounds.parquet")
    assert rounds["mechanism"].unique(maintain_order=True).to_list() == [
        "mosaic",
        "llm-auction-ideal",
        "vcg",
    ]
    assert rounds.height == 3 * 2 * 30


def test_same_scenario_and_seed_give_the_same_bytes(monkeypatch, capsys, scenario, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        assert admarket(monkeypatch, capsys, "run", scenario, "--out", folder)[0] == 0
    for name in ("rounds.parquet", "advertisers.parquet", "summary.json", "report.html"):
        one, two = (folder / name for folder in folders)
        assert one.read_bytes() == two.read_bytes(), name


def test_another_run_in_the_folder_is_refused_and_left_alone(
    monkeypatch, capsys, scenario, tmp_path
):
    out = tmp_path / "results"
    assert admarket(monkeypatch, capsys, "run", scenario, "--out", out)[0] == 0
    before = (out / "rounds.parquet").read_bytes()
    code, _, err = admarket(monkeypatch, capsys, "run", scenario, "--out", out, "--seed", 1)
    assert code == 2
    assert "choose another folder" in err
    assert (out / "rounds.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"colour": "red"}, "colour: unknown key"),
        ({"catalog": {"source": "nowhere"}, "replies": {"source": "recorded"}}, "nowhere"),
        (
            {"replies": {"source": "recorded", "model": "no-such-llm", "context_probe": 0}},
            "no-such-llm",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, change, expected):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({**SCENARIO, **change}))
    out = tmp_path / "results"
    code, printed, err = admarket(monkeypatch, capsys, "run", path, "--out", out)
    last = err.strip().splitlines()[-1]
    assert code == 2
    assert expected in last
    assert last.startswith("admarket: ")
    assert "Traceback" not in err + printed
    assert not out.exists()


def test_missing_scenario_file_from_the_shell(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", "run", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "none.yaml" in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {
            "requests": {"queries": 3, "ads": 1},
            "population": [{"objective": "utility", "count": 1}],
        },
        {"replies": {"source": "synthetic", "per_request": 1}},
        {"population": [{"objective": "value", "count": 3, "budget": 0.5, "learner": "pacing"}]},
    ],
    ids=["one advertiser", "one reply", "small budgets"],
)
def test_edges_that_work(monkeypatch, capsys, tmp_path, change):
    path = tmp_path / "edge.yaml"
    path.write_text(yaml.safe_dump({**SCENARIO, **change}))
    code, _, err = admarket(monkeypatch, capsys, "run", path, "--out", tmp_path / "results")
    assert code == 0, err
