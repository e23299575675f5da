"""The measures of `admarket reproduce mosaic` on a known reply space (no LLM)."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from agents.users import Norms
from experiments.bootstrap import intervals, mean_of, ratio_of
from experiments.reproduce import mosaic, mosaic_measures
from experiments.reproduce.mosaic_misreports import misreports
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.mosaic import Mosaic
from tests.experiments.small_study import REQUESTS, VALUES, pool, small_study, world


@pytest.fixture(scope="module")
def study():
    return small_study()


def test_all_candidates_are_the_pool_itself(study):
    """At M the pool's own, nothing is drawn: value and welfare are the mechanism's."""
    found = study.convergence.filter((pl.col("M") == 32) & (pl.col("reward") == "clicks"))
    for way in mosaic.WAYS:
        traded = study.pools[way]
        outcome = Mosaic(0.1).allocate(traded, VALUES)
        value = (VALUES[traded.ads] * outcome.itctr).sum(1)
        mine = found.filter(pl.col("way") == way)
        np.testing.assert_allclose(mine["value"], value)
        np.testing.assert_allclose(mine["ess"], traded.effective_sample_size)
    assert 64 not in study.convergence["M"].to_list()


def test_the_truth_is_at_no_distance_from_itself(study):
    truth = study.pools["truth"]
    rng = np.random.default_rng(1)
    found = mosaic_measures.convergence({"truth": truth}, truth, VALUES, Mosaic(0.1), (), rng)
    np.testing.assert_allclose(found["distance"], 0, atol=1e-12)
    np.testing.assert_allclose(found["likelihood"], 0, atol=1e-9)
    np.testing.assert_allclose(found["welfare"], found["most"])
    np.testing.assert_allclose(found["gap"], 0, atol=1e-12)
    assert (found["elsewhere"] > found["distance"]).all()


def test_more_candidates_are_closer(study):
    for _, part in study.convergence.group_by("reward", "way"):
        by = part.drop("way", "reward").group_by("M").mean().sort("M")
        assert by["distance"][-1] < by["distance"][0]
        assert by["gap"][-1] < by["gap"][0]


def test_the_own_size_is_tried_where_it_is_not_listed(study):
    truth = study.pools["truth"]
    ways = {"guided": pool(world(), 11, 0)}
    rng = np.random.default_rng(0)
    found = mosaic_measures.convergence(ways, truth, VALUES, Mosaic(0.1), (1, 8, 16), rng, 4)
    assert sorted(found["M"].unique()) == [1, 8, 11]


def test_shown_sets():
    exposure = np.array([[[True, False], [True, True], [False, False], [True, False]]])
    found = mosaic_measures.shown_sets(exposure, np.array([[0.1, 0.2, 0.3, 0.4]]))
    np.testing.assert_allclose(found, [[0.3, 0.5, 0.0, 0.2]])


def test_subsets_are_drawn_without_replacement():
    whole = pool(world(), 12, 3)
    numbered = replace(whole, quality=np.tile(np.arange(12.0), (REQUESTS, 1)))
    some = mosaic_measures.subsets(numbered, 5, 400, np.random.default_rng(0))
    assert some.shape == (REQUESTS * 400, 5, 4)
    assert all(len(set(row)) == 5 for row in some.quality)
    np.testing.assert_array_equal(some.ads, np.repeat(whole.ads, 400, axis=0))
    b, j = 620 // 400, int(some.quality[620, 2])
    np.testing.assert_array_equal(some.ctr[620, 2], whole.ctr[b, j])
    np.testing.assert_array_equal(
        some.extras["log_ratios"][620, 2], whole.extras["log_ratios"][b, j]
    )
    shares = np.bincount(some.quality.astype(int).ravel()) / len(some.quality)
    np.testing.assert_allclose(shares, 5 / 12, atol=0.03)  # all are as likely


def test_subsets_hold_their_share_of_each_condition():
    whole = pool(world(), 12, 3)
    names = ["guided"] * 3 + ["context"] * 6 + ["reference"] * 3  # of each request
    order = [np.random.default_rng(b).permutation(12) for b in range(REQUESTS)]
    replies = pl.DataFrame({"condition": [names[k] for row in order for k in row]})
    numbers = np.array([[{"c": 0, "g": 1, "r": 2}[names[k][0]] for k in row] for row in order])
    numbered = replace(whole, quality=numbers.astype(float), replies=replies)
    for size, least, most in ((4, (2, 1, 1), (2, 1, 1)), (6, (3, 1, 1), (3, 2, 2))):
        some = mosaic_measures.subsets(numbered, size, 50, np.random.default_rng(0))
        held = np.stack([(some.quality == k).sum(1) for k in range(3)], axis=1)
        assert (held.min(0) == least).all()
        assert (held.max(0) == most).all()
        np.testing.assert_allclose(held.mean(0), size / 12 * np.array([6, 3, 3]), atol=0.1)


def test_offset_moves_money_and_nothing_else(study):
    with_, without = (
        study.offsets.filter((pl.col("offset") == which) & (pl.col("reward") == "clicks"))
        for which in (True, False)
    )
    np.testing.assert_allclose(with_["value"], without["value"])
    np.testing.assert_allclose(with_["contribution"], without["contribution"])
    assert (with_["utility"] >= -1e-12).all()
    # without it, everybody's utility in a request is τ·log Z, whatever they contribute
    spread = without.group_by("request").agg(pl.col("utility").std())["utility"]
    np.testing.assert_allclose(spread, 0, atol=1e-12)
    assert with_["payment"].sum() > without["payment"].sum()


def test_no_misreport_gains(study):
    kinds = ("scalar", "noise", "negated", "credit and blame")
    climbs = ("climb from truth", "climb from random")
    for _, part in study.misreports.group_by("reward"):
        assert part["gain"].max() < 1e-12 * part["stake"].max() + 1e-12
        assert set(part["kind"]) == {*kinds, *climbs}
        noise = part.filter(pl.col("kind") == "noise").select("size", "gain")
        losses = noise.group_by("size").mean().sort("size")["gain"]
        assert (np.diff(losses) < 0).all()  # the larger the lie, the more it costs
        assert part.filter(pl.col("size") == 2.0)["gain"].mean() < -1e-4
    clicks = study.misreports.filter(pl.col("reward") == "clicks")
    np.testing.assert_allclose(clicks["stake"], clicks["value"])


def test_a_climb_finds_gains_where_there_are_some():
    """Under first prices a lower report gains; both climbs find that out."""

    class FirstPrice(Mosaic):
        def expected_payments(self, declared, log_z, log_z_without):
            return declared

    found = misreports(pool(world(), 16, 0, 1.0), VALUES, FirstPrice(0.1), np.random.default_rng(0))
    for kind in ("climb from truth", "climb from random"):
        assert found.filter(pl.col("kind") == kind)["gain"].max() > 1e-3


def test_rank_correlation_is_within_requests():
    frame = pl.DataFrame(
        {
            "request": np.repeat([0, 1, 2], 3),
            "contribution": [1.0, 2, 3, 1, 2, 3, 1, 2, 3],
            "utility": [10.0, 20, 30, 3, 2, 1, 0.7, 0.7 + 1e-14, 0.7],
        }
    )
    np.testing.assert_allclose(mosaic_measures.rank_correlations(frame), [1, -1, 0])


def test_tau_keeps_replies_near_the_reference(study):
    by = study.temperatures.group_by("tau").mean().sort("tau")
    for falls in ("kl", "value"):
        assert (np.diff(by[falls]) < 0).all()
    assert by["ads"][-1] < by["ads"][0]


def test_divergence_on_weighted_candidates():
    """Σ π log(π / w̄), w̄ the normalised weights, whatever the weights sum to."""
    weighted = pool(world(), 24, 0, boost=2.0)
    shifted = replace(weighted, log_ref=weighted.log_ref + 3.0)
    tau = 0.2
    for some in (weighted, shifted):
        weights = np.exp(some.log_weights)
        weights /= weights.sum(1, keepdims=True)
        p = Mosaic(tau).allocate(some, VALUES).probabilities
        expected = (p * np.log(p / weights)).sum(1)
        found = mosaic_measures.temperatures(some, VALUES, (tau,))["kl"]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_tokens_by_hand(study):
    cost = {(way, M, n): tokens for way, M, n, tokens in study.tokens.iter_rows()}
    assert cost["guided", 10, 4] == 40 + 600
    assert cost["mixture", 10, 4] == 2 * (40 + 80) + 2 * 600
    assert cost["log-ratio", 10, 4] == 40 + 600 + 4 * (60 + 600)


def test_truth_is_recorded_first_and_lends_its_norms(monkeypatch):
    calls, norms = [], Norms(-1.0, 1.0, -2.0, 1.0)

    def make_pool(scenario, say, generation=None, salt=0, norms=None, engine=None):
        calls.append((scenario.replies.generation, scenario.replies.per_request, salt, norms))
        engines.append(engine)
        return scenario.replies.generation

    engines = []
    monkeypatch.setattr(mosaic, "make_pool", make_pool)
    monkeypatch.setattr(mosaic, "norms_of", lambda _: norms)
    found = mosaic._pools(Scenario.from_yaml("mosaic"), print)
    assert list(found) == [*mosaic.WAYS, "truth"]
    M = Scenario.from_yaml("mosaic").replies.per_request
    assert calls[0] == ("mixture", mosaic.TRUTH * M, 5, None)
    assert [call[0] for call in calls[1:]] == list(mosaic.WAYS)
    assert all(call[1] == M and call[3] is norms for call in calls[1:])
    assert len({call[2] for call in calls}) == 5
    assert len(set(map(id, engines))) == 1
    assert engines[0].engine is None  # nothing was opened


TRUTHFUL = {"objective": "utility", "count": 12, "learner": "truthful"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mechanism": "vcg"}, "runs vcg"),
        ({"replies": {"source": "synthetic"}}, "synthetic replies"),
        ({"replies": {"per_request": 7}}, "per_request 7; .* at least 8"),
        ({"requests": {"queries": 1}}, "queries 1; .* at least 2"),
        ({"requests": {"ads": 1}}, "ads 1; .* at least 2"),
        ({"requests": {"ads": 3}, "population": [{**TRUTHFUL, "count": 3}]}, "advertisers 3"),
        (
            {"population": [TRUTHFUL, {"objective": "value", "count": 1}]},
            "has value maximizers",
        ),
        ({"population": [{**TRUTHFUL, "learner": "hedge"}]}, "learner hedge"),
        ({"population": [{**TRUTHFUL, "budget": 3.0}]}, "has budgets"),
        *(
            (
                {"mechanism": {"name": "mosaic", "parameters": {"tau": 0.1, **given}}},
                f"sets {next(iter(given))}",
            )
            for given in ({"offset": False}, {"settlement": "realised"})
        ),
        (
            {
                "mechanism": {"name": "mosaic", "parameters": {"tau": 4.0, "reward": "log-ratio"}},
                "replies": {"log_ratios": True},
            },
            "sets reward",
        ),
    ],
)
def test_refuses_what_it_would_leave_out(changes, message, monkeypatch):
    monkeypatch.setattr(mosaic, "make_pool", None)  # refused before anything is recorded
    with pytest.raises(BadInput, match=message) as error:
        mosaic.study(Scenario.from_yaml("mosaic").with_(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mosaic", "mosaic-gpu", "mosaic-gem-bench"])
def test_bundled_scenarios_are_not_refused(name):
    mosaic._refuse(Scenario.from_yaml(name))


def test_bootstrap_intervals_cover():
    """Of 200 intervals of samples with mean 0, about 95 % hold it; the joint ones all at once."""
    rng = np.random.default_rng(0)
    alone = together = 0
    for _ in range(200):
        sample = rng.normal(size=(60, 5)) * [1, 2, 3, 4, 5]
        found = intervals(sample, rng)
        alone += (found.low[0] <= 0) & (found.high[0] >= 0)
        together += (np.abs(found.mean) <= found.reach).all()
    assert 180 <= alone <= 200
    assert 180 <= together <= 200


def test_intervals_of_few_requests_cover():
    """Of 20 skewed samples, as percentiles of a bootstrap do not."""
    rng = np.random.default_rng(1)
    means = ratios = 0
    for k in range(300):
        bottom = rng.exponential(size=20) + 0.5
        top = bottom * (1 + rng.normal(size=20))
        _, low, high = mean_of(top)
        means += low <= 1.5 <= high
        _, low, high = ratio_of(top, bottom, k)
        ratios += low <= 1 <= high
    assert 275 <= means <= 297
    assert 275 <= ratios <= 297


def test_intervals_of_what_does_not_vary():
    assert mean_of(np.full(9, 2.5)) == (2.5, 2.5, 2.5)
    assert ratio_of(np.full(9, 5.0), np.full(9, 2.0)) == (2.5, 2.5, 2.5)
    assert ratio_of(np.arange(1.0, 9) * 2, np.arange(1.0, 9)) == pytest.approx((2, 2, 2))
    assert mean_of(np.array([1.0])) == (1, -np.inf, np.inf)


def test_the_seed_decides_the_bootstrap():
    rng = np.random.default_rng(0)
    top, bottom = rng.normal(1, 1, 20), rng.exponential(1, 20)
    assert ratio_of(top, bottom, 1) == ratio_of(top, bottom, 1)
    assert ratio_of(top, bottom, 1) != ratio_of(top, bottom, 2)
