"""The market, round by round."""

import gc
import tracemalloc
import weakref

import numpy as np
import polars as pl
import pytest

from agents import UtilityMaximizer, ValueMaximizer
from agents.tally import Unbalanced
from market.model import MarketModel
from market.scenario import Scenario
from mechanisms.base import Mechanism, Outcome
from mechanisms.errors import BadInput
from mechanisms.registry import make_mechanism
from tests.market.small_scenario import N, make_scenario, run


def test_mechanisms_share_requests_and_dice_at_the_same_seed():
    seen = {}
    for name in ("mosaic", "first-price"):
        model = MarketModel(make_scenario(mechanism=name, learners=("truthful",)), 3)
        seen[name] = []
        for _ in range(5):
            seen[name].append(model.requests_arrive())
            model.step()
    np.testing.assert_array_equal(seen["mosaic"], seen["first-price"])
    assert len({batch.tobytes() for batch in seen["mosaic"]}) == 5
    other_seed = MarketModel(make_scenario(), 4).requests_arrive()
    assert (other_seed != seen["mosaic"][0]).any()


def test_dice_do_not_depend_on_mechanism_or_learners():
    thrown = [
        MarketModel(make_scenario(mechanism=name, learners=(learner,)), 3).dice.uniforms(7)
        for name, learner in (("mosaic", "hedge"), ("first-price", "truthful"))
    ]
    np.testing.assert_array_equal(*thrown)
    assert (MarketModel(make_scenario(), 4).dice.uniforms(7) != thrown[0]).any()


def test_learners_do_not_disturb_requests():
    hedging = run(learners=("truthful", "hedge")).advertisers
    truthful = run(learners=("truthful",)).advertisers
    np.testing.assert_array_equal(hedging["requests"], truthful["requests"])


def test_replications_are_distinct():
    frames = run(learners=("truthful",)).rounds.partition_by("replication")
    revenue = [tuple(frame["revenue"]) for frame in frames]
    assert len(set(revenue)) == 3


def test_rounds_are_counted_and_run_can_go_on():
    model = MarketModel(make_scenario(rounds=10), 2)
    assert model.round == 0 and model.running
    part = model.run(rounds=4)
    assert part.rounds["round"].max() == 3 and model.round == 4 and model.running
    rest = model.run()
    assert rest.rounds["round"].max() == 9 and not model.running
    assert rest.rounds.equals(run(rounds=10, seed=2).rounds)
    assert model.run().rounds.equals(rest.rounds)
    with pytest.raises(RuntimeError, match="all 10 rounds"):
        model.step()


@pytest.mark.parametrize("mechanism", ["mosaic", "gsp"])
def test_a_market_is_the_same_by_compiled_code_and_by_the_numpy_reference(mechanism, monkeypatch):
    learners = ("hedge", "pacing", "truthful")
    compiled = run(rounds=40, learners=learners, mechanism=mechanism, budget=30.0)
    monkeypatch.setenv("ADMARKET_KERNEL", "numpy")
    reference = run(rounds=40, learners=learners, mechanism=mechanism, budget=30.0)
    for name in ("rounds", "advertisers"):
        ours, theirs = getattr(compiled, name), getattr(reference, name)
        assert ours.columns == theirs.columns
        for column in ours.columns:
            one, other = ours[column], theirs[column]
            if one.dtype == pl.Float64:
                np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9, err_msg=column)
            else:
                assert one.equals(other), column


def test_memory_does_not_grow_with_rounds(monkeypatch):
    monkeypatch.setattr("market.ledger.CHUNK_BYTES", 100_000)
    model = MarketModel(make_scenario(rounds=3000, replications=8, learners=("pacing",)), 0)
    tracemalloc.start()
    held = []
    for rounds in (300, 2600):
        for _ in range(rounds):
            model.step()
        gc.collect()  # numba's calls leave tuples that wait for it
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    bytes_of_records = 2600 * 8 * (7 * N + 4) * 8
    assert held[1] - held[0] < bytes_of_records / 50


def test_budgets_are_never_overspent_and_the_broke_bid_nothing():
    budget = 1.5
    for learner in ("truthful", "hedge", ("pacing", {"signal": "realised"})):
        result = run(rounds=60, learners=(learner,), budget=budget, mechanism="first-price")
        people = result.advertisers
        assert people["spend"].max() <= budget * (1 + 1e-12)
        broke = people.filter(pl.col("spend").shift(N).over("replication") >= budget * (1 - 1e-9))
        assert (broke["bid"] == 0).all() and (broke["charge"] == 0).all()
    assert run(rounds=60, learners=("truthful",), budget=budget).advertisers["bid"].min() == 0


