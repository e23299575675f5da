"""Ad-LLMs on trial: measures, rows, curves and best responses where the answer is known."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from experiments.ad_llm import evaluation, measures
from experiments.ad_llm.clicks import VIEWERS, predicted_clicks
from experiments.ad_llm.curves import Curve, Sweep, clicks, texts_before
from experiments.ad_llm.examples import side_by_side
from experiments.ad_llm.responses import responses
from experiments.ad_llm.stages import correlations, read_encodings, read_stages, times, totals
from experiments.ad_llm.table import SHARES, differences, table
from experiments.ad_llm.trials import Trials
from experiments.bootstrap import share_difference, share_of
from experiments.training import encodings
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.llm_auction.ideal import IdealLLMAuction
from mechanisms.llm_auction.impressions import examples_of
from mechanisms.llm_auction.pctr import PCTR, Embeddings, Training
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool
from tests.experiments.small_auction import (
    REWARD,
    candidates,
    malformed,
    requests,
    trials,
    written,
)
from tests.tiny_llm import ADS, HashEncoder

LEVELS = np.array([1.0, 25.0, 50.0, 75.0, 100.0])


def test_bids_depend_on_the_request_and_the_seed_alone():
    few, many = trials(3, 2), trials(5, 2)
    np.testing.assert_array_equal(few.bids, many.bids[:3])
    np.testing.assert_array_equal(trials(3, 4).bids[:, :2], few.bids)
    assert (trials(3, 2, seed=1).bids != few.bids).all()
    assert ((many.bids >= 1) & (many.bids <= 100)).all()
    assert [r.bids for r in few.asked] == [tuple(row) for row in few.flat.tolist()]


@pytest.mark.parametrize("bad", [[], [*requests(1), *[_ for _ in requests(1)]]])
def test_refuses_requests_that_cannot_be_tried(bad):
    if bad:
        object.__setattr__(bad[1], "ads", ADS[:2])
    with pytest.raises(BadInput, match="each the same number of ads"):
        Trials.draw(bad, 1, 0)


def test_measures_of_a_writer_by_hand():
    asked = Trials(requests(1), np.array([[[10.0, 50.0, 90.0], [100.0, 20.0, 1.0]]]), 0)
    ctr = np.array([[[0.0, 0.4, 0.0]], [[0.2, 0.0, 0.5]]])
    pool = ReplyPool.from_arrays(
        ctr,
        quality=[[0.5], [0.7]],
        malformed=[[0], [1]],
        replies=pl.DataFrame(
            {
                "text": ["Try @Tea Pot@[Ad-2].", "Try Tea Pot[Ad-2] and"],
                "written": [20, 30],
                "read": [100, 101],
                "complete": [True, False],
            }
        ),
    )
    found = measures.of_writer(pool, asked, REWARD)
    assert found["revenue"].to_list() == pytest.approx([20.0, 20.5])
    # a second ad, a broken marker, and a reply that breaks off
    assert found["reward"].to_list() == pytest.approx([20.0, 20.5 - 40 * 2.1])
    assert found["compliant"].to_list() == found["well_formed"].to_list() == [1, 0]
    assert found["ads"].to_list() == [1, 2]
    assert table({"one": found})["well_formed"].to_list() == [1 / 2]
    assert found["written"].to_list() == [20, 30]
    assert found["satisfaction"].to_list() == [0.5, 0.7]


def test_rules_over_candidates_are_the_mechanisms():
    pool, asked = candidates(), trials()
    copies = pool.take(np.repeat(np.arange(12), 4))
    found = evaluation.rules(pool, asked, REWARD, 3.0, np.full(12, 50.0))
    assert list(found) == [
        f"{name}16 candidates"
        for name in (
            "mosaic, ", "mosaic without offset, ", "ideal rule, ", "ideal rule on bids in money, ",
            "best of ",
        )
    ]  # fmt: skip
    plain, without, ideal, in_money, best = found.values()
    outcome = Mosaic(3.0).allocate(copies, asked.flat)
    np.testing.assert_allclose(plain["revenue"], outcome.payments.sum(1))
    np.testing.assert_allclose(plain["value"], (asked.flat * outcome.itctr).sum(1))
    np.testing.assert_allclose(without["value"], plain["value"])
    assert without["revenue"].sum() < plain["revenue"].sum() < plain["value"].sum()
    # of bids as the LLM reads them: whole numbers relative to the highest
    read = np.rint(100 * asked.flat / asked.flat.max(axis=1, keepdims=True))
    rule = IdealLLMAuction(3.0, user_weight=40.0, max_ads=1)
    chosen = rule.allocate(copies, read).probabilities
    np.testing.assert_allclose(measures.ideal(pool, asked, REWARD, 3.0), chosen)
    # in one unit, and with nothing to penalise, the ideal rule is MOSAIC at first price
    np.testing.assert_allclose(in_money["value"], plain["value"])
    np.testing.assert_allclose(in_money["revenue"], in_money["value"])
    assert (np.abs(ideal["value"] - plain["value"]) > 0.01).any()
    assert (best["reward"] >= ideal["reward"] - 1e-9).mean() > 0.9  # read bids are rounded
    assert (plain["written"] == 16 * 30).all()
    with pytest.raises(BadInput, match="candidates for 12 requests, trials of 5"):
        evaluation.rules(pool, trials(5), REWARD, 1.0, np.full(5, 50.0))


def test_rows_know_a_better_writer():
    pool, asked = candidates(), trials()
    frames = {
        "pre-trained": measures.of_writer(written(pool, asked, 1e6), asked, REWARD),
        "trained": measures.of_writer(written(pool, asked, 1.0, 1), asked, REWARD),
        "broken": measures.of_writer(malformed(written(pool, asked, 1.0)), asked, REWARD),
    }
    rows = table(frames, against="pre-trained")
    plain, trained, broken = rows.iter_rows(named=True)
    assert plain["revenue_ratio"] == 1
    assert trained["revenue_ratio_low"] > 1.2
    assert trained["revenue_low"] < trained["revenue"] < trained["revenue_high"]
    assert trained["compliant"] > 0.9
    assert trained["well_formed"] == 1
    assert broken["compliant"] == 0
    assert broken["well_formed"] == 0
    gains = differences(frames, against="pre-trained")
    assert gains["name"].to_list() == ["trained", "broken"]
    assert gains["revenue_low"][0] > 0
    assert gains["reward_high"][1] < 0
    # what is not above 0 is no denominator
    assert table(frames, against="broken")["reward_ratio"].to_list() == [None] * 3


@pytest.mark.parametrize(("kept", "low", "high"), [(60, 0.940, 1.0), (59, 0.911, 0.997)])
def test_shares_near_one(kept, low, high):
    """Wilson's interval over requests: never of width 0, never beyond 1."""
    counts = np.ones((60, 1))
    counts[: 60 - kept] = 0
    frame = measures.of_writer(written(candidates(60), trials(60, 1), 1.0), trials(60, 1), REWARD)
    columns = [pl.Series(name, counts.ravel()) for name in SHARES]
    row = table({"one": frame.with_columns(columns)}).row(0, named=True)
    for name in SHARES:
        assert row[name] == pytest.approx(kept / 60)
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize(("requests", "level"), [(12, 0.9), (60, 0.95)])
def test_intervals_of_shares_cover(requests, level):
    """And have a width, also where all requests say yes."""
    rng = np.random.default_rng(0)
    told = [share_of((rng.random(requests) < level).astype(float)) for _ in range(400)]
    assert np.mean([each.low <= level <= each.high for each in told]) > 0.92
    assert min(each.high - each.low for each in told) > 0.02


