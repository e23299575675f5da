"""The command line on a synthetic pool: results, exit codes, and nothing lost. No LLM."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from types import SimpleNamespace as Record

import numpy as np
import polars as pl
import pytest
import yaml

from agents.learners import LEARNERS
from experiments import run as running
from experiments import tracking
from experiments.cli import main
from experiments.report.records import Records
from experiments.unfinished import Unfinished, begun
from market import Scenario
from market.reading import MOST_TEXT, read_yaml
from mechanisms import BadInput
from tests.experiments import small_folder, small_run

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
    expected |= {"gains.parquet", "samples.json"}
    assert {path.name for path in out.iterdir()} == expected
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["seed"] == 3
    assert manifest["replies"] == "synthetic"
    assert manifest["effective_sample_size_min"] == pytest.approx(8)  # equal weights
    assert manifest["low_effective_sample_size"] is False
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
    assert "give another folder by --out" in err
    assert (out / "rounds.parquet").read_bytes() == before


@pytest.mark.parametrize("earlier", [False, True], ids=["alone", "beside an earlier run"])
@pytest.mark.parametrize(
    "foreign", ["thesis.txt", ".notes", "figures.old/a.png", "figures/mine.png"]
)
def test_a_folder_with_a_foreign_file_is_refused_and_left_alone(
    monkeypatch, capsys, scenario, tmp_path, earlier, foreign
):
    out = tmp_path / "results"
    if earlier:
        assert admarket(monkeypatch, capsys, "run", scenario, "--out", out)[0] == 0
    (out / foreign).parent.mkdir(parents=True, exist_ok=True)
    (out / foreign).write_text("years of work")
    before = {path: path.is_file() and path.read_bytes() for path in out.rglob("*")}
    code, printed, err = admarket(monkeypatch, capsys, "run", scenario, "--out", out)
    assert code == 2
    assert not printed
    assert err.strip().splitlines() == [
        f"admarket: {out}: holds {foreign.removesuffix('/a.png')}, which is no part of a run; "
        "give another folder by --out"
    ]
    assert {path: path.is_file() and path.read_bytes() for path in out.rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results", "small.yaml"]


def test_a_run_is_repeated_into_its_folder(monkeypatch, capsys, scenario, tmp_path):
    out = tmp_path / "results"
    for _ in range(2):
        assert admarket(monkeypatch, capsys, "run", scenario, "--out", out)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results", "small.yaml"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "Missing command"),
        (["fly"], "fly"),
        (["run", "--nope"], "--nope"),
        (["run", "--seed", "x"], "--seed"),
        (["run", "--seed", "-1"], "--seed"),
        (["run", "--out"], "--out"),
        (["run", "default", "synthetic"], "synthetic"),
        (["bench", "--replies", "0"], "--replies"),
        (["run", "no-such-scenario"], "no-such-scenario"),
        (["run", "synthetic", "--catalog", "x"], "synthetic replies, drop it"),
        (["run", ""], "admarket: a scenario is missing; give a file, or the name of a bundled one"),
        (["run", "\x1b[31m\u202efile"], r"admarket: \x1b[31m\u202efile: no such scenario file"),
        (["bid-encodings", "synthetic"], "scenario synthetic has no LLM; give one with recorded"),
        (["run", "sythetic"], "sythetic: no such scenario file; did you mean 'synthetic'?"),
        (["run", "synthetic", "--out", "."], "--out .: a folder is replaced as a whole"),
        (["audit", "synthetic", "--out", ".."], "--out ..: a folder is replaced as a whole"),
        (["reproduce", "mosiac"], "did you mean 'mosaic'?"),
        (["train", "warmstart"], "did you mean 'warm-start'?"),
    ],
    ids=" ".join,
)
def test_usage_errors_are_one_line_and_exit_code_2(monkeypatch, capsys, arguments, expected):
    code, printed, err = admarket(monkeypatch, capsys, *arguments)
    assert code == 2
    assert not printed
    (line,) = err.strip().splitlines()
    assert line.startswith("admarket: ")
    assert expected in line


def test_a_run_given_for_a_scenario_is_told_what_can_be_done_with_it(
    monkeypatch, capsys, scenario, tmp_path
):
    monkeypatch.chdir(tmp_path)
    folder, to_see = small_folder.write(Path("results/a run")), "admarket report 'results/a run'"
    for command in ("run", "audit", "record"):
        code, printed, err = admarket(monkeypatch, capsys, command, folder)
        assert code == 2 and not printed
        assert err == (
            "admarket: results/a run: is no scenario, but a folder of results; "
            f"to see them: {to_see}\n"
        )
    to_finish = "to finish the run: admarket run --resume"
    with Unfinished(folder, Scenario.from_yaml(scenario), 0) as unfinished:
        _, _, err = admarket(monkeypatch, capsys, "run", folder)
        assert err.endswith(f"to see them: {to_see}; {to_finish} 'results/a run'\n")
        for given in ("new", unfinished.folder):
            with Unfinished(Path("new"), Scenario.from_yaml(scenario), 0):
                _, _, err = admarket(monkeypatch, capsys, "run", given)
            assert f"{given}: is no" in err and to_finish in err and "report" not in err
    with Unfinished(Path("new"), Scenario.from_yaml(scenario), 0):
        code, _, err = admarket(monkeypatch, capsys, "report", "new")
        assert code == 2 and err.endswith(f"new: no such folder; {to_finish} new\n")


def test_a_run_goes_on_in_its_folder_as_that_was_given(monkeypatch, scenario, tmp_path):
    described, results = Scenario.from_yaml(scenario), Path("results/x")
    monkeypatch.chdir(tmp_path)
    with Unfinished(results, described, 3) as unfinished:
        for given in (results, unfinished.folder, tmp_path / results):
            folder = tmp_path / results if given.is_absolute() else results
            assert begun(given) == (folder, described, 3)
        monkeypatch.chdir(unfinished.folder)
        assert begun(Path("."))[0] == tmp_path / results


def test_help_is_no_error(monkeypatch, capsys):
    for arguments in (["--help"], ["run", "--help"]):
        code, printed, err = admarket(monkeypatch, capsys, *arguments)
        assert code == 0
        assert "Usage" in printed
        assert not err


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_few_rounds_on_recorded_replies(monkeypatch, capsys, tmp_path, rounds):
    """The last quarter of a short run is its last round, for samples as for the summary."""
    path, out = tmp_path / "short.yaml", tmp_path / "results"
    population = [
        {"objective": "utility", "count": 3, "learner": "hedge"},
        {"objective": "value", "count": 3, "target_roi": 1.5, "learner": "pacing"},
    ]
    change = {"rounds": rounds, "replies": {"source": "recorded"}, "population": population}
    path.write_text(yaml.safe_dump({**SCENARIO, **change}))
    monkeypatch.setattr(running, "pools_of", lambda _, arms, *__: [small_run.pool()] * len(arms))
    code, _, err = admarket(monkeypatch, capsys, "run", path, "--out", out)
    assert code == 0, err
    people = pl.read_parquet(out / "advertisers.parquet")
    assert people["round"].max() == rounds - 1
    page = (out / "report.html").read_text()
    assert "Hello." in page  # the words of a sample reply
    for (name,), frame in people.group_by("mechanism"):
        ours = frame.filter(pl.col("round") == rounds - 1)
        ours = ours.group_by("advertiser").agg(pl.col("bid").mean()).sort("advertiser")
        settled = running.settled_bids(Record(advertisers=frame))
        np.testing.assert_allclose(settled, ours["bid"], err_msg=name)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"colour": "red"}, "colour: unknown key"),
        (
            {"catalog": {"source": "nowhere"}, "replies": {"source": "recorded"}},
            "catalog.source: nowhere: no",
        ),
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_any_command_that_is_interrupted_says_so_and_exits_with_1(
    monkeypatch, capsys, tmp_path, number
):
    audit = sys.modules["experiments.audit"]  # the package has a function of this name
    monkeypatch.setattr(audit, "run_audit", lambda *_, **__: signal.raise_signal(number))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        said = admarket(monkeypatch, capsys, "audit", "synthetic", "--out", tmp_path / "audit")
    finally:
        signal.signal(signal.SIGINT, before)
    assert said == (1, "", "admarket: interrupted; nothing was overwritten\n")


@pytest.mark.parametrize("wrong", ["!!timestamp x", "!!bool x", "2026-99-99", "{<<: {a: 1}}"])
def test_a_results_folder_with_a_scenario_that_is_no_yaml_is_refused(
    monkeypatch, capsys, tmp_path, wrong
):
    path = small_folder.write(tmp_path / "results") / "scenario.yaml"
    path.write_text(f"{path.read_text()}title: {wrong}\n")
    code, printed, err = admarket(monkeypatch, capsys, "report", path.parent)
    assert code == 2 and not printed
    assert err.startswith(f"admarket: {path}") and len(err.splitlines()) == 1


def test_a_scenario_with_its_defaults_may_be_longer_than_one_that_is_given(tmp_path):
    path = small_folder.write(tmp_path / "results") / "scenario.yaml"
    path.write_text(f"{path.read_text()}catalog: {'x' * MOST_TEXT}\n")
    assert len(Records.read(path.parent).scenario["catalog"]) == MOST_TEXT
    with pytest.raises(BadInput, match="holds more than"):
        read_yaml(path)


def test_when_mlflow_fails_the_folder_of_the_whole_results_is_named(monkeypatch, tmp_path):
    class Client:
        def __init__(self, tracking_uri):
            raise ConnectionError(f"{tracking_uri} is down\nand more")

    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", Record(MlflowClient=Client))
    folder = small_folder.write(tmp_path / "results")
    (folder / "summary.json").write_text("{}")
    with pytest.raises(BadInput) as error:
        tracking.log_to_mlflow(folder, "http://x")
    assert str(error.value) == (
        f"--mlflow http://x: cannot be logged to (http://x is down); the results are in {folder}"
    )
    (folder / "scenario.yaml").write_text("name: !!timestamp x")
    with pytest.raises(BadInput, match="holds no finished run"):
        tracking.log_to_mlflow(folder, "http://x")


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


def test_no_command_waits_for_torch_before_it_needs_it():
    code = "import sys, experiments.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_a_failure_says_where_it_was(monkeypatch, capsys, scenario):
    def broken(self):
        raise NameError("name 'clickz' is not defined")

    monkeypatch.setattr(LEARNERS["pacing"], "bids", broken)
    line = broken.__code__.co_firstlineno + 1
    code, printed, err = admarket(monkeypatch, capsys, "run", scenario)
    assert code == 1 and not printed
    where = f"admarket: the run failed at test_cli.py:{line}, NameError: name 'clickz'"
    assert err.splitlines()[-1].startswith(where)
