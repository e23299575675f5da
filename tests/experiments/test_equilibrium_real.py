"""Exploitability on the default real pool: at most 0.5 % of the value attained."""

import numpy as np
import pytest

from experiments.arms import chosen
from experiments.equilibrium.play import Style
from experiments.equilibrium.solver import solve_game
from experiments.game import Game
from experiments.run import population
from market.environment import make_pool, make_requests, pool_folder
from market.scenario import Scenario
from mechanisms.errors import BadInput

MECHANISMS = ["mosaic", "llm-auction-ideal", "vcg", "gsp", "first-price", "segment"]


@pytest.fixture(scope="module")
def default():
    """The default scenario and its replies, where they have been recorded."""
    scenario = Scenario.from_yaml("default")
    try:
        folder = pool_folder(scenario, *make_requests(scenario))
    except BadInput as error:
        pytest.skip(f"the text encoder is not to be had: {error}")
    if not (folder / "manifest.json").exists():
        pytest.skip("the default scenario's replies are not in the cache; admarket record")
    return scenario, make_pool(scenario)


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["gradient", "hedge"])
@pytest.mark.parametrize("name", MECHANISMS)
def test_learners_come_within_half_a_percent(default, name, learner):
    scenario, pool = default
    people = population(scenario)
    (mechanism,) = chosen(scenario, [name])
    styles = [Style(learner)] * len(people.values)
    report = solve_game(Game(mechanism, pool, people), styles, np.random.default_rng([0, 41]))
    assert report.exploitability <= 0.005


def test_gradient_settles_under_the_rule_of_llm_auction(default):
    scenario, pool = default
    people = population(scenario)
    (mechanism,) = chosen(scenario, ["llm-auction-ideal"])
    report = solve_game(
        Game(mechanism, pool, people), [Style("gradient")] * 12, rounds=300, starts=2
    )
    assert report.status == "converged" and report.exploitability <= 1e-3
    vm = people.value_maximizer
    np.testing.assert_allclose(report.bids[vm], people.truthful_bids[vm], rtol=0.01)