def test_differences_of_shares_have_a_width():
    none, all_ = np.zeros(12), np.ones(12)
    found = share_difference(all_, none)
    assert found.mean == 1
    assert 0.5 < found.low < 0.8
    assert found.high == 1
    even = share_difference(all_, all_)
    assert even.low == pytest.approx(-even.high)
    assert even.low < -0.2
    assert share_difference(none, all_) == pytest.approx(tuple(-found))


@pytest.mark.parametrize("together", [0.0, 0.8])
def test_intervals_of_differences_cover(together):
    """And are shorter where two writers succeed on the same requests."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        one, other, own = rng.random((3, 60))
        other = np.where(own < together, one, other)
        found.append(share_difference((one < 0.9).astype(float), (other < 0.8).astype(float)))
    assert np.mean([each.low <= 0.1 <= each.high for each in found]) > 0.92
    width = np.mean([each.high - each.low for each in found])
    assert width < 0.24 if together else width > 0.24


def test_no_ratio_to_what_may_be_nothing():
    """One request of twelve pays the base anything: the ratio could be any."""
    frame = measures.of_writer(written(candidates(), trials(), 1.0), trials(), REWARD)
    rare = frame.with_columns(
        pl.when(pl.col("request") == 0).then(pl.col("revenue")).otherwise(0.0).alias("revenue")
    )
    base, ours = table({"base": rare, "ours": frame}, against="base").iter_rows(named=True)
    assert base["revenue"] > 0 >= base["revenue_low"]
    for end in ("", "_low", "_high"):
        assert ours[f"revenue_ratio{end}"] is None
        assert ours[f"reward_ratio{end}"] is not None


def test_profiles_of_a_request_are_no_independent_samples():
    frame = measures.of_writer(written(candidates(), trials(), 1.0), trials(), REWARD)
    thrice = pl.concat([frame] * 3)
    once, again = (table({"a": each}) for each in (frame, thrice))
    for end in ("", "_low", "_high"):
        np.testing.assert_allclose(again[f"revenue{end}"], once[f"revenue{end}"])


def sweep(**options):
    return Sweep.of(requests(7), 0, **options)


def test_a_sweep_moves_one_bid_and_nothing_else():
    found = sweep(draws=2, levels=LEVELS)
    R, D, L, n = found.bids.shape
    assert (R, D, L, n) == (7, 2, 5, 3)
    assert found.moved.tolist() == [0, 1, 2, 0, 1, 2, 0]
    for r in range(R):
        own = found.bids[r, :, :, found.moved[r]]
        assert (own == LEVELS).all()
        others = np.delete(found.bids[r], found.moved[r], axis=2)
        assert (others == others[:, :1]).all()
    assert len(found.asked) == len(found.keys) == R * D * L
    assert (found.keys.reshape(R * D, L) == np.arange(R * D)[:, None]).all()
    fixed = np.delete(sweep(levels=LEVELS, others=50.0).bids[0], 0, axis=2)
    assert (fixed == 50).all()
    with pytest.raises(BadInput, match="must rise"):
        sweep(levels=[1, 1])


def test_clicks_are_those_of_the_moved_ad():
    found = sweep(draws=2, levels=LEVELS)
    ctr = np.zeros((7, 2, 5, 3))
    for r in range(7):
        ctr[r, :, :, found.moved[r]] = 0.1 * (r + 1) * LEVELS / 100
    curve = clicks(ReplyPool.from_arrays(ctr.reshape(70, 1, 3)), found)
    np.testing.assert_allclose(curve.answers, 0.1 * np.arange(1, 8)[:, None] * LEVELS / 100)


def test_texts_before_a_mention():
    found = sweep(levels=LEVELS)
    texts = np.full((7, 5), "Nothing to sell.", dtype=object)
    texts[1, 0] = "First @Tea Pot@[Ad-2]."
    texts[1, 3] = "Then try @Tea Pot@[Ad-2] and @Oak Bed Frame@[Ad-3]."
    texts[2, 2] = "Broken @Tea Pot@[Ad-9] here."
    pool = ReplyPool.from_arrays(
        np.zeros((35, 1, 3)), replies=pl.DataFrame({"text": texts.ravel().tolist()})
    )
    assert texts_before(pool, found) == [[None], ["Then try "], *[[None]] * 5]


def test_curves_that_rise_fall_and_jump():
    rising = Curve(LEVELS, np.tile([0.1, 0.2, 0.3, 0.4, 0.5], (6, 1)), "clicks")
    assert rising.spearman() == (1, 1, 1)
    assert rising.violation == pytest.approx(0)
    assert rising.falls == 0
    assert rising.rise == pytest.approx(0.4)
    assert rising.jump == pytest.approx(0.1)
    assert rising.gain().mean == pytest.approx(0.4)
    falling = Curve(LEVELS, rising.answers[:, ::-1], "clicks")
    assert falling.spearman().mean == -1
    assert falling.rise == pytest.approx(0)
    assert falling.violation == pytest.approx(0.2)
    assert falling.falls == pytest.approx(0.4)
    flat = Curve(LEVELS, np.full((6, 5), 0.2), "clicks")
    assert flat.spearman() == (0, 0, 0)
    step = Curve(LEVELS, np.tile([0.1, 0.1, 0.4, 0.4, 0.3], (6, 1)), "clicks")
    assert step.jump == pytest.approx(0.3)
    assert step.violation == pytest.approx(0.2 / 3)  # 0.4, 0.4, 0.3 become their mean
    with pytest.raises(BadInput, match="at least two requests"):
        Curve(LEVELS, np.ones((1, 5)), "share")


@settings(max_examples=20, deadline=None)
@given(arrays(float, (4, 6), elements=st.floats(0, 1)))
def test_violation_is_nought_just_for_curves_that_do_not_fall(answers):
    curve = Curve(np.arange(6.0), answers, "clicks")
    assert (curve.violation < 1e-12) == (np.diff(curve.mean) >= -1e-12).all()
    assert 0 <= curve.violation <= curve.falls + 1e-12
    rank = curve.spearman()
    assert -1 <= rank.low <= rank.high <= 1


def test_round_off_has_no_rank():
    flat = np.repeat(np.random.default_rng(0).random((16, 1)), 11, axis=1)
    assert Curve(np.arange(11.0), flat, "share").spearman() == (0, 0, 0)
    tilted = Curve(np.arange(11.0), flat + 1e-6 * np.arange(11), "share")
    assert tilted.spearman() == (1, 1, 1)


def test_noise_is_not_taken_for_a_rise():
    rng = np.random.default_rng(0)
    curves = [Curve(LEVELS, rng.random((20, 5)), "clicks") for _ in range(20)]
    assert np.mean([each.gain().low > 0 for each in curves]) < 0.2
    assert np.mean([each.spearman().mean >= 0.9 for each in curves]) < 0.2


def test_best_responses_to_known_curves():
    """Clicks proportional to the bid: a utility maximizer bids half its value."""
    line = Curve(np.array([0.0, 50.0, 100.0]), np.tile([0.0, 0.25, 0.5], (5, 1)), "clicks")
    found = responses(line, values=(40.0, 80.0), targets=(1.0, 1.25))
    shading = found.filter(pl.col("objective") == "utility")
    np.testing.assert_allclose(shading["ratio"], 0.5, atol=0.005)
    assert found.filter(pl.col("objective") == "value")["ratio"].to_list() == [1] * 4
    assert found.filter(pl.col("target_roi") == 1.25)["bid"].to_list() == [32, 64]
    flat = responses(Curve(LEVELS, np.full((5, 5), 0.3), "clicks"))
    assert (flat["ratio"] == 0).all()
    peak = Curve(np.array([0.0, 60.0, 100.0]), np.tile([0.0, 0.4, 0.1], (5, 1)), "clicks")
    best = responses(peak, values=(100.0,), targets=(1.0,)).filter(pl.col("objective") == "value")
    assert best["bid"][0] == pytest.approx(60, abs=0.5)


def test_side_by_side():
    pool, asked = candidates(), trials()
    before, after = written(pool, asked, 1e6), written(pool, asked, 1.0)
    found = side_by_side(before, after, asked, 5)
    assert found.height == found["query"].n_unique() == 5
    for row in found.iter_rows(named=True):
        b = next(b for b, r in enumerate(asked.requests) if r.query == row["query"])
        texts = after.replies["text"][4 * b : 4 * b + 4].to_list()
        assert row["after"] in texts
        shown = [float(part.rsplit(" ", 1)[1]) for part in row["ads"].split(", ")]
        assert shown == sorted(shown, reverse=True)
    assert side_by_side(before, after, asked, 99).height == 12


def test_what_a_click_model_predicts(tmp_path):
    """Of a model that has learned nothing; clicks are the users' own."""
    asked = trials(12, 1)
    pool = written(candidates(), asked, 1.0)
    people = [("Query", r.query, r.user_id, r.user, ["Ad-1", "Ad-2", "Ad-3"]) for r in requests()]
    table = pl.DataFrame(people, ["query_id", "query", "user_id", "user", "ad_ids"], orient="row")
    titles = pl.lit([ad.title for ad in ADS]).alias("ad_titles")
    places = pl.lit([0.0] * 3).alias("place")
    pool = replace(
        pool, requests=table.with_columns(titles), replies=pool.replies.with_columns(places)
    )
    rows = examples_of(pool, np.random.default_rng(0), rounds=2)
    encoder = HashEncoder()
    model = PCTR.fit(rows, Embeddings(encoder), training=Training(epochs=1))
    folder = model.save(tmp_path / "pctr")
    found = predicted_clicks(folder, pool, asked.requests, encoder)
    shown = int(pool.exposure.sum())
    assert found.predicted.shape == found.clicks.shape == (VIEWERS * shown,)
    assert found.clicks.mean() == pytest.approx(pool.ctr.sum() / shown, abs=0.15)
    # by title and text, as it is trained, not by title alone
    copies = {ad.id: f"{ad.title}. {ad.text}" for ad in ADS}
    again = model.predict(examples_of(pool, np.random.default_rng(0), VIEWERS, copies))
    np.testing.assert_allclose(found.predicted, again)
    silent = replace(pool, exposure=np.zeros_like(pool.exposure), ctr=np.zeros_like(pool.ctr))
    assert predicted_clicks(folder, silent, asked.requests, encoder) is None


