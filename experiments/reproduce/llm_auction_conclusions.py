"""What the study of LLM-Auction says, in sentences with intervals, and what the paper says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from experiments.ad_llm.curves import Curve
from experiments.ad_llm.table import by_request, paired
from experiments.bootstrap import Estimate, mean_of
from experiments.report import number
from experiments.reproduce.llm_auction import PRETRAINED, Study
from experiments.reproduce.page import Conclusion, Verdict, judge
from market.training import TrainingSpec

MONOTONE = 0.9
"""Spearman's correlation of clicks with the bid from which on they are said to rise."""
COMPLIANT = 0.95
"""Share of replies in the format from which on it is said to be kept."""
NEAR = 0.1
"""How near to v/tau_roi, as a share, value maximizers are said to be at it."""


def conclusions(study: Study) -> list[Conclusion]:
    """All of them, in the order of the questions."""
    return [
        *earnings(study),
        training(study),
        mosaic(study),
        ceiling(study),
        *monotone(study),
        continuous(study),
        compliance(study),
        value_maximizers(study),
        utility_maximizers(study),
        *in_the_market(study),
        tokens(study),
    ]


def earnings(study: Study) -> Iterator[Conclusion]:
    """Against the pre-trained LLM; the paper's ratios stand beside ours and are not judged."""
    row = _row(study, study.trained)
    for measure, claim in (("revenue", "3 times the"), ("reward", "117 % more")):
        gain = _gain(study, study.trained, PRETRAINED, measure)
        base, ours = (_cell(_row(study, name), measure) for name in (PRETRAINED, study.trained))
        ratio = _cell(row, f"{measure}_ratio")
        times = (
            f"{show(ratio)} times"
            if np.isfinite(ratio.mean)
            else "no ratio: what it is to may be 0"
        )
        yield Conclusion(
            f"(a) {measure} per query",
            f"LLM-Auction earns {claim} {measure} per query of the pre-trained LLM.",
            f"{show(ours)} against {show(base)} of the pre-trained: {show(gain, '+')} ({times}).",
            judge(_requests(study), gain),
        )


def training(study: Study) -> Conclusion:
    """Beyond what made the small LLM follow the format at all."""
    revenue, reward = (
        _gain(study, study.trained, study.before, measure) for measure in ("revenue", "reward")
    )
    return Conclusion(
        "(a) training itself",
        "Post-training towards the mechanism's objective raises revenue and reward.",
        f"{study.trained} less {study.before}, on the same requests and bids: revenue "
        f"{show(revenue, '+')}, reward {show(reward, '+')} per query.",
        judge(_requests(study), revenue, reward),
    )


def mosaic(study: Study) -> Conclusion:
    """By what the replies are worth to advertisers: revenues at these bids compare payment rules.

    Rochet payments leave truthful advertisers a surplus and first prices none. Under first price
    they would bid otherwise, and how far is another question (`in_the_market`).
    """
    name = _first(study, "mosaic, ")
    value, reward, revenue = (
        _gain(study, study.trained, name, each) for each in ("value", "reward", "revenue")
    )
    return Conclusion(
        "(a) MOSAIC",
        "LLM-Auction earns more than MOSAIC with 20 candidates.",
        f"less {name} at tau = {study.field.beta:g}, at the same bids: value to advertisers "
        f"{show(value, '+')} per query, which is judged; reward {show(reward, '+')}, revenue "
        f"{show(revenue, '+')}. Revenue is Rochet payments (with offset) there and first prices "
        "here, and bids are not played anew for either. Replies to MOSAIC are written by guided "
        "insertion, which this LLM needs to show ads at all.",
        judge(_requests(study), value),
    )


def ceiling(study: Study) -> Conclusion:
    """The paper has no such row."""
    ideal, best = (_first(study, start) for start in ("ideal rule, ", "best of"))
    rewards = [_cell(_row(study, name), "reward") for name in (study.trained, ideal, best)]
    short = _gain(study, study.trained, ideal, "reward")
    return Conclusion(
        "(a) ceiling (ours)",
        "Training approaches the ideal rule.",
        f"reward per query: {show(rewards[0])}, of the {ideal} at beta = {study.field.beta:g} "
        f"{show(rewards[1])} (difference {show(short, '+')}), of the {best} {show(rewards[2])}.",
        "figures only",
    )


