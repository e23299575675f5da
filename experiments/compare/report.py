"""The emergent map: mechanisms x share of value maximizers x learners, with intervals.

Every cell is learned and measured with the same replicate populations (`cells`, `populations`).
Intervals are 95 % t-intervals of means over the populations drawn; differences to the baseline
mechanism are paired, population by population. They are about other advertisers on these requests
and replies, over all of which amounts are taken. Mechanisms share the scenario's replies, but for
those that have their own way of writing (`Mechanism.generation`): to them, writing belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from agents.learners.registry import check_learner
from experiments.arms import chosen
from experiments.compare.cells import Setting, cell
from experiments.compare.populations import Populations
from experiments.parallel import Executor, Kept, check_executor, run_all
from market.environment import pools_of
from market.result import interval
from market.scenario import Scenario
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.pool import ReplyPool

MECHANISMS = ("mosaic", "llm-auction-ideal", "first-price", "vcg", "segment", "gsp")
PARAMETERS = {"gsp": {"slots": 2}}
"""Where the scenario has none. With one place to sell, and replies that show each ad alone, GSP
allocates and charges as VCG does: it would be the same mechanism twice."""
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
LEARNERS = ("hedge", "gradient")
DRAWS, ROUNDS, STARTS = 8, 2000, 2
MEASURES = (
    "revenue",
    "advertisers_value",
    "user_satisfaction",
    "welfare",
    "liquid_welfare",
    "price_of_anarchy",
    "welfare_over_truthful",
    "exploitability",
)
STATUSES = ("converged", "cycling", "drifting")
KEYS = ["learner", "mechanism", "share"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was asked for, and found.

    Attributes:
        frame: a row per cell and draw: mechanism, learner, share, draw, value_maximizers (how many
            of the N), amounts, ratios, exploitability (fraction of the value attained),
            profile (what was measured: all of it of the same profiles) and status; see `cells`.
        setting: what all cells shared.
    """

    frame: pl.DataFrame
    setting: Setting

    @property
    def table(self) -> pl.DataFrame:
        """A row per cell: means of `MEASURES` with `_low` and `_high`, and how many draws there
        are, and how many of them converged, cycled and drifted.
        """
        return _summarised(self.frame)

    @property
    def baseline(self) -> str:
        """The mechanism that others are compared with: the first."""
        return next(iter(self.setting.mechanisms))

    @property
    def differences(self) -> pl.DataFrame:
        """As `table`, of paired differences of the other mechanisms to the baseline."""
        paired = ["learner", "share", "draw"]
        base = self.frame.filter(pl.col("mechanism") == self.baseline)
        others = self.frame.filter(pl.col("mechanism") != self.baseline)
        joined = others.join(base, on=paired, suffix="_base", maintain_order="left")
        return _summarised(
            joined.with_columns(pl.col(name) - pl.col(f"{name}_base") for name in MEASURES)
        )


