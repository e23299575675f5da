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


def test_where_nobody_attains_value_there_is_no_number():
    rows = {"mechanism": ["a"], "replication": [0], "advertiser": [0]}
    frame = pl.DataFrame({**rows, "value": [0.0], "gain": [1.0], "owed": [0.0]})
    assert exploitability(frame)["a"]["mean"] is None


def test_infinite_exploitability_is_counted():
    rows = {"mechanism": ["a"] * 4, "replication": [0, 1, 2, 3], "advertiser": [0] * 4}
    gains = {"value": [1.0, 1.0, 0.0, 0.0], "gain": [0.5, 0.5, 5.0, 0.0], "owed": [0.0] * 4}
    found = exploitability(pl.DataFrame(rows | gains))["a"]
    assert found["infinite"] == 1 and found["clusters"] == 3
