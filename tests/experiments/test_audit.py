"""Audits: known regrets, mechanisms that are truthful, and ones that are deliberately broken."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.users import BehaviouralUsers
from experiments.audit.deviations import MULTIPLES, deviations
from experiments.audit.findings import CLAIMS, PROPERTIES, THRESHOLD
from experiments.audit.misreports import Liars, climb
from experiments.audit.report import audit
from experiments.audit.resampling import Regrets
from experiments.game import population_of
from market.environment import make_pool, make_requests, pool_folder
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.insertion import Rules
from mechanisms.llm import weights
from mechanisms.llm_auction.ideal import IdealLLMAuction
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool
from mechanisms.recording import Design, Request, record
from mechanisms.registry import make_mechanism
from tests.experiments.broken import (
    BROKEN,
    Overcharged,
    OverchargedInTheEnd,
    Undercharged,
    WarmerAllocation,
)
from tests.mechanisms.pools import VARIANTS, pools, rich, variant
from tests.tiny_llm import ADS, HashEncoder

N, VALUES = 8, np.linspace(1.0, 4.0, 8)
QUICK = {"grid": [0, 0.5, 0.8, 0.95, 1, 1.05, 1.3, 2, 5], "times": 2}
FIRST_PRICE = {"llm-auction-ideal": {"tau": 0.1}, "first-price": {}}


@pytest.fixture(scope="module")
def pool():
    return ReplyPool.synthetic(40, 16, 4, np.random.default_rng(0), advertisers=N)


def one_item(*rivals):
    """A request per rival, with a reply that shows advertiser 0 and one that shows the rival."""
    ads = [[0, i + 1] for i in range(len(rivals))]
    ctr = np.broadcast_to(np.eye(2), (len(ads), 2, 2))
    return ReplyPool.from_arrays(ctr, ads=ads)


# What is known


def test_first_price_regret_by_hand():
    """Alone against a bid of 1, a value of 2 pays 2 under truth and needs to pay little over 1."""
    found = audit(make_mechanism("first-price"), one_item(1.0), [2.0, 1.0])
    assert found.regret[0] == pytest.approx(0.5, abs=1e-3)
    assert found.frame["best_multiple"][0] == pytest.approx(0.5, abs=1e-3)
    assert found.frame["gain_per_click_value"][0] == pytest.approx(0.5, abs=1e-3)
    assert found.regret[1] == 0
    assert found.max_regret == found.regret[0]
    assert found.interval == (0.0, np.inf)  # one request tells nothing of others
    assert found.finding("truthful").verdict == "may fail"
    assert found.finding("conditional").verdict == "fails"  # here it does


def test_one_bid_for_all_requests_gains_less_than_a_bid_for_each():
    """Against 1 and 1.8: shade to 1.8 for both, 0.4, or lose one, 1; by request, 0.2 + 1."""
    found = audit(make_mechanism("first-price"), one_item(1.0, 1.8), [2.0, 1.0, 1.8])
    assert found.regret[0] == pytest.approx(1 / 4, abs=1e-3)
    assert found.frame["conditional_regret"][0] == pytest.approx(1.2 / 4, abs=0.03)  # by the grid
    assert found.frame["conditional_regret"][0] <= 0.3


def test_value_maximizer_by_hand():
    """Second price, rivals at 0 and 1.9, target 1.2: bidding above v / 1.2 wins both, pays 1.9."""
    arguments = [2.0, 1.0, 1.9], ("value", "utility", "utility"), 1.2
    others = [5 / 3, 0.0, 1.9]
    found = audit(make_mechanism("vcg"), one_item(0.0, 1.9), *arguments, others=others)
    assert found.regret[0] == pytest.approx(1.0)
    assert found.frame["best_multiple"][0] == pytest.approx(1.9 / (5 / 3), abs=1e-3)
    assert found.finding("value").claimed is False
    assert found.finding("target").verdict == "holds"
    # with a target that two wins at 1.9 would miss, truth is best
    strict = audit(make_mechanism("vcg"), one_item(0.0, 1.9), *arguments[:2], 2.2, others=others)
    assert strict.regret[0] == 0


def test_value_maximizers_choose_by_request_within_their_target():
    """Rivals at 1, 1.5 and 3 in all: two of three requests can be had at an ROI of 4 / 2.5."""
    people = ["value", *["utility"] * 3]
    others = [0.0, 1.0, 1.5, 3.0]
    found = audit(
        make_mechanism("vcg"), one_item(1.0, 1.5, 3.0), [2.0, 1, 1.5, 3], people, 1.6, others=others
    )
    truthful = 2.0  # v / roi = 1.25 wins the first
    assert found.frame["attained"][0] * 3 == pytest.approx(truthful)
    assert found.frame["conditional_regret"][0] == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["mosaic", "vcg", "segment"])
def test_truthful_mechanisms(name, pool):
    parameters = {"tau": 0.1} if name == "mosaic" else {}
    found = audit(make_mechanism(name, **parameters), pool, VALUES)
    assert found.max_regret < THRESHOLD
    assert found.interval[0] == 0
    assert set(found.regrets.high) <= {0.0, np.inf}  # infinite: won too little to tell
    assert (found.regrets.high == 0).sum() >= N - 2
    assert [each for each in found.findings if each.verdict != "holds"] == []
    assert "No deviation gains" in found.verdict


@pytest.mark.parametrize("name", FIRST_PRICE)
def test_first_prices_are_not_truthful(name, pool):
    found = audit(make_mechanism(name, **FIRST_PRICE[name]), pool, VALUES)
    assert found.max_regret > 0.1
    assert found.interval[0] > 0.01
    assert found.finding("truthful").conclusion == "fails (not claimed)"
    assert found.finding("rational").verdict == "holds"
    best = found.frame.filter(pl.col("regret") > 0)["best_multiple"]
    assert (best < 1).all()


def test_value_maximizers_are_truthful_under_first_prices_and_bid_above_under_rochet(pool):
    for name in FIRST_PRICE:
        found = audit(make_mechanism(name, **FIRST_PRICE[name]), pool, VALUES, "value", 1.3)
        assert found.max_regret < THRESHOLD
    found = audit(Mosaic(0.1), pool, VALUES, "value", 1.3)
    assert found.finding("value").conclusion == "fails (not claimed)"
    assert (found.frame["best_multiple"] > 1.1).all()
    assert found.ir_violations["value"].none


def test_mosaic_on_log_ratios_is_truthful_in_what_it_sells(pool):
    ratios = np.random.default_rng(1).normal(0, 2, pool.shape)
    recorded = replace(pool, extras={"log_ratios": ratios})
    found = audit(Mosaic(4.0, reward="log-ratio"), recorded, np.ones(N))
    assert found.max_regret < THRESHOLD
    assert found.finding("reports").verdict == "holds"
    assert found.finding("bounded").conclusion == "fails (not claimed)"  # ads that talk users out


@settings(max_examples=12, deadline=None)
@given(pools(min_ads=1), st.sampled_from(["mosaic", "mosaic-cold", "mosaic-no-offset", "vcg"]))
def test_truthful_on_any_pool(drawn, name):
    values = 0.5 + np.arange(drawn.num_advertisers)
    found = audit(variant(name), drawn, values, **QUICK)
    assert found.max_regret < THRESHOLD
    assert found.finding("conditional").verdict == "holds"
    assert found.finding("monotone").verdict == "holds"


@pytest.mark.parametrize("key", VARIANTS)
def test_everything_claimed_holds(key, pool):
    """Of every mechanism, but for segments above 1, which may break it on recorded pools."""
    kinds = ["utility", "value"] * 4
    found = audit(variant(key), rich(pool.take(range(12))), VALUES, kinds, 1.2, **QUICK)
    assert not found.frame.is_empty()
    for each in found.findings:
        if each.claimed and key not in ("segments-2", "segments-3"):
            assert each.verdict == "holds", str(each)
    assert CLAIMS.keys() >= {found.mechanism}


# What is broken


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_payments_are_caught(broken, pool):
    found = audit(broken(0.1), pool, VALUES)
    assert found.max_regret > 100 * THRESHOLD
    assert found.finding("truthful").verdict != "holds"
    assert found.finding("truthful").claimed
    assert found.finding("conditional").conclusion == "fails"
    assert found.finding("settled").verdict == "holds"
    if broken in (Overcharged, Undercharged):  # what the others gain differs by request too much
        assert found.interval[0] > 0
        assert found.finding("truthful").conclusion == "fails"


def test_a_broken_factor_shows_in_arbitrary_reports(pool):
    found = audit(Overcharged(0.1), pool, VALUES, **QUICK)
    assert found.finding("reports").verdict == "fails"
    worst = found.misreports.sort("largest").tail(1)
    assert worst["kind"][0].startswith("searched")  # better than any rule of thumb


def test_charges_that_are_not_the_payments_are_caught(pool):
    found = audit(OverchargedInTheEnd(0.1), pool, VALUES)
    assert found.max_regret < THRESHOLD
    assert found.finding("settled").conclusion == "fails"


def test_learners_that_are_told_something_else_are_caught(pool):
    found = audit(WarmerAllocation(0.1), pool, VALUES, **QUICK)
    assert found.finding("counterfactuals").conclusion == "fails"

    class Optimist(Mosaic):
        def counterfactual_sums(self, *asked):
            clicks, payments = super().counterfactual_sums(*asked)
            return clicks, 0.9 * payments

    found = audit(Optimist(0.1), pool, VALUES, **QUICK)
    assert found.finding("counterfactuals").conclusion == "fails"
    assert found.max_regret < THRESHOLD


def test_entry_fees_and_falling_clicks_are_caught(pool):
    class Fee(Mosaic):
        def expected_payments(self, declared, log_z, log_z_without):
            return super().expected_payments(declared, log_z, log_z_without) + 0.3

    found = audit(Fee(0.1), pool, VALUES, ["utility", "value"] * 4, 1.2, **QUICK)
    for key in ("rational", "target", "bounded"):
        assert found.finding(key).conclusion == "fails"
    assert found.finding("truthful").verdict == "holds"  # a fee moves no bid
    lost = found.ir_violations["utility"]
    assert 0 < lost.requests <= 1
    assert lost.worst_request < 0
    assert 0 < lost.totals <= 1

    class Perverse(Mosaic):
        def allocate(self, pool, bids):
            return super().allocate(pool, 1 / (0.1 + pool.bids_by_request(bids)))

    assert audit(Perverse(0.1), pool, VALUES, **QUICK).finding("monotone").conclusion == "fails"


def test_truth_that_misses_its_target_is_no_yardstick(pool):
    """Charged 1.3 times its bid, a truthful value maximizer owes 0.3 of its value, and v/1.3 none.

    The target is missed by 30 % of value at every multiple above 1 / 1.3, where clicks are fewer.
    """

    class Dearer(IdealLLMAuction):
        def expected_payments(self, declared, log_z, log_z_without):
            return 1.3 * super().expected_payments(declared, log_z, log_z_without)

    found = audit(Dearer(tau=0.1), pool, VALUES, "value", 1.2)
    np.testing.assert_allclose(found.regret, 0.3)
    assert (found.frame["best_multiple"] == 1).all()
    assert (found.frame["conditional_regret"] >= 0.3 - 1e-9).all()
    assert found.interval[0] > 0.29
    assert found.finding("value").conclusion == "fails (not claimed)"
    assert f"Truth misses the target ROI of {N}" in found.finding("value").evidence
    assert found.finding("target").conclusion == "fails"


def test_the_search_climbs(pool):
    """Under first prices reports below the truth gain; from the truth the search finds that."""

    class FirstPrice(Mosaic):
        def expected_payments(self, declared, log_z, log_z_without):
            return declared

    people = population_of(pool, VALUES)
    liars = Liars.of(FirstPrice(0.1), pool, people, VALUES)
    honest = liars.outcome(liars.truth)[1]
    reached = liars.outcome(climb(liars, liars.truth))[1]
    halved = np.max([liars.outcome(f * liars.truth)[1] for f in np.linspace(0, 1, 21)], axis=0)
    assert (reached >= honest).all()
    assert reached.mean() > halved.mean()  # R^M holds more than one line


def test_settlement_decides_who_loses_ex_post(pool):
    """Expected settlement charges ads that are not shown; realised leaves every reply the same."""
    lost = {
        way: audit(Mosaic(0.1, settlement=way), pool, VALUES, **QUICK).ir_violations["utility"]
        for way in ("expected", "realised")
    }
    assert lost["expected"].replies > 0.1
    assert lost["realised"].replies == 0
    assert lost["expected"].requests == lost["realised"].requests == 0


# Measures


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


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": [1.0]}, "values have shape"),
        ({"values": -VALUES}, "values hold a number"),
        ({"objective": "fame"}, "'fame'"),
        ({"objective": ["utility"] * 3}, "3 entries"),
        ({"objective": "value", "roi": 0.0}, "roi hold a number"),
        ({"objective": "value", "roi": [1.0, 2.0]}, "roi has shape"),
        ({"others": "learned"}, "others: give 'truthful' or 8"),
        ({"others": [1.0]}, "others: give 'truthful' or 8"),
        ({"others": -VALUES}, "others: give 'truthful' or 8"),
        ({"grid": []}, "grid must list"),
        ({"grid": [-1.0]}, "grid must list"),
        ({"grid": [np.nan]}, "grid must list"),
        ({"times": 0}, "times is 0"),
    ],
)
def test_bad_input(pool, changes, message):
    with pytest.raises(BadInput, match=message) as error:
        audit(Mosaic(0.1), pool, **{"values": VALUES, **changes})
    assert "\n" not in str(error.value)


# Replies by an LLM


def test_a_tiny_llm(engine):
    """Replies written on the spot, with importance weights that differ."""
    queries = ("How do I sleep better?", "Which tea is good?", "Do my shoes fit?", "A soft bed?")
    requests = [
        Request(f"Query-{b}", query, f"User-{b}", f"User number {b}.", ADS, (b % 2, 2, 3))
        for b, query in enumerate(queries)
    ]
    design = Design(replies=10, temperature=0.8, rules=Rules(max_tokens=40, loop=10**6))
    written = record(requests, engine, BehaviouralUsers(HashEncoder()), design, num_advertisers=4)
    assert np.ptp(written.log_weights) > 0
    values = [1.0, 2.0, 3.0, 4.0]
    assert audit(Mosaic(0.1), written, values).max_regret < THRESHOLD
    assert audit(make_mechanism("llm-auction-ideal", tau=0.1), written, values).max_regret > 0.01
    assert audit(Overcharged(0.1), written, values).max_regret > THRESHOLD


@pytest.fixture(scope="module")
def default():
    """The default scenario with its replies, where they have been recorded."""
    scenario = Scenario.from_yaml("default")
    try:
        weights.locate("all-minilm-l6-v2")
    except BadInput as error:
        pytest.skip(f"the text encoder is not to be had: {error}")
    folder = pool_folder(scenario, *make_requests(scenario))
    if not (folder / "manifest.json").exists():
        pytest.skip("the default scenario's replies are not in the cache; admarket record")
    people = scenario.advertisers
    types = {
        "values": [each.value for each in people],
        "objective": [each.objective for each in people],
        "roi": [each.target_roi for each in people],
    }
    return make_pool(scenario), types


def test_mosaic_on_the_default_pool(default):
    recorded, types = default
    found = audit(Mosaic(0.1), recorded, **types)
    um = np.array([kind == "utility" for kind in types["objective"]])
    assert found.regret[um].max() < 1e-6
    assert found.finding("reports").verdict == "holds"
    assert found.finding("rational").verdict == "holds"
    assert found.finding("target").verdict == "holds"
    everybody = audit(Mosaic(0.1), recorded, types["values"])
    assert everybody.max_regret < 1e-6
    assert everybody.interval == (0, 0)


@pytest.mark.parametrize("name", FIRST_PRICE)
def test_first_prices_on_the_default_pool(default, name):
    recorded, types = default
    found = audit(make_mechanism(name, **FIRST_PRICE[name]), recorded, types["values"])
    assert found.max_regret > 0.2
    assert found.interval[0] > 0.05


@pytest.mark.parametrize("broken", [each for each in BROKEN if each is not WarmerAllocation])
def test_broken_payments_on_the_default_pool(default, broken):
    recorded, types = default
    found = audit(broken(0.1), recorded, types["values"])
    assert found.max_regret > 1e-4
    assert found.interval[0] > 0
    assert found.finding("truthful").verdict == "fails"


def test_a_broken_allocation_on_the_default_pool(default):
    """Gains are seen; whether 28 requests prove them depends on the replies a CPU recorded."""
    recorded, types = default
    found = audit(WarmerAllocation(0.1), recorded, types["values"])
    assert found.max_regret > 1e-4
    assert found.finding("truthful").verdict in ("fails", "may fail")
