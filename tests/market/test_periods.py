"""Markets under a mechanism that reads bids once a period."""

from types import SimpleNamespace as Record

import numpy as np
import polars as pl
import pytest

from agents.learners import Feedback
from market.model import MarketModel
from market.parallel_env import MarketEnv
from mechanisms.pool import ReplyPool
from tests.mechanisms.leader import Leader

N, R, ROUNDS = 4, 3, 10
POOL = ReplyPool.synthetic(12, 8, 3, np.random.default_rng(1), advertisers=N)


def scenario(learner="hedge", budget=None, rounds=ROUNDS):
    specs = [
        Record(
            objective="value" if i % 2 else "utility",
            value=1.0 + 0.3 * i,
            target_roi=1.2 if i % 2 else None,
            budget=budget,
            learner=Record(name=learner, parameters={}),
        )
        for i in range(N)
    ]
    return Record(
        rounds=rounds, requests_per_round=5, replications=R, advertisers=specs, mechanism=None
    )


def market(period=4, seed=0, **changes):
    return MarketModel(scenario(**changes), seed, pool=POOL, mechanism=Leader(period))


def test_bids_are_read_at_the_start_of_a_period_and_stand_until_the_next():
    model = market()
    people = model.run().advertisers
    bids = people["bid"].to_numpy().reshape(R, ROUNDS, N)
    for start in (0, 4, 8):
        assert (bids[:, start : start + 4] == bids[:, [start]]).all()
    assert (bids[:, 0] != bids[:, 4]).any() and (bids[:, 4] != bids[:, 8]).any()
    plans = pl.DataFrame(model.platform.plans)
    assert plans.select("period", "round").unique(maintain_order=True).rows() == [
        (0, 0), (1, 4), (2, 8),
    ]  # fmt: skip
    assert plans["replication"].to_list() == list(range(R)) * 3
    leaders = plans["leader"].to_numpy().reshape(3, R)
    np.testing.assert_array_equal(leaders, bids[:, ::4].argmax(axis=2).T)
    assert plans["seed"].n_unique() == len(plans)  # every period is planned on chances of its own


def test_charges_are_at_most_bid_times_clicks_in_every_round():
    people = market().run().advertisers
    assert (people["charge"] <= people["bid"] * people["clicks"] + 1e-12).all()
    assert people["charge"].sum() > 0


def test_a_period_is_one_round_to_learners_told_in_means():
    """By a learner that keeps what it hears, beside tallies of all rounds."""
    model = market(learner="truthful")
    [group] = model.groups
    heard, tallies = [], []
    group.learner.feedback = "full"
    group.learner.learn = heard.append
    serve = model.platform.serve

    def kept(*given):
        tallies.append(serve(*given))
        return tallies[-1]

    model.platform.serve = kept
    model.run()
    assert len(heard) == 3 and len(tallies) == ROUNDS
    for told, (start, stop) in zip(heard, ((0, 4), (4, 8), (8, 10)), strict=True):
        assert isinstance(told, Feedback)
        for name in ("clicks", "charges", "itctr", "payments", "requests"):
            mean = np.mean([getattr(each, name) for each in tallies[start:stop]], axis=0)
            np.testing.assert_allclose(getattr(told, name), mean, err_msg=name)


def test_learners_hear_along_their_grids_what_other_bids_would_have_made_of_the_period():
    model = market(period=5)
    [group] = model.groups
    heard, learn = [], group.learner.learn
    group.learner.learn = lambda feedback: (heard.append(feedback), learn(feedback))
    requests = [model.arrivals.of(t) for t in range(5)]
    model.run(5)
    [told], grids = heard, group.learner.grid
    assert int(group.learner.state["rounds"]) == 1
    want = np.mean(
        [Leader().counterfactual_sums(POOL, each, model.bids, grids) for each in requests], axis=0
    )
    np.testing.assert_allclose(told.grid_itctr, want[0], atol=1e-12)
    np.testing.assert_allclose(told.grid_payments, want[1], atol=1e-12)
    # the bid that was played is on the grid: there, it is what was expected of the period
    played = np.abs(grids - model.bids[0][:, None]).argmin(axis=1)
    at = (np.arange(N), played)
    np.testing.assert_allclose(told.grid_itctr[0][at], told.itctr[0], atol=1e-12)
    np.testing.assert_allclose(told.grid_payments[0][at], told.payments[0], atol=1e-12)


def test_budgets_hold_within_a_period_and_end_bids_with_it():
    people = market(learner="truthful", budget=0.4).run().advertisers
    assert (people["spend"] <= 0.4 + 1e-12).all()
    gone = people.filter((pl.col("round") == 7) & (pl.col("spend") >= 0.4 - 1e-9))
    assert gone.height
    for who in gone.select("replication", "advertiser").rows(named=True):
        rows = people.filter(
            (pl.col("replication") == who["replication"])
            & (pl.col("advertiser") == who["advertiser"])
        )
        assert (rows["bid"][8:] == 0).all() and (rows["charge"][8:] == 0).all()


def test_same_seed_same_bytes(tmp_path):
    written = []
    for name, seed in (("one", 4), ("again", 4), ("other", 5)):
        folder = market(seed=seed).run().save(tmp_path / name)
        written.append([(folder / f"{kind}.parquet").read_bytes() for kind in ("rounds",)])
    assert written[0] == written[1] != written[2]


def test_a_period_of_one_round_is_a_round():
    model = market(period=1)
    model.run()
    [group] = model.groups
    assert int(group.learner.state["rounds"]) == ROUNDS
    assert len(model.platform.plans) == ROUNDS * R


def test_a_step_of_the_environment_is_a_period():
    env = MarketEnv(scenario(), pool=POOL, mechanism=Leader(4))
    env.reset(seed=1)
    steps = 0
    while env.agents:
        actions = {agent: np.array([0.2 * steps + 0.5]) for agent in env.agents}
        _, rewards, _, over, _ = env.step(actions)
        steps += 1
        assert all(np.isfinite(each) for each in rewards.values())
    assert steps == 3 and all(over.values()) and env.market.round == ROUNDS
    bids = env.market.ledger.advertisers_frame()["bid"].to_numpy().reshape(ROUNDS, N)
    assert (bids[:4] == bids[0]).all() and (bids[4:8] == bids[4]).all()
    assert (bids[4] != bids[0]).all()


@pytest.mark.parametrize("learner", ["hedge", "pacing", "exp3", "gradient"])
def test_learners_learn_under_periods(learner):
    model = market(learner=learner, rounds=9)
    model.run()
    assert all(int(g.learner.state["rounds"]) == 3 for g in model.groups)
