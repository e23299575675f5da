"""The bench compares like with like, and says so in lines that can be read."""

import os

import numpy as np

from experiments.bench_kernel import allocation, bid_grids, chosen, plain_numpy, slot_auctions
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


def test_lines():
    lines = [*allocation(60, 1), *bid_grids(2, 1), *slot_auctions(2, 1)]
    assert [line for line in lines if "plain NumPy" in line and "auctions/s" in line]
    assert sum("mosaic's time" in line for line in lines) == 4


def test_the_kernel_chosen_before_comes_back():
    before = os.environ.get(VARIABLE)
    with chosen("numpy"):
        assert os.environ[VARIABLE] == "numpy"
    assert os.environ.get(VARIABLE) == before
