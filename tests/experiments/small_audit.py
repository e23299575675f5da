"""Pools and values to audit mechanisms on."""

import numpy as np

from mechanisms.pool import ReplyPool

N, VALUES = 8, np.linspace(1.0, 4.0, 8)
QUICK = {"grid": [0, 0.5, 0.8, 0.95, 1, 1.05, 1.3, 2, 5], "times": 2}
FIRST_PRICE = {"llm-auction-ideal": {"tau": 0.1}, "first-price": {}}


def synthetic():
    """40 requests for 4 of N advertisers each."""
    return ReplyPool.synthetic(40, 16, 4, np.random.default_rng(0), advertisers=N)


def one_item(*rivals):
    """A request per rival, with a reply that shows advertiser 0 and one that shows the rival."""
    ads = [[0, i + 1] for i in range(len(rivals))]
    ctr = np.broadcast_to(np.eye(2), (len(ads), 2, 2))
    return ReplyPool.from_arrays(ctr, ads=ads)