def monotone(study: Study) -> Iterator[Conclusion]:
    """Sampled clicks, and choice shares, whose noise is low."""
    before, after = (study.answers[name] for name in (study.before, study.trained))
    for what, old, new in (
        ("clicks in sampled replies", before.clicks, after.clicks),
        ("choice share where an ad is mentioned", before.shares, after.shares),
    ):
        said = f"{_curve(new, study.seed)}; before: {_curve(old, study.seed)}."
        yield Conclusion(
            f"(b) monotone: {what}",
            "Clicks do not fall in the ad's own bid.",
            f"Spearman with the bid, others' bids drawn: {said}",
            "open" if new is None else _monotone(new, study.seed),
        )


def continuous(study: Study) -> Conclusion:
    """Steps between neighbouring bids against the whole rise."""
    curve = study.answers[study.trained].fixed
    if curve is None:
        found = "too few replies mention an ad."
    else:
        step = float(np.diff(curve.levels).max())
        share = f"{100 * curve.jump / curve.rise:.0f} %" if curve.rise > 0 else "more than all"
        found = (
            f"others' bids at 50, in steps of at most {step:g}: largest step of the choice share "
            f"{number(curve.jump)}, {share} of the rise of {number(curve.rise)}."
        )
    return Conclusion("(b) continuous", "Clicks are continuous in the bid.", found, "figures only")


def compliance(study: Study) -> Conclusion:
    """Of replies, how many show an ad in it; one without any breaks no format, but shows none."""
    row, base = (_row(study, name) for name in (study.trained, PRETRAINED))
    kept, formed = _cell(row, "compliant"), _cell(row, "well_formed")
    return Conclusion(
        "(c) format",
        f"Ads are mentioned in the format @Title@[Ad-ID] (asked: {100 * COMPLIANT:.0f} %).",
        f"{_percent(kept)} of replies show an ad, not more than they may, and nothing malformed "
        f"(pre-trained {_percent(_cell(base, 'compliant'))}); nothing malformed, with an ad or "
        f"without, is in {_percent(formed)} (pre-trained {_percent(_cell(base, 'well_formed'))}). "
        "Wilson's intervals over requests.",
        judge(_requests(study), kept.less(COMPLIANT)),
    )


def value_maximizers(study: Study) -> Conclusion:
    """Best responses to the curve after training."""
    part = _responses(study, "value")
    verdict: Verdict = "open"
    if (part["ratio_high"] < 1 - NEAR).any():
        verdict = "differs"
    elif (part["ratio_low"] >= 1 - NEAR).all():
        verdict = "agrees"
    return Conclusion(
        "(d) value maximizers",
        "The best bid at first price is v/tau_roi.",
        f"best bid over v/tau_roi between {_range(part)}, for values of "
        f"{part['value'].min():g} to {part['value'].max():g} and targets of "
        f"{part['target_roi'].min():g} to {part['target_roi'].max():g}.",
        verdict if _told(study) else "open",
    )


def utility_maximizers(study: Study) -> Conclusion:
    """Nobody gains by a first price of its own value, so that shading cannot fail: not judged."""
    part = _responses(study, "utility")
    return Conclusion(
        "(d) utility maximizers",
        "The first price is for value maximizers; utility maximizers shade.",
        f"best bid over value between {_range(part)}.",
        "figures only",
    )


