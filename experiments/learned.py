"""What advertisers could still gain at the bids that a market's learners came to.

A replication's profile is everybody's mean bid over the last quarter of its rounds, held fixed. The
gains are those of `experiments.game`: by the best other fixed bid over the whole pool, others as
they are, as far as a search finds; and what value maximizers owe to their target. Budgets are left
out, and so are token limits (`Mechanism.exact`). A learner that mixes is judged at its mean bid,
not at its mixture.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from agents.learners.base import Population
from experiments.game import Game, fraction
from experiments.tables import last_quarter
from market.result import interval
from mechanisms.base import Mechanism
from mechanisms.pool import ReplyPool


def gains_of(
    advertisers: pl.DataFrame, mechanism: Mechanism, pool: ReplyPool, people: Population
) -> pl.DataFrame:
    """A row per replication and advertiser of one mechanism's run; money is per request.

    Columns: mechanism, replication, advertiser, bid (mean over the last quarter of the rounds),
    best_bid (best reply found), value (expected, attained at `bid`), gain and owed, see
    `experiments.game.Gains`.

    Args:
        advertisers: `Result.advertisers` of the run.
        mechanism: it was run under.
        pool: it traded on.
        people: all N advertisers.
    """
    late = last_quarter(advertisers).sort("replication", "round", "advertiser")
    N, R = len(people.values), late["replication"].n_unique()
    # not by group_by, whose sums depend on the number of threads in their last digits
    bids = late["bid"].to_numpy().reshape(R, -1, N).mean(axis=1)
    found = Game(mechanism.exact, pool, people).gains(bids)
    return pl.DataFrame(
        {
            "mechanism": pl.repeat(late["mechanism"][0], R * N, eager=True),
            "replication": np.repeat(np.arange(R), N),
            "advertiser": np.tile(np.arange(N), R),
            "bid": bids.ravel(),
            "best_bid": found.best.bids.ravel(),
            "value": found.value.ravel(),
            "gain": found.gain.ravel(),
            "owed": found.owed.ravel(),
        }
    )


def exploitability(gains: pl.DataFrame) -> dict[str, dict[str, float | int | None]]:
    """By mechanism, NashConv over the value attained, with its interval over replications.

    Replications in which it is infinite, since nobody attains any value though somebody could gain,
    are not in mean and interval; `infinite` counts them.
    """
    sums = (
        gains.group_by("mechanism", "replication", maintain_order=True)
        .agg(pl.col("value").sum(), lost=(pl.col("gain") + pl.col("owed")).sum())
        .sort("replication")
    )
    found = {}
    for name in gains["mechanism"].unique(maintain_order=True):
        ours = sums.filter(pl.col("mechanism") == name)
        each = fraction(np.array(ours["lost"]), np.array(ours["value"]))
        found[name] = interval(each) | {"infinite": int(np.isinf(each).sum())}
    return found
