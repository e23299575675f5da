"""IAMFM in markets of learning advertisers, beside other mechanisms at equal learning steps.

Bids of IAMFM are read once in a period, which is one step to a learner; under other mechanisms a
step is a round. Over the same rounds its advertisers would learn much less often, and what they
have come to would be compared with what others have not. So markets here are told by their steps,
each of one round that holds all requests of the step: `EQUAL`, one step for each period of the
scenario; `LONG`, one for each of its rounds, which a mechanism that pays tokens for every plan
cannot afford, but IAMFM with outcomes known can; `SHORT`, a few, for plans that take seconds. The
first two serve as many requests as the scenario does.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import polars as pl

from experiments.arms import chosen
from experiments.parallel import Job
from experiments.tables import last_quarter
from market.environment import titles
from market.model import MarketModel
from market.result import TAIL, Result
from market.scenario import Scenario
from mechanisms.base import Mechanism
from mechanisms.iamfm.mechanism import IAMFM
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism

EQUAL, LONG, SHORT = "at equal steps", "long", "short"
FEW_STEPS, FEW_REPLICATIONS = 12, 2
"""Of `SHORT` markets, at most."""
TOTALS = ("revenue", "welfare", "user_satisfaction")


@dataclass(frozen=True)
class Arm:
    """A market of the comparison.

    Attributes:
        name: of the mechanism.
        length: `EQUAL`, `LONG` or `SHORT`.
        exact: IAMFM with outcomes known, without a token budget.
    """

    name: str
    length: str
    exact: bool = False

    @property
    def label(self) -> str:
        """Its name on the page, and in results, by `length` besides."""
        return "iamfm, exact" if self.exact else self.name

    @property
    def key(self) -> str:
        """Its name in results."""
        return self.label if self.length == EQUAL else f"{self.label}, {self.length}"


ARMS = {
    arm.key: arm
    for arm in (
        Arm("iamfm-elimination", EQUAL),
        Arm("iamfm-elimination", EQUAL, exact=True),
        Arm("mosaic", EQUAL),
        Arm("llm-auction-ideal", EQUAL),
        Arm("iamfm-elimination", LONG, exact=True),
        Arm("mosaic", LONG),
        Arm("llm-auction-ideal", LONG),
        Arm("iamfm-elimination", SHORT),
        Arm("iamfm-model", SHORT),
    )
}


@dataclass(frozen=True, eq=False)
class Markets:
    """What all markets of the comparison share; requests and dice are common by seed and length."""

    scenario: Scenario
    pool: ReplyPool

    @property
    def ours(self) -> IAMFM:
        """The scenario's mechanism, its bids read in every round."""
        arm = self.scenario.mechanism
        return replace(make_mechanism(arm.name, **arm.parameters), period=1)

    @property
    def period(self) -> int:
        """Rounds of a period of the scenario."""
        return int(self.scenario.mechanism.parameters.get("period", IAMFM.period))

    def mechanism(self, arm: Arm) -> Mechanism:
        """As the scenario sets it; IAMFM's two have what they share in common."""
        ours = self.ours
        if not arm.name.startswith("iamfm"):
            (found,) = chosen(self.scenario, [arm.name])
            return found
        if arm.name != ours.name:
            shared = {each.name: getattr(ours, each.name) for each in fields(IAMFM)}
            ours = make_mechanism(arm.name, **shared)
        return ours.exact if arm.exact else ours

    def scenario_of(self, arm: Arm) -> Scenario:
        """The scenario in rounds of a learning step each."""
        rounds, requests = self.scenario.rounds, self.scenario.requests_per_round
        if arm.length == LONG:
            return self.scenario
        steps = max(1, rounds // self.period)
        sizes = {"rounds": steps, "requests_per_round": rounds * requests // steps}
        if arm.length == SHORT:
            sizes["rounds"] = min(FEW_STEPS, steps)
            sizes["replications"] = min(FEW_REPLICATIONS, self.scenario.replications)
        return self.scenario.with_(**sizes)


def play(job: Job, markets: Markets) -> Result:
    """A market of the comparison: (key of `ARMS`, seed)."""
    key, seed = job
    arm, pool = ARMS[str(key)], markets.pool
    return MarketModel(
        markets.scenario_of(arm),
        seed,
        pool=pool,
        mechanism=markets.mechanism(arm),
        titles=titles(pool),
        label=arm.key,
    ).run()


def by_replication(result: Result) -> pl.DataFrame:
    """Means over the last quarter of steps, by mechanism and replication: `TOTALS`."""
    runs = result.rounds.partition_by("mechanism", maintain_order=True)
    return (
        pl.concat(last_quarter(run) for run in runs)
        .group_by("mechanism", "replication", maintain_order=True)
        .agg(pl.col(*TOTALS).mean())
        .sort("mechanism", "replication")
    )


def bids_by_advertiser(result: Result) -> pl.DataFrame:
    """Mean bids over the truthful one, by mechanism and advertiser.

    Columns: mechanism, advertiser, objective; `bid` in the last quarter of steps, `bid_before` in
    the quarter before; `value`, expected, and `due`, payments times target ROI, in the last.
    """
    runs = result.advertisers.partition_by("mechanism", maintain_order=True)
    target = pl.when(pl.col("objective") == "value").then(pl.col("target_roi")).otherwise(1.0)
    bid = (pl.col("bid") * target / pl.col("value")).mean()
    keys = ("mechanism", "advertiser")
    late = (
        pl.concat(last_quarter(run) for run in runs)
        .group_by(*keys, maintain_order=True)
        .agg(
            objective=pl.col("objective").first(),
            bid=bid,
            value=(pl.col("value") * pl.col("itctr")).sum(),
            due=(target * pl.col("payment")).sum(),
        )
    )
    before = pl.concat(_third_quarter(run) for run in runs).group_by(*keys).agg(bid_before=bid)
    return late.join(before, on=keys, how="left").sort(*keys)


def steps_of(result: Result) -> dict[str, tuple[int, int]]:
    """Learning steps and replications of each market, by key."""
    found = result.rounds.group_by("mechanism", maintain_order=True).agg(
        pl.col("round").max() + 1, pl.col("replication").n_unique()
    )
    return {key: (steps, replications) for key, steps, replications in found.rows()}


def _third_quarter(run: pl.DataFrame) -> pl.DataFrame:
    rounds = run["round"].max() + 1
    return run.filter(pl.col("round").is_between((2 * TAIL - 1) * rounds, TAIL * rounds, "left"))
