"""What a run leaves: frames that agree with each other, their summary, and Mesa's own records."""

import mesa
import numpy as np
import polars as pl
import pytest

from market.ledger import PER_ROUND, Result
from market.model import MarketModel
from mechanisms.errors import BadInput
from tests.market.small_scenario import N, make_scenario, run


def saved(result, folder):
    result.save(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_same_seed_same_bytes_and_different_seed_different(tmp_path):
    one = saved(run(seed=4), tmp_path / "one")
    again = saved(run(seed=4), tmp_path / "again")
    other = saved(run(seed=5), tmp_path / "other")
    assert list(one) == ["advertisers.parquet", "rounds.parquet", "summary.json"]
    assert one == again
    assert all(one[name] != other[name] for name in one)


def test_frames_have_a_row_for_everything_and_agree_with_each_other():
    result = run(learners=("hedge", "pacing", "truthful"))
    assert result.rounds.height == 3 * 25
    assert result.advertisers.height == 3 * 25 * N
    people = result.advertisers
    assert people["round"].to_list()[: 2 * N] == [0] * N + [1] * N
    sums = people.group_by("replication", "round", maintain_order=True).agg(
        revenue=pl.col("charge").sum() / 4,
        expected_revenue=pl.col("payment").sum() / 4,
        clicks=pl.col("clicks").sum() / 4,
        ads_per_reply=pl.col("exposure").sum() / 4,
        requests=pl.col("requests").sum() / 4,
        value=(pl.col("value") * pl.col("itctr")).sum() / 4,
    )
    for name in ("revenue", "expected_revenue", "clicks", "ads_per_reply"):
        np.testing.assert_allclose(result.rounds[name], sums[name], atol=1e-12, err_msg=name)
    assert (sums["requests"] == 3).all()  # three candidate ads a request
    rounds = result.rounds
    np.testing.assert_allclose(rounds["welfare"], sums["value"] + rounds["user_satisfaction"])
    regularised = rounds["welfare"] - 0.3 * rounds["kl"]
    np.testing.assert_allclose(rounds["regularised_welfare"], regularised)
    np.testing.assert_allclose(rounds["ess"], 10)
    assert (rounds["kl"] >= 0).all()
    one = people.filter((pl.col("replication") == 1) & (pl.col("advertiser") == 2))
    np.testing.assert_allclose(one["spend"], one["charge"].cum_sum())
    value = (one["value"] * one["clicks"]).cum_sum().to_numpy()
    late = one["spend"].to_numpy() > 0
    np.testing.assert_allclose(one["roi"].to_numpy()[late], (value / one["spend"].to_numpy())[late])
    assert one["roi"].to_numpy().shape == (25,) and not one["roi"].is_nan().any()


def test_a_ledger_on_disk_gives_the_frames_of_one_in_memory(monkeypatch):
    whole = run(rounds=60, learners=("hedge", "pacing"))
    monkeypatch.setattr("market.ledger.CHUNK_BYTES", 5000)  # a few rounds
    model = MarketModel(make_scenario(rounds=60, learners=("hedge", "pacing")), 0)
    part = model.run(rounds=31)
    pieces = model.run()
    assert model.ledger._file is not None
    assert part.rounds.equals(whole.rounds.filter(pl.col("round") < 31))
    assert pieces.rounds.equals(whole.rounds)
    assert pieces.advertisers.equals(whole.advertisers)
    assert pieces.summary == whole.summary


def test_results_side_by_side():
    mosaic, first = run(rounds=8), run(rounds=8, mechanism="first-price")
    both = Result.concat([mosaic, first])
    assert both.rounds["mechanism"].unique(maintain_order=True).to_list() == [
        "mosaic", "first-price",
    ]  # fmt: skip
    assert both.rounds["regularised_welfare"].null_count() == 3 * 8
    assert both.summary == Result.of(both.rounds, both.advertisers).summary
    assert list(both.summary) == ["mosaic", "first-price"]
    with pytest.raises(BadInput, match="two results are labelled 'mosaic'"):
        Result.concat([mosaic, mosaic])
    with pytest.raises(BadInput, match="no results"):
        Result.concat([])


def test_summary_is_of_the_last_quarter_with_intervals():
    result = run(rounds=20)
    summary = result.summary["mosaic"]
    assert summary["rounds"] == 20 and summary["summarised_from_round"] == 15
    late = result.rounds.filter(pl.col("round") >= 15)
    for name in PER_ROUND:
        assert summary[name]["mean"] == pytest.approx(late[name].mean()), name
        assert summary[name]["low"] <= summary[name]["mean"] <= summary[name]["high"], name
        assert summary[name]["clusters"] == 3
    people = result.advertisers.filter((pl.col("round") >= 15) & (pl.col("objective") == "value"))
    shading = summary["objectives"]["value"]["bid_over_value"]
    assert shading["mean"] == pytest.approx((people["bid"] / people["value"]).mean())
    assert shading["clusters"] == 2
    assert "roi_over_target" not in summary["objectives"]["utility"]
    lone = run(rounds=4, replications=1).summary["mosaic"]["welfare"]
    assert lone["low"] is None and lone["clusters"] == 1


def test_titles_and_labels_reach_the_frames(tmp_path):
    titles = [f"Tea {i}" for i in range(N)]
    model = MarketModel(make_scenario(rounds=2), 0, titles=titles, label="tau=0.3")
    result = model.run()
    assert result.advertisers["title"].to_list()[:N] == titles
    assert set(result.rounds["mechanism"]) == {"tau=0.3"} and list(result.summary) == ["tau=0.3"]
    read = pl.read_parquet(result.save(tmp_path) / "advertisers.parquet")
    assert read.equals(result.advertisers)


def test_batch_run_and_data_collector():
    rows = mesa.batch_run(
        MarketModel,
        parameters={
            "scenario": [make_scenario(rounds=6)],
            "seed": [0, 1],
            "collect_every": 1,
            "label": ["x"],
        },
        data_collection_period=1,
        display_progress=False,
    )
    ours = [row for row in rows if row["seed"] == 1]
    assert {row["Step"] for row in ours} == set(range(6))
    expected = MarketModel(make_scenario(rounds=6), 1).run()
    by_round = expected.rounds.group_by("round").agg(pl.col("revenue").mean()).sort("round")
    for row in ours:
        assert row["revenue"] == pytest.approx(by_round["revenue"][row["Step"]])
    bids = expected.advertisers.filter((pl.col("round") == 2) & (pl.col("advertiser") == 3))["bid"]
    there = [row for row in ours if row["Step"] == 2 and row["AgentID"] == 4]
    assert there[0]["bid"] == pytest.approx(bids.mean())
    assert {"bid_over_value", "utility", "spend", "roi", "welfare", "user_satisfaction"} <= set(
        there[0]
    )


def test_batch_run_over_seeds_gives_different_runs():
    scenario = make_scenario(rounds=5)
    parameters = {"scenario": [scenario], "seed": [0, 1, 2], "collect_every": 1}
    rows = mesa.batch_run(
        MarketModel, parameters=parameters, data_collection_period=1, display_progress=False
    )
    series = {}
    for row in rows:
        series.setdefault(row["seed"], {})[row["Step"]] = row["revenue"]
    assert sorted(series) == [0, 1, 2]
    assert len({tuple(steps.values()) for steps in series.values()}) == 3
    for seed, steps in series.items():
        rounds = MarketModel(make_scenario(rounds=5), seed).run().rounds
        expected = rounds.group_by("round").agg(pl.col("revenue").mean()).sort("round")
        assert list(steps.values()) == pytest.approx(expected["revenue"].to_list())


def test_batch_run_without_collecting_reports_the_last_round():
    rows = mesa.batch_run(
        MarketModel, parameters={"scenario": [make_scenario(rounds=4)]}, display_progress=False
    )
    assert {row["Step"] for row in rows} == {3}
    expected = MarketModel(make_scenario(rounds=4), 0).run().rounds
    last = expected.filter(pl.col("round") == 3)["ads_per_reply"].mean()
    assert rows[0]["ads_per_reply"] == pytest.approx(last)


def test_collecting_now_and_then():
    model = MarketModel(make_scenario(rounds=7), 0, collect_every=3)
    model.run()
    frame = model.datacollector.get_model_vars_dataframe()
    assert frame["revenue"].notna().tolist() == [True, False, False, True, False, False, True]
    agents = model.datacollector.get_agent_vars_dataframe()
    assert len(agents) == 3 * (N + 1)