def stage(folder, name, kind, start=None, oracle=None, epochs=None):
    (folder / name).mkdir(parents=True)
    told = {
        "stage": kind,
        "start": start and str(folder / start / "policy"),
        "seconds": 120.0,
        "phases": {"sample": 20.0, "train": 100.0},
        "training": {"irpo": {"oracle": oracle}},
    }
    told |= {"epochs": epochs} if epochs else {}
    (folder / name / "stage.json").write_text(json.dumps(told))
    (folder / name / "policy").mkdir()
    AdLLM(temperature=0.5 + 0.1 * len(name)).write_card(folder / name / "policy")


def test_stages_are_read_in_the_order_of_training(tmp_path):
    epoch = {"epoch": 1, "correlation_before": 0.4, "correlation": 0.6}
    stage(tmp_path, "a-irpo", "irpo", "distill", oracle=False, epochs=[epoch])
    stage(tmp_path, "b-irpo", "irpo", "distill", oracle=True)
    stage(tmp_path, "distill", "distill", "warm")
    stage(tmp_path, "warm", "warm-start")
    click_model = tmp_path / "a-irpo" / "work" / "epoch-1" / "pctr"
    click_model.mkdir(parents=True)
    found = read_stages(tmp_path)
    assert [each.pctr for each in found] == [None, None, click_model, None]
    assert [each.label for each in found] == [
        "warm", "distill", "a-irpo (pCTR)", "b-irpo (Oracle)",
    ]  # fmt: skip
    assert [each.warm_start for each in found] == [True, False, False, False]
    assert found[1].start == "warm"
    assert found[0].ad_llm == AdLLM(temperature=0.5 + 0.1 * 4)
    assert times(found)["seconds"].sum() == 480
    assert totals(found) == {
        "warm": 120, "distill": 240, "a-irpo (pCTR)": 360, "b-irpo (Oracle)": 360,
    }  # fmt: skip
    assert correlations(found).rows() == [("a-irpo (pCTR)", 1, 0.4, 0.6)]
    assert read_encodings(tmp_path).height == 0


