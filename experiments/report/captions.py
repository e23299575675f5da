"""What is seen in the figures of a run, in a sentence of its own numbers, for captions and alts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from experiments.measures import BIDS, MEASURES, OBJECTIVES
from experiments.periods import CAPTION as PERIODS
from experiments.plots import CAPTIONS as OF_PLOTS
from experiments.plots import PANELS, ends
from experiments.report.records import Records
from experiments.report.wording import listed, number, percent

CAPTIONS = OF_PLOTS | {"periods": PERIODS}
NO_BUDGETS = "Best responses leave budgets out."
KINDS = {
    "bids": "Lines of bids over rounds, a colour for each mechanism.",
    "market": "Lines of market totals over rounds, a colour for each mechanism.",
    "advertisers": "Points of payment and return on investment, a row for each advertiser.",
    "periods": "Areas of tokens spent and a map of sponsorship strengths, over periods.",
}
"""What sort of picture it is, for those who do not see it."""


def caption(run: Records, name: str) -> str:
    """What the figure shows, with units and intervals, and what one sees in it."""
    besides = NO_BUDGETS if name == "bids" and run.budgets_bind else ""
    return " ".join(filter(None, (CAPTIONS[name], besides, seen(run, name))))


def alternative(run: Records, name: str) -> str:
    """The text in place of the picture."""
    return f"{KINDS[name]} {seen(run, name)}".strip()


def seen(run: Records, name: str) -> str:
    """What one sees: the ends of what mechanisms, advertisers or tokens came to."""
    if name == "bids":
        return bids_seen(run.summary)
    if name == "market":
        return market_seen(run.summary)
    if name == "advertisers":
        most = run.by_advertiser.sort("payment_per_1000", descending=True).row(0, named=True)
        paid = number(most["payment_per_1000"])
        return f"{most['title']} pays most: {paid} per 1,000 requests under {most['mechanism']}."
    return _tokens(run)


def bids_seen(summary: Mapping[str, Any]) -> str:
    """Where bids ended, least and greatest, by objective."""
    words = []
    for kind, column in BIDS.items():
        found = {
            label: part["objectives"][kind][column]["mean"]
            for label, part in summary.items()
            if kind in part["objectives"]
        }
        if found:
            words.append(f"{OBJECTIVES[kind].lower()} {_ends(found)}")
    return f"In the last quarter: {', '.join(words)}."


def market_seen(summary: Mapping[str, Any]) -> str:
    """Where market totals ended, least and greatest."""
    words = [
        f"{MEASURES[name].label.lower()} "
        f"{_ends({label: part[name]['mean'] for label, part in summary.items()})}"
        for name in PANELS
    ]
    return f"In the last quarter: {', '.join(words)}."


def _tokens(run: Records) -> str:
    spent = pl.col("tokens_allocation") + pl.col("tokens_payments")
    limited = run.plans.filter(pl.col("tokens_limit").is_not_null())
    if not limited.height:
        return ""
    share = limited.select((spent / pl.col("tokens_limit")).mean()).item()
    return f"On average {percent(share)} of the token budget is spent."


def _ends(found: Mapping[str, float]) -> str:
    """The least and the greatest mean, and whose they are."""
    return " to ".join(f"{text} ({listed(who)})" for text, who in ends(found, number))
