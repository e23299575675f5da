"""`admarket reproduce llm-auction`: what is concluded of writers that are known, and the page."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from agents.users import BehaviouralUsers, Norms
from experiments.ad_llm import evaluation, measures
from experiments.ad_llm.clicks import Predicted
from experiments.ad_llm.curves import FINE, LEVELS, Curve
from experiments.ad_llm.evaluation import Answers
from experiments.ad_llm.examples import side_by_side
from experiments.ad_llm.stages import Stage
from experiments.ad_llm.table import differences, table
from experiments.ad_llm.writers import Engines, Readers
from experiments.agreement import agreement
from experiments.best_response import NEVER_SHOWN
from experiments.bootstrap import share_of
from experiments.page import check_folder
from experiments.reproduce import PAPERS
from experiments.reproduce import llm_auction as reproduction
from experiments.reproduce import llm_auction_market as market
from experiments.reproduce import llm_auction_page as page
from experiments.reproduce import llm_auction_training as training
from experiments.reproduce.llm_auction import (
    PRETRAINED,
    Field,
    Study,
    contestants,
    spread,
    sweeps,
)
from experiments.reproduce.llm_auction_conclusions import conclusions
from market.scenario import Scenario
from market.training import TrainingSpec
from mechanisms.errors import BadInput
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.llm_auction.mechanism import LLMAuction
from mechanisms.policies import Rules
from tests.experiments.small_auction import (
    REWARD,
    candidates,
    malformed,
    requests,
    trials,
    written,
)
from tests.tiny_adapter import random_ad_llm
from tests.tiny_llm import HashEncoder, tiny_llm

__all__ = ["tiny_llm"]
TRAINED = "LLM-Auction: irpo (pCTR)"


def curve(levels, slope, what="clicks", spread=0.05):
    rng = np.random.default_rng(1)
    centre = rng.normal(0.3, spread, (12, 1))
    return Curve(np.array(levels), centre + slope * np.array(levels) / 100, what)


def small(slope=0.4, count=12):
    """A study of writers that follow the ideal rule, sharply once trained."""
    asked, pool = trials(count), candidates(count)
    temperatures = {PRETRAINED: 1e6, "warm-start": 200.0, "distill": 5.0, TRAINED: 1.0}
    pools = {
        name: written(pool, asked, tau, k) for k, (name, tau) in enumerate(temperatures.items())
    }
    frames = {name: measures.of_writer(each, asked, REWARD) for name, each in pools.items()}
    frames |= evaluation.rules(pool, asked, REWARD, 1.5, np.full(count, 50.0))
    answers = {
        "warm-start": Answers(curve(LEVELS, 0.0), curve(LEVELS, 0.0, "share")),
        "distill": Answers(None, curve(LEVELS, 0.2, "share")),
        TRAINED: Answers(
            curve(LEVELS, slope), curve(LEVELS, slope, "share"), curve(FINE, slope, "share")
        ),
    }
    fits = [{"auc": 0.6 + k / 20, "auc_of_truth": 0.8, "correlation": k / 10} for k in range(4)]
    epoch = {"epoch": 1, "correlation_before": None, "correlation": 0.7, "pctr": fits}
    stages = [
        Stage("warm-start", "warm-start", "", None, {"train": 100.0}),
        Stage("distill", "distill", "warm-start", None, {"train": 300.0}),
        Stage(
            "irpo", "irpo", "distill", None, {"sample": 200.0, "train": 400.0}, [epoch],
            {"irpo": {"oracle": False}},
        ),
    ]  # fmt: skip
    best = reproduction.best_responses(
        {name: answers[name] for name in ("warm-start", TRAINED)}, seed=0
    )
    field = Field(Scenario.from_yaml("synthetic"), requests(count), pool, None, None, REWARD, 1.5)
    return Study(
        field=field,
        seed=0,
        trained=TRAINED,
        before="warm-start",
        trials=asked,
        sweep=reproduction.Sweep.of(requests(count), 0),
        frames=frames,
        rows=table(frames, against=PRETRAINED),
        gains=differences(frames, against="warm-start"),
        answers=answers,
        best=best,
        examples=side_by_side(pools["warm-start"], pools[TRAINED], asked, 4),
        stages=stages,
        encodings=pl.DataFrame(
            {"bids": ["tally"], "ordered": [False], "steps": [50], "loss": [1.2]}
        ).with_columns(
            pl.lit(0.5).alias(name) for name in ("lowest", "highest", "spearman", "gain")
        ),
        seconds={"replies": 1.0, "curves": 2.0},
    )


@pytest.fixture(scope="module")
def study():
    return small()


def verdicts(study):
    return {each.question: each.verdict for each in conclusions(study)}


def test_a_writer_that_follows_its_bids(study):
    found = verdicts(study)
    assert found["(a) revenue per query"] == found["(a) training itself"] == "agrees"
    assert found["(a) MOSAIC"] == "agrees"  # at a lower tau
    assert found["(b) monotone: clicks in sampled replies"] == "agrees"
    assert found["(c) format"] == "open"  # 12 requests cannot tell
    assert found["(d) value maximizers"] == "agrees"
    assert found["(d) utility maximizers"] == "figures only"
    assert found["(e) one pass"] == "agrees"
    assert sum(verdict == "differs" for verdict in found.values()) == 0


def test_a_writer_that_does_not(study):
    flat, falling = small(slope=0.0), small(slope=-0.2)
    blind = verdicts(flat)
    assert blind["(b) monotone: clicks in sampled replies"] == "open"
    assert blind["(d) value maximizers"] == "differs"
    perverse = verdicts(falling)
    assert perverse["(b) monotone: choice share where an ad is mentioned"] == "differs"
    plain = malformed(written(study.field.candidates, study.trials, 1e6))
    frame = measures.of_writer(plain, study.trials, REWARD)
    untrained = replace(study, frames={**study.frames, TRAINED: frame, PRETRAINED: frame})
    untrained = replace(untrained, rows=table(untrained.frames, against=PRETRAINED))
    found = verdicts(untrained)
    assert found["(a) revenue per query"] == "open"
    assert found["(a) training itself"] != "agrees"
    assert found["(c) format"] == "differs"


def with_frame(study, name, frame):
    frames = {**study.frames, name: frame}
    return replace(study, frames=frames, rows=table(frames, against=PRETRAINED))


def test_first_prices_are_no_better_allocation_than_rochet_payments(study):
    """MOSAIC's own replies at first price earn more than MOSAIC, and are worth the same."""
    mosaic = next(frame for name, frame in study.frames.items() if name.startswith("mosaic, "))
    same = with_frame(study, TRAINED, mosaic.with_columns(revenue=pl.col("value")))
    assert (same.frames[TRAINED]["revenue"] - mosaic["revenue"]).mean() > 1
    assert verdicts(same)["(a) MOSAIC"] == "open"
    better = mosaic.with_columns(value=pl.col("value") + 1 + 0.01 * pl.col("request"))
    assert verdicts(with_frame(study, TRAINED, better))["(a) MOSAIC"] == "agrees"
    worse = mosaic.with_columns(value=pl.col("value") - 1, revenue=pl.col("value") - 1)
    assert verdicts(with_frame(study, TRAINED, worse))["(a) MOSAIC"] == "differs"


