"""The tables on the page of an audit: what deviations bring each advertiser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl

from experiments.audit.findings import PROPERTIES
from experiments.audit.report import AuditReport
from experiments.page import Column, Table
from experiments.report import number


def percent(x: float | None) -> str:
    """A fraction in per cent; with an exponent where it is of the size of rounding."""
    if x is None or not np.isfinite(x):
        return "–" if x is None or np.isnan(x) else "∞"
    return f"{100 * x:.0e}".replace("-", "−") if 0 < abs(x) < 1e-6 else number(100 * x)


ATTAINED = "% of value attained"
EXACT = (
    Column("title", "Advertiser"),
    Column("kind", "Maximises"),
    Column("value", "Value", "money per click"),
    Column("requests", "Requests", show="{:,}".format),
    Column("utility", "Utility", "money per request"),
    Column("roi", "ROI", "value per unit paid"),
    Column("regret", "Regret", ATTAINED, percent),
    Column("best_multiple", "Best bid", "× truthful"),
    Column("gain_per_click_value", "Gain", "% of a click's value, per request", percent),
    Column("conditional_regret", "Regret, a bid for each request", ATTAINED, percent),
)
REALISED = (
    Column("title", "Advertiser"),
    Column("tried_multiple", "Bid tried", "× truthful"),
    Column("tried_gain", "Gain, exact", "% of a click's value, per request", percent),
    Column("realised_gain", "Gain, realised", "% of a click's value, per request", percent),
    Column("realised_lost", "Lost", "% of truthful services", percent),
)
"""Columns of the page's tables of advertisers, of `report._frame`."""


def tables_of(
    reports: Mapping[str, AuditReport], titled: pl.DataFrame, requests: int
) -> Iterator[Table]:
    """By mechanism a row per advertiser, and kinds of reports where they are taken.

    Args:
        reports: by mechanism, of the same advertisers.
        titled: the advertisers' titles: advertiser, title.
        requests: of the pool.
    """
    if len(reports) > 1:
        yield _overview(reports)
    kind = (
        pl.when(pl.col("objective") == "value")
        .then(pl.format("value, target ROI {}", pl.col("target_roi").round(2)))
        .otherwise(pl.lit("utility"))
        .alias("kind")
    )
    for name, report in reports.items():
        frame = report.frame.join(titled, "advertiser").with_columns(kind)
        yield Table(
            name,
            frame,
            EXACT,
            "Regret: greatest gain from one multiple of the truthful bid. Brackets: 95 %, over "
            "requests. Utility and ROI: under truth. Requests: competed in.",
        )
        yield Table(
            f"{name}: with dice thrown",
            frame,
            REALISED,
            "Bid tried: of all multiples but truth the one that gains most, or loses least. "
            "Brackets: 95 %, over dice. Lost: value of the clicks less charges below 0.",
        )
        if report.misreports is not None and report.misreports.height:
            kinds = report.misreports.group_by("kind", maintain_order=True).agg(
                total=(pl.col("gain") / pl.col("value")).max(), largest=pl.col("largest").max()
            )
            yield Table(
                f"{name}: any report for any reply",
                kinds,
                [
                    Column("kind", "Report"),
                    Column("total", "Greatest gain", ATTAINED, percent),
                    Column(
                        "largest", "Greatest gain in a request", "% of a click's value", percent
                    ),
                ],
                "Of utility maximizers, each alone, "
                f"on {report.misreported} of {requests} requests.",
            )


def _overview(reports: Mapping[str, AuditReport]) -> Table:
    """Verdicts of all mechanisms, property by property."""
    held = {
        name: {each.key: each.conclusion for each in report.findings}
        for name, report in reports.items()
    }
    rows = [
        {"property": words, **{name: told.get(key) for name, told in held.items()}}
        for key, words in PROPERTIES.items()
        if any(key in told for told in held.values())
    ]
    columns = [Column("property", "Property"), *(Column(name, name) for name in held)]
    return Table("All mechanisms", pl.DataFrame(rows), columns)
