"""What the study of IAMFM says, in sentences with intervals, and where that differs from the paper.

The paper's claims are those of its abstract. Numbers of seeds, tokens and problems are the study's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from experiments.bootstrap import Estimate, mean_of
from experiments.iamfm.curves import (
    ErrorCurve,
    at_points,
    crossing,
    differences,
    leaders,
    show,
    table,
    token_ratios,
)
from experiments.iamfm.market import MECHANISMS, TOTALS, bids_by_advertiser, by_replication
from experiments.iamfm.searches import BASELINES, CONTENDERS, ELIMINATION, INSTANTIATIONS, MODEL
from experiments.reproduce.iamfm import FEW, Study
from experiments.reproduce.page import FEWEST, Conclusion, Verdict, judge
from mechanisms.pool import Floats

HALF = 0.5
"""Of naive re-optimisation's extra tokens: what ACO may need at most for the same error."""
YARDSTICKS = {
    "error": "exact VCG",
    "fixed_error": "the choice's externality",
}
"""What payments are compared with: exact VCG payments of the best configuration, or the true
externality of the one that is played."""
ROUNDING = 1e-9
"""Of the largest stake: what is less is no gain, no loss, no difference."""
EXACT = 1e-9
"""Money: by how much payments of an unlimited budget may differ from enumeration."""
NOTE = (
    "95 % intervals: t-intervals of means over seeds, percentile bootstrap over seeds of token "
    "ratios and crossings. All methods meet the same problems and pairs under a seed, and "
    "differences are of pairs. “Agrees” and “differs” are about the direction of the claim, not "
    f"its numbers. “Open”: the interval does not tell, or there are fewer than {FEWEST} seeds. "
    "“Figures only”: nothing is judged. The paper's full text was not at hand: claims are those of "
    "its abstract, thresholds ours."
)


def conclusions(study: Study) -> list[Conclusion]:
    """All of them, in the order of the questions."""
    return [
        *welfare(study),
        *trade_off(study),
        *counterfactuals(study),
        honesty(study),
        *participation(study),
        unlimited(study),
        *steering(study),
        market(study),
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


def trade_off(study: Study) -> Iterator[Conclusion]:
    """By world: each kind of instantiation, and where they cross."""
    (model,) = (name for name, each in CONTENDERS.items() if each.kind == MODEL)
    eliminations = [name for name, each in CONTENDERS.items() if each.kind == ELIMINATION]
    for world in study.worlds:
        budgets, found = samples(study.welfare, world, "welfare")
        for name in eliminations:
            lead = found[name] - found[model]
            leads = differences(found[name], found[model])
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
                divided(len(lead), leads),
            )


def divided(seeds: int, leads: Sequence[Estimate]) -> Verdict:
    """`agrees` where each is ahead at some point, `differs` where one is at all, else `open`."""
    ahead = [lead.low > 0 for lead in leads]
    behind = [lead.high < 0 for lead in leads]
    if seeds < FEWEST:
        return "open"
    if any(ahead) and any(behind):
        return "agrees"
    return "differs" if all(ahead) or all(behind) else "open"


def curve(frame: pl.DataFrame, n: int, *ways: str, error: str = "error") -> ErrorCurve:
    """Payment error against extra tokens of a way; several are joined, in the order given."""
    parts = []
    for way in ways:
        ours = frame.filter((pl.col("n") == n) & (pl.col("way") == way))
        parts.append([table(ours, column, "allowance")[1] for column in ("extra", error)])
    tokens, errors = (np.concatenate(each, axis=1) for each in zip(*parts, strict=True))
    return ErrorCurve(tokens, errors)


def ratios(study: Study, n: int, error: str = "error") -> list[Estimate]:
    """(X) tokens of ACO over those of naive re-optimisation, at the latter's errors.

    ACO without any extra tokens is what payments are from the data of the allocation.
    """
    ours = curve(study.payments, n, "none", "aco", error=error)
    return token_ratios(ours, curve(study.payments, n, "naive", error=error), study.seed)


def counterfactuals(study: Study) -> Iterator[Conclusion]:
    """Tokens at equal error, against both yardsticks, and their growth with n."""
    few = study.payments.filter(pl.col("n") == FEW)
    seeds, exact = few["seed"].n_unique(), few["exact"].mean()
    for error, against in YARDSTICKS.items():
        none, naive, aco = (curve(few, FEW, way, error=error) for way in ("none", "naive", "aco"))
        found = ratios(study, FEW, error)
        by_naive = "; ".join(
            f"{tokens:,.0f} tokens: {show(mean_of(each))}, token ratio {show(ratio)}"
            for tokens, each, ratio in zip(
                naive.tokens.mean(axis=0), naive.errors.T, found, strict=True
            )
        )
        by_aco = "; ".join(
            f"{tokens:,.0f} tokens: {show(mean_of(each))}"
            for tokens, each in zip(aco.tokens.mean(axis=0), aco.errors.T, strict=True)
        )
        yield Conclusion(
            f"(c) payments against {against}, n = {FEW}",
            "Active Counterfactual Optimization reuses data of the optimisation for efficient "
            f"payments (ours: the error of running again with at most {HALF:.0%} of its extra "
            "tokens).",
            f"mean error of a payment, {exact:.3g} on average: {show(mean_of(none.errors[:, 0]))} "
            f"without extra tokens. By running again, {by_naive}. By ACO, {by_aco}. {seeds} "
            f"problems, allocation by {study.sizes.allocation:,.0f} tokens.",
            judge(seeds, *(-ratio.less(HALF) for ratio in found)),
        )
    last = {n: ratios(study, n)[-1] for n in sorted(study.sizes.advertisers)}
    least, most = min(last), max(last)
    # independent problems: the ends of the two intervals bound the difference, and more
    (m0, low0, high0), (m1, low1, high1) = last[least], last[most]
    yield Conclusion(
        "(c) payments, more advertisers",
        "Ours: running again takes n searches, so the saving grows with n.",
        "token ratio at the error of running n searches again as large as the allocation's: "
        + "; ".join(f"n = {n}: {show(ratio)}" for n, ratio in last.items()),
        judge(seeds, Estimate(m0 - m1, low0 - high1, high0 - low1)),
    )


