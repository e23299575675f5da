"""Ad-LLMs on trial: measures, rows and their intervals where the answer is known."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from experiments.ad_llm import evaluation, measures
from experiments.ad_llm.clicks import VIEWERS, predicted_clicks
from experiments.ad_llm.examples import side_by_side
from experiments.ad_llm.table import SHARES, differences, table
from experiments.ad_llm.trials import Trials
from experiments.bootstrap import share_difference, share_of
from mechanisms.errors import BadInput
from mechanisms.llm_auction.ideal import IdealLLMAuction
from mechanisms.llm_auction.impressions import examples_of
from mechanisms.llm_auction.pctr import PCTR, Embeddings, Training
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool
from tests.experiments.small_auction import REWARD, candidates, malformed, requests, trials, written
from tests.tiny_llm import ADS, HashEncoder


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
