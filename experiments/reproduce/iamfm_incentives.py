"""What the study of IAMFM says of incentives, participation and exact payments: (d), (e), (f)."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from experiments.bootstrap import Estimate, mean_of
from experiments.iamfm.curves import show, table
from experiments.iamfm.shading import EXACT, TOKENS
from experiments.reproduce.iamfm import Study
from experiments.reproduce.page import Conclusion, judge
from mechanisms.pool import Floats

ROUNDING = 1e-9
"""Of what is at stake: what is less is no gain, no loss, no difference."""
DIFFERENCE = 1e-9
"""Money: by how much payments of an unlimited budget may differ from enumeration."""
PROVEN = "Holds by construction (mechanisms/iamfm/incentives.py); this checks the program"


def honesty(study: Study) -> Iterator[Conclusion]:
    """By world and kind of method: gain less twice the measured optimisation error, at most."""
    for (world, kind), frame in study.misreports.group_by("world", "kind", maintain_order=True):
        # each problem on its own scale
        gain, error = (frame[name] / frame["scale"] for name in ("gain", "epsilon"))
        worst = (gain - 2 * error).max()
        used = (gain / (2 * error)).filter(gain > 0)
        most = f", at most {used.max():.2g} of 2 epsilon" if len(used) else ""
        yield Conclusion(
            f"(d) the bound, {kind}, {world}",
            "Approximately strategy-proof (ours: a misreport gains at most twice the optimisation "
            "error).",
            f"{PROVEN}. Over {frame.height:,} random problems and misreports the largest of gain - "
            f"2 epsilon is {worst:.2e} of the value at stake in its problem (at most "
            f"{ROUNDING:.0e} is rounding); {len(used)} gain at all{most}.",
            judge(frame.height, Estimate(*(ROUNDING - worst,) * 3)),
        )


def small_gains(frame: pl.DataFrame) -> tuple[Floats, list[Estimate], float]:
    """Of one world and method: factors (X,), mean gains (X), and the mean utility of the truthful.

    Gains are shares of that mean utility, which is taken as it is; their intervals hold together.
    """
    factors, gains = table(frame, "gain", "factor")
    utility = float(frame["utility"].mean())
    return factors, [mean_of(each / utility, looks=len(factors)) for each in gains.T], utility


def shading(study: Study) -> Iterator[Conclusion]:
    """By world and method: does any small misreport pay on average?"""
    for (world, method), frame in study.small_misreports.group_by(
        "world", "method", maintain_order=True
    ):
        factors, gains, utility = small_gains(frame)
        each = "; ".join(
            f"{factor:g}: {show(gain, '+')}" for factor, gain in zip(factors, gains, strict=True)
        )
        pays = [f"{x:g}" for x, gain in zip(factors, gains, strict=True) if gain.low > 0]
        seeds = frame["seed"].n_unique()
        exact = method == EXACT
        yield Conclusion(
            f"(d) small misreports, {method}, {world}",
            "None: the reference."
            if exact
            else "Approximately strategy-proof (ours: no small misreport gains on average).",
            f"mean gain by bid / value, as a share of the mean utility of the truthful "
            f"({utility:.3g} money per request), {each}. It is shown to pay at: "
            f"{', '.join(pays) or 'none'}. {seeds} problems, {TOKENS:,.0f} tokens; the "
            f"{len(factors)} intervals hold together.",
            "figures only" if exact else judge(seeds, *(-gain for gain in gains)),
        )


def participation(study: Study) -> Iterator[Conclusion]:
    """Truthful advertisers in the problems of (d), and everybody in the market."""
    frame = study.misreports
    worst = frame["charge_over_value"].max()
    above = frame["lump_over_value"].mean()
    yield Conclusion(
        "(e) participation",
        "Individually rational.",
        f"{PROVEN}: payments are collected per click, p_i over the believed clicks and never above "
        f"the bid. Over {frame.height:,} problems of truthful advertisers the largest of mean "
        f"charge less realised mean value is {worst:.2e} money (at most {ROUNDING:.0e} is "
        f"rounding). As lump sums, {above:.1%} of payments would have been above the true mean "
        "value, which the platform does not know.",
        judge(frame.height, Estimate(*(ROUNDING - worst,) * 3)),
    )
    people = study.market.advertisers.filter(pl.col("mechanism").str.starts_with("iamfm"))
    over = (people["payment"] - people["bid"] * people["itctr"]).max()
    yield Conclusion(
        "(e) participation, market",
        "Individually rational.",
        f"{PROVEN}. Over {people.height:,} rounds of advertisers the largest of expected payment "
        f"less bid times expected clicks is {over:.2e} money (at most {ROUNDING:.0e} is rounding).",
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
        "Holds by construction once no evaluation is noisy; this checks search and payments "
        "against plain loops over all configurations. Largest difference of a payment "
        f"{worst:.1e} money over {problems} problems, by every way of settling; the configuration "
        f"chosen is optimal in {best:.0%}.",
        judge(
            study.exact.height,
            Estimate(*(DIFFERENCE - worst,) * 3),
            Estimate(*(best - 0.999,) * 3),
        ),
    )