@pytest.mark.parametrize(
    ("kept", "of", "verdict"), [(80, 80, "agrees"), (59, 60, "open"), (30, 60, "differs")]
)
def test_the_format_is_kept_where_replies_show_an_ad(study, kept, of, verdict):
    """Replies without ads are well-formed, and comply with nothing."""
    found = {}
    for name, count in (("compliant", kept), ("well_formed", of)):
        cells = share_of(np.arange(of) < count)
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), cells, strict=True))
    rows = study.rows.with_columns(**{name: pl.lit(cell) for name, cell in found.items()})
    assert verdicts(replace(study, rows=rows))["(c) format"] == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.95, 1.0, "agrees"), (0.4, 0.6, "differs"), (0.4, 1.0, "open"), (0.9, 0.9, "agrees")],
)
def test_value_maximizers_are_judged_by_intervals(study, low, high, verdict):
    best = study.best.with_columns(ratio=0.9, ratio_low=pl.lit(low), ratio_high=pl.lit(high))
    assert verdicts(replace(study, best=best))["(d) value maximizers"] == verdict


def test_the_market(study):
    bids = {
        "objective": ["value"] * 3 + ["utility"] * 3,
        "bid_over_target": [1.0, 0.99, 1.0, None, None, None],
        "bid_over_value": [0.8, 0.7, 0.9, 0.5, 0.6, 0.55],
        "converged": [True] * 6,
        "determined": [True] * 6,
    }
    names = [f"(d) {kind} maximizers in the market" for kind in ("value", "utility")]
    found = verdicts(replace(study, market=pl.DataFrame(bids)))
    assert [found[name] for name in names] == ["agrees", "figures only"]
    far = pl.DataFrame(bids | {"bid_over_target": [0.5, 0.55, 0.5, *[None] * 3]})
    assert verdicts(replace(study, market=far))[names[0]] == "differs"
    roaming = far.with_columns(converged=pl.lit(False))
    assert verdicts(replace(study, market=roaming))[names[0]] == "open"
    left_out = pl.DataFrame(bids | {"determined": [True, True, False] * 2})
    (said,) = [
        each.found
        for each in conclusions(replace(study, market=left_out))
        if each.question == names[0]
    ]
    assert "over the 2 of 3 whose best bid is determined" in said


