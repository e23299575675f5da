"""What the study of IAMFM says, in sentences with intervals, and where that differs from the paper.

The paper's claims are those of its abstract. Numbers of seeds, tokens and problems are the study's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from experiments.bootstrap import Estimate, mean_of
from experiments.iamfm.curves import (
    at_points,
    crossing,
    differences,
    leaders,
    show,
    table,
)
from experiments.iamfm.searches import (
    BASELINES,
    CONTENDERS,
    ELIMINATION,
    INSTANTIATIONS,
    MODEL,
    ONE_LEVEL,
)
from experiments.iamfm.steering import RECORDED as RECORDED_EXPOSURE
from experiments.reproduce.iamfm import Study
from experiments.reproduce.iamfm_incentives import honesty, participation, shading, unlimited
from experiments.reproduce.iamfm_market import markets
from experiments.reproduce.iamfm_payments import counterfactuals
from experiments.reproduce.page import FEWEST, Conclusion, Verdict, judge
from mechanisms.pool import Floats

BY_RULE = (
    "Rises by construction, as the odds of insertion rise with strength, from 0 at strength 0; how "
    "much is the pool's. "
)
NOTE = (
    "95 % intervals: t-intervals of means over seeds, percentile bootstrap over seeds of token "
    "ratios and crossings. All methods meet the same problems and pairs under a seed, and "
    "differences are of pairs. “Agrees” and “differs” are about the direction of the claim, not "
    f"its numbers. “Open”: the interval does not tell, or there are fewer than {FEWEST} seeds. "
    "“Figures only”: nothing is judged. Whether one of several budgets or misreports is beyond 0 "
    "is judged by intervals that hold together (Bonferroni). The paper's full text was not at "
    "hand: claims are those of its abstract, thresholds ours."
)


def conclusions(study: Study) -> list[Conclusion]:
    """All of them, in the order of the questions."""
    return [
        *welfare(study),
        *cheap_level(study),
        *trade_off(study),
        *counterfactuals(study),
        *honesty(study),
        *shading(study),
        *participation(study),
        unlimited(study),
        *steering(study),
        *markets(study),
    ]


def samples(frame: pl.DataFrame, world: str, column: str) -> tuple[Floats, dict[str, Floats]]:
    """Budgets (X,), and samples (seeds, X) of a column by method."""
    ours = frame.filter(pl.col("world") == world)
    budgets, found = np.empty(0), {}
    for name in CONTENDERS:
        budgets, found[name] = table(ours.filter(pl.col("method") == name), column, "budget")
    return budgets, found


def against_best(found: dict[str, Floats], name: str) -> tuple[list[str], list[Estimate]]:
    """(X) the best single-fidelity baselines, and leads of a method over them."""
    best = leaders({each: found[each] for each in BASELINES})
    theirs = np.stack([found[each][:, x] for x, each in enumerate(best)], axis=1)
    return best, differences(found[name], theirs)


def welfare(study: Study) -> Iterator[Conclusion]:
    """By world and instantiation: ahead of the best baseline at every budget, or not."""
    for world in study.worlds:
        budgets, found = samples(study.welfare, world, "welfare")
        _, shares = samples(study.welfare, world, "share")
        for name in INSTANTIATIONS:
            best, leads = against_best(found, name)
            each = "; ".join(
                f"{tokens:,.0f} tokens: {show(mean_of(share))} of the optimum, {show(lead, '+')} "
                f"money over {whose}"
                for tokens, share, lead, whose in zip(
                    budgets, shares[name].T, leads, best, strict=True
                )
            )
            short = [x for x, lead in zip(budgets, leads, strict=True) if not lead.low > 0]
            exceptions = f"not shown to be ahead at {at_points(short)}" if short else "none"
            yield Conclusion(
                f"(a) welfare, {name}, {world}",
                "It outperforms single-fidelity baselines across diverse budgets.",
                f"{each}. Exceptions: {exceptions}. {len(found[name])} seeds; the best of "
                f"{len(BASELINES)} baselines at each budget.",
                judge(len(found[name]), *leads),
            )


def cheap_level(study: Study) -> Iterator[Conclusion]:
    """By world: what methods gain by the biased level, against themselves without it."""
    for world in study.worlds:
        budgets, found = samples(study.welfare, world, "welfare")
        for name, alone in ONE_LEVEL.items():
            leads = differences(found[name], found[alone])
            each = "; ".join(
                f"{tokens:,.0f} tokens: {show(lead, '+')}"
                for tokens, lead in zip(budgets, leads, strict=True)
            )
            yield Conclusion(
                f"(a) the cheap level, {name}, {world}",
                "Multi-fidelity optimisation is better than single-fidelity.",
                f"welfare of {name} less {alone}, money per request, at {each}.",
                judge(len(found[name]), *leads),
            )


def trade_off(study: Study) -> Iterator[Conclusion]:
    """By world: each kind of instantiation, and where they cross."""
    (model,) = (name for name, each in CONTENDERS.items() if each.kind == MODEL)
    eliminations = [name for name, each in CONTENDERS.items() if each.kind == ELIMINATION]
    for world in study.worlds:
        budgets, found = samples(study.welfare, world, "welfare")
        for name in eliminations:
            lead = found[name] - found[model]
            leads = differences(found[name], found[model])
            together = [mean_of(each, looks=len(budgets)) for each in lead.T]
            cross = crossing(budgets, lead, study.seed)
            each = "; ".join(
                f"{tokens:,.0f} tokens: {show(estimate, '+')}"
                for tokens, estimate in zip(budgets, leads, strict=True)
            )
            where = (
                f"they cross at {at_points(cross.at)} tokens (the last crossing: 95 % interval "
                f"[{cross.low:,.0f}, {cross.high:,.0f}] in the {cross.share:.0%} of resamples that "
                "cross)"
                if cross.at
                else f"they do not cross (in {cross.share:.0%} of resamples they do)"
            )
            yield Conclusion(
                f"(b) {name} or {model}, {world}",
                "Which instantiation is better depends on the budget.",
                f"welfare of {name} less {model}, money per request, at {each}; {where}.",
                divided(len(lead), together),
            )


def divided(seeds: int, leads: Sequence[Estimate]) -> Verdict:
    """`agrees` where each is ahead at some point, `differs` where one is at all, else `open`.

    The intervals of `leads` should hold together, as one budget of several is enough to be ahead.
    """
    ahead = [lead.low > 0 for lead in leads]
    behind = [lead.high < 0 for lead in leads]
    if seeds < FEWEST:
        return "open"
    if any(ahead) and any(behind):
        return "agrees"
    return "differs" if all(ahead) or all(behind) else "open"


def steering(study: Study) -> Iterator[Conclusion]:
    """By way of steering: exposure of an ad from strength to strength, paired by request."""
    for (way, others), part in study.exposure.group_by("way", "others", maintain_order=True):
        strengths, shown = table(part.rename({"request": "seed"}), "exposure", "strength")
        steps = differences(shown[:, 1:], shown[:, :-1])
        levels = "; ".join(
            f"strength {k:.0f}: {show(mean_of(x))}" for k, x in zip(strengths, shown.T, strict=True)
        )
        yield Conclusion(
            f"(g) steering, {way}, rivals at {others}",
            "Sponsorship configurations steer the LLM's replies.",
            f"{BY_RULE if way == RECORDED_EXPOSURE else ''}Share of replies that show an ad of the "
            "request, mean over "
            f"{len(shown)} requests, {levels}; steps "
            + ", ".join(show(step, "+") for step in steps)
            + ".",
            judge(len(shown), *steps),
        )
