"""The worked example of docs/add-a-learner.md, and docs/learners.md, as they stand there."""

import re
from pathlib import Path

import numpy as np
import pytest

from agents.learners import LEARNERS
from agents.learners.registry import check_learner
from market import MarketModel, Scenario
from mechanisms.errors import BadInput
from tests.agents.learning import R, learner_of, people, play, smooth_market

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "learners.md"


def blocks(page):
    text = page.read_text(encoding="utf-8")
    return re.findall(r"```(?:python|text)\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def example(monkeypatch):
    """The example's learner, registered as the page says."""
    namespace = {"__name__": "epsilon_greedy"}
    code, line, *_ = blocks(DOCS / "add-a-learner.md")
    exec(compile(code, "docs/add-a-learner.md", "exec"), namespace)
    learner = namespace[line.strip().rstrip(",")]
    monkeypatch.setitem(LEARNERS, learner.name, learner)
    return learner


def test_the_example_learns_and_is_checked_like_any_other(example):
    population = people(vm=False)
    learner = learner_of("epsilon-greedy", population, epsilon=0.05)
    _, clicks, payments = play(learner, lambda b: smooth_market(b, 1.0), 1500)
    grid_clicks, grid_payments = smooth_market(learner.support, 1.0)
    best = (population.values[:, None] * grid_clicks - grid_payments).max(axis=-1)
    earned = (population.values * clicks - payments)[500:].mean(axis=0)
    assert (earned > 0.85 * best).all()
    support, weights = learner.strategy
    assert weights.shape == (R, 3, 21) and support.shape == (3, 21)
    np.testing.assert_allclose(weights.sum(axis=-1), 1)
    with pytest.raises(BadInput, match="epsilon must lie"):
        check_learner("epsilon-greedy", {"epsilon": 0})
    with pytest.raises(BadInput, match="it has epsilon, grid_size"):
        check_learner("epsilon-greedy", {"greed": 1})


def test_the_example_bids_in_a_market(example):
    scenario = Scenario.from_yaml("synthetic")
    groups = scenario.model_dump()["population"]
    for group in groups:
        group["learner"] = {"name": "epsilon-greedy", "parameters": {"epsilon": 0.05}}
    result = MarketModel(scenario.with_(population=groups, rounds=20, replications=2)).run()
    assert result.advertisers["bid"].n_unique() > 20


def test_the_page_names_every_learner():
    named = re.findall(r"^\| `([a-z0-9-]+)` \| (?:nothing|full|bandit) ", PAGE.read_text(), re.M)
    assert sorted(named) == sorted(LEARNERS)
    for name, sees in re.findall(
        r"^\| `([a-z0-9-]+)` \| (nothing|full|bandit) ", PAGE.read_text(), re.M
    ):
        assert LEARNERS[name].feedback == sees.replace("nothing", "none")


def test_the_pettingzoo_lines_run(capsys):
    (code,) = blocks(PAGE)
    exec(compile(code.replace("episodes=3", "episodes=1"), "docs/learners.md", "exec"), {})
    assert "[" in capsys.readouterr().out
