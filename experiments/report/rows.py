"""The tables of a report: mechanisms side by side, periods, advertisers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from experiments.measures import BIDS, MEASURES
from experiments.periods import measured
from experiments.report.records import Records
from experiments.report.wording import bracket, number, percent
from experiments.tables import best_means, unbounded
from market.result import interval

TOTALS = (
    "revenue", "welfare", "regularised_welfare", "user_satisfaction", "ads_per_reply", "clicks",
    "kl",
)  # fmt: skip
"""Measures of the market as a whole."""


@dataclass(frozen=True)
class Cell:
    """A number of a table with its interval, and the best response where there is one.

    Attributes:
        mean: None for no number.
        low, high: ends of the interval; None for no interval.
        best: mean of the independent best responses.
        converged: whether they did.
        unbounded: advertisers left out of `best`, for whom higher is always better.
        unit: of the number: 1, or 0.01 for per cent.
    """

    mean: float | None
    low: float | None = None
    high: float | None = None
    best: float | None = None
    converged: bool = True
    unbounded: int = 0
    unit: float = 1.0

    @classmethod
    def of(cls, found: Mapping[str, Any] | None, unit: float = 1.0) -> Cell:
        """Of an interval (`market.result.interval`), if there is one."""
        if not found:
            return cls(None)
        return cls(found["mean"], found["low"], found["high"], unit=unit)

    @property
    def text(self) -> str:
        """The number."""
        return number(self.mean) if self.unit == 1 else percent(self.mean)

    @property
    def interval(self) -> str:
        """In brackets; why there is none."""
        return bracket({"low": self.low, "high": self.high}, 1 / self.unit)


@dataclass(frozen=True)
class Row:
    """A line of the table of mechanisms: what, in which unit, a cell per mechanism."""

    name: str
    unit: str
    cells: list[Cell]


def rows(run: Records) -> Iterator[Row]:
    """The table of mechanisms side by side."""
    parts = run.summary
    for name in TOTALS:
        yield from _row(name, (part[name] for part in parts.values()))
    yield from _row("paid_share", (paid_share(run, label) for label in parts))
    for kind in BIDS:
        if any(kind in part["objectives"] for part in parts.values()):
            each = MEASURES[f"bid_{kind}"]
            yield Row(each.label, each.detail, [bid_cell(run, label, kind) for label in parts])
    value_maximizers = (part["objectives"].get("value", {}) for part in parts.values())
    yield from _row("roi_over_target", (each.get("roi_over_target") for each in value_maximizers))
    yield from _row("movement", (run.movement[label] for label in parts))
    yield from _row("swing", (run.swing[label] for label in parts))
    for name, found in (("exploitability", run.exploitability), ("regret", run.regret)):
        besides = ["budgets left out"] * run.budgets_bind
        if any(each["infinite"] for each in found.values()):
            besides.append("without replications in which none is")
        yield from _row(
            name, (found.get(label) for label in parts), "".join(f"; {part}" for part in besides)
        )


def _row(name: str, found: Iterable[Mapping[str, Any] | None], besides: str = "") -> Iterator[Row]:
    """The line of a measure, an interval per mechanism; none where no mechanism has a number."""
    measure = MEASURES[name]
    cells = [Cell.of(each, 0.01 if measure.share else 1.0) for each in found]
    if any(cell.mean is not None for cell in cells):
        yield Row(measure.label, measure.detail + besides, cells)


def paid_share(run: Records, label: str) -> dict[str, Any]:
    """Expected payments as a fraction of the value attained, over replications."""
    ours = run.by_replication.filter(pl.col("mechanism") == label)
    return interval(ours["paid_share"].cast(pl.Float64).fill_null(float("nan")).to_numpy())


def bid_cell(run: Records, label: str, kind: str) -> Cell:
    """Mean bid over the truthful one, beside the best response's."""
    found = run.summary[label]["objectives"].get(kind, {}).get(BIDS[kind])
    if not found:
        return Cell(None)
    if run.best is None:
        return Cell.of(found)
    return Cell(
        found["mean"],
        found["low"],
        found["high"],
        best=best_means(run.best, label, kind),
        converged=label not in unsettled(run.best),
        unbounded=unbounded(run.best, label, kind),
    )


def period_rows(plans: pl.DataFrame | None, scenario: Mapping[str, Any]) -> Iterator[Row]:
    """What was planned for periods, a row per measure; none under mechanisms without."""
    if plans is not None:
        for what, unit, found in measured(plans, int(scenario.get("rounds", 0))):
            yield Row(what, unit, [Cell.of(each) for each in found.values()])


def advertiser_tables(run: Records) -> dict[str, list[dict[str, Any]]]:
    """By mechanism, a row per advertiser, with its best response where there is one."""
    table = run.by_advertiser
    if run.best is not None:
        truthful = pl.when(pl.col("objective") == "value").then(pl.col("bid_over_target"))
        ratio = truthful.otherwise(pl.col("bid_over_value")).alias("best")
        found = run.best.select("mechanism", "advertiser", ratio, "note")
        table = table.join(found, on=["mechanism", "advertiser"], how="left", maintain_order="left")
    else:
        table = table.with_columns(best=pl.lit(None, pl.Float64), note=pl.lit(""))
    return {
        label: table.filter(pl.col("mechanism") == label)
        .sort("objective", "advertiser", maintain_order=True)
        .to_dicts()
        for label in run.labels
    }


def unsettled(best: pl.DataFrame | None) -> list[str]:
    """Mechanisms whose best responses did not converge."""
    if best is None or "converged" not in best.columns:
        return []
    return best.filter(~pl.col("converged"))["mechanism"].unique(maintain_order=True).to_list()
