"""Exploitability on the default real pool: at most 0.5 % of the value attained, median over starts.

The same on a small real pool, which is recorded wherever tests run: `tests/test_real_llm.py`.
"""

import numpy as np
import pytest

from experiments.arms import chosen
from experiments.equilibrium.findings import plateaus
from experiments.equilibrium.seats import Style
from experiments.equilibrium.solver import solve_game
from experiments.game import Game
from experiments.run import population
from market.environment import make_pool, make_requests, pool_folder
from market.scenario import Scenario
from mechanisms.errors import BadInput

SLOTS = ["first-price", "vcg", "gsp"]


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


def solved(default, name, learner):
    scenario, pool = default
    people = population(scenario)
    (mechanism,) = chosen(scenario, [name])
    styles = [Style(learner)] * len(people.values)
    return solve_game(Game(mechanism, pool, people), styles, np.random.default_rng([0, 41]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "learner"),
    [(name, "gradient") for name in ("mosaic", "llm-auction-ideal", "segment")]
    + [(name, "hedge") for name in ("mosaic", "llm-auction-ideal", "segment", *SLOTS)],
)
def test_learners_come_within_half_a_percent(default, name, learner):
    assert solved(default, name, learner).exploitability <= 0.005


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOTS)
def test_slopes_lead_nowhere_on_the_plateaus_of_slot_auctions_and_the_report_says_so(default, name):
    """Iterated best response finds an equilibrium; gradient rests where it happens to be."""
    report = solved(default, name, "gradient")
    assert report.exploitability > 0.005 and report.status == "drifting"
    assert plateaus(report.game, report.fixed_bids).any()


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
