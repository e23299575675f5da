"""What the study of IAMFM says of markets: learned bids, other bids, the range of configurations.

Figures only: learning advertisers are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import polars as pl

from experiments.bootstrap import mean_of
from experiments.iamfm.curves import show
from experiments.iamfm.market import (
    ARMS,
    EQUAL,
    LONG,
    SHORT,
    TOTALS,
    bids_by_advertiser,
    by_replication,
    steps_of,
)
from experiments.iamfm.other_bids import FACTORS
from experiments.iamfm.ranges import PLAYED, RUNGS
from experiments.reproduce.iamfm import Study
from experiments.reproduce.page import Conclusion

NO_CLAIM = "No claim: learning advertisers are ours."
WORDS = {
    EQUAL: (
        "One learning step for each period of the scenario, under all mechanisms. That is few: "
        "where bids differ from the quarter before, they are at no resting point."
    ),
    LONG: (
        "One learning step for each round of the scenario. IAMFM is exact VCG on the pool here, no "
        "tokens spent: a search in each of so many steps would take too long."
    ),
    SHORT: "Cut short, since a plan by the model takes seconds: not to be held against the others.",
}
"""What is said of the markets of each length."""


def markets(study: Study) -> Iterator[Conclusion]:
    """Of each length; then what learners hear of other bids, and what the range costs."""
    for length, words in WORDS.items():
        keys = [key for key, arm in ARMS.items() if arm.length == length]
        yield Conclusion(f"(h) market, {length}", NO_CLAIM, _played(study, keys, words), _FIGURES)
    yield other_bids(study)
    yield ranges(study)


def other_bids(study: Study) -> Conclusion:
    """What learners are told of other bids against what planning anew gives."""
    frame, words = study.other_bids, []
    for factor in FACTORS:
        ours = frame.filter(pl.col("factor") == factor)
        by_period = ours.group_by("seed").agg(pl.col("told", "replanned").mean()).sort("seed")
        apart = (ours["told"] - ours["replanned"]).abs().mean()
        told, replanned = (
            show(mean_of(by_period[name].to_numpy()), "+") for name in ("told", "replanned")
        )
        words.append(
            f"at {factor:g} of the value told {told}, planned anew {replanned}, apart by "
            f"{apart:.2g} on average"
        )
    truthful = frame["utility"].mean()
    return Conclusion(
        "(h) what learners hear of other bids",
        "No claim. Truth is best by construction on what is believed of outcomes: candidates and "
        "counterfactuals stay as they were, so what a bid does to its own price cannot be heard; "
        "clicks told are the true ones.",
        "gain over truthful bidding, money per request, mean over utility maximizers: "
        + "; ".join(words)
        + f". Their truthful utility is {truthful:.3g}. {frame['seed'].n_unique()} periods under "
        "truthful bids, planned anew on the same pairs for every other bid.",
        _FIGURES,
    )


def ranges(study: Study) -> Conclusion:
    """Welfare lost by each restriction of the range, at the odds of the scenario."""
    ours = study.ranges.filter(pl.col("factor") == 1)
    worth = dict(ours["range", "welfare"].rows())
    losses = pairwise(RUNGS)
    return Conclusion(
        "(h) what the range of configurations costs",
        "No claim. VCG is over the configurations searched among: what lies outside is lost.",
        f"welfare at true values, money per request: {worth[PLAYED]:.3f} as played. More by "
        + ", ".join(f"{worth[above] - worth[below]:+.3f} ({above})" for below, above in losses)
        + ". The table has other odds.",
        _FIGURES,
    )


def _played(study: Study, keys: Sequence[str], words: str) -> str:
    """Totals over replications and bids over advertisers, by mechanism."""
    totals, bids = by_replication(study.market), bids_by_advertiser(study.market)
    sizes, said = steps_of(study.market), []
    for key in keys:
        ours = totals.filter(pl.col("mechanism") == key)
        parts = [f"{each} {show(mean_of(ours[each].to_numpy()))}" for each in TOTALS]
        for kind, label in (("utility", "UM bid / value"), ("value", "VM bid × target / value")):
            people = bids.filter((pl.col("mechanism") == key) & (pl.col("objective") == kind))
            if people.height:
                before = people["bid_before"].mean()
                parts.append(
                    f"{label} {show(mean_of(people['bid'].to_numpy()))}, in the quarter before "
                    f"{np.nan if before is None else before:.3g}"
                )
                due = people["due"].sum()
                if kind == "value" and due > 0:
                    parts.append(f"VM ROI / target {people['value'].sum() / due:.3g}")
        said.append(f"{ARMS[key].label}: {', '.join(parts)}".replace("_", " "))
    steps, replications = sizes[keys[0]]
    return (
        f"{words} {'; '.join(said)}. Money per request, last quarter of {steps:,} learning steps; "
        f"totals over {replications} replications, bids over advertisers."
    )


_FIGURES = "figures only"
