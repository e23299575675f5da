"""The bench compares like with like, and says so in lines that can be read."""

import os

import numpy as np

from experiments.bench_kernel import (
    Times,
    allocation,
    bid_grids,
    chosen,
    circumstances,
    plain_numpy,
    slot_auctions,
    times,
)
from mechanisms.kernels import VARIABLE
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool


def test_plain_numpy_is_mosaic():
    rng = np.random.default_rng(0)
    pool = ReplyPool.synthetic(40, 20, 6, rng)
    bids = rng.random((40, 6))
    found = Mosaic(0.1).allocate(pool, bids)
    plain = plain_numpy(pool.log_weights, pool.ctr, bids, 0.1)
    for mine, theirs in zip((found.probabilities, found.itctr, found.payments), plain, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-12)


def test_figures_of_known_times():
    one = Times(np.array([[1.0, 10.0], [2.0, 20.0], [6.0, 30.0]]))
    other = Times(np.array([[0.5, 1.0], [0.4, 2.0], [0.1, 3.0]]))
    assert one.rate(100) == "50 (100)"
    assert one.over(other) == "5.0 (10.0)"
    assert one.over(other, 1) == "10.0 (10.0)"


def test_all_sides_take_the_same_turns():
    played = []
    taken = times(3, a=lambda: played.append("a"), b=lambda: played.append("b"))
    assert played == 4 * ["a", "b"]  # the first of each warms up
    assert all(each.turns.shape == (3, 2) for each in taken.values())


def test_lines():
    lines = [*allocation(60, 1), *circumstances(40, 1), *bid_grids(2, 1), *slot_auctions(2, 1)]
    assert [line for line in lines if "plain NumPy" in line and "auctions/s" in line]
    assert sum("mosaic's time" in line for line in lines) == 4
    for what in ("the first auctions on a pool", "every ad in every reply", "tau = 0.001"):
        assert sum(what in line and "x with one" in line for line in lines) == 1


def test_the_kernel_chosen_before_comes_back():
    before = os.environ.get(VARIABLE)
    with chosen("numpy"):
        assert os.environ[VARIABLE] == "numpy"
    assert os.environ.get(VARIABLE) == before