def test_the_market_is_the_scenario_s(monkeypatch):
    """Its estimate and bandwidth; everyone is in the frame, and who is open is said."""
    frame = pl.DataFrame(
        {"note": ["", "flat: 0 to 1 × truthful do as well", NEVER_SHOWN, "budget"]}
    )
    asked = []

    def best(mechanism, pool, population):
        asked.append(mechanism)
        return SimpleNamespace(labelled=lambda name: frame)

    stands_in = {
        "best_responses": best, "pools_of": lambda *_: ["pool"], "population": lambda _: None
    }  # fmt: skip
    for name, each in stands_in.items():
        monkeypatch.setattr(market, name, each)
    plain = Scenario.from_yaml("llm-auction")
    told = {"estimate": "kernel", "bandwidth": 0.3, "ad_llm": "other"}
    kernel = plain.with_(mechanism={"name": "llm-auction", "parameters": told})
    found = market.market_responses(kernel, "mine")
    assert found["determined"].to_list() == [True, False, False, True]
    market.market_responses(Scenario.from_yaml("mosaic"), "mine")
    assert asked == [LLMAuction("mine", "kernel", 0.3), LLMAuction("mine")]


def test_of_few_requests_nothing_is_concluded():
    few = small(count=8)
    judged = {v for q, v in verdicts(few).items() if q != "(e) one pass" and "ceiling" not in q}
    assert "agrees" not in {v for q, v in verdicts(few).items() if q.startswith(("(a)", "(c)"))}
    assert judged


