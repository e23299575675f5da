"""IAMFM in a market of learning advertisers, beside other mechanisms on the same requests."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from experiments.arms import chosen
from experiments.parallel import Job
from experiments.tables import last_quarter
from market.environment import titles
from market.model import MarketModel
from market.result import Result
from market.scenario import Scenario
from mechanisms.base import Mechanism
from mechanisms.pool import ReplyPool

MECHANISMS = ("iamfm-elimination", "mosaic", "llm-auction-ideal")
"""Not `iamfm-model`: its plans take seconds each, and a market of this size has hundreds."""
TOTALS = ("revenue", "welfare", "user_satisfaction")


@dataclass(frozen=True, eq=False)
class Markets:
    """What all markets of the comparison share; requests and dice are common by their seed."""

    scenario: Scenario
    pool: ReplyPool

    def mechanism(self, name: str) -> Mechanism:
        """As the scenario sets it, if it is there."""
        (found,) = chosen(self.scenario, [name])
        return found


def play(job: Job, markets: Markets) -> Result:
    """The scenario's market under one mechanism: (name, seed)."""
    name, seed = job
    pool = markets.pool
    return MarketModel(
        markets.scenario, seed, pool=pool, mechanism=markets.mechanism(name), titles=titles(pool)
    ).run()


def by_replication(result: Result) -> pl.DataFrame:
    """Means over the last quarter of rounds, by mechanism and replication: `TOTALS`."""
    runs = result.rounds.partition_by("mechanism", maintain_order=True)
    return (
        pl.concat(last_quarter(run) for run in runs)
        .group_by("mechanism", "replication", maintain_order=True)
        .agg(pl.col(*TOTALS).mean())
        .sort("mechanism", "replication")
    )


def bids_by_advertiser(result: Result) -> pl.DataFrame:
    """Mean bid over the truthful one in the last quarter of rounds, by mechanism and advertiser."""
    runs = result.advertisers.partition_by("mechanism", maintain_order=True)
    target = pl.when(pl.col("objective") == "value").then(pl.col("target_roi")).otherwise(1.0)
    return (
        pl.concat(last_quarter(run) for run in runs)
        .group_by("mechanism", "advertiser", maintain_order=True)
        .agg(
            objective=pl.col("objective").first(),
            bid=(pl.col("bid") * target / pl.col("value")).mean(),
        )
        .sort("mechanism", "advertiser")
    )
