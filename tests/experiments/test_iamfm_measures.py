"""The measurements of `admarket reproduce iamfm`, at sizes that take a moment, without an LLM."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from experiments.iamfm import incentives, payments, searches
from experiments.iamfm.worlds import CAP, Recorded, Synthetic
from experiments.reproduce import PAPERS, iamfm
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.iamfm.exact import exact_vcg
from mechanisms.iamfm.mechanism import IAMFMElimination
from mechanisms.iamfm.synthetic import SyntheticSettings
from tests.mechanisms.iamfm.guided import guided_pool

SMALL = Synthetic(SyntheticSettings(advertisers=2))
QUICK = {name: each for name, each in searches.CONTENDERS.items() if name not in searches.SLOW}
POPULATION = [
    {"objective": "utility", "count": 2, "value": [1.0, 2.0], "learner": "hedge"},
    {"objective": "value", "count": 1, "value": 3.0, "target_roi": 1.25, "learner": "pacing"},
]


@pytest.fixture(scope="module")
def pool():
    return guided_pool(np.random.default_rng(0))


@pytest.fixture(scope="module")
def scenario():
    return Scenario.from_yaml("iamfm").with_(
        rounds=4,
        replications=2,
        requests_per_round=3,
        requests={"queries": 5, "ads": 3},
        population=POPULATION,
    )


def test_a_seed_is_a_problem():
    one, again, other = (SMALL.problem(seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.truth, again.truth)
    np.testing.assert_array_equal(one.bids, again.bids)
    assert (one.truth != other.truth).any()
    many = Synthetic(SyntheticSettings(advertisers=7)).problem(0)
    assert len(many.truth) == CAP
    assert (many.evaluator.configurations[many.sponsored_by_nobody] == 0).all()


def test_the_recorded_world_is_one_truth_under_many_bids(pool, scenario):
    world = Recorded.of(scenario, pool, IAMFMElimination())
    one, other = world.problem(0), world.problem(1)
    np.testing.assert_array_equal(one.truth, other.truth)
    assert (one.bids != other.bids).all()
    values = [spec.value for spec in scenario.advertisers]
    assert min(values) <= one.bids.min() <= one.bids.max() <= max(values)
    pairs = [each.evaluator.sample(np.arange(4), 0, 0, 50)[0] for each in (one, other)]
    assert (pairs[0] != pairs[1]).any()


@pytest.mark.parametrize("name", QUICK)
def test_search_tells_the_truth_about_its_choice(name):
    row = searches.search(("synthetic", name, 3e3, 1), {"synthetic": SMALL})
    problem = SMALL.problem(1)
    assert row["welfare"] in problem.welfare
    assert row["optimum"] == problem.welfare.max()
    assert row["unsponsored"] == problem.welfare[problem.sponsored_by_nobody]
    assert 2e3 < row["spent"] <= 3e3
    assert (row["cheap"] > 0) == (searches.CONTENDERS[name].kind != searches.SINGLE)
    assert row == searches.search(("synthetic", name, 3e3, 1), {"synthetic": SMALL}) | {
        "seconds": row["seconds"]
    }
    found = searches.frame([row])
    assert 0 <= found["regret"][0] == pytest.approx(found["optimum"][0] * (1 - found["share"][0]))


def test_payment_errors():
    rows = pl.DataFrame(payments.payment_errors((2, 5), {2: (SMALL, 4e3)}))
    assert (rows["extra"] <= rows["allowance"]).all()
    assert rows.filter(pl.col("way") == "none")["extra"].to_list() == [0]
    assert rows.filter(pl.col("way") != "none")["extra"].min() > 0
    problem = SMALL.problem(5)
    exact = exact_vcg(problem.truth, problem.bids, problem.user_weight)
    np.testing.assert_allclose(rows["exact"], exact.payments.mean())
    assert rows.group_by("way").len().sort("way")["len"].to_list() == [
        len(payments.SHARES[way]) for way in sorted(payments.SHARES)
    ]


def test_misreports_are_bounded_and_nobody_pays_too_much():
    rows = pl.DataFrame([incentives.misreport((seed,), None) for seed in range(12)])
    assert (rows["gain"] <= 2 * rows["epsilon"] + 1e-12).all()
    assert (rows["charge_over_value"] <= 1e-12).all()
    assert (rows["epsilon"] > 0).any()
    assert (rows["gain"] < 0).any()


def test_an_unlimited_budget_is_exact_vcg(pool, scenario):
    worlds = {"synthetic": SMALL, "recorded": Recorded.of(scenario, pool, IAMFMElimination())}
    for world in worlds:
        row = incentives.unlimited((world, 2), worlds)
        assert row["difference"] < 1e-9
        assert row["optimal"]


def test_study(pool, scenario, monkeypatch):
    """All parts together; of searches, those that fit no model."""
    monkeypatch.setattr(iamfm, "pools_of", lambda *_: [pool])
    monkeypatch.setattr(iamfm, "make_requests", lambda *_: ([], None))
    monkeypatch.setattr(iamfm, "audience", lambda *_: None)
    monkeypatch.setattr(searches, "CONTENDERS", QUICK)
    budgets = ((iamfm.SYNTHETIC, (8e3, 16e3)), (iamfm.RECORDED, (4e3, 8e3)))
    sizes = iamfm.Sizes(
        seeds=2, budgets=budgets, advertisers=(2, 3), allocation=4e3, payment_seeds=2,
        misreports=3, exact=1, live=0, rounds=3,
    )  # fmt: skip
    done = iamfm.study(scenario, 0, sizes=sizes, executor="serial")
    assert done.welfare.height == len(QUICK) * 2 * (2 + 2)
    assert done.welfare["seed"].unique().sort().to_list() == [
        iamfm.FIRST_SEED,
        iamfm.FIRST_SEED + 1,
    ]
    assert set(done.payments["n"]) == {2, 3}
    assert done.misreports.height == 3
    assert set(done.exact["world"]) == {"synthetic", "recorded"}
    assert done.exposure["way"].unique().to_list() == ["recorded, exact"]
    assert done.market.rounds["round"].max() == 2
    assert set(done.seconds) == {*iamfm.PARTS, "replies", "steering", "wall"}


@pytest.mark.parametrize(
    ("name", "message"), [("default", "runs mosaic"), ("synthetic", "synthetic replies")]
)
def test_refuses_other_scenarios(name, message, monkeypatch):
    monkeypatch.setattr(iamfm, "pools_of", None)  # refused before anything is recorded
    with pytest.raises(BadInput, match=message) as error:
        iamfm.study(Scenario.from_yaml(name))
    assert "\n" not in str(error.value)


def test_options_of_another_paper_are_refused():
    with pytest.raises(BadInput, match="--train is for llm-auction, not iamfm"):
        PAPERS["iamfm"](Scenario.from_yaml("iamfm"), 0, Path("x"), print, train=True)
