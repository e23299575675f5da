"""Audit a mechanism: what do strategic deviations gain, and who loses by taking part?

Incentive compatibility is a regret, the greatest gain from a deviation, as a fraction of the value
that the advertiser attains under truth (which is at most its value per click, so that this is the
stricter of the two; `frame` has both). Truth is v for a utility maximizer, and `v / tau_roi` for a
value maximizer, whose regret is the extra value that it can attain while it meets its target in
total, and what truth owes where it does not meet it. See `deviations`, `misreports`, `properties`
and `resampling` for the mathematics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from agents.learners.base import Population
from experiments.audit.deviations import MULTIPLES, Deviations, deviations
from experiments.audit.dice import Dice, throw
from experiments.audit.findings import Evidence, Finding, findings
from experiments.audit.misreports import TakesReports, misreports, searched
from experiments.audit.properties import (
    Violations,
    counterfactual_error,
    shape,
    truthful,
    violations,
)
from experiments.audit.resampling import Regrets
from experiments.game import Objective, population_of
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, ReplyPool

TIMES = 64
COMPARED = 50_000
"""Auctions at most that counterfactuals are held against, on requests drawn at random."""


@dataclass(frozen=True, eq=False)
class AuditReport:
    """What an audit found, with N advertisers.

    Attributes:
        mechanism: its name.
        regret: (N,) greatest gain from one multiple of the truthful bid for all requests, as a
            fraction of the value attained under truth; see the head of this module.
        max_regret: the greatest of them.
        interval: (low, high), 95 %, of `max_regret` over requests like the pool's.
        ir_violations: by objective ("utility": utility below 0, "value": target ROI missed).
        frame: a row per advertiser; see `_frame`.
        table: a row per advertiser and multiple of the grid: `advertiser`, `multiple`, `gain` in
            money per request of the pool, `regret` (the gain, negative too, as a fraction of the
            value attained; null where a target ROI is missed).
        misreports: gains from arbitrary reports, if the mechanism takes them; see `misreports`.
        misreported: number of requests on which they were tried.
        findings: a verdict per property, with its evidence.
        regrets: with an interval for each advertiser.
        people: private types, as audited.
        others: (N,) what the others bid while one deviates.
    """

    mechanism: str
    regret: Floats
    max_regret: float
    interval: tuple[float, float]
    ir_violations: Mapping[str, Violations]
    frame: pl.DataFrame
    table: pl.DataFrame
    misreports: pl.DataFrame | None
    misreported: int
    findings: tuple[Finding, ...]
    regrets: Regrets
    people: Population
    others: Floats

    @property
    def verdict(self) -> str:
        """A line per property."""
        return "\n".join(str(each) for each in self.findings)

    def finding(self, key: str) -> Finding:
        """The finding on the property `key`; see `findings.PROPERTIES`."""
        return next(each for each in self.findings if each.key == key)


def audit(
    mechanism: Mechanism,
    pool: ReplyPool,
    values: ArrayLike,
    objective: Objective | Sequence[Objective] = "utility",
    roi: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    *,
    others: Literal["truthful"] | ArrayLike = "truthful",
    grid: ArrayLike = MULTIPLES,
    times: int = TIMES,
    names: Sequence[str] | None = None,
) -> AuditReport:
    """Try deviations of every advertiser, and see what truthful ones are left with.

    Args:
        mechanism: any.
        pool: candidate replies.
        values: (N,) value per click (or per what a bid is on), > 0.
        objective: "utility" or "value", of all or of each of the N advertisers.
        roi: target ROI of value maximizers, a number or (N,); default 1.
        rng: of resampled requests, random misreports and dice; default one with seed 0.
        others: what the others bid while one advertiser deviates: "truthful" or (N,) bids.
        grid: multiples of the truthful bid to try, >= 0; 1 is added, and finer ones around the
            best.
        times: that requests are served for the realised gain.
        names: (N,) what evidence calls the advertisers; default "advertiser 0" and so on.

    Raises:
        BadInput: types, bids or a grid that make no sense for the pool.

    Two bidders for one place, under second and first prices:

    >>> from mechanisms import make_mechanism
    >>> place = ReplyPool.from_arrays(np.eye(2)[None])
    >>> audit(make_mechanism("vcg"), place, [1.0, 2.0]).max_regret
    0.0
    >>> audit(make_mechanism("first-price"), place, [1.0, 2.0]).max_regret > 0.45
    True
    """
    people = population_of(pool, values, objective, roi)
    multiples = _checked_grid(grid)
    if times < 1:
        raise BadInput(f"times is {times}; serve each request at least once")
    rng = np.random.default_rng(0) if rng is None else rng
    truthful_others = isinstance(others, str) and others == "truthful"
    bids = people.truthful_bids if truthful_others else _checked_bids(pool, others)
    N, B = pool.num_advertisers, pool.shape[0]
    found = [deviations(mechanism, pool, people, bids, i, multiples) for i in range(N)]
    regrets = Regrets.of(found, int(rng.integers(2**31)))
    seeds = np.random.SeedSequence(int(rng.integers(2**63))).spawn(N)
    dice = [
        throw(mechanism, pool, people, bids, each, _most_telling(each), times, seed)
        for each, seed in zip(found, seeds, strict=True)
    ]
    met = truthful(mechanism, pool, people, bids)
    vm = np.flatnonzero(people.value_maximizer)
    um = np.flatnonzero(~people.value_maximizer)
    lies = None
    if isinstance(mechanism, TakesReports) and np.isin(pool.ads, um).any():
        lies = misreports(mechanism, pool, people, bids, rng)
    misreported = searched(pool) if lies is not None else 0
    lost = {"utility": violations(met, um), "value": violations(met, vm)}
    compared = max(1, COMPARED // max(1, pool.shape[2] * len(multiples)))
    some = pool.take(np.sort(rng.choice(B, min(B, compared), replace=False)))
    greatest = regrets.greatest(range(N))
    return AuditReport(
        mechanism=mechanism.name,
        regret=regrets.regret,
        max_regret=greatest.mean,
        interval=(greatest.low, greatest.high),
        ir_violations={kind: each for kind, each in lost.items() if each is not None},
        frame=_frame(found, regrets, dice, people, B),
        table=_table(found, multiples, B),
        misreports=lies,
        misreported=misreported,
        findings=findings(
            Evidence(
                mechanism=mechanism,
                requests=B,
                found=found,
                regrets=regrets,
                groups={"utility": um, "value": vm},
                violations=lost,
                shape=shape(found),
                settlement=float(np.abs(met.settled).max(initial=0.0)),
                counterfactuals=counterfactual_error(mechanism, some, people, bids, multiples),
                compared=len(some.ads),
                misreports=lies,
                misreported=misreported,
                names=[f"advertiser {i}" for i in range(N)] if names is None else names,
            )
        ),
        regrets=regrets,
        people=people,
        others=bids,
    )


def _frame(
    found: Sequence[Deviations],
    regrets: Regrets,
    dice: Sequence[Dice],
    people: Population,
    requests: int,
) -> pl.DataFrame:
    """A row per advertiser; money is per request of the pool.

    Columns: advertiser, objective, value (per click), target_roi, requests (competed in), attained
    (value under truth), payment, utility, roi (value per unit paid; null where nothing is paid);
    regret with `_low` and `_high`, gain, gain_per_click_value (of a click's value, per request
    competed in), best_multiple (1 where nothing gains), unseen_regret (of deviations chosen on
    other requests), conditional_regret (a multiple for each request); and of the most telling
    deviation, tried_multiple, as gain_per_click_value is: tried_gain, exact, and realised_gain with
    `_low` and `_high`, over dice; realised_lost (share of truthful services that ended below 0).
    """
    rows = []
    for i, each in enumerate(found):
        k, truth = len(each.requests), each.truth
        value, payment = each.value[:, truth].sum(), each.payment[:, truth].sum()
        stake = each.stake.sum()
        gain = float(each.improvement.sum())
        unit = each.value_per_click * max(k, 1)
        tried = _most_telling(each)
        at = int(np.searchsorted(each.multiples, tried))
        regret = regrets.interval(i)
        conditional = each.conditional.sum()
        rows.append(
            {
                "advertiser": i,
                "objective": "utility" if each.target_roi is None else "value",
                "value": each.value_per_click,
                "target_roi": each.target_roi,
                "requests": k,
                "attained": value / requests,
                "payment": payment / requests,
                "utility": (value - payment) / requests,
                "roi": value / payment if payment > 0 else None,
                "regret": regret.mean,
                "regret_low": regret.low,
                "regret_high": regret.high,
                "gain": gain / requests,
                "gain_per_click_value": gain / unit,
                "best_multiple": float(each.multiples[each.best]),
                "unseen_regret": float(regrets.unseen[i]),
                "conditional_regret": conditional / stake if stake > 0 else 0.0,
                "tried_multiple": tried,
                "tried_gain": float(each.gain_by_request[:, at].sum()) / unit,
                "realised_gain": dice[i].gain.mean,
                "realised_gain_low": dice[i].gain.low,
                "realised_gain_high": dice[i].gain.high,
                "realised_lost": dice[i].lost,
            }
        )
    return pl.DataFrame(rows, infer_schema_length=None)


def _table(found: Sequence[Deviations], multiples: Floats, requests: int) -> pl.DataFrame:
    """Every advertiser's gains over the grid, without the finer multiples around its best."""
    parts = []
    for each in found:
        at = np.searchsorted(each.multiples, multiples)
        gain = each.total[at]
        stake = each.stake.sum()
        missed = np.isneginf(gain)
        regret = gain / stake if stake > 0 else np.zeros_like(gain)
        parts.append(
            pl.DataFrame(
                {
                    "advertiser": np.full(len(at), each.index),
                    "multiple": multiples,
                    "gain": np.where(missed, np.nan, gain / requests),
                    "regret": np.where(missed, np.nan, regret),
                }
            )
        )
    return pl.concat(parts).with_columns(pl.col("gain", "regret").fill_nan(None))


def _most_telling(found: Deviations) -> float:
    """The multiple other than 1 that gains most (or loses least), by a hundredth at least."""
    away = np.abs(found.multiples - 1) >= 0.01
    if not away.any():
        return 1.0
    gains = np.where(away, found.total, -np.inf)
    return float(found.multiples[gains.argmax()]) if np.isfinite(gains).any() else 1.0


def _checked_grid(grid: ArrayLike) -> Floats:
    given = np.asarray(grid, dtype=np.float64)
    if given.ndim != 1 or not len(given) or not (np.isfinite(given) & (given >= 0)).all():
        raise BadInput("grid must list finite multiples >= 0 of the truthful bid")
    return np.unique(np.append(given, 1.0))


def _checked_bids(pool: ReplyPool, others: ArrayLike) -> Floats:
    try:
        bids = np.asarray(others, dtype=np.float64)
    except ValueError:
        bids = np.empty(0)
    if bids.shape != (pool.num_advertisers,) or not (np.isfinite(bids) & (bids >= 0)).all():
        raise BadInput(f"others: give 'truthful' or {pool.num_advertisers} finite bids >= 0")
    return bids
