"""What could be gained at learned bids: the gains of the game, by replication."""

import numpy as np
import polars as pl
import pytest

from experiments.game import Game
from experiments.learned import exploitability, gains_of
from tests.experiments import small_run


@pytest.mark.parametrize("name", small_run.MECHANISMS)
def test_gains_are_those_at_the_mean_bids_of_each_replication(name):
    people = small_run.result().advertisers.filter(pl.col("mechanism") == name)
    found = gains_of(people, small_run.mechanism(name), small_run.pool(), small_run.PEOPLE)
    late = people.filter(pl.col("round") >= 45)
    bids = np.array(
        [
            [
                late.filter((pl.col("replication") == r) & (pl.col("advertiser") == i))[
                    "bid"
                ].mean()
                for i in range(small_run.N)
            ]
            for r in range(3)
        ]
    )
    np.testing.assert_allclose(found["bid"].to_numpy().reshape(3, -1), bids)
    game = Game(small_run.mechanism(name), small_run.pool(), small_run.PEOPLE)
    of_all = exploitability(found)[name]
    assert of_all["mean"] == pytest.approx(game.gains(bids).exploitability.mean())
    assert of_all["clusters"] == 3 and of_all["mean"] > 0


@pytest.mark.parametrize("name", small_run.MECHANISMS)
def test_regret_of_play_is_of_one_bid_in_all_rounds_played(name):
    people = small_run.result().advertisers.filter(pl.col("mechanism") == name)
    found = gains_of(people, small_run.mechanism(name), small_run.pool(), small_run.PEOPLE)
    game = Game(small_run.mechanism(name), small_run.pool(), small_run.PEOPLE)
    late = people.filter((pl.col("round") >= 45) & (pl.col("replication") == 1))
    rounds = late.sort("round", "advertiser")["bid"].to_numpy().reshape(-1, small_run.N)
    assert len(rounds) == 15  # all of the last quarter
    value, payment = game.outcome(rounds)
    ours = found.filter(pl.col("replication") == 1)
    np.testing.assert_allclose(ours["played_value"], value.mean(axis=0))
    # of bids tried by hand none brings more than the best found, and the finest nearly as much
    people = small_run.PEOPLE
    attained = np.where(people.value_maximizer, value, value - payment).mean(axis=0)
    grid = game.top[:, None] * np.linspace(0, 1, 801)
    gain = np.full(small_run.N, -np.inf)
    for part in np.array_split(grid, 8, axis=1):
        tried = [curve.mean(axis=0) for curve in game.curves(rounds, part)]
        gain = np.maximum(gain, game.objective(*tried).max(axis=1) - attained)
    found_gain = ours["played_gain"].to_numpy()
    assert (gain <= found_gain + 1e-12).all()
    np.testing.assert_allclose(found_gain, np.maximum(gain, 0), atol=0.01 * attained.sum())
    # and of all replications together it is told as a share
    told = exploitability(found, of="play")[name]["mean"]
    lost = (found["played_gain"] + found["played_owed"]).to_numpy().reshape(3, -1).sum(axis=1)
    shares = lost / found["played_value"].to_numpy().reshape(3, -1).sum(axis=1)
    assert told == pytest.approx(shares.mean())
    assert told != pytest.approx(exploitability(found)[name]["mean"])


def test_of_bids_that_stay_regret_is_exploitability():
    people = small_run.result().advertisers
    still = people.with_columns(pl.col("bid").mean().over("mechanism", "advertiser", "replication"))
    for name in small_run.MECHANISMS:
        ours = still.filter(pl.col("mechanism") == name)
        found = gains_of(ours, small_run.mechanism(name), small_run.pool(), small_run.PEOPLE)
        for column in ("value", "gain", "owed"):
            np.testing.assert_allclose(found[f"played_{column}"], found[column], atol=1e-9)


def test_where_nobody_attains_value_there_is_no_number():
    rows = {"mechanism": ["a"], "replication": [0], "advertiser": [0]}
    frame = pl.DataFrame({**rows, "value": [0.0], "gain": [1.0], "owed": [0.0]})
    assert exploitability(frame)["a"]["mean"] is None


def test_infinite_exploitability_is_counted():
    rows = {"mechanism": ["a"] * 4, "replication": [0, 1, 2, 3], "advertiser": [0] * 4}
    gains = {"value": [1.0, 1.0, 0.0, 0.0], "gain": [0.5, 0.5, 5.0, 0.0], "owed": [0.0] * 4}
    found = exploitability(pl.DataFrame(rows | gains))["a"]
    assert found["infinite"] == 1 and found["clusters"] == 3
