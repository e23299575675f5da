"""Part (h) of the study of IAMFM: equal learning steps, other bids, the range of configurations."""

import numpy as np
import polars as pl
import pytest

from experiments.iamfm import market, other_bids, ranges
from experiments.iamfm.market import ARMS, EQUAL, LONG, SHORT
from market.scenario import Scenario
from mechanisms.iamfm.configuration import Steering, design, full_grid
from mechanisms.iamfm.evaluations import weights_of
from mechanisms.iamfm.mechanism import IAMFMElimination
from mechanisms.iamfm.recorded import RecordedEvaluator
from mechanisms.registry import make_mechanism
from tests.mechanisms.iamfm.guided import guided_pool

N = 4
POOL = guided_pool(np.random.default_rng(4), requests=6, replies=30, ads=3, advertisers=N)
VALUES = np.array([1.0, 2.0, 1.5, 0.5])


@pytest.fixture(scope="module")
def scenario():
    return Scenario.from_yaml("iamfm").with_(
        rounds=60,
        replications=3,
        requests_per_round=2,
        requests={"queries": 6, "ads": 3},
        mechanism={
            "name": "iamfm-elimination",
            "parameters": {"tokens": 3000, "period": 15, "odds": [0.3], "how": "none"},
        },
        population=[
            {"objective": "utility", "count": 2, "value": [1.0, 2.0], "learner": "hedge"},
            {"objective": "value", "count": 2, "value": 3.0, "learner": "pacing"},
        ],
    )


def test_learners_learn_as_often_on_as_many_requests(scenario):
    markets = market.Markets(scenario, POOL)
    for arm in ARMS.values():
        found = markets.scenario_of(arm)
        mechanism = markets.mechanism(arm)
        assert getattr(mechanism, "period", 1) == 1 and mechanism.name == arm.name
        assert found.rounds == {EQUAL: 4, LONG: 60, SHORT: 4}[arm.length]
        assert found.replications == (2 if arm.length == SHORT else 3)
        assert found.rounds * found.requests_per_round == 120
        if arm.name.startswith("iamfm"):
            assert mechanism.tokens == (None if arm.exact else 3000)
            assert (mechanism.odds, mechanism.how) == ((0.3,), "none")
    # nothing that costs tokens or a model is run at length
    assert all(arm.exact or "iamfm" not in arm.name for arm in ARMS.values() if arm.length == LONG)
    assert [arm.length for arm in ARMS.values() if arm.name == "iamfm-model"] == [SHORT]


def test_markets_and_what_is_told_of_them(scenario):
    markets = market.Markets(scenario, POOL)
    result = market.play(("iamfm, exact, long", 0), markets)
    assert market.steps_of(result) == {"iamfm, exact, long": (60, 3)}
    found = market.bids_by_advertiser(result)
    person = pl.col("advertiser") == 1
    ours = result.advertisers.filter(person)
    target = ours["target_roi"][0] if ours["objective"][0] == "value" else 1.0
    for column, start, end in (("bid", 45, 60), ("bid_before", 30, 45)):
        part = ours.filter(pl.col("round").is_between(start, end, closed="left"))
        want = (part["bid"] * target / part["value"]).mean()
        assert found.filter(person)[column].item() == pytest.approx(want)


def test_where_nothing_is_estimated_learners_hear_the_truth(scenario):
    mechanism = IAMFMElimination(tokens=None, odds=(0.3,))
    bidders = other_bids.Bidders.of(scenario, POOL, mechanism)
    rows = pl.DataFrame(other_bids.other_bids((1,), bidders))
    assert rows.height == 2 * len(other_bids.FACTORS)  # of the utility maximizers
    np.testing.assert_allclose(rows["told"], rows["replanned"], atol=1e-12)
    assert (rows["told"] <= 1e-12).all()
    people = scenario.advertisers
    want = [each.value / (each.target_roi or 1) for each in people]
    np.testing.assert_allclose(bidders.bids, want)


def test_with_few_tokens_they_do_not(scenario):
    mechanism = IAMFMElimination(tokens=2000, odds=(0.3,))
    bidders = other_bids.Bidders.of(scenario, POOL, mechanism)
    rows = pl.DataFrame([r for k in range(4) for r in other_bids.other_bids((k,), bidders)])
    assert ((rows["told"] - rows["replanned"]).abs() > 1e-6).any()
    again = other_bids.other_bids((0,), bidders)
    assert again == rows.head(len(again)).to_dicts()


def test_coordinate_ascent_comes_to_the_optimum_of_the_full_grid():
    steering, weights = Steering((0.3, 1.0)), weights_of(VALUES, 1.0)
    grid = full_grid(N, 2)
    every = RecordedEvaluator(POOL, grid, steering).truth() @ weights
    start = design(N, 2, 20, np.random.default_rng(0))
    found, worth = ranges.ascend(POOL, steering, weights, start)
    assert worth.max() == pytest.approx(every.max(), abs=1e-12)
    np.testing.assert_array_equal(found[worth.argmax()], grid[every.argmax()])
    at = RecordedEvaluator(POOL, found, steering).truth() @ weights
    np.testing.assert_allclose(worth, at, atol=1e-12)


def test_every_restriction_lifted_is_no_loss(scenario):
    ladder = ranges.Ladder(
        POOL,
        IAMFMElimination(tokens=2000, cap=20, odds=(0.1, 0.4)),
        make_mechanism("mosaic", tau=0.1),
        VALUES,
    )
    rows = ranges.welfare_by_range((1.0,), ladder)
    assert tuple(row["range"] for row in rows) == ranges.RUNGS
    worth = {row["range"]: row["welfare"] for row in rows}
    nested = [name for name in ranges.RUNGS if name != ranges.AUCTION]
    values = [worth[name] for name in nested]
    assert (np.diff(values) >= -1e-12).all() and values[-1] > values[0]
    assert worth[ranges.AUCTION] <= worth[ranges.REPLY]
    by_reply = ranges.values_of(POOL, VALUES, 1.0)
    brute = np.zeros(len(by_reply))
    for b, ads in enumerate(POOL.ads):
        evaluator = ladder.mechanism.evaluator(POOL)
        for local in full_grid(3, 2):
            strengths = np.zeros(N, dtype=int)
            strengths[ads] = local
            brute[b] = max(brute[b], evaluator.probabilities(strengths)[b] @ by_reply[b])
    assert worth[ranges.BY_REQUEST] == pytest.approx(brute.mean())
