"""The measures of `admarket reproduce mosaic` on parametric pools (no LLM), and its page."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from experiments.bootstrap import interval, intervals
from experiments.reproduce import mosaic, mosaic_figures, mosaic_measures
from experiments.reproduce.mosaic_conclusions import conclusions
from experiments.reproduce.page import write_page
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool

VALUES = np.linspace(1, 3, 6)


def pool(M, seed):
    found = ReplyPool.synthetic(8, M, 4, np.random.default_rng(seed), advertisers=6)
    rng = np.random.default_rng(seed + 100)
    ratios = rng.normal(0, 3, found.shape) + 4 * found.exposure
    return replace(found, extras={"log_ratios": ratios}, ads=pool_ads())


def pool_ads():
    return ReplyPool.synthetic(8, 2, 4, np.random.default_rng(0), advertisers=6).ads


@pytest.fixture(scope="module")
def study():
    pools = {way: pool(32, k) for k, way in enumerate(mosaic.WAYS)} | {"truth": pool(96, 9)}
    rng = np.random.default_rng(0)
    convergence, offsets = [], []
    for reward, mechanism in (
        ("clicks", Mosaic(0.1)),
        ("log-ratio", Mosaic(4.0, reward="log-ratio")),
    ):
        weights = VALUES if reward == "clicks" else np.ones(6)
        ways = {way: pools[way] for way in mosaic.WAYS}
        found = mosaic_measures.convergence(
            ways, pools["truth"], weights, mechanism, (1, 8, 32, 64), rng, draws=12
        )
        convergence.append(found.with_columns(pl.lit(reward).alias("reward")))
        found = mosaic_measures.offsets(pools["truth"], weights, mechanism.tau, reward)
        offsets.append(found.with_columns(pl.lit(reward).alias("reward")))
    prompts = {
        "reference": np.array([40.0]),
        "advertiser": np.array([60.0]),
        "context": np.linspace(0, 160, 9),
    }
    return mosaic.Study(
        scenario=Scenario.from_yaml("mosaic"),
        seed=0,
        pools=pools,
        convergence=pl.concat(convergence),
        offsets=pl.concat(offsets),
        temperatures=mosaic_measures.temperatures(pools["truth"], VALUES, (0.02, 0.2, 2.0)),
        misreports=mosaic_measures.misreports(pools["guided"], VALUES, 0.1, rng),
        tokens=mosaic_measures.tokens_per_auction(prompts, 60.0, (1, 10, 20), (1, 4, 8)),
    )


def test_all_candidates_are_the_pool_itself(study):
    """At M the pool's own, nothing is drawn: value and welfare are the mechanism's."""
    found = study.convergence.filter((pl.col("M") == 32) & (pl.col("reward") == "clicks"))
    for way in mosaic.WAYS:
        traded = study.pools[way]
        outcome = Mosaic(0.1).allocate(traded, VALUES)
        value = (VALUES[traded.ads] * outcome.itctr).sum(1)
        mine = found.filter(pl.col("way") == way)
        np.testing.assert_allclose(mine["value"], value)
        np.testing.assert_allclose(mine["ess"], 32)
    assert 64 not in study.convergence["M"].to_list()


def test_the_truth_is_at_no_distance_from_itself(study):
    truth = study.pools["truth"]
    rng = np.random.default_rng(1)
    found = mosaic_measures.convergence({"truth": truth}, truth, VALUES, Mosaic(0.1), (96,), rng)
    np.testing.assert_allclose(found["distance"], 0, atol=1e-12)
    np.testing.assert_allclose(found["likelihood"], 0, atol=1e-9)
    np.testing.assert_allclose(found["welfare"], found["most"])


def test_more_candidates_are_closer(study):
    for _, part in study.convergence.group_by("reward", "way"):
        by = part.drop("way", "reward").group_by("M").mean().sort("M")
        assert (np.diff(by["welfare"]) > 0).all()
        if part["reward"][0] == "clicks":
            assert by["distance"][2] < by["distance"][0]


def test_shown_sets():
    exposure = np.array([[[True, False], [True, True], [False, False], [True, False]]])
    found = mosaic_measures.shown_sets(exposure, np.array([[0.1, 0.2, 0.3, 0.4]]))
    np.testing.assert_allclose(found, [[0.3, 0.5, 0.0, 0.2]])


def test_subsets_are_drawn_without_replacement():
    whole = pool(12, 3)
    numbered = replace(whole, quality=np.tile(np.arange(12.0), (8, 1)))
    some = mosaic_measures.subsets(numbered, 5, 7, np.random.default_rng(0))
    assert some.shape == (56, 5, 4)
    assert all(len(set(row)) == 5 for row in some.quality)
    np.testing.assert_array_equal(some.ads, np.repeat(whole.ads, 7, axis=0))
    b, j = 20 // 7, int(some.quality[20, 2])
    np.testing.assert_array_equal(some.ctr[20, 2], whole.ctr[b, j])
    np.testing.assert_array_equal(
        some.extras["log_ratios"][20, 2], whole.extras["log_ratios"][b, j]
    )


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
    assert study.misreports["gain"].max() < 1e-12
    assert set(study.misreports["kind"]) == {
        "scalar",
        "noise",
        "negated",
        "credit and blame",
        "climb",
    }
    noise = study.misreports.filter(pl.col("kind") == "noise")
    losses = noise.drop("kind").group_by("size").mean().sort("size")["gain"]
    assert (np.diff(losses) < 0).all()  # the larger the lie, the more it costs
    assert study.misreports.filter(pl.col("size") == 2.0)["gain"].mean() < -1e-4


def test_tau_keeps_replies_near_the_reference(study):
    by = study.temperatures.group_by("tau").mean().sort("tau")
    for falls in ("kl", "value", "ads"):
        assert (np.diff(by[falls]) < 0).all()
    assert (study.temperatures["kl"] >= -1e-12).all()


def test_tokens_by_hand(study):
    cost = {(way, M, n): tokens for way, M, n, tokens in study.tokens.iter_rows()}
    assert cost["guided", 10, 4] == 40 + 600
    assert cost["mixture", 10, 4] == 2 * (40 + 80) + 2 * 600
    assert cost["log-ratio", 10, 4] == 40 + 600 + 4 * (60 + 600)


def test_page(study, tmp_path):
    found = conclusions(study)
    assert {each.verdict for each in found} <= {"agrees", "differs", "open"}
    drawn = {
        "convergence": mosaic_figures.convergence(study.convergence),
        "offset": mosaic_figures.offset(study.offsets),
        "temperature": mosaic_figures.temperature(study.temperatures),
        "misreports": mosaic_figures.misreports(study.misreports),
        "tokens": mosaic_figures.tokens(study.tokens),
    }
    options = {
        "title": "MOSAIC <b>",
        "label": "replies: synthetic, no LLM",
        "facts": [("a", "<script>")],
        "conclusions": found,
        "figures": {k: (f, mosaic_figures.CAPTIONS[k]) for k, f in drawn.items()},
        "tables": {"convergence": study.convergence},
        "manifest": {"seed": 0},
    }
    path = write_page(tmp_path / "out", **options)
    page = path.read_text("utf-8")
    assert page.count("data:image/png") == 5
    assert "<script>" not in page
    assert all(each["verdict"] for each in json.loads((tmp_path / "out/summary.json").read_text()))
    assert write_page(tmp_path / "out", **options) == path  # an earlier one is replaced
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(BadInput, match="holds something else"):
        write_page(tmp_path / "mine", **options)


def test_refuses_what_is_not_mosaic():
    for name in ("synthetic", "default"):
        scenario = Scenario.from_yaml(name)
        if name == "default":
            scenario = scenario.with_(mechanism="vcg")
        with pytest.raises(BadInput, match=r"mosaic|LLM"):
            mosaic.study(scenario)


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
    constant = interval(np.full(9, 2.5), rng)
    assert constant == (2.5, 2.5, 2.5)