@pytest.mark.parametrize("limited", ["utility", "value"])
def test_a_budget_of_some_leaves_the_others_bidding(limited):
    other = {"utility": "value", "value": "utility"}[limited]
    scenario = Scenario.from_dict(
        {
            "rounds": 30,
            "replies": {"source": "synthetic", "per_request": 8},
            "requests": {"queries": 6, "ads": 3},
            "population": [
                {"objective": limited, "count": 2, "budget": 0.05},
                {"objective": other, "count": 2},
            ],
        }
    )
    people = MarketModel(scenario, seed=0).run().advertisers
    assert people.filter(pl.col("objective") == other)["bid"].min() > 0
    ours = people.filter(pl.col("objective") == limited)
    assert ours["spend"].max() <= 0.05 * (1 + 1e-12)
    assert ours["bid"].max() > 0 and ours["bid"].min() == 0


def test_the_broke_are_shown_for_nothing_and_clicked():
    """What a bid of 0 wins: the ads that a reply shows anyway."""
    people = run(rounds=60, learners=("truthful",), budget=1.5).advertisers
    broke = people.filter(pl.col("bid") == 0)
    assert broke["clicks"].sum() > 0 and broke["charge"].sum() == 0


def test_learners_bid_as_theory_says():
    """Under Rochet payments UMs stay truthful and VMs bid above v / tau_roi; ROI is met."""
    for vm_learner in ("hedge", "pacing"):
        learners = ["hedge", vm_learner, "hedge", vm_learner, "hedge"]
        result = MarketModel(make_scenario(rounds=600, replications=2, learners=learners), 0).run()
        kinds = result.summary["mosaic"]["objectives"]
        assert kinds["utility"]["bid_over_value"]["mean"] == pytest.approx(1, abs=0.05)
        assert kinds["value"]["roi_over_target"]["mean"] == pytest.approx(1, abs=0.05)
        # Each of them, in every replication: two are too few for a t-interval.
        late = result.advertisers.filter(
            (pl.col("objective") == "value") & (pl.col("round") >= 450)
        )
        overbid = late.group_by("replication", "advertiser").agg(
            (pl.col("bid") * 1.5 / pl.col("value")).mean()
        )
        assert overbid.height == 2 * 2
        assert overbid["bid"].min() > 1.5
        low = kinds["value"]["bid_over_truthful"]["low"]
        means = overbid.group_by("advertiser").agg(pl.col("bid").mean())["bid"].to_numpy()
        half = 12.7062 * np.ptp(means) / 2  # Student's t with one degree of freedom
        assert low == pytest.approx(means.mean() - half, rel=1e-4)
    model = MarketModel(make_scenario(rounds=600, replications=2, mechanism="first-price"), 0)
    kinds = model.run().summary["first-price"]["objectives"]
    assert kinds["utility"]["bid_over_value"]["high"] < 0.9
    assert kinds["value"]["bid_over_truthful"]["mean"] == pytest.approx(1, abs=0.1)


def test_advertisers_that_share_a_learner_share_an_object():
    model = MarketModel(
        make_scenario(learners=("hedge", ("hedge", {"grid_size": 9}), "truthful")), 0
    )
    a = model.advertisers
    assert a[0].learner is a[3].learner and a[0].learner is not a[1].learner
    assert [type(x) for x in a[:2]] == [UtilityMaximizer, ValueMaximizer]
    model.run()  # grids of different sizes in one market
    np.testing.assert_array_equal(a[1].bid, model.bids[:, 1])


def test_grids_of_different_size_do_not_mix():
    mixed = MarketModel(make_scenario(learners=("hedge", ("hedge", {"grid_size": 9}))), 0)
    mixed.step()
    requests = mixed.requests_arrive()
    mixed.advertisers_bid()
    clicks, _ = mixed.platform.counterfactual(requests, mixed.bids, mixed._tried)
    small = mixed.groups[1]
    alone = np.zeros((N, 9))
    alone[small.index] = small.learner.grid
    expected, _ = mixed.platform.counterfactual(requests, mixed.bids, alone)
    np.testing.assert_allclose(clicks[:, small.index, :9], expected[:, small.index])


