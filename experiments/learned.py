"""What advertisers could still gain at the bids that a market's learners came to.

Gains are those of `experiments.game`: by the best other fixed bid over the whole pool, as far as a
search finds; and what value maximizers owe to their target. Budgets are left out, and so are token
limits (`Mechanism.exact`). They are taken against two things, in each replication:

- everybody's mean bid over the last quarter of the rounds, held fixed. Where nobody gains, that is
  a Nash equilibrium in fixed bids. A learner that mixes is judged at its mean, not at its mixture.
- what was played in that quarter, in up to `MOST` of its rounds: the regret of play, against
  others who draw their bids and change them. Where nobody has any, play is a coarse correlated
  equilibrium. Of a longer quarter these rounds are a sample, which errs both ways; that the best
  bid is chosen on the rounds it is judged on errs upwards on average.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl

from agents.learners.base import Population
from experiments.game import Game, fraction
from experiments.tables import last_quarter
from market.result import interval
from mechanisms.base import Mechanism
from mechanisms.pool import ReplyPool

PROFILES, FEWEST, MOST = 1024, 16, 128
"""Rounds that regret is measured on: so many over all replications, and in each at least and at
most; evenly spaced over the last quarter."""


def gains_of(
    advertisers: pl.DataFrame, mechanism: Mechanism, pool: ReplyPool, people: Population
) -> pl.DataFrame:
    """A row per replication and advertiser of one mechanism's run; money is per request.

    Columns: mechanism, replication, advertiser, bid (mean over the last quarter of the rounds),
    best_bid (best reply found), value (expected, attained at `bid`), gain and owed, see
    `experiments.game.Gains`; and the last four again, `played_...`, of the rounds played.

    Args:
        advertisers: `Result.advertisers` of the run.
        mechanism: it was run under.
        pool: it traded on.
        people: all N advertisers.
    """
    late = last_quarter(advertisers).sort("replication", "round", "advertiser")
    N, R = len(people.values), late["replication"].n_unique()
    # not by group_by, whose sums depend on the number of threads in their last digits
    each_round = late["bid"].to_numpy().reshape(R, -1, N)
    bids = each_round.mean(axis=1)
    T = each_round.shape[1]
    count = min(T, MOST, max(FEWEST, PROFILES // R))
    rounds = each_round[:, np.linspace(0, T - 1, count).round().astype(int)]
    game = Game(mechanism.exact, pool, people)
    found, played = game.gains(bids), [game.gains(each, pooled=True) for each in rounds]
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
            "played_best_bid": np.concatenate([each.best.bids[0] for each in played]),
            "played_value": np.concatenate([each.value[0] for each in played]),
            "played_gain": np.concatenate([each.gain[0] for each in played]),
            "played_owed": np.concatenate([each.owed[0] for each in played]),
        }
    )


def exploitability(
    gains: pl.DataFrame, of: Literal["mean bids", "play"] = "mean bids"
) -> dict[str, dict[str, float | int | None]]:
    """By mechanism, gains and what is owed over the value attained, of all advertisers together.

    With its interval over replications: NashConv at mean bids, or the regret of play. Replications
    in which it is infinite, since nobody attains any value though somebody could gain, are not in
    mean and interval; `infinite` counts them.
    """
    value, gain, owed = (
        pl.col(("played_" if of == "play" else "") + name) for name in ("value", "gain", "owed")
    )
    sums = (
        gains.group_by("mechanism", "replication", maintain_order=True)
        .agg(value=value.sum(), lost=(gain + owed).sum())
        .sort("replication")
    )
    found = {}
    for name in gains["mechanism"].unique(maintain_order=True):
        ours = sums.filter(pl.col("mechanism") == name)
        each = fraction(np.array(ours["lost"]), np.array(ours["value"]))
        found[name] = interval(each) | {"infinite": int(np.isinf(each).sum())}
    return found
