"""The sentences on top of a report: who won, what it cost, is it an equilibrium, what to mind.

Every sentence is a function of the records. Mechanisms of a run share requests and dice, so their
differences are paired over replications. "More" is said where the 95 % interval of the difference
is above 0, and "no difference shows" where it holds 0; each interval speaks for itself, with no
correction for looking at several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from experiments.measures import MEASURES, OBJECTIVES
from experiments.report.records import Records
from experiments.report.rows import Cell, bid_cell, paid_share, unsettled
from experiments.report.settled import settled
from experiments.report.wording import (
    listed,
    model_name,
    number,
    parameters,
    told,
    told_difference,
    told_percent,
)
from experiments.tables import difference
from mechanisms.pool import Floats

SMALL = 2e9
"""Parameters below which an LLM is called small."""
MISSED = 0.01
"""Share by which an ROI has to be below its target to be called missed."""
LEADS = {
    "revenue": ("{0} earns more revenue", "{0} earns the most revenue"),
    "welfare": ("Welfare is greater under {0}", "Welfare is greatest under {0}"),
    "user_satisfaction": (
        "Users are more satisfied under {0}", "Users are most satisfied under {0}",
    ),
}  # fmt: skip
"""Of each measure what is said of the first of two mechanisms, and of several."""
TIMES = {"utility": "times their value", "value": "times value over target ROI"}


@dataclass(frozen=True)
class Sentence:
    """What it is about, in a word or a question, and what was found."""

    about: str
    text: str


def sentences(run: Records) -> list[Sentence]:
    """The summary of a run."""
    found = [Sentence("Who won?", won(run))]
    found.append(Sentence("What did it cost?", cost(run)))
    found.append(Sentence("What do they bid?", bids(run)))
    found.append(Sentence("Is it an equilibrium?", settled(run)))
    minded = list(warnings(run))
    return found + ([Sentence("Read with care.", " ".join(minded))] if minded else [])


def won(run: Records) -> str:
    """Which mechanism brings more of what, and by how much."""
    if len(run.labels) == 1:
        ((label, part),) = run.summary.items()
        parts = [
            f"{MEASURES[name].label.lower()} {told(part[name])} {MEASURES[name].unit}"
            for name in LEADS
        ]
        return f"Only {label} was run: {listed(parts)}."
    return " ".join(f"{standing(run, name)}." for name in LEADS)


def standing(run: Records, name: str) -> str:
    """The mechanism with the greatest mean of a measure, against each of the others."""
    what, unit = MEASURES[name].label, MEASURES[name].unit
    of_two, of_several = LEADS[name]
    means = {label: part[name]["mean"] for label, part in run.summary.items()}
    first, *others = sorted(means, key=lambda label: -means[label])
    if run.replications == 1:
        each = [f"{number(means[label])} under {label}" for label in (first, *others)]
        return f"{what} is {listed(each)} ({unit}): one replication, which may be chance"
    apart = {other: _less(run, name, first, other) for other in others}
    level = [other for other, found in apart.items() if found["low"] <= 0]
    ahead = [
        f"{told(found)}{_relative(found, means[other])} more than under {other}"
        for other, found in apart.items()
        if found["low"] > 0
    ]
    if level:
        same = [f"{first} less {other} is {told_difference(apart[other])}" for other in level]
        text = (
            f"No difference in {what.lower()} shows between {first}, with {number(means[first])} "
            f"{unit}, and {listed(level, 'or')} ({listed(same)})"
        )
        return text + (f"; under {first} it is {listed(ahead)}" if ahead else "")
    head = (of_two if len(others) == 1 else of_several).format(first)
    return f"{head}: {number(means[first])} {unit}, {listed(ahead)}"


def cost(run: Records) -> str:
    """What advertisers pay of their value, whether targets are met, and what users put up with."""
    shares = {label: paid_share(run, label) for label in run.labels}
    paid = [
        f"{told_percent(found)} under {label}"
        for label, found in shares.items()
        if found["mean"] is not None
    ]
    parts = [
        f"Of the value they attain advertisers pay {listed(paid)}."
        if paid
        else "Advertisers attain no value."
    ]
    parts += _targets(run)
    shown = [
        f"{number(part['ads_per_reply']['mean'])}{' ads a reply' * (not k)} under {label}"
        for k, (label, part) in enumerate(run.summary.items())
    ]
    pleased = [number(part["user_satisfaction"]["mean"]) for part in run.summary.values()]
    bare = _without_ads(run)
    beside = "" if bare is None else f", where candidate replies without ads have {number(bare)}"
    parts.append(f"Users read {listed(shown)}; their satisfaction is {listed(pleased)}{beside}.")
    return " ".join(parts)


def bids(run: Records) -> str:
    """Mean bids by objective, beside the independent best responses."""
    parts = []
    for kind, times in TIMES.items():
        cells = {label: bid_cell(run, label, kind) for label in run.labels}
        cells = {label: cell for label, cell in cells.items() if cell.mean is not None}
        words = [
            f"{number(cell.mean)} {cell.interval}{f' {times}' * (not k)} under {label}"
            f"{_beside(cell)}"
            for k, (label, cell) in enumerate(cells.items())
        ]
        if words:
            parts.append(f"{OBJECTIVES[kind]} bid {listed(words)}.")
    return " ".join(parts)


def warnings(run: Records) -> Iterator[str]:
    """What speaks against taking the numbers at face value."""
    manifest, pool = run.manifest, run.pool_manifest
    model = model_name(pool) or model_name(manifest)
    size = parameters(model) if model else None
    if pool.get("source", manifest.get("replies")) == "synthetic":
        yield "Replies are synthetic: drawn from a parametric model, no LLM wrote any."
    elif size and size[1] < SMALL:
        yield (
            f"{model} is a small LLM ({size[0]} parameters): its prose, and what users make of it, "
            "need not be those of a capable one."
        )
    if manifest.get("low_effective_sample_size"):
        least = number(manifest.get("effective_sample_size_min"))
        yield (
            f"The least effective sample size of the weights is {least}, below 2: some auctions "
            "rest on a single reply."
        )
    if run.replications == 1:
        yield "There is one replication: market totals have no intervals."
    if unsettled(run.best):
        yield f"Independent best responses did not converge under {listed(unsettled(run.best))}."
    for name, found in (manifest.get("estimates") or {}).items():
        yield f"Under {name}, what other bids would bring is estimated by its {found['estimate']}."
    if run.plans is not None:
        who = listed(run.plans["mechanism"].unique(maintain_order=True).to_list())
        yield f"Under {who}, best responses, gains and regret are those without a token limit."
    if manifest.get("replies") == "live":
        yield (
            "Replies were written anew in every round; best responses, gains and regret are of the "
            "recording beside."
        )
    if run.budgets_bind:
        yield (
            "Best responses, gains and regret leave budgets out; so do expected payments, hence "
            "what advertisers are said to pay of their value, while revenue is what budgets "
            "allowed."
        )


def _less(run: Records, name: str, one: str, other: str) -> dict[str, Any]:
    """The paired difference of a measure between two mechanisms."""
    return difference(_measured(run, name, one), _measured(run, name, other), paired=True)


def _measured(run: Records, name: str, label: str) -> Floats:
    frame = run.by_replication
    return frame.filter(pl.col("mechanism") == label).sort("replication")[name].to_numpy()


def _relative(found: Mapping[str, Any], other: float) -> str:
    if other <= 0:
        return ""
    rounded = float(f"{100 * found['mean'] / other:.2g}")
    return f" ({rounded:g}\u00a0%)"


def _targets(run: Records) -> list[str]:
    """How many value maximizers end below their target, if there are any."""
    bound = run.by_advertiser.filter(pl.col("objective") == "value")
    if not bound.height:
        return []
    short = pl.col("roi") < (1 - MISSED) * pl.col("target_roi")
    counts = bound.group_by("mechanism", maintain_order=True).agg(
        missed=short.sum(), people=pl.len()
    )
    if not counts["missed"].sum():
        return [f"No value maximizer ends more than {100 * MISSED:g} % below its target ROI."]
    words = [
        f"{row['missed']} of {row['people']}{' value maximizers' * (not k)} under "
        f"{row['mechanism']}"
        for k, row in enumerate(counts.iter_rows(named=True))
    ]
    return [f"More than {100 * MISSED:g} % below target ROI end {listed(words)}."]


def _without_ads(run: Records) -> float | None:
    """Satisfaction with the candidate replies of the first pool that show no ad."""
    pools = run.manifest.get("pools") or [{}]
    return pools[0].get("measures", {}).get("satisfaction_without_ads")


def _beside(cell: Cell) -> str:
    if cell.best is None:
        return ""
    if not cell.converged:
        return " (best response did not converge)"
    if cell.unbounded:
        return (
            f" (best response {number(cell.best)}, without {cell.unbounded} whose target never "
            "binds: for them higher is always better, up to the cap)"
        )
    return f" (best response {number(cell.best)})"