def test_the_page_and_its_folder(study, tmp_path):
    ad_llm = AdLLM()
    pool = study.field.candidates
    judged = agreement(pool.exposure, pool.ctr, pool.ctr**2, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    predicted = rng.uniform(0.05, 0.3, 200)
    clicks = Predicted(predicted, (rng.random(200) < predicted).astype(float))
    study = replace(study, agreement=judged, clicks=clicks)
    path = page.write(study, ad_llm, tmp_path / "out")
    text = path.read_text()
    assert "warm-start" in text
    assert "times pre-trained; paper: 3" in text
    assert "on 12 requests held out from training: 1.88 times the revenue" in text
    assert "smollm2-135m, a 135M-parameter model" in text
    assert "to advertisers, money per request" in text
    figures = (
        "rows", "curves", "responses", "training", "click_model", "reliability", "user_llm"
    )  # fmt: skip
    for name in figures:
        assert (tmp_path / "out" / "figures" / f"{name}.png").stat().st_size > 10_000
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {row["name"] for row in summary["rows"]} == set(study.frames)
    curves = pl.read_parquet(tmp_path / "out" / "curves.parquet")
    kinds = curves.filter(pl.col("name") == TRAINED)["curve"].unique().to_list()
    assert sorted(kinds) == ["clicks", "fixed", "shares"]
    stages = page.shown(study)[-3].frame
    assert stages["total"].to_list() == pytest.approx([100 / 60, 400 / 60, 1000 / 60])
    assert stages["spearman"].null_count() == 0
    assert stages["own_revenue"].is_null().to_list() == [True, False, False]  # of nobody untrained
    gained = stages["revenue"].diff().to_list()
    assert stages["own_revenue"].to_list()[1:] == pytest.approx(gained[1:])
    assert (stages["own_reward_low"] <= stages["own_reward"])[1:].all()
    # the same inquiry may be written again, another may not
    scenario = study.field.scenario
    check_folder(tmp_path / "out", page.subject(scenario, 0, ad_llm))
    with pytest.raises(BadInput, match="holds another reproduction"):
        check_folder(tmp_path / "out", page.subject(scenario, 0, AdLLM(temperature=0.3)))


def test_rows_of_a_study(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduction.Writer, "of", lambda name, *_: replace(WRITER, name=name))
    warm, last = AdLLM(temperature=0.6), AdLLM(temperature=0.7)
    stages = [
        Stage("warm-start", "warm-start", ad_llm=warm),
        Stage("gone", "distill"),
        Stage("irpo", "irpo", ad_llm=last, settings={"irpo": {"oracle": False}}),
    ]
    names = [each.name for each in contestants(last, stages, None)]
    assert names == [PRETRAINED, "pre-trained, compact prompt", "warm-start", TRAINED]
    names = [each.name for each in contestants(last, [], None)]
    assert names == [PRETRAINED, "pre-trained, compact prompt", "LLM-Auction"]


def test_a_study_of_the_tiny_llm(tiny_llm, tmp_path, monkeypatch):
    """From writers to the page, of an Ad-LLM that hardly shows an ad; no stage of it was IRPO."""
    monkeypatch.setenv("ADMARKET_CACHE", str(tmp_path / "cache"))
    scenario = Scenario.from_yaml("llm-auction")
    replies = {**scenario.replies.model_dump(), "model": tiny_llm, "dtype": "fp32"}
    engines = Engines(tiny_llm, "fp32")
    users = BehaviouralUsers(HashEncoder(), norms=Norms(-3.0, 1.0, -3.0, 1.0))
    field = Field(
        scenario.with_(replies=replies),
        requests(3),
        candidates(3),
        engines,
        replace(Readers.of(users, engines, 0.5, 3), folder=tmp_path / "kept"),
        REWARD,
        1.5,
    )
    rules = Rules(sentences=2, mentions=1, max_tokens=4)
    ad_llm = random_ad_llm(tmp_path / "a", tiny_llm, size=0.3, rules=rules)
    warm = replace(ad_llm, temperature=0.6)
    stages = [
        Stage("warm-start", "warm-start", ad_llm=warm, seconds={"train": 1.0}),
        Stage("distill", "distill", "warm-start", ad_llm, {"train": 1.0}),
    ]
    found = reproduction.study(field, ad_llm, stages, draws=1)
    assert found.before == "warm-start"
    assert found.trained == "LLM-Auction: distill"
    assert len(found.rows) == 4 + 5
    assert found.rows["compliant"][3] == 0
    assert found.clicks is None
    text = page.write(found, ad_llm, tmp_path / "out").read_text()
    assert "no multiple (that may be 0 or less) of" in text


def test_the_click_model_is_that_of_the_training_on_trial(study, monkeypatch):
    monkeypatch.setattr(reproduction, "predicted_clicks", lambda folder, *_: folder)
    field = replace(
        study.field, readers=SimpleNamespace(users=SimpleNamespace(encoder="any encoder"))
    )
    stages = [replace(stage, pctr=tmp) for stage, tmp in zip(study.stages, "abc", strict=True)]
    assert reproduction._predicted(field, stages, TRAINED, None, 0) == "c"
    assert reproduction._predicted(field, stages, "LLM-Auction", None, 0) is None
    assert reproduction._predicted(field, study.stages, TRAINED, None, 0) is None


WRITER = reproduction.Writer("", AdLLM(), lambda: None)


def test_spread():
    assert spread(range(7), 9) == list(range(7))
    assert spread(range(9), 3) == [0, 3, 6]


def test_every_ad_takes_its_turn_in_all_sweeps():
    for sweep in sweeps(requests(30), seed=0):
        assert np.ptp(np.bincount(sweep.moved, minlength=3)) <= 1
        own = sweep.bids[np.arange(len(sweep.moved)), 0, :, sweep.moved]
        assert (own == sweep.levels).all()


def test_refuses(tmp_path):
    with pytest.raises(BadInput, match="Ad-LLMs need an LLM's replies"):
        Field.of(Scenario.from_yaml("synthetic"))
    with pytest.raises(BadInput, match="--ad-llm is for llm-auction, not mosaic"):
        PAPERS["mosaic"](Scenario.from_yaml("mosaic"), 0, tmp_path, print, ad_llm="x")
    with pytest.raises(BadInput, match="is no trained Ad-LLM"):
        PAPERS["llm-auction"](
            Scenario.from_yaml("default"), 0, tmp_path / "o", print, ad_llm=str(tmp_path)
        )


def test_the_gpu_scenario_has_the_paper_s_hyper_parameters():
    irpo = Scenario.from_yaml("llm-auction-gpu").training.irpo
    assert (irpo.samples, irpo.margin, irpo.beta, irpo.lr) == (5, 10, 0.1, 1e-6)


def test_all_stages_are_trained_in_order(tmp_path, monkeypatch):
    done = []

    def train(scenario, stage, seed, out, start, say):
        assert start is None or start.parent.name in [name for name, *_ in done]
        oracle = (scenario.training or TrainingSpec()).irpo.oracle
        done.append((out.name, stage, seed, oracle, start and start.parent.name))

    monkeypatch.setattr(training, "train", train)
    scenario = Scenario.from_yaml("llm-auction-gpu")
    assert training.train_all(scenario, 3, tmp_path) == tmp_path
    assert done[-3] == (training.LAST, "irpo", 3, False, "distill")
    assert [name for name, *_, oracle, _ in done if oracle] == ["irpo-oracle-from-distill"]
    assert [stage for _, stage, *_ in done].count("irpo") == 3
