"""What the documentation says is true: its code runs, its scenarios and commands exist."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from agents.learners import LEARNERS
from experiments.cli import app
from market import Scenario
from market.scenario import BUNDLED
from mechanisms import MECHANISMS

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# what these hold is run by tests of their own
RUN_ELSEWHERE = {
    "README.md",
    "add-a-learner.md",
    "add-a-mechanism.md",
    "ecosystem.md",
    "learners.md",
}

CONTINUES = "# in the same file"


def blocks(page, language):
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def executed(name):
    """The names that all Python on a page leaves behind, and what it printed.

    Every block is pasted into a file of its own, but for those that say `CONTINUES`.
    """
    left, said, file = {}, io.StringIO(), {}
    with contextlib.redirect_stdout(said):
        for number, code in enumerate(blocks(ROOT / "docs" / name, "python")):
            if not code.startswith(CONTINUES):
                file = {"__name__": "page"}
            exec(compile(code, f"docs/{name}, block {number}", "exec"), file)
            left |= file
    return left, said.getvalue()


@pytest.fixture(autouse=True)
def leaves_nothing(tmp_path, monkeypatch):
    """What a page registers is forgotten after it, and what it writes lies elsewhere."""
    monkeypatch.chdir(tmp_path)
    before = [dict(registry) for registry in (MECHANISMS, LEARNERS)]
    yield
    for registry, held in zip((MECHANISMS, LEARNERS), before, strict=True):
        registry.clear()
        registry.update(held)


def test_the_example_mechanism_passes_its_audit_and_is_traded_on():
    page, said = executed("add-a-mechanism.md")
    assert {each.verdict for each in page["report"].findings} == {"holds"}
    assert page["report"].max_regret < 1e-6
    utility, value = (float(line.split()[-1]) for line in said.splitlines()[-2:])
    assert 0.8 < utility < 1.05 and value > 1.2
    # the shorter one says what the ideal rule says
    gibbs = page["make_mechanism"]("gibbs-first-price", tau=0.1)
    ideal = page["make_mechanism"]("llm-auction-ideal", tau=0.1)
    ours, theirs = (each.allocate(page["pool"], page["values"]) for each in (gibbs, ideal))
    assert abs(ours.payments - theirs.payments).max() < 1e-12


def test_the_example_learner_learns_to_shade():
    page, _ = executed("add-a-learner.md")
    first, last = page["first"], page["last"]
    assert last["expected_utility"].mean() > 1.5 * first["expected_utility"].mean() > 0
    assert 0.2 < (last["bid"] / last["value"]).mean() < 0.75


def test_a_program_of_ones_own_knows_all_commands(tmp_path):
    of_class, registration, _, at_the_end = blocks(ROOT / "docs" / "add-a-learner.md", "python")
    (tmp_path / "mine.py").write_text("\n".join((of_class, registration, at_the_end)))
    scenario = {
        "rounds": 8,
        "requests_per_round": 2,
        "replications": 1,
        "replies": {"source": "synthetic", "per_request": 4},
        "requests": {"queries": 3, "ads": 2},
        "population": [{"objective": "utility", "count": 2, "learner": "epsilon-greedy"}],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(scenario))
    done = subprocess.run(
        [sys.executable, "mine.py", "run", "mine.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["results/mine-seed0/report.html"]


@pytest.mark.parametrize(
    "name",
    [page.name for page in PAGES if blocks(page, "python") and page.name not in RUN_ELSEWHERE],
)
def test_python_on_other_pages_runs(name):
    page, said = executed(name)
    if name == "quickstart.md":
        assert page["found"].status == "converged"
    if name == "slots.md":  # which says what is printed
        assert [float(n) for n in re.findall(r"\[([\d.]+)", said)] == [3, 2, 2]


def test_every_yaml_block_is_a_scenario():
    found = [(page, text) for page in PAGES for text in blocks(page, "yaml")]
    assert len(found) >= 6
    for page, text in found:
        Scenario.from_dict(yaml.safe_load(text), source=page.name)


def calls(page):
    """Words of the lines of code that call `admarket`, synopses left out."""
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"^(?:    )?(?:\.venv\S*/bin/)?admarket (.*)$", text, re.MULTILINE):
        line = line.split(" #")[0]
        if not re.search(r"[\[|]|\.\.\. |\bDIR\b", line):
            yield shlex.split(line.removesuffix("..."))


def test_every_command_on_a_page_exists_with_its_options():
    group, checked = typer.main.get_command(app), 0
    bundled = {path.stem for path in BUNDLED.glob("*.yaml")}
    for page in PAGES:
        for name, *arguments in calls(page):
            if name.startswith("--"):  # of the program itself
                assert name in {option for each in group.params for option in each.opts}
                continue
            context = group.commands[name].make_context(name, arguments)
            scenario = context.params.get("scenario") or "default"
            own = scenario.endswith(".yaml") or "/" in scenario
            assert own or scenario in bundled, (page.name, name, arguments)
            checked += 1
    assert checked >= 10


def test_pictures_and_pages_that_pages_name_are_there():
    made = {"scenario.md", "parameters.md", "commands.md"}
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert target in made or (page.parent / target).exists(), (page.name, target)
