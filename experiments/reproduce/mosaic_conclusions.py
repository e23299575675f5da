"""What the study says, in sentences with intervals, and where that differs from the paper."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from experiments.bootstrap import Estimate, mean_of
from experiments.reproduce.mosaic import WAYS, Study
from experiments.reproduce.mosaic_measures import (
    against_optimum,
    average,
    by_request,
    rank_correlations,
    ratio,
)
from experiments.reproduce.page import Conclusion, judge
from mechanisms.pool import Floats

SMALL = 8
"""M at which ways of writing are compared: where candidates are few, how they are written tells."""
FOLLOWS = 0.5
"""Rank correlation above which utility is said to follow contribution; fixed before any run."""
FALLS = 0.95
"""Total variation at four times the candidates, at most, of what it was, where it is said to fall;
chosen on synthetic worlds, before any run on an LLM's replies. On others, of 20 requests, 4 of 160
recordings of another reply space then agree, and 141 of 160 of the right one."""
ROUNDING = 1e-9
"""Of the largest stake: what is less is no gain."""
FORMS = ("clicks", "log-ratio")


def conclusions(study: Study) -> list[Conclusion]:
    """All of them, in the order of the questions."""
    return [
        *convergence(study),
        *ways_of_writing(study),
        revenue(study),
        *utility_and_contribution(study),
        temperature(study),
        satisfaction(study),
        *honesty(study),
        participation(study),
        cost(study),
    ]


def convergence(study: Study) -> Iterator[Conclusion]:
    """By form of reward and way of writing.

    The verdict goes by the distance to the optimum, not by tau·log Z, which grows for any
    candidates: total variation and the gap in tau·log Z must both shrink. More candidates average
    out noise whatever they are, so agreement also asks that total variation falls by more than a
    little (`FALLS`), and that the allocation ends nearer to its request's optimum than the
    reference does (nobody bids), and than to other requests' optima.
    """
    for reward in FORMS:
        for way in WAYS:
            part = study.convergence.filter((pl.col("reward") == reward) & (pl.col("way") == way))
            most = part["M"].max()
            least = part.filter(pl.col("M") <= most // 4)["M"].max()
            few, many = (part.filter(pl.col("M") == m) for m in (least, most))
            nearer = mean_of(_paired(many, few, "distance"))
            closer = mean_of(_paired(many, few, "gap"))
            unbid, elsewhere = (
                mean_of((many[name] - many["distance"]).to_numpy())
                for name in ("unbid", "elsewhere")
            )
            falls = mean_of(
                FALLS * few.sort("request")["distance"].to_numpy()
                - many.sort("request")["distance"].to_numpy()
            )
            value = against_optimum(many, "value", "optimum", study.seed)
            welfare = against_optimum(many, "welfare", "most", study.seed)
            unit = "times" if reward == "clicks" else "money above"
            yield Conclusion(
                f"(a) convergence, rewards {reward}",
                "The allocation approaches the optimal reply distribution as M grows.",
                f"{way}: total variation over ads shown {_show(average(few, 'distance'))} at "
                f"M = {least} and {_show(average(many, 'distance'))} at M = {most} (when nobody "
                f"bids {_show(average(many, 'unbid'))}, to other requests' optima "
                f"{_show(average(many, 'elsewhere'))}); gap in tau log Z smaller by "
                f"{_show(closer)} money. At M = {most} value is {_show(value)} and tau log Z, a "
                f"lower bound on what is achieved, {_show(welfare)} {unit} the optimum's; "
                f"effective sample size {many['ess'].mean():.1f}.",
                judge(many.height, nearer, closer, given=[falls, unbid, elsewhere]),
            )


def ways_of_writing(study: Study) -> Iterator[Conclusion]:
    """Each against the reference, at a small M."""
    for reward in FORMS:
        at = study.convergence.filter((pl.col("reward") == reward) & (pl.col("M") == SMALL))
        theirs = at.filter(pl.col("way") == "reference")
        for way in ("context", "mixture", "guided"):
            ours = at.filter(pl.col("way") == way)
            distance, gap, likely, value = (
                mean_of(_paired(theirs, ours, name))
                for name in ("distance", "gap", "likelihood", "value")
            )
            yield Conclusion(
                f"(a) how candidates are written, rewards {reward}",
                "Candidates that know the advertisers come closer to the optimum at equal M.",
                f"{way} less reference at M = {SMALL}: total variation {_show(distance, '+')}, "
                f"gap in tau log Z {_show(gap, '+')} money, value {_show(value, '+')} money, "
                f"log-probability under the optimum {_show(likely, '+')} nats.",
                judge(ours.height, -distance, -gap),
            )


def revenue(study: Study) -> Conclusion:
    """Signs of revenue and utility with offset are a theorem; without, they are measured."""
    with_, without = (
        by_request(part, "payment", "value", "utility") for part in _offsets(study, "clicks")
    )
    paid, unpaid = average(with_, "payment"), average(without, "payment")
    gain = average(with_, "utility")
    return Conclusion(
        "(b) revenue",
        "With the offset the platform earns, and advertisers gain by taking part; without it, the "
        "platform pays.",
        f"with offset: revenue {_show(paid)} money per request "
        f"({_show(ratio(with_, 'payment', 'value', study.seed))} of the advertisers' value), "
        f"advertisers' utility {_show(gain)}, neither below 0 by a theorem, checked. Revenue "
        f"without: {_show(unpaid)}.",
        judge(with_.height, paid, gain, -unpaid),
    )


def utility_and_contribution(study: Study) -> Iterator[Conclusion]:
    """By form of reward; ranks are those within a request."""
    for reward in FORMS:
        with_, without = (rank_correlations(part) for part in _offsets(study, reward))
        more = mean_of(with_ - without)
        yield Conclusion(
            "(b) utility and contribution",
            "With the offset, an advertiser's utility follows its contribution to welfare.",
            f"rewards {reward}: rank correlation within a request {_show(mean_of(with_))} with "
            f"offset, {_show(mean_of(without))} without, difference {_show(more, '+')}. Agrees if "
            f"the first is above {FOLLOWS} and the difference above 0.",
            judge(len(with_), mean_of(with_).less(FOLLOWS), more),
        )


def temperature(study: Study) -> Conclusion:
    """From the smallest tau to the largest."""
    low, high = _extremes(study)
    divergence, value = (mean_of(_paired(low, high, name)) for name in ("kl", "value"))
    return Conclusion(
        "(c) tau",
        "A larger tau keeps replies near the reference LLM's, at a price to advertisers.",
        f"{_from_to(low, high)}: divergence from the reference {_show(divergence, '+')} nats, "
        f"advertisers' value {_show(value, '+')} money per request; both fall by a theorem, "
        "checked.",
        judge(high.height, -divergence, -value),
    )


def satisfaction(study: Study) -> Conclusion:
    """From the smallest tau to the largest."""
    low, high = _extremes(study)
    shift = mean_of(_paired(low, high, "satisfaction"))
    return Conclusion(
        "(c) users",
        "Users are more satisfied with a larger tau.",
        f"{_from_to(low, high)}: satisfaction {_show(shift, '+')}, on a scale from 0 to 1.",
        judge(high.height, shift),
    )


def honesty(study: Study) -> Iterator[Conclusion]:
    """By form of reward: no gain, where misreports are not idle."""
    for reward in FORMS:
        frame = study.misreports.filter(pl.col("reward") == reward)
        worst = frame["gain"].max() / frame["stake"].max()
        losses = frame.with_columns(loss=-pl.col("gain"))
        half, double, noise = (
            ratio(
                by_request(
                    losses.filter((pl.col("kind") == kind) & (pl.col("size") == size)),
                    *("loss", "stake"),
                ),
                *("loss", "stake"),
                study.seed,
            )
            for kind, size in (("scalar", 0.5), ("scalar", 2.0), ("noise", 1.0))
        )
        none = Estimate(*(ROUNDING - worst,) * 3)
        yield Conclusion(
            f"(d) incentives, rewards {reward}",
            "Truthful reporting is a dominant strategy.",
            f"over {frame.height:,} misreports, scalar and vector, the largest gain is {worst:.1e} "
            f"of the largest stake (at most {ROUNDING:.0e} is rounding). Half the truth loses "
            f"{_show(half)} of the stake, twice the truth {_show(double)}, vector noise of one "
            f"standard deviation {_show(noise)}; a stake is the mean absolute reward.",
            judge(frame["request"].n_unique(), none, given=[half, double, noise]),
        )


def participation(study: Study) -> Conclusion:
    """Least truthful utilities."""
    clicks, ratios = (_offsets(study, reward)[0] for reward in FORMS)
    least = clicks["utility"].min() / clicks["value"].max()
    lose = (ratios["utility"] < 0).mean()
    return Conclusion(
        "(d) participation, rewards clicks",
        "No truthful advertiser loses by taking part.",
        f"the least utility is {least:.1e} of the largest value. (Log-ratios may be negative, and "
        f"with them {lose:.0%} of ads lose by taking part.)",
        judge(clicks["request"].n_unique(), Estimate(*(least + ROUNDING,) * 3)),
    )


def cost(study: Study) -> Conclusion:
    """Figures only: what is moderate is for the reader to say."""
    at = study.tokens.filter((pl.col("M") == 20) & (pl.col("n") == 4))
    tokens = dict(at.select("way", "tokens").iter_rows())
    one = study.tokens.filter((pl.col("M") == 1) & (pl.col("n") == 4) & (pl.col("way") == "guided"))
    plain = float(one["tokens"][0])
    times = {way: tokens[way] / plain for way in ("guided", "mixture", "log-ratio")}
    return Conclusion(
        "(e) cost",
        "The overhead over a single reply is moderate.",
        f"20 candidates and 4 ads take {tokens['guided']:,.0f} tokens by guided insertion, "
        f"{tokens['mixture']:,.0f} as a mixture, {tokens['log-ratio']:,.0f} with log-ratio "
        f"rewards: {times['guided']:.1f}, {times['mixture']:.1f} and {times['log-ratio']:.1f} "
        f"times a single reply ({plain:,.0f}).",
        "figures only",
    )


def _offsets(study: Study, reward: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """With offset, and without."""
    part = study.offsets.filter(pl.col("reward") == reward)
    return part.filter(pl.col("offset")), part.filter(~pl.col("offset"))


def _extremes(study: Study) -> tuple[pl.DataFrame, pl.DataFrame]:
    """At the smallest tau, and at the largest."""
    frame = study.temperatures
    return (
        frame.filter(pl.col("tau") == frame["tau"].min()),
        frame.filter(pl.col("tau") == frame["tau"].max()),
    )


def _from_to(low: pl.DataFrame, high: pl.DataFrame) -> str:
    return f"from tau {low['tau'][0]:g} to {high['tau'][0]:g}"


def _paired(before: pl.DataFrame, after: pl.DataFrame, column: str) -> Floats:
    """(B,) changes of the same requests."""
    return np.asarray(after.sort("request")[column] - before.sort("request")[column])


def _show(found: Estimate, sign: str = "") -> str:
    mean, low, high = (f"{x:{sign}.3g}" for x in found)
    return f"{mean} [{low}, {high}]"