def honesty(study: Study) -> Conclusion:
    """Gain less twice the measured optimisation error, at most."""
    frame = study.misreports
    worst = (frame["gain"] - 2 * frame["epsilon"]).max() / frame["scale"].max()
    gains = mean_of((frame["gain"] / frame["scale"]).to_numpy())
    used = frame.filter(pl.col("gain") > 0)
    tight = (used["gain"] / (2 * used["epsilon"])).max() if used.height else 0.0
    return Conclusion(
        "(d) incentives",
        "Approximately strategy-proof (ours: a misreport gains at most twice the optimisation "
        "error).",
        f"over {frame.height:,} random problems and misreports the largest of gain - 2 epsilon is "
        f"{worst:.2e} of the largest value (at most {ROUNDING:.0e} is rounding); {used.height:,} "
        f"gain at all, at most {tight:.2g} of 2 epsilon. Mean gain {show(gains, '+')} of the value "
        "at stake.",
        judge(frame.height, Estimate(*(ROUNDING - worst,) * 3)),
    )


def participation(study: Study) -> Iterator[Conclusion]:
    """Truthful advertisers in the problems of (d), and everybody in the market."""
    frame = study.misreports
    worst = frame["charge_over_value"].max()
    above = frame["lump_over_value"].mean()
    yield Conclusion(
        "(e) participation",
        "Individually rational.",
        "payments are collected per click, p_i over the believed clicks and never above the bid: "
        f"the largest of mean charge less realised mean value over {frame.height:,} truthful "
        f"advertisers is {worst:.2e} money (at most {ROUNDING:.0e} is rounding). As lump sums, "
        f"{above:.1%} of payments would have been above the true mean value, which the platform "
        "does not know.",
        judge(frame.height, Estimate(*(ROUNDING - worst,) * 3)),
    )
    people = study.market.advertisers.filter(pl.col("mechanism").str.starts_with("iamfm"))
    over = (people["payment"] - people["bid"] * people["itctr"]).max()
    yield Conclusion(
        "(e) participation, market",
        "Individually rational.",
        f"over {people.height:,} rounds of advertisers the largest of expected payment less bid "
        f"times expected clicks is {over:.2e} money (at most {ROUNDING:.0e} is rounding).",
        judge(people.height, Estimate(*(ROUNDING - over,) * 3)),
    )


def unlimited(study: Study) -> Conclusion:
    """Payments of evaluations without noise against enumeration."""
    worst = study.exact["difference"].max()
    best = study.exact["optimal"].mean()
    counts = study.exact.group_by("world", maintain_order=True).len().rows()
    problems = " and ".join(f"{count} {world}" for world, count in counts)
    return Conclusion(
        "(f) unlimited budget",
        "VCG (ours: payments equal exact VCG by enumeration to 1e-9).",
        f"largest difference of a payment {worst:.1e} money over {problems} problems, by every way "
        f"of settling; the configuration chosen is optimal in {best:.0%}.",
        judge(study.exact.height, Estimate(*(EXACT - worst,) * 3), Estimate(*(best - 0.999,) * 3)),
    )


def steering(study: Study) -> Iterator[Conclusion]:
    """By way of steering: exposure of an ad from strength to strength, paired by advertiser."""
    for (way, others), part in study.exposure.group_by("way", "others", maintain_order=True):
        strengths, shown = table(part.rename({"request": "seed"}), "exposure", "strength")
        steps = differences(shown[:, 1:], shown[:, :-1])
        levels = "; ".join(
            f"strength {k:.0f}: {show(mean_of(x))}" for k, x in zip(strengths, shown.T, strict=True)
        )
        yield Conclusion(
            f"(g) steering, {way}, rivals at {others}",
            "Sponsorship configurations steer the LLM's replies.",
            f"share of replies that show an ad of the request, mean over "
            f"{len(shown)} requests, {levels}; steps "
            + ", ".join(show(step, "+") for step in steps)
            + ".",
            judge(len(shown), *steps),
        )


def market(study: Study) -> Conclusion:
    """Figures only, by mechanism: totals over replications, bids over advertisers."""
    totals, bids = by_replication(study.market), bids_by_advertiser(study.market)
    words = []
    for name in MECHANISMS:
        ours = totals.filter(pl.col("mechanism") == name)
        said = [f"{each} {show(mean_of(ours[each].to_numpy()))}" for each in TOTALS]
        for kind, label in (("utility", "UM bid / value"), ("value", "VM bid × target / value")):
            people = bids.filter((pl.col("mechanism") == name) & (pl.col("objective") == kind))
            if people.height:
                said.append(f"{label} {show(mean_of(people['bid'].to_numpy()))}")
        words.append(f"{name}: {', '.join(said)}".replace("_", " "))
    replications = totals["replication"].n_unique()
    return Conclusion(
        "(h) market",
        "No claim: learning advertisers are ours.",
        "; ".join(words) + f". Money per request, last quarter of rounds; totals over "
        f"{replications} replications, bids over advertisers.",
        "figures only",
    )
