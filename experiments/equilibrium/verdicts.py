"""The lines on top of the page: a verdict per mechanism on its learners, and on existence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from experiments.equilibrium.diagnosis import EXPLOITABILITY, MOVEMENT
from experiments.equilibrium.empirical import sinks
from experiments.equilibrium.findings import Finding
from experiments.equilibrium.solver import EquilibriumReport
from experiments.page import Verdict
from experiments.report import number
from mechanisms.pool import Floats

NOTE = (
    "Exploitability: what all advertisers together could gain by other fixed bids, and what value "
    "maximizers owe to their target ROI, as a fraction of the value that all attain. It is "
    "computed on the whole pool, apart from the learners, and given for the profile for which it "
    "is least: the last strategies' mean bids, bids averaged over the second half of the rounds, "
    "or the product of the average mixtures (with a 95 % interval over sampled rivals' bids), of "
    f"any start. Converged: bids move at most {100 * MOVEMENT:g} % of truthful in the last quarter "
    f"of the rounds, and exploitability is at most {100 * EXPLOITABILITY:g} %; cycling: they come "
    "back to where they were; drifting: else. Expected outcomes are exact given the pool's "
    "replies; they say nothing of questions that the pool does not hold."
)


def verdicts(found: Mapping[str, Finding]) -> Iterator[Verdict]:
    """Two lines per mechanism: where learners end, and what the empirical games say."""
    for name, each in found.items():
        report = each.report
        counts = ", ".join(f"{k} {status}" for status, k in report.counts.items() if k)
        settled = report.exploitability <= EXPLOITABILITY
        shown = report.diagnoses[report.start]
        evidence = shown.evidence
        if settled and shown.status != "converged":
            evidence += "; still, next to nobody gains by leaving the profile reported"
        yield Verdict(
            (
                f"{name}: learners",
                f"exploitability {_interval(report)} of value ({report.profile}; "
                f"{_percent(report.per_click_value)} of mean value per click); all starts: last "
                f"{_range(report.ends[0])}, average {_range(report.ends[1])}, mixture "
                f"{_range(report.ends[2])}; CCE gap {_range(report.cce_gap)}; of "
                f"{len(report.diagnoses)} starts {counts} "
                f"(the one reported: {evidence})",
            ),
            report.status,
            "good" if report.status == "converged" else "open" if settled else "bad",
        )
        yield _existence(name, each)


def _existence(name: str, each: Finding) -> Verdict:
    """What speaks for or against an equilibrium in fixed bids."""
    independent, ends = each.independent, sinks(each.roles.graph())
    turns = f"{independent.sweeps} sweeps"
    if independent.converged:
        gains = each.report.game.gains(independent.bids[None])
        tested = (
            f"iterated best response settles after {turns} (exploitability "
            f"{_percent(float(gains.exploitability[0]))})"
        )
    else:
        tested = (
            f"iterated best response does not settle in {turns}: the last moved a bid by "
            f"{_percent(independent.moved)} of truthful, for a gain of "
            f"{_percent(independent.gained)}"
        )
    sizes = [len(nodes) for nodes in ends]
    pure = sizes.count(1)
    cycles = [size for size in sizes if size > 1]
    graph = f"deviation graph of roles: {_equilibria(pure, 'pure')}"
    if cycles:
        graph += f", cycles of {', '.join(map(str, cycles))} profiles"
    rivals = ""
    if each.pair is not None:
        alone = sum(nash.pure for nash in each.nash)
        counted = _equilibria(len(each.nash), "Nash")
        rivals = f"; closest rivals: {counted} of their strategies, {alone} pure"
    exists = independent.converged or each.report.exploitability <= EXPLOITABILITY
    return Verdict(
        (f"{name}: equilibrium in fixed bids", f"{tested}; {graph}{rivals}"),
        "found" if exists else "none found",
        "good" if exists else "open",
    )


def _interval(report: EquilibriumReport) -> str:
    if report.profile != "mixture":
        return _percent(report.exploitability)
    mean, low, high = report.mixture.exploitability
    return f"{_percent(mean)} [{number(100 * low)}, {number(100 * high)}]"


def _equilibria(count: int, kind: str) -> str:
    return f"{count or 'no'} {kind} {'equilibrium' if count == 1 else 'equilibria'}"


def _percent(x: float) -> str:
    return f"{number(100 * x)} %"


def _range(x: Floats) -> str:
    low, high = float(np.min(x)), float(np.max(x))
    return _percent(low) if low == high else f"{_percent(low)} to {_percent(high)}"
