"""`admarket reproduce llm-auction`: what is concluded of writers that are known, and the page."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from experiments.ad_llm import evaluation, measures
from experiments.ad_llm.curves import FINE, LEVELS, Curve
from experiments.ad_llm.evaluation import Answers
from experiments.ad_llm.examples import side_by_side
from experiments.ad_llm.stages import Stage
from experiments.ad_llm.table import differences, table
from experiments.agreement import agreement
from experiments.page import check_folder
from experiments.reproduce import PAPERS
from experiments.reproduce import llm_auction as reproduction
from experiments.reproduce import llm_auction_page as page
from experiments.reproduce import llm_auction_training as training
from experiments.reproduce.llm_auction import PRETRAINED, Field, Study, contestants, spread
from experiments.reproduce.llm_auction_conclusions import conclusions
from market.scenario import Scenario
from market.training import TrainingSpec
from mechanisms.errors import BadInput
from mechanisms.llm_auction.ad_llm import AdLLM
from tests.experiments.small_auction import (
    REWARD,
    candidates,
    malformed,
    requests,
    trials,
    written,
)

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
    frames |= evaluation.rules(
        pool, asked, REWARD, {"mosaic": 1.5, "ideal": 1.5}, np.full(count, 50.0)
    )
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
    assert found["(a) MOSAIC"] == "agrees"
    assert found["(b) monotone: clicks in sampled replies"] == "agrees"
    assert found["(c) format"] == "agrees"
    assert found["(d) value maximizers"] == "agrees"
    assert found["(e) one pass"] == "agrees"
    assert sum(verdict == "differs" for verdict in found.values()) == 0


def test_a_writer_that_does_not(study):
    flat, falling = small(slope=0.0), small(slope=-0.2)
    blind = verdicts(flat)
    assert blind["(b) monotone: clicks in sampled replies"] == "open"
    assert blind["(d) value maximizers"] == "differs"
    assert blind["(d) utility maximizers"] == "open"
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


def test_the_market(study):
    bids = {
        "objective": ["value"] * 3 + ["utility"] * 3,
        "bid_over_target": [1.0, 0.99, 1.0, None, None, None],
        "bid_over_value": [0.8, 0.7, 0.9, 0.5, 0.6, 0.55],
        "converged": [True] * 6,
    }
    names = [f"(d) {kind} maximizers in the market" for kind in ("value", "utility")]
    found = verdicts(replace(study, market=pl.DataFrame(bids)))
    assert [found[name] for name in names] == ["agrees", "agrees"]
    far = pl.DataFrame(bids | {"bid_over_target": [0.5, 0.55, 0.5, *[None] * 3]})
    assert verdicts(replace(study, market=far))[names[0]] == "differs"
    roaming = far.with_columns(converged=pl.lit(False))
    assert {verdicts(replace(study, market=roaming))[name] for name in names} == {"open"}


def test_of_few_requests_nothing_is_concluded():
    few = small(count=8)
    judged = {v for q, v in verdicts(few).items() if q != "(e) one pass" and "ceiling" not in q}
    assert "agrees" not in {v for q, v in verdicts(few).items() if q.startswith(("(a)", "(c)"))}
    assert judged


def test_the_page_and_its_folder(study, tmp_path):
    ad_llm = AdLLM()
    pool = study.field.candidates
    judged = agreement(pool.exposure, pool.ctr, pool.ctr**2, np.random.default_rng(0))
    study = replace(study, agreement=judged)
    path = page.write(study, ad_llm, tmp_path / "out")
    text = path.read_text()
    assert "warm-start" in text
    assert "times pre-trained; paper: 3" in text
    assert "on 12 requests held out from training: 1.88 times the revenue" in text
    assert "smollm2-135m, a 135M-parameter model" in text
    for name in ("rows", "curves", "responses", "training", "click_model", "user_llm"):
        assert (tmp_path / "out" / "figures" / f"{name}.png").stat().st_size > 10_000
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {row["name"] for row in summary["rows"]} == set(study.frames)
    curves = pl.read_parquet(tmp_path / "out" / "curves.parquet")
    kinds = curves.filter(pl.col("name") == TRAINED)["curve"].unique().to_list()
    assert sorted(kinds) == ["clicks", "fixed", "shares"]
    stages = page.shown(study)[-3].frame
    assert stages["total"].to_list() == pytest.approx([100 / 60, 400 / 60, 1000 / 60])
    assert stages["spearman"].null_count() == 0
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


WRITER = reproduction.Writer("", AdLLM(), lambda: None)


def test_spread():
    assert spread(range(7), 9) == list(range(7))
    assert spread(range(9), 3) == [0, 3, 6]


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
    training.train_all(scenario, 3, tmp_path)
    assert done[-3] == (training.LAST, "irpo", 3, False, "distill")
    assert [name for name, *_, oracle, _ in done if oracle] == ["irpo-oracle-from-distill"]
    assert [stage for _, stage, *_ in done].count("irpo") == 3
