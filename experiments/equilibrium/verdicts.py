"""The lines on top of the page: a verdict per mechanism on its learners, and on existence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from experiments.equilibrium.diagnosis import EXPLOITABILITY, MOVEMENT
from experiments.equilibrium.empirical import sinks
from experiments.equilibrium.findings import Finding
from experiments.equilibrium.solver import PROFILES, EquilibriumReport
from experiments.page import Verdict
from experiments.report import number
from mechanisms.pool import Floats

NOTE = (
    "Exploitability: what all advertisers together could gain by other fixed bids, and what value "
    "maximizers owe to their target ROI, as a fraction of the value that all attain together; a "
    "lower bound, by a search over bids on the whole pool, apart from the learners. The target of "
    f"{100 * EXPLOITABILITY:g} % of mean value is read of that sum: advertisers lose less than it "
    "on average, while a single small one may lose much of the little that it could attain; its "
    "loss is the greatest relative loss. Learners are judged by their last bids, or, if they keep "
    "mixtures, by the product of their average mixtures over the second half of the rounds (with a "
    "95 % interval over rivals' bids sampled), and by the median over starts; the range from the "
    "best to the worst start stands beside it, and advertisers, losses and intervals are of the "
    f"start in the middle. Converged: strategies move at most {100 * MOVEMENT:g} % of truthful in "
    "the last quarter of the rounds (mean and spread of bids), and the start's exploitability is "
    f"at most {100 * EXPLOITABILITY:g} %; cycling: they come back to where they were; drifting: "
    "else. The status is that of most starts. CCE gap: what advertisers together would have gained "
    "by one fixed bid each throughout, over the same value, dues included: the distance of the "
    "whole play from a coarse correlated equilibrium. Deviation graphs, portraits and crowding out "
    "are about fixed bids: those judged, or, where mixtures are, the least exploitable last or "
    "average bids. Expected outcomes are exact given the pool's replies; they say nothing of "
    "questions that the pool does not hold."
)
PLAYED = {"last": "last bids", "average": "average bids", "mixture": "average mixtures"}


def verdicts(found: Mapping[str, Finding]) -> Iterator[Verdict]:
    """Two lines per mechanism: where learners end, and what the empirical games say."""
    for name, each in found.items():
        report = each.report
        met = report.exploitability <= EXPLOITABILITY
        yield Verdict(
            (
                f"{name}: learners",
                _where_learners_end(report, met),
                "; ".join(_learners(each, met)),
            ),
            report.status,
            "good" if met and report.status == "converged" else "open" if met else "bad",
        )
        yield _existence(name, each)


def _where_learners_end(report: EquilibriumReport, met: bool) -> str:
    """In a sentence: what is left to gain, against the target, and how many starts rest."""
    counts = ", ".join(f"{k} {status}" for status, k in report.counts.items() if k)
    return (
        f"At {PLAYED[report.profile]}, in the median start, all advertisers together could gain "
        f"{_percent(report.exploitability)} of the value that they attain (target at most "
        f"{100 * EXPLOITABILITY:g} %: {'met' if met else 'not met'}). Of {len(report.diagnoses)} "
        f"starts {counts}."
    )


def _learners(each: Finding, met: bool) -> Iterator[str]:
    """The evidence."""
    report = each.report
    if len(report.judged) > 1:
        best, worst = _percent(report.judged.min()), _percent(report.judged.max())
        yield f"best start {best}, worst {worst}"
    yield f"{_percent(report.per_click_value)} of mean value per click"
    yield f"greatest relative loss of an advertiser {_loss(report)}"
    if report.profile == "mixture":
        _, low, high = report.mixture.exploitability
        interval = f"[{number(100 * low)}, {number(100 * high)}] %"
        yield f"the start in the middle, over rivals' bids sampled, {interval}"
    others = (kind for kind in PROFILES if kind != report.profile)
    yield ", ".join(
        f"{PLAYED[kind]} {_range(report.ends[PROFILES.index(kind)])}" for kind in others
    )
    yield f"CCE gap {_range(report.cce_gap)}"
    yield f"the start in the middle: {report.diagnoses[report.start].evidence}"
    if met and report.status != "converged":
        yield "most starts do not come to rest, or not there, yet together little is to be gained"
    if each.plateau.any():
        yield (
            f"plateaus: for {each.plateau.sum()} of {len(each.plateau)} advertisers 1 % more or "
            f"less changes nothing, and {each.stuck.sum()} of them could gain by a bid farther off"
        )


def _existence(name: str, each: Finding) -> Verdict:
    """What speaks for or against an equilibrium in fixed bids."""
    independent, ends = each.independent, sinks(each.roles.graph())
    left = _percent(each.independent_exploitability)
    turns = f"{independent.sweeps} sweeps"
    fixed = each.report.ends[:2].min()
    least = min(each.independent_exploitability, fixed)
    short = f"The least exploitable fixed bids found leave {_percent(least)} to gain."
    if independent.converged:
        tested = f"iterated best response settles after {turns}, exploitability {left}"
    else:
        tested = (
            f"iterated best response does not settle in {turns} (exploitability {left}): the last "
            f"moved a bid by {_percent(independent.moved)} of truthful, for a gain of "
            f"{_percent(independent.gained)}"
        )
    learned = f"learners' best fixed bids {_percent(fixed)}"
    sizes = [len(nodes) for nodes in ends]
    kept = len(each.roles.equilibria)
    alone = sizes.count(1)
    graph = (
        f"deviation graph of roles: {alone or 'no'} {'profile' if alone == 1 else 'profiles'} "
        "without a gain on average over members"
    )
    if cycles := [size for size in sizes if size > 1]:
        graph += f", cycles of {', '.join(map(str, cycles))} profiles"
    graph += f", {_equilibria(kept, 'pure')} that no member gains by leaving"
    rivals = ""
    if each.pair is not None:
        pure = sum(nash.pure for nash in each.nash)
        counted = _equilibria(len(each.nash), "Nash")
        rivals = f"; closest rivals: {counted} of their strategies, {pure} pure"
    exists = least <= EXPLOITABILITY
    return Verdict(
        (f"{name}: equilibrium in fixed bids", short, f"{tested}; {learned}; {graph}{rivals}"),
        f"found, to {100 * EXPLOITABILITY:g} %" if exists else "none found",
        "good" if exists else "open",
    )


def _loss(report: EquilibriumReport) -> str:
    greatest = float(report.relative_utility_loss.max())
    return _percent(greatest) if np.isfinite(greatest) else "infinite (its best bid brings nothing)"


def _equilibria(count: int, kind: str) -> str:
    return f"{count or 'no'} {kind} {'equilibrium' if count == 1 else 'equilibria'}"


def _percent(x: float) -> str:
    return f"{number(100 * x)} %"


def _range(x: Floats) -> str:
    low, high = float(np.min(x)), float(np.max(x))
    return _percent(low) if low == high else f"{_percent(low)} to {_percent(high)}"
