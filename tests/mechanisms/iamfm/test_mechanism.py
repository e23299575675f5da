"""IAMFM as a mechanism: configuration, prices, budget."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.errors import BadInput
from mechanisms.iamfm.configuration import Steering, full_grid
from mechanisms.iamfm.evaluations import weights_of
from mechanisms.iamfm.recorded import RecordedEvaluator
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism
from tests.mechanisms.iamfm.guided import guided_pool

N = 3
POOL = guided_pool(np.random.default_rng(3))


def iamfm(**parameters):
    return make_mechanism("iamfm-elimination", **parameters)


def bids_of(rng):
    return rng.uniform(0.2, 3.0, N) * (rng.random(N) < 0.9)


seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("name", ["iamfm-elimination", "iamfm-model"])
def test_by_name(name):
    mechanism = make_mechanism(name, tokens=1234, odds=[0.2, 0.5, 0.9], period=7)
    assert mechanism.odds == (0.2, 0.5, 0.9) and mechanism.period == 7
    assert make_mechanism(name, **mechanism.parameters) == mechanism
    assert mechanism.exact.tokens is None and mechanism.exact.exact == mechanism.exact
    assert mechanism.writing == {"generation": "guided", "inline_rate": 0.0}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tokens": 0}, "tokens is 0; give a finite number > 0"),
        ({"payments": 1.0}, "payments is 1.0; give a share"),
        ({"how": "vcg"}, "how is 'vcg'; give one of 'aco', 'naive', 'naive-common', 'none'"),
        ({"odds": [0.4, 0.1]}, "steering odds are"),
        ({"period": 0}, "period is 0; give a whole number >= 1"),
        ({"by": "luck"}, "by is 'luck'"),
    ],
)
def test_refuses(parameters, message):
    with pytest.raises(BadInput, match=message) as refused:
        iamfm(**parameters)
    assert "\n" not in str(refused.value)


def test_refuses_replies_that_cannot_be_weighed_anew():
    synthetic = ReplyPool.synthetic(4, 6, 3, np.random.default_rng(0))
    with pytest.raises(BadInput, match="IAMFM needs replies of guided insertion"):
        iamfm().allocate(synthetic, np.ones(3))


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_without_a_limit_it_is_vcg_by_enumeration(seed):
    """Against outcomes summed here, reply by reply, and payments by two loops."""
    rng = np.random.default_rng(seed)
    pool, bids, mu = guided_pool(rng, requests=3, replies=25), bids_of(rng), rng.uniform(0, 2)
    found = iamfm(tokens=None, user_weight=mu).allocate(pool, bids)
    grid = full_grid(N, 2)
    evaluator = RecordedEvaluator(pool, grid, Steering())
    outcomes = np.zeros((len(grid), N + 1))
    for s, strengths in enumerate(grid):
        shown = evaluator.probabilities(strengths)
        for b in range(3):
            outcomes[s, pool.ads[b]] += shown[b] @ pool.ctr[b] / 3
            outcomes[s, N] += shown[b] @ pool.quality[b] / 3
    welfare = outcomes @ weights_of(bids, mu)
    best = welfare.argmax()
    np.testing.assert_allclose(found.probabilities, evaluator.probabilities(grid[best]), rtol=1e-12)
    paid = pool.by_advertiser(found.payments) / 3
    for i in range(N):
        others = outcomes @ weights_of(bids, mu, without=i)
        assert paid[i] == pytest.approx(others.max() - others[best], abs=1e-9)


def test_many_tokens_come_near_to_it():
    bids = np.array([1.0, 2.0, 1.5])
    exact = iamfm(tokens=None, odds=[0.4]).allocate(POOL, bids)
    near = iamfm(tokens=4e6, odds=[0.4]).allocate(POOL, bids)
    far = [iamfm(tokens=1500, odds=[0.4], seed=s).allocate(POOL, bids) for s in range(8)]

    def error(found):
        gap = POOL.by_advertiser(found.payments) - POOL.by_advertiser(exact.payments)
        return np.abs(gap).mean() / len(POOL.ads)

    np.testing.assert_allclose(near.probabilities, exact.probabilities)
    assert error(near) < 0.01
    assert error(near) < np.mean([error(found) for found in far]) / 4


@settings(max_examples=40, deadline=None)
@given(
    seeds,
    st.sampled_from([300.0, 2000.0, 20000.0]),
    st.sampled_from(["aco", "none", "naive"]),
    st.sampled_from(["halving", "confidence"]),
)
def test_nobody_is_charged_above_its_bid_and_no_budget_is_exceeded(seed, tokens, how, by):
    rng = np.random.default_rng(seed)
    bids = bids_of(rng)
    mechanism = iamfm(tokens=max(tokens, 4000 * (how == "naive")), how=how, by=by, odds=[0.3])
    plan = mechanism.plan(POOL, bids, seed)
    assert ((plan.prices >= 0) & (plan.prices <= bids)).all()
    record = plan.record
    assert record["tokens_allocation"] + record["tokens_payments"] <= mechanism.tokens
    assert record["tokens_allocation"] <= 0.7 * mechanism.tokens and record["tokens_allocation"] > 0
    assert (record["tokens_payments"] > 0) <= (how != "none")
    assert record["welfare"] <= record["best_welfare"] + 1e-12
    outcome = mechanism.run(POOL, bids, rng)
    assert (outcome.charges <= POOL.bids_by_request(bids) * outcome.clicks).all()
    assert (outcome.payments <= POOL.bids_by_request(bids) * outcome.itctr).all()
    np.testing.assert_allclose(outcome.probabilities.sum(axis=1), 1)


def test_the_model_based_one_keeps_the_same_rules():
    bids = np.array([1.0, 2.0, 1.5])
    mechanism = make_mechanism("iamfm-model", tokens=2500, odds=[0.4])
    plan = mechanism.plan(POOL, bids, 0)
    record = plan.record
    assert 0 < record["tokens_allocation"] <= 0.7 * 2500 and record["tokens_payments"] > 0
    assert record["tokens_allocation"] + record["tokens_payments"] <= 2500
    assert ((plan.prices >= 0) & (plan.prices <= bids)).all()
    assert record["welfare"] > 0.9 * record["best_welfare"]


def test_same_seed_same_plan_and_others_differ():
    bids, plans = np.array([1.0, 2.0, 1.5]), []
    for seed in (5, 5, 6):
        pool = guided_pool(np.random.default_rng(3))  # which remembers no plans
        plans.append(iamfm(tokens=3000).plan(pool, bids, seed))
    one, again, other = (plan.settlement for plan in plans)
    assert one.outcomes.tobytes() == again.outcomes.tobytes() != other.outcomes.tobytes()
    assert one.payments.tobytes() == again.payments.tobytes()
    assert (one.chosen, one.tokens) == (again.chosen, again.tokens)


def test_plans_do_not_change_with_the_array_that_held_their_bids():
    bids = np.array([1.0, 2.0, 1.5])
    mechanism = iamfm(tokens=None, seed=1)
    before = mechanism.allocate(POOL, bids)
    bids[:] = 0.0
    again = mechanism.plan(POOL, np.array([1.0, 2.0, 1.5]), 0)
    np.testing.assert_array_equal(again.bids, [1.0, 2.0, 1.5])
    assert before.payments.sum() > 0 == mechanism.allocate(POOL, bids).payments.sum()


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_advertisers_are_treated_alike(seed):
    """Without noise, names do not matter: everything moves with the advertisers."""
    rng = np.random.default_rng(seed)
    pool, bids, order = guided_pool(rng, requests=4, replies=20), bids_of(rng), rng.permutation(N)
    renamed = replace(pool, ads=np.argsort(order)[pool.ads])
    one = iamfm(tokens=None).allocate(pool, bids)
    other = iamfm(tokens=None).allocate(renamed, bids[order])
    np.testing.assert_allclose(other.probabilities, one.probabilities, atol=1e-9)
    np.testing.assert_allclose(other.payments, one.payments, atol=1e-9)


@pytest.mark.parametrize("tokens", [None, 4000])
def test_other_bids_at_the_bid_played_are_what_was_planned(tokens):
    bids = np.array([1.0, 2.0, 1.5])
    mechanism = iamfm(tokens=tokens)
    found = mechanism.allocate(POOL, bids)
    tried = np.stack([np.zeros(N), bids, 3 * bids], axis=1)
    itctr, payments = mechanism.counterfactual(POOL, bids, tried[POOL.ads])
    np.testing.assert_allclose(itctr[:, :, 1], found.itctr, atol=1e-12)
    np.testing.assert_allclose(payments[:, :, 1], found.payments, atol=1e-12)
    assert (payments[:, :, 0] == 0).all()
    total = [POOL.by_advertiser(itctr[:, :, g]) for g in range(3)]
    if tokens is None:  # VCG is monotone in the bid
        assert (total[0] <= total[1] + 1e-12).all() and (total[1] <= total[2] + 1e-12).all()
        for i in range(N):
            higher = bids.copy()
            higher[i] *= 3
            want = mechanism.allocate(POOL, higher)
            mine = POOL.ads == i
            np.testing.assert_allclose(itctr[mine][:, 2], want.itctr[mine], atol=1e-12)
            np.testing.assert_allclose(payments[mine][:, 2], want.payments[mine], atol=1e-9)


def test_says_what_is_estimated():
    assert iamfm(tokens=None).estimates(POOL) == {}
    said = iamfm(tokens=500, cap=27).estimates(POOL)
    assert said["tokens"] == 500 and said["configurations"] == 27
