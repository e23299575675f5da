"""IAMFM in a market: budgets, plans that stand, and the bundled scenario."""

from dataclasses import replace
from types import SimpleNamespace as Record

import mesa
import numpy as np
import polars as pl
import pytest

from agents import Platform
from agents.streams import Dice
from agents.users import BehaviouralUsers
from market import environment
from market.model import MarketModel
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.iamfm.reweighing import steered
from mechanisms.insertion import Rules
from mechanisms.recording import Design, Request, record
from mechanisms.registry import make_mechanism
from tests.mechanisms.iamfm.guided import guided_pool
from tests.tiny_llm import ADS, HashEncoder

N, R = 4, 2
POOL = guided_pool(np.random.default_rng(8), requests=6, replies=40, ads=3, advertisers=N)


def market(mechanism, rounds=24, seed=0, learners=("hedge", "pacing")):
    specs = [
        Record(
            objective="value" if i % 2 else "utility",
            value=1.0 + 0.5 * i,
            target_roi=1.2 if i % 2 else None,
            budget=None,
            learner=Record(name=learners[i % 2], parameters={}),
        )
        for i in range(N)
    ]
    scenario = Record(
        rounds=rounds, requests_per_round=4, replications=R, advertisers=specs, mechanism=None
    )
    return MarketModel(scenario, seed, pool=POOL, mechanism=mechanism)


def iamfm(**parameters):
    return make_mechanism("iamfm-elimination", **{"period": 6, "cap": 40} | parameters)


def test_budgets_of_tokens_hold_and_charges_do_not_exceed_bids():
    model = market(iamfm(tokens=5000))
    people = model.run().advertisers
    plans = pl.DataFrame(model.platform.plans)
    spent = plans["tokens_allocation"] + plans["tokens_payments"]
    assert plans.height == 4 * R and (spent <= 5000).all() and (spent > 2500).all()
    assert (plans["tokens_payments"] > 0).any()
    assert (people["charge"] <= people["bid"] * people["clicks"] + 1e-12).all()
    assert (people["payment"] <= people["bid"] * people["itctr"] + 1e-12).all()


def test_prices_stand_within_a_period():
    """Of every round's expected payments, per expected click."""
    model = market(iamfm(tokens=5000))
    people = model.run().advertisers
    paid, clicks = (people[name].to_numpy().reshape(R, 4, 6, N) for name in ("payment", "itctr"))
    plans = pl.DataFrame(model.platform.plans).sort("replication", "period")
    prices = np.array(plans["prices"].to_list()).reshape(R, 4, 1, N)
    np.testing.assert_allclose(paid, prices * clicks, atol=1e-12)


def test_every_period_and_replication_is_evaluated_by_chances_of_its_own():
    model = market(iamfm(tokens=3000), learners=("truthful", "truthful"))
    model.run()
    believed = pl.DataFrame(model.platform.plans)["believed_welfare"]
    assert believed.n_unique() == len(believed)
    again = market(iamfm(tokens=3000), learners=("truthful", "truthful"))
    again.run()
    assert again.platform.plans == model.platform.plans


class Fresh:
    """A live source whose replies are those of another pool, to the same requests."""

    def __init__(self, pool):
        self.pool, self.given = pool, None

    def replies(self, requests, bids):
        self.given = self.pool.take(requests.ravel())
        return self.given

    def show(self, chosen):
        self.shown = chosen