def compare(
    scenario: Scenario,
    mechanisms: Sequence[str] = MECHANISMS,
    *,
    shares: Sequence[float] = SHARES,
    learners: Sequence[str] = LEARNERS,
    draws: int = DRAWS,
    seed: int = 0,
    rounds: int = ROUNDS,
    starts: int = STARTS,
    pool: ReplyPool | None = None,
    executor: Executor = "serial",
    workers: int | None = None,
    kept: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: bool = False,
) -> Comparison:
    """Let advertisers learn in every cell, and measure what they come to.

    Args:
        scenario: gives replies, and the ranges of values and target ROIs.
        mechanisms: by name, with the scenario's parameters (`experiments.arms`, `PARAMETERS`); the
            first is the baseline.
        shares: of value maximizers, in [0, 1].
        learners: by name; everybody in a cell uses the same.
        draws: D, populations per cell.
        seed: of populations and learners.
        rounds: of learning.
        starts: R, starting points.
        pool: candidate replies; default the scenario's.
        executor: who does the work, see `experiments.parallel`, as for workers.
        kept: a folder of finished jobs, to go on from after an interruption.
        say: told in a line what is going on.
        progress: show a progress bar (on a terminal only).

    Raises:
        BadInput: unknown names, shares outside [0, 1], anything named twice, numbers too small, or
            what `experiments.parallel.run_all` refuses; before replies are recorded, if need be.
    """
    _check(shares, learners, rounds, starts)
    check_executor(executor, workers)
    arms = arms_of(scenario, mechanisms)
    populations = Populations.drawn(scenario, draws, seed)
    if any(group.budget is not None for group in scenario.population):
        say("the scenario's budgets are left out: learners play without them")
    pools = [pool] * len(arms) if pool is not None else pools_of(scenario, arms, say)
    bare = {id(each): _bare(each) for each in pools}  # one that is shared is sent once
    setting = Setting(
        mechanisms={arm.name: arm for arm in arms},
        pools={arm.name: bare[id(each)] for arm, each in zip(arms, pools, strict=True)},
        populations=populations,
        rounds=rounds,
        starts=starts,
        seed=seed,
    )
    jobs = [
        (arm.name, learner, float(share), draw)
        for learner in learners
        for arm in arms
        for share in shares
        for draw in range(draws)
    ]
    rows = run_all(
        cell, jobs, setting, executor=executor, workers=workers,
        kept=Kept(kept, _content(scenario, setting)) if kept else None, say=say, progress=progress,
    )  # fmt: skip
    return Comparison(pl.DataFrame(rows), setting)


def arms_of(scenario: Scenario, names: Sequence[str]) -> list[Mechanism]:
    """The mechanisms of a comparison: `experiments.arms.chosen`, or with `PARAMETERS`."""
    listed = {arm.name for arm in scenario.arms}
    return [
        arm if arm.name in listed else replace(arm, **PARAMETERS.get(arm.name, {}))
        for arm in chosen(scenario, names)
    ]


def _check(shares: Sequence[float], learners: Sequence[str], rounds: int, starts: int) -> None:
    for name, given, least in (("rounds", rounds, 4), ("starts", starts, 1)):
        if given < least:
            raise BadInput(f"{name} is {given}; give at least {least}")
    for name, given in (("share", shares), ("learner", learners)):
        if not given:
            raise BadInput(f"no {name} to compare; give at least one")
        if len(set(given)) < len(given):
            raise BadInput(f"a {name} is named twice; name each once")
    for share in shares:
        if not 0 <= share <= 1:
            raise BadInput(f"share is {share}; give a share of value maximizers in [0, 1]")
    for learner in learners:
        check_learner(learner, {})


def _bare(pool: ReplyPool) -> ReplyPool:
    """The pool without its texts, which no auction reads, for the way to the workers."""
    return replace(pool, replies=None, requests=None)


def _content(scenario: Scenario, setting: Setting) -> str:
    """What the result of a job depends on, beside the job: not how many other cells there are."""
    pools = [pool.content_hash for pool in setting.pools.values()]
    what = (scenario.to_yaml(), setting.mechanisms, pools, setting.rounds, setting.starts)
    return repr((*what, setting.seed))


def _summarised(frame: pl.DataFrame) -> pl.DataFrame:
    """Means of `MEASURES` over draws, with t-intervals, and counts of statuses.

    A mean with an infinite member is infinite, and has no interval.
    """
    rows = []
    for key, ours in frame.group_by(KEYS, maintain_order=True):
        row = dict(zip(KEYS, key, strict=True)) | {"draws": ours.height}
        for name in MEASURES:
            found = interval(ours[name].to_numpy())
            if not ours[name].is_finite().all():
                found |= {"mean": ours[name].sum(), "low": None, "high": None}
            row |= {name: found["mean"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
        row |= {status: int((ours["status"] == status).sum()) for status in STATUSES}
        rows.append(row)
    return pl.DataFrame(rows, schema=_schema())


def _schema() -> dict[str, pl.DataType]:
    ends = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
    return {
        **dict(zip(KEYS, (pl.String(), pl.String(), pl.Float64()), strict=True)),
        "draws": pl.Int64(),
        **{name: pl.Float64() for name in ends},
        **{status: pl.Int64() for status in STATUSES},
    }