def in_the_market(study: Study) -> Iterator[Conclusion]:
    """Iterated best responses of the scenario's advertisers; intervals are over advertisers.

    Of utility maximizers figures only, see `utility_maximizers`.
    """
    if study.market is None:
        return
    for objective, column, what in (
        ("value", "bid_over_target", "v/tau_roi"),
        ("utility", "bid_over_value", "value"),
    ):
        everyone = study.market.filter(pl.col("objective") == objective)
        part = everyone.filter("determined")
        if part.height < 2:
            continue
        ratio = mean_of(part[column].to_numpy())
        settled = bool(part["converged"].all())
        verdict: Verdict = "open" if objective == "value" else "figures only"
        if objective == "value" and settled and ratio.low > 1 - NEAR:
            verdict = "agrees"
        elif objective == "value" and settled and ratio.high < 1 - NEAR:
            verdict = "differs"
        claim = "bid v/tau_roi" if objective == "value" else "shade"
        yield Conclusion(
            f"(d) {objective} maximizers in the market",
            f"At first price, {objective} maximizers {claim}.",
            f"iterated best responses on what recorded replies tell, "
            f"{'converged' if settled else 'not converged'}: bid over {what} {show(ratio)}, mean "
            f"over the {part.height} of {everyone.height} whose best bid is determined (the others "
            "are never shown, or do as well by a range of bids).",
            verdict,
        )


def tokens(study: Study) -> Conclusion:
    """LLM tokens of serving one request."""
    ours, theirs = (_row(study, name) for name in (study.trained, _first(study, "mosaic, ")))
    less = theirs["written"] / ours["written"]
    spec = study.field.scenario.training or TrainingSpec()
    return Conclusion(
        "(e) one pass",
        "One generation serves a request, without candidates.",
        f"{ours['written']:.0f} tokens written behind a prompt of {ours['read']:.0f}; MOSAIC "
        f"{theirs['written']:.0f} ({less:.0f} times as many) behind a prompt of "
        f"{theirs['read']:.0f}, which is run once. Rules for ending a reply differ: MOSAIC's "
        f"candidates have at most {spec.pool_tokens} tokens each, LLM-Auction's reply "
        f"{spec.max_tokens}, mentions on top.",
        "agrees" if less > 1 else "differs",
    )


def show(found: Estimate, sign: str = "") -> str:
    """`1.23 [1.1, 1.4]`."""
    plus = "+" if sign and found.mean >= 0 else ""
    return f"{plus}{number(found.mean)} [{number(found.low)}, {number(found.high)}]"


def _percent(found: Estimate) -> str:
    if not np.isfinite(found.mean):
        return "–"
    return f"{100 * found.mean:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def _curve(curve: Curve | None, seed: int) -> str:
    if curve is None:
        return "too few replies mention an ad"
    return (
        f"{show(curve.spearman(seed))}, from {number(curve.mean[0])} at bid {curve.levels[0]:g} by "
        f"{show(curve.gain(seed), '+')}, violation of monotonicity {number(curve.violation)}"
    )


def _monotone(curve: Curve, seed: int) -> Verdict:
    """It must rise at all, and in rank; noise alone makes neither."""
    if len(curve.answers) < 10:
        return "open"
    if curve.gain(seed).high < 0:
        return "differs"
    rises = curve.gain(seed).low > 0
    return "agrees" if rises and curve.spearman(seed).mean >= MONOTONE else "open"


def _responses(study: Study, objective: str) -> pl.DataFrame:
    return study.best.filter((pl.col("name") == study.trained) & (pl.col("objective") == objective))


def _range(part: pl.DataFrame) -> str:
    low, high = part.sort("ratio")[[0, -1]].iter_rows(named=True)
    return " and ".join(
        show(Estimate(row["ratio"], row["ratio_low"], row["ratio_high"])) for row in (low, high)
    )


def _told(study: Study) -> bool:
    return _requests(study) >= 10


def _requests(study: Study) -> int:
    return len(study.trials.requests)


def _first(study: Study, start: str) -> str:
    return next(name for name in study.frames if name.startswith(start))


def _row(study: Study, name: str) -> dict:
    return study.rows.row(by_predicate=pl.col("name") == name, named=True)


def _cell(row: dict, name: str) -> Estimate:
    parts = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return Estimate(*(np.nan if part is None else part for part in parts))


def _gain(study: Study, ours: str, theirs: str, measure: str) -> Estimate:
    mine, base = (by_request(study.frames[name]) for name in (ours, theirs))
    return paired(mine, base, measure, study.seed)