def test_encodings_are_read_as_they_are_written(tmp_path, monkeypatch):
    """Training and the LLM are stood in for; the file is by `experiments.training.encodings`."""
    pool = candidates(4)
    rising = Curve(np.array(LEVELS), np.tile([0.1, 0.2, 0.3, 0.4, 0.6], (4, 1)), "share")

    def train(scenario, stage, seed, out, start, say):
        out.mkdir(parents=True)
        log = [{"loss_per_token": 2.0 - k / 10} for k in range(10)]
        (out / "stage.json").write_text(json.dumps({"seconds": 3.0, "log": log}))
        return out / "policy"

    users = SimpleNamespace(norms=None)
    stands_in = {
        "train": train,
        "training_requests": lambda _: SimpleNamespace(
            train=requests(4), held_out=requests(4), num_ads=3
        ),
        "training_pool": lambda *_, **__: pool,
        "users_by": lambda _: users,
        "shares": lambda *_: rising,
        "Engines": lambda *_: None,
        "Writer": SimpleNamespace(of=lambda *_: None),
        "AdLLM": SimpleNamespace(load=lambda _: None),
    }
    for name, each in stands_in.items():
        monkeypatch.setattr(encodings, name, each)
    ways = (("tally", False), ("digits", True))
    scenario = Scenario.from_yaml("default")
    file = encodings.compare_encodings(scenario, 10, 0, tmp_path, ways=ways)
    assert file == tmp_path / "encodings.json"
    found = read_encodings(tmp_path)
    assert found.select("bids", "ordered", "steps").rows() == [
        ("tally", False, 10), ("digits", True, 10),
    ]  # fmt: skip
    row = found.row(0, named=True)
    assert row["loss"] == pytest.approx(1.1)
    assert (row["lowest"], row["highest"]) == pytest.approx((0.1, 0.6))
    assert (row["spearman"], row["gain"]) == pytest.approx((1, 0.5))


@pytest.mark.parametrize("content", ["no json", '{"stage": "irpo"}', '{"stage": "cook"}', "[]"])
def test_refuses_folders_that_are_no_training(tmp_path, content):
    with pytest.raises(BadInput, match="holds no stage of training"):
        read_stages(tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "stage.json").write_text(content)
    with pytest.raises(BadInput, match="train that stage again") as caught:
        read_stages(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "encodings.json").write_text(content)
    if content != "[]":
        with pytest.raises(BadInput, match="mend it or take it away"):
            read_encodings(tmp_path)