def test_live_replies_are_weighed_by_the_period_s_configuration():
    other = guided_pool(np.random.default_rng(9), requests=6, replies=30, ads=3, advertisers=N)
    live = Fresh(replace(other, ads=POOL.ads))
    mechanism = iamfm(tokens=3000)
    platform = Platform(mesa.Model(rng=0), mechanism, POOL, live, seed=1)
    requests, bids = np.array([[0, 3], [2, 2]]), np.array([[1.0, 2, 3, 1], [3.0, 1, 0, 2]])
    grids = np.tile([0.5, 2.0], (N, 1))
    tally = platform.serve(requests, bids, Dice(1, 4, 3), 0, grids)
    strengths = np.repeat([plan.strengths for plan in platform.terms.plans], 2, axis=0)
    by_ad = np.take_along_axis(strengths, live.given.ads, axis=1)
    shown = steered(live.given, by_ad, mechanism.steering)
    itctr = np.zeros((2, N))
    for row, (each, ads) in enumerate(zip(shown, live.given.ads, strict=True)):
        itctr[row // 2, ads] += each @ live.given.ctr[row]
    np.testing.assert_allclose(tally.itctr, itctr, atol=1e-12)
    # what other bids would bring is known from the recording
    told = platform.terms.counterfactual_sums(requests, grids)
    np.testing.assert_array_equal(tally.along[0], told[0])


def test_an_llm_s_replies_cut_short_are_beside_them_where_they_are_wanted(engine, monkeypatch):
    ads = [(b % 2, 2, 3) for b in range(2)]
    asked = [
        Request(f"Q-{b}", query, f"U-{b}", f"User {b}.", ADS, ads[b])
        for b, query in enumerate(("How do I sleep better?", "Which tea is good?"))
    ]
    users = BehaviouralUsers(HashEncoder())
    design = Design(replies=8, temperature=0.8, rules=Rules(max_tokens=40, loop=10**6))
    pool = record(asked, engine, users, design, num_advertisers=N)
    monkeypatch.setattr(environment, "make_pool", lambda *_, **__: pool)
    monkeypatch.setattr(environment, "make_requests", lambda *_: (asked, users))
    scenario = Scenario.from_dict(
        {"requests": {"queries": 2, "ads": 3}, "population": [{"objective": "utility", "count": N}]}
    )
    arms = [iamfm(), make_mechanism("iamfm-model"), make_mechanism("mosaic", tau=0.1)]
    ours, model, mosaic = environment.pools_of(scenario, arms)
    assert ours is model and mosaic is pool
    short, full = iamfm().evaluator(ours).levels
    assert (short.name, short.biased, full.name, full.biased) == ("short", True, "full", False)
    assert (ours.extras["short_tokens"] <= iamfm().evaluator(ours)._tokens[1]).all()


def test_under_exact_prices_truth_is_dominant_and_hedge_comes_near_to_what_it_brings():
    mechanism = iamfm(tokens=None, period=1)
    model = market(mechanism, rounds=300, learners=("hedge", "truthful"))
    model.run()
    [hedge] = [g.learner for g in model.groups if g.learner.name == "hedge"]
    grids = np.zeros((N, hedge.support.shape[1]))
    grids[::2] = hedge.support
    everything = np.tile(np.arange(len(POOL.ads)), (R, 1))
    clicks, paid = mechanism.counterfactual_sums(POOL, everything, model.bids, grids)
    utility = (model.values[:, None] * clicks - paid)[:, ::2]
    truth = np.abs(hedge.support - model.values[::2, None]).argmin(axis=1)
    best = utility[:, np.arange(N // 2), truth]
    assert (best >= utility.max(axis=2) - 1e-12).all() and (best.sum(axis=1) > 0).all()
    played = (utility * hedge.state["weights"]).sum(axis=2)
    assert (played.sum(axis=1) >= 0.9 * best.sum(axis=1)).all()


def test_the_scenario_is_the_default_market():
    ours, default = Scenario.from_yaml("iamfm"), Scenario.from_yaml("default")
    for name in ("requests", "replies", "population", "advertisers", "catalog"):
        assert getattr(ours, name) == getattr(default, name)
    names = [arm.name for arm in ours.arms]
    assert names == ["iamfm-elimination", "mosaic", "llm-auction-ideal"]


def test_synthetic_replies_are_refused_before_anything_is_run():
    with pytest.raises(BadInput, match="iamfm-elimination needs replies by an LLM"):
        Scenario.from_dict({"mechanism": "iamfm-elimination", "replies": {"source": "synthetic"}})
