"""What `docs/ecosystem.md` says of other programs: its code runs, on a results folder."""

import json
import re
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

from experiments import tracking
from mechanisms import BadInput
from tests.command_line import admarket, check_refusal

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "ecosystem.md").read_text(encoding="utf-8")
SCENARIO = {
    "name": "small",
    "rounds": 6,
    "requests_per_round": 3,
    "replications": 2,
    "requests": {"queries": 4, "ads": 2},
    "replies": {"source": "synthetic", "per_request": 4},
    "beside": ["vcg"],
    "population": [
        {"objective": "utility", "count": 2, "learner": "hedge"},
        {"objective": "value", "count": 1, "target_roi": 1.2},
    ],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `results/small-seed0` of a run, and its scenario."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "small.yaml").write_text(yaml.safe_dump(SCENARIO))
    out = folder / "results" / "small-seed0"
    assert admarket("run", folder / "small.yaml", "--out", out).code == 0
    return folder


def code(heading):
    """The page's Python under a heading."""
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    [part] = [each for each in section if each.startswith(heading)]
    return re.findall(r"```python\n(.*?)```", part, re.DOTALL)


def run(text, place, monkeypatch):
    monkeypatch.chdir(place)
    names = {}
    exec(text, names)
    return names


@pytest.mark.parametrize("package", ["pandas", "polars", "duckdb"])
def test_results_load_in_one_line(place, monkeypatch, package):
    pytest.importorskip(package)
    [lines] = [each for each in code("Data frames") if f"import {package}" in each]
    assert len(lines.split("\n\n")) == 2  # the import, and the one line
    rounds = run(lines, place, monkeypatch)["rounds"]
    rounds = pl.DataFrame(rounds.to_dict("list") if package == "pandas" else rounds)
    ours = pl.read_parquet(place / "results" / "small-seed0" / "rounds.parquet")
    assert rounds["revenue"].to_list() == ours["revenue"].to_list()
    assert rounds.columns == ours.columns and rounds.height == 2 * 2 * 6


@pytest.mark.parametrize("heading", ["PettingZoo", "Mesa"])
def test_the_examples_run_as_pasted(place, monkeypatch, heading):
    for text in code(heading):
        run(text, place, monkeypatch)


def test_logged_to_mlflow(place, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(place)
    folder, store = place / "results" / "small-seed0", str(place / "mlruns")
    said = admarket("run", "small.yaml", "--out", folder, "--mlflow", store)
    assert said.code == 0, said
    [run_id] = re.findall(r"logging to MLflow: run (\w+)", said.err)
    client = MlflowClient(store)
    logged, summary = client.get_run(run_id), json.loads((folder / "summary.json").read_text())
    assert logged.info.status == "FINISHED" and logged.info.run_name == "small-seed0"
    assert (
        logged.data.params["rounds"] == "6" and logged.data.params["replies.source"] == "synthetic"
    )
    expected = summary["mosaic"]["revenue"]["mean"]
    assert logged.data.metrics["mosaic/revenue"] == pytest.approx(expected)
    assert "vcg/utility/bid_over_value_low" in logged.data.metrics
    artifacts = {each.path for each in client.list_artifacts(run_id)}
    assert artifacts == {each.name for each in folder.iterdir()}
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    with pytest.raises(BadInput, match="holds no finished run"):
        tracking.log_to_mlflow(place, store)
    with pytest.raises(BadInput, match="cannot be logged to"):
        tracking.log_to_mlflow(folder, "nowhere://at.all")


def test_mlflow_missing_is_said_before_anything_is_run(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    out = place / "results" / "unlogged"
    said = admarket("run", place / "small.yaml", "--out", out, "--mlflow", "http://x")
    check_refusal(said)
    assert 'pip install "admarket[mlflow]"' in said.last and not out.exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_knows_the_commands(monkeypatch, shell):
    """Typer answers the shell through the environment; the page says how it is turned on."""
    assert "admarket --install-completion" in PAGE
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None)  # pytest's name is another
    monkeypatch.setenv("_ADMARKET_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "admarket re")
    monkeypatch.setenv("COMP_WORDS", "admarket re")
    monkeypatch.setenv("COMP_CWORD", "1")
    if shell == "fish":
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    said = admarket()
    assert "record" in said.out and "reproduce" in said.out and "audit" not in said.out
