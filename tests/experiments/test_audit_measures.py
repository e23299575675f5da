"""What an audit reports: figures that agree with each other, with dice and with other requests."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from experiments.audit.deviations import MULTIPLES, deviations
from experiments.audit.findings import PROPERTIES
from experiments.audit.report import audit
from experiments.audit.resampling import Regrets
from experiments.game import population_of
from mechanisms.llm_auction.ideal import IdealLLMAuction
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism
from tests.experiments.small_audit import FIRST_PRICE, QUICK, VALUES, N, one_item, synthetic


@pytest.fixture(scope="module")
def pool():
    return synthetic()


@pytest.mark.parametrize("factor", [1.0, 1.05])
def test_realised_gains_agree_with_exact_ones(pool, factor):
    """And charges that are 5 % above payments show: dice are compared on the same requests."""

    class Charging(IdealLLMAuction):
        def charge(self, *served):
            return factor * super().charge(*served)

    found = audit(Charging(tau=0.1), pool, VALUES, times=2000, grid=QUICK["grid"]).frame
    low, high = found["realised_gain_low"], found["realised_gain_high"]
    inside = (low < found["tried_gain"]) & (found["tried_gain"] < high)
    assert (found["tried_gain"] > 0).all()
    if factor == 1:
        assert inside.sum() >= N - 1
    else:
        assert inside.sum() <= 2


def test_deviations_of_anybody_meet_the_same_requests(pool):
    people = population_of(pool, VALUES)
    mechanism = make_mechanism("first-price")
    every = deviations(mechanism, pool, people, VALUES, 2, MULTIPLES)
    some = deviations(mechanism, pool, people, VALUES, 2, np.array([0.5, 1.0]))
    for multiple in (0.5, 1.0):
        one, two = (int(np.searchsorted(x.multiples, multiple)) for x in (every, some))
        np.testing.assert_array_equal(every.value[:, one], some.value[:, two])
        np.testing.assert_array_equal(every.payment[:, one], some.payment[:, two])
    direct = mechanism.allocate(pool, VALUES)
    row, column = np.nonzero(pool.ads == 2)
    np.testing.assert_allclose(every.payment[:, every.truth], direct.payments[row, column])


def test_frames_and_table_agree(pool):
    found = audit(make_mechanism("llm-auction-ideal", tau=0.1), pool, VALUES)
    table = found.table
    assert table.height == N * len(MULTIPLES)
    assert (table.filter(pl.col("multiple") == 1)["gain"] == 0).all()
    greatest = table.group_by("advertiser").agg(pl.col("regret").max()).sort("advertiser")
    assert (greatest["regret"].to_numpy() <= found.regret + 1e-15).all()
    np.testing.assert_allclose(greatest["regret"], found.regret, atol=2e-3)  # finer multiples
    frame = found.frame
    assert (frame["unseen_regret"] <= frame["regret"]).all()
    assert (frame["conditional_regret"] >= frame["regret"] - 1e-3).all()
    assert (
        (frame["regret_low"] <= frame["regret"]) & (frame["regret"] <= frame["regret_high"])
    ).all()
    missed = audit(Mosaic(0.1), pool, VALUES, "value", 1.3).table
    assert missed.filter(pl.col("multiple") == 10)["regret"].null_count() > 0


def test_the_same_generator_gives_the_same_report(pool):
    one, two, other = (
        audit(Mosaic(0.1), pool, VALUES, rng=np.random.default_rng(seed), **QUICK)
        for seed in (4, 4, 5)
    )
    for name in ("frame", "table", "misreports"):
        assert getattr(one, name).equals(getattr(two, name))
    assert one.verdict == two.verdict
    assert not one.misreports.equals(other.misreports)
    assert one.table.equals(other.table)


def test_advertisers_that_never_compete(pool):
    wide = ReplyPool.from_arrays(pool.ctr, ads=pool.ads, num_advertisers=N + 1)
    found = audit(Mosaic(0.1), wide, [*VALUES, 2.0], **QUICK)
    assert found.regret[N] == 0
    assert found.frame["requests"][N] == 0
    alone = ReplyPool.from_arrays(np.ones((1, 2, 1)), ads=[[1]], num_advertisers=2)
    assert audit(make_mechanism("vcg"), alone, [1.0, 1.0], ["utility", "value"]).max_regret == 0


def test_verdict_has_a_line_for_each_property(pool):
    found = audit(Mosaic(0.1), pool, VALUES, ["utility", "value"] * 4, 1.2, **QUICK)
    lines = found.verdict.splitlines()
    assert len(lines) == len(PROPERTIES) == len(found.findings)
    for line, words in zip(lines, PROPERTIES.values(), strict=True):
        assert line.startswith(f"{words}: ")


def part(found, requests):
    """Deviations on some of the requests only."""
    keep = np.isin(found.requests, requests)
    names = ("requests", "value", "stake", "payment")
    return replace(found, **{name: getattr(found, name)[keep] for name in names})


@pytest.mark.parametrize(
    ("name", "objective"),
    [("vcg", "value"), ("first-price", "utility"), ("llm-auction-ideal", "utility")],
)
def test_upper_ends_hold_what_other_requests_would_bring(name, objective):
    """Of each advertiser; a value maximizer that nothing gains here may gain elsewhere."""
    rng = np.random.default_rng(3)
    whole = ReplyPool.synthetic(400, 12, 4, rng, advertisers=N)
    people = population_of(whole, VALUES, objective, 1.0)
    bids, grid = people.truthful_bids, np.array(QUICK["grid"])
    mechanism = make_mechanism(name, **FIRST_PRICE.get(name, {}))
    every = [deviations(mechanism, whole, people, bids, i, grid) for i in range(N)]
    truth = Regrets.of(every, 0).regret
    assert (truth > 0.1).all()
    samples = [rng.choice(400, 28, replace=False) for _ in range(8)]
    found = [Regrets.of([part(each, some) for each in every], 0) for some in samples]
    assert np.mean([each.high < truth for each in found]) <= 0.06
    assert np.mean([each.low > truth for each in found]) <= 0.06
    assert not any((each.high == 0).any() for each in found)
    assert np.mean([np.isfinite(each.high) for each in found]) > 0.5


def test_what_won_nothing_tells_nothing():
    """Under first prices, whoever always loses truthfully does not show what it would shade."""
    found = audit(make_mechanism("first-price"), one_item(3.0, 3.0, 3.0), [1.0, 3.0, 3.0, 3.0])
    assert found.regret[0] == 0
    assert found.regrets.high[0] == np.inf
    assert "too little here to tell" in found.finding("truthful").evidence


def test_what_was_tried_on_some_requests_is_said(pool):
    large = ReplyPool.synthetic(240, 6, 3, np.random.default_rng(0), advertisers=N)
    found = audit(Mosaic(0.1), large, VALUES, grid=np.linspace(0, 2, 101), times=1)
    assert found.misreported == 200
    assert "200 of 240 requests" in found.finding("reports").evidence
    compared = found.finding("counterfactuals").evidence
    assert "on 165 of 240 requests" in compared  # 50,000 auctions, 3 ads, 101 multiples


@pytest.mark.slow  # 60 audits of 28 requests each
def test_intervals_hold_what_others_requests_would_bring():
    """The lower end of the greatest regret is above the truth in few samples, the upper never."""
    rng = np.random.default_rng(0)
    whole = ReplyPool.synthetic(2000, 12, 4, rng, advertisers=N)
    mechanism = make_mechanism("llm-auction-ideal", tau=0.1)
    truth = audit(mechanism, whole, VALUES, **QUICK).max_regret
    above = below = told = 0
    for k in range(60):
        some = whole.take(rng.choice(2000, 28, replace=False))
        low, high = audit(mechanism, some, VALUES, rng=np.random.default_rng(k), **QUICK).interval
        above, below, told = above + (low > truth), below + (high < truth), told + (low > 0)
    assert above <= 8
    assert below <= 2
    assert told >= 50