def test_a_finished_model_is_forgotten():
    model = MarketModel(make_scenario(rounds=2), 0)
    model.run()
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.advertisers.pop(), "4 advertisers and the pool 5"),
        (lambda s: setattr(s.advertisers[1], "objective", "fame"), "utility or value"),
        (lambda s: setattr(s.advertisers[1].learner, "name", "oracle"), "unknown learner 'oracle'"),
        (lambda s: setattr(s.advertisers[1], "budget", 0.0), "budget must be positive"),
        (lambda s: setattr(s.mechanism, "name", "lottery"), "no mechanism 'lottery'"),
    ],
)
def test_bad_scenarios_are_refused(change, message):
    scenario = make_scenario()
    change(scenario)
    with pytest.raises(BadInput, match=message):
        MarketModel(scenario, 0)


class Broken(Mechanism):
    """A sound mechanism whose outcome is spoilt."""

    name = "broken"

    def __init__(self, **spoilt):
        self.spoilt = spoilt

    def allocate(self, pool, bids):
        return make_mechanism("mosaic", tau=0.3).allocate(pool, bids)

    def charge(self, pool, bids, allocation, chosen, clicks):
        return allocation.payments

    def run(self, pool, bids, rng):
        sound = super().run(pool, bids, rng)
        return Outcome(**vars(sound) | {k: f(pool, sound) for k, f in self.spoilt.items()})


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({"probabilities": lambda p, o: o.probabilities * 0.9}, "do not sum to 1"),
        ({"clicks": lambda p, o: np.ones_like(o.clicks)}, "not shown is clicked"),
        ({"charges": lambda p, o: o.charges * np.nan}, "charges of an advertiser: NaN"),
        ({"payments": lambda p, o: o.payments + np.inf}, "payments of an advertiser: NaN"),
    ],
)
def test_books_that_do_not_balance_stop_the_run(spoilt, message):
    scenario = make_scenario(learners=("truthful",))
    MarketModel(scenario, 0, mechanism=Broken()).step()
    model = MarketModel(scenario, 0, mechanism=Broken(**spoilt))
    with pytest.raises(RuntimeError, match=f"round 0: .*{message}"):
        model.step()


@pytest.mark.parametrize("bid", [np.nan, np.inf, -1.0])
def test_a_learner_that_bids_nonsense_is_named(bid, monkeypatch):
    model = MarketModel(make_scenario(learners=("truthful",)), 0)
    model.step()
    bids = model.groups[0].learner.bids().copy()
    bids[1, 2] = bid
    monkeypatch.setattr(model.groups[0].learner, "bids", lambda: bids)
    words = f"round 1: learner truthful bids {bid} for advertiser 2 in replication 1"
    with pytest.raises(BadInput, match=words):
        model.step()


def test_a_learner_that_loses_its_mixture_or_its_shape_is_named(monkeypatch):
    model = MarketModel(make_scenario(learners=("hedge",)), 0)
    learner = model.groups[0].learner
    learner.state["weights"][1, 2] = np.nan
    with pytest.raises(BadInput, match="round 0: learner hedge bids nan for advertiser 2"):
        model.step()
    monkeypatch.setattr(learner, "bids", lambda: np.ones((1, 2)))
    with pytest.raises(BadInput, match=r"learner hedge gives bids of shape \(1, 2\); give"):
        model.step()


@pytest.mark.parametrize("mechanism", ["mosaic", "gsp"])
@pytest.mark.parametrize(("at", "budget"), [(0, None), (13, None), (30, None), (1, 1.5)])
def test_charges_lost_between_platform_and_advertisers_stop_the_run(
    mechanism, at, budget, monkeypatch
):
    monkeypatch.setattr("market.ledger.CHUNK_BYTES", 10_000)  # some chunks to look into
    scenario = make_scenario(31, learners=("truthful",), mechanism=mechanism, budget=budget)
    model = MarketModel(scenario, 0)
    honest = model.platform.serve

    def skim(requests, bids, dice, round, grids=None):
        tally = honest(requests, bids, dice, round, grids)
        if round == at:
            tally.charges[:] *= 0.99
        return tally

    monkeypatch.setattr(model.platform, "serve", skim)
    with pytest.raises(Unbalanced, match=f"round {at}: charges miss the revenue"):
        model.run()


@pytest.mark.parametrize("mechanism", ["mosaic", "first-price"])
def test_books_balance_however_much_is_forgiven(mechanism):
    scenario = make_scenario(60, learners=("truthful",), mechanism=mechanism, budget=1e-3)
    for spec in scenario.advertisers:
        spec.value *= 1e9
    scenario.mechanism.parameters.update({"tau": 3e8} if mechanism == "mosaic" else {})
    result = MarketModel(scenario, 0).run()
    spent = result.advertisers["spend"].max()
    assert 0 < spent <= 1e-3 < 1e6 < result.advertisers["payment"].max()
