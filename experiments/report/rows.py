"""The tables of a report: mechanisms side by side, periods, advertisers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from experiments.periods import measured
from experiments.plots import OBJECTIVES
from experiments.report.records import Records
from experiments.report.wording import bracket, number, percent
from experiments.tables import best_means, unbounded
from market.result import interval

MEASURES = {
    "revenue": ("Revenue", "money per request, realised"),
    "welfare": ("Welfare", "money per request, expected"),
    "regularised_welfare": ("Regularised welfare", "money per request, expected"),
    "user_satisfaction": ("User satisfaction", "per reply, 0 to 1, expected"),
    "ads_per_reply": ("Ads per reply", "expected"),
    "clicks": ("Clicks", "per request, realised"),
    "kl": ("Distance from the reference LLM", "KL, nats per reply"),
}
BIDS = {
    "utility": ("bid_over_value", "bid / value"),
    "value": ("bid_over_truthful", "bid × target ROI / value"),
}


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
    for name, (what, unit) in MEASURES.items():
        if any(part[name]["mean"] is not None for part in parts.values()):
            yield Row(what, unit, [Cell.of(part[name]) for part in parts.values()])
    paid = [paid_share(run, label) for label in parts]
    if any(each["mean"] is not None for each in paid):
        cells = [Cell.of(each, 0.01) for each in paid]
        yield Row("Paid by advertisers", "of the value they attain, expected", cells)
    for kind, (_, ratio) in BIDS.items():
        if any(kind in part["objectives"] for part in parts.values()):
            who = OBJECTIVES[kind]
            yield Row(
                f"{who}: bid", f"{ratio}; truthful = 1", [bid_cell(run, m, kind) for m in parts]
            )
            if kind == "value":
                found = (part["objectives"].get(kind, {}) for part in parts.values())
                roi = [each.get("roi_over_target") for each in found]
                yield Row(f"{who}: ROI", "ROI / target ROI, expected", [Cell.of(x) for x in roi])
    if any(each["mean"] is not None for each in run.movement.values()):
        cells = [Cell.of(run.movement[label], 0.01) for label in parts]
        yield Row("Mean bids moved", "third quarter to last, of truthful", cells)
    if run.exploitability:
        cells = [Cell.of(run.exploitability.get(label), 0.01) for label in parts]
        unit = "gains by other fixed bids, of the value attained"
        if any(each["infinite"] for each in run.exploitability.values()):
            unit += "; without replications in which none is"
        yield Row("Exploitability", unit, cells)


def paid_share(run: Records, label: str) -> dict[str, Any]:
    """Expected payments as a fraction of the value attained, over replications."""
    ours = run.by_replication.filter(pl.col("mechanism") == label)
    return interval(ours["paid_share"].cast(pl.Float64).fill_null(float("nan")).to_numpy())


def bid_cell(run: Records, label: str, kind: str) -> Cell:
    """Mean bid over the truthful one, beside the best response's."""
    found = run.summary[label]["objectives"].get(kind, {}).get(BIDS[kind][0])
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
