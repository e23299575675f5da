"""The measurements of `admarket reproduce iamfm`, at sizes that take a moment, without an LLM."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from experiments.iamfm import incentives, payments, searches, shading
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
    several = (searches.ELIMINATION, searches.MODEL)
    assert (row["cheap"] > 0) == (searches.CONTENDERS[name].kind in several)
    assert row == searches.search(("synthetic", name, 3e3, 1), {"synthetic": SMALL}) | {
        "seconds": row["seconds"]
    }
    found = searches.frame([row])
    assert 0 <= found["regret"][0] == pytest.approx(found["optimum"][0] * (1 - found["share"][0]))


def test_payment_errors():
    setting = payments.Setting(SMALL, 4e3, 1)
    rows = pl.DataFrame(payments.payment_errors(("synthetic", 2, 5), {("synthetic", 2): setting}))
    assert (rows["extra"] <= rows["allowance"]).all()
    assert rows.filter(pl.col("way") == "none")["extra"].to_list() == [0]
    assert rows.filter(pl.col("way") != "none")["extra"].min() > 0
    problem = SMALL.problem(5)
    exact = exact_vcg(problem.truth, problem.bids, problem.user_weight)
    np.testing.assert_allclose(rows["exact"], exact.payments.mean())
    assert rows.group_by("way").len().sort("way")["len"].to_list() == [
        len(payments.SHARES[way]) for way in sorted(payments.SHARES)
    ]
    # outside of a range that ends at P: nearer than P itself
    assert (rows["range_error"] <= rows["fixed_error"] + 1e-12).all()
    assert (rows["fixed_bias"].abs() <= rows["fixed_error"] + 1e-12).all()


def test_what_is_due():
    """Of the best configuration the exact payment; of others a range, of VCG payments."""
    problem = SMALL.problem(5)
    exact = exact_vcg(problem.truth, problem.bids, problem.user_weight)
    for end in payments.due(problem, exact.chosen):
        np.testing.assert_allclose(end, exact.payments)
    wide = 0
    for chosen, welfare in enumerate(problem.welfare):
        low, high = payments.due(problem, chosen)
        missed = problem.welfare.max() - welfare
        values = problem.bids * problem.truth[chosen, :-1]
        assert (low >= 0).all() and (low <= values + 1e-12).all()
        assert (low <= high).all() and (high <= values + missed + 1e-12).all()
        # the same by plain VCG of what is left without the better ones
        rest = problem.truth[problem.welfare <= welfare]
        alone = exact_vcg(rest, problem.bids, problem.user_weight)
        np.testing.assert_allclose(low, alone.payments)
        wide += (high > low + 1e-9).any()
    assert wide > 0


@pytest.mark.parametrize("world", ["synthetic", "recorded"])
def test_misreports_are_bounded_and_nobody_pays_too_much(world, pool, scenario):
    worlds = {"synthetic": SMALL, "recorded": Recorded.of(scenario, pool, IAMFMElimination())}
    jobs = [(world, searches.ELIMINATION, seed) for seed in range(8)]
    rows = pl.DataFrame([incentives.misreport(job, worlds) for job in jobs])
    assert (rows["gain"] <= 2 * rows["epsilon"] + 1e-12).all()
    assert (rows["charge_over_value"] <= 1e-12).all()
    assert (rows["epsilon"] > 0).any()
    assert (rows["gain"] < 0).any()
    assert (rows["n"].n_unique() > 1) == (world == "synthetic")


def test_small_misreports():
    """The mechanism's gains have either sign; those of exact VCG are none."""
    rows = [
        row
        for method in ("successive halving", shading.EXACT)
        for seed in range(4)
        for row in shading.small_misreports(("synthetic", method, seed), {"synthetic": SMALL})
    ]
    frame = pl.DataFrame(rows)
    assert frame["factor"].unique().sort().to_list() == sorted(shading.FACTORS)
    assert (frame["utility"] >= 0).all()
    exact = frame.filter(pl.col("method") == shading.EXACT)["gain"]
    assert exact.max() <= 1e-12 < -exact.min()
    ours = frame.filter(pl.col("method") != shading.EXACT)["gain"]
    assert ours.min() < 0 < ours.max()


def test_equal_bids_give_equal_settlements():
    problem = SMALL.problem(3)
    run = incentives.mechanism(problem, "successive halving", 8e3, 3)
    one, again = run(problem.bids), run(problem.bids)
    np.testing.assert_array_equal(one.payments, again.payments)
    assert one.tokens == again.tokens


def test_enumeration_by_hand():
    """Nobody, the first or the second: 0.9, 1.8 or 1.3; without the first 0.9, 0.8, 1.3."""
    truth = [[0.0, 0.0, 0.9], [0.5, 0.0, 0.8], [0.0, 0.5, 0.8]]
    assert incentives.enumerated(truth, [2.0, 1.0], 1.0) == pytest.approx([0.5, 0.0])


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
        seeds=2, budgets=budgets, advertisers=(2, 3), allocation=4e3, payment_seeds=(2, 2, 1),
        exact=1, live=0, periods=1, rounds=3,
        misreports=((iamfm.SYNTHETIC, searches.ELIMINATION, 3),),
        small_misreports=((iamfm.SYNTHETIC, shading.EXACT, 2),),
    )  # fmt: skip
    done = iamfm.study(scenario, 0, sizes=sizes, executor="serial")
    assert done.welfare.height == len(QUICK) * 2 * (2 + 2)
    assert done.welfare["seed"].unique().sort().to_list() == [
        iamfm.FIRST_SEED,
        iamfm.FIRST_SEED + 1,
    ]
    assert set(done.payments.filter(pl.col("world") == iamfm.SYNTHETIC)["n"]) == {2, 3}
    assert set(done.payments["world"]) == {iamfm.SYNTHETIC, iamfm.RECORDED}
    assert done.misreports.height == 3
    assert done.small_misreports.height == 2 * len(shading.FACTORS)
    parts = [done.welfare, done.payments, done.misreports, done.small_misreports, done.exact]
    seeds = [set(part["seed"]) for part in parts]
    assert sum(map(len, seeds)) == len(set.union(*seeds))  # no part has another's problems
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
