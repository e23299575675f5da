"""What an audit says of each property, with the evidence, in a line.

A property *holds* where the largest violation is below `THRESHOLD` of value, and *fails* otherwise:
on the pool audited this is exact; what other requests may bring is said beside. Where a gain from
one multiple for all requests rests on so few requests that the interval over requests reaches 0, it
*may fail*. Not every mechanism claims every property; what its paper or theory claims is in
`CLAIMS`, and said beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from experiments.audit.deviations import ROUNDING, Deviations
from experiments.audit.properties import THRESHOLD, Shape, Violations
from experiments.audit.resampling import Regrets
from experiments.bootstrap import Estimate
from mechanisms.base import Mechanism
from mechanisms.mosaic import Mosaic

Outcome = Literal["holds", "may fail", "fails"]
PROPERTIES = {
    "truthful": "Truth is optimal for utility maximizers: one bid for all requests",
    "conditional": "Truth is optimal for utility maximizers: a bid for each request",
    "reports": "Truth is optimal for utility maximizers: any report for any reply",
    "value": "v / target ROI is optimal for value maximizers: one bid for all requests",
    "rational": "Truthful utility maximizers lose nothing by taking part",
    "target": "Truthful value maximizers meet their target ROI",
    "monotone": "Clicks do not fall in the bid",
    "bounded": "Payments are between 0 and bid × clicks",
    "settled": "Charges have the payments for a mean",
    "counterfactuals": "Learners are told what other bids would bring",
}
NOTHING = 1e-13
"""Of value: what is smaller is the rounding of sums, and told as 0."""
_SOUND = {"settled", "counterfactuals"}
_FIRST_PRICE = {"rational", "target", "monotone", "bounded"} | _SOUND
_TRUTHFUL = {"truthful", "conditional", "rational", "target", "monotone", "bounded"} | _SOUND
CLAIMS: Mapping[str, set[str]] = {
    "mosaic": _TRUTHFUL | {"reports"},
    "vcg": _TRUTHFUL,
    "llm-auction-ideal": _FIRST_PRICE,
    "llm-auction": {"rational", "target", "bounded"} | _SOUND,
    "first-price": _FIRST_PRICE,
    "gsp": _FIRST_PRICE,
    "segment": _TRUTHFUL,
    "token": _SOUND,
    "pretrained": {"rational", "target", "bounded"} | _SOUND,
}
"""Properties that theory claims of a mechanism, by name. Nothing is claimed for value maximizers'
bids: under first prices they are truthful, under Rochet or VCG payments they gain by bidding above.
Of segment, with `segments` above 1, on pools in which an ad is clicked no more in a larger set."""
_REWARDS_ABOVE_ZERO = {"rational", "target", "bounded"}
"""What is claimed of mosaic for rewards that are never negative, as click probabilities are."""


@dataclass(frozen=True)
class Finding:
    """A line of the verdict.

    Attributes:
        key: of `PROPERTIES`.
        verdict: what was found.
        evidence: in numbers.
        claimed: whether theory claims the property of this mechanism; None where it is unknown.
    """

    key: str
    verdict: Outcome
    evidence: str
    claimed: bool | None

    @property
    def statement(self) -> str:
        """In words."""
        return PROPERTIES[self.key]

    @property
    def conclusion(self) -> str:
        """The verdict, and whether the property was claimed where it does not hold."""
        unclaimed = self.verdict != "holds" and self.claimed is False
        return f"{self.verdict} (not claimed)" if unclaimed else self.verdict

    def __str__(self) -> str:
        return f"{self.statement}: {self.conclusion}. {self.evidence}"


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that findings rest on.

    Attributes:
        mechanism: audited.
        requests: B of the pool.
        found: deviations of each advertiser.
        regrets: of them.
        groups: advertisers by objective.
        violations: of participation, by objective; None where there is nobody.
        shape: of clicks and payments along the bid.
        settlement: greatest difference of mean charge and payment, of a click's value.
        counterfactuals: greatest error of what learners are told, likewise.
        compared: number of requests on which that was looked for.
        misreports: gains from arbitrary reports, if the mechanism takes them.
        misreported: number of requests on which they were tried.
        names: (N,) of the advertisers.
    """

    mechanism: Mechanism
    requests: int
    found: Sequence[Deviations]
    regrets: Regrets
    groups: Mapping[str, Sequence[int]]
    violations: Mapping[str, Violations | None]
    shape: Shape
    settlement: float
    counterfactuals: float
    compared: int
    misreports: pl.DataFrame | None
    misreported: int
    names: Sequence[str]


def findings(evidence: Evidence) -> tuple[Finding, ...]:
    """A finding per property that there is anything to say of."""
    mechanism = evidence.mechanism
    claims = CLAIMS.get(mechanism.name)
    if isinstance(mechanism, Mosaic):
        if not mechanism.offset:
            claims = claims - {"bounded"}
        if mechanism.reward == "log-ratio":
            claims = claims - _REWARDS_ABOVE_ZERO
    return tuple(
        Finding(key, verdict, text, None if claims is None else key in claims)
        for key, verdict, text in _all(evidence)
    )


def _all(evidence: Evidence) -> Iterator[tuple[str, Outcome, str]]:
    if len(evidence.groups["utility"]):
        yield ("truthful", *_regret(evidence, "utility"))
        yield ("conditional", *_conditional(evidence))
        if evidence.misreports is not None:
            yield ("reports", *_reports(evidence))
    if len(evidence.groups["value"]):
        yield ("value", *_regret(evidence, "value"))
    for kind, key in (("utility", "rational"), ("value", "target")):
        lost = evidence.violations[kind]
        if lost is not None:
            yield (key, *_participation(lost, kind))
    yield ("monotone", *_monotone(evidence.shape))
    yield ("bounded", *_bounded(evidence.shape))
    yield (
        "settled",
        _holds(evidence.settlement),
        f"Mean charge and payment differ by at most {small(evidence.settlement)} of a click's "
        "value in any request.",
    )
    yield (
        "counterfactuals",
        _holds(evidence.counterfactuals),
        f"Counterfactuals differ from the auction by at most {small(evidence.counterfactuals)} "
        f"clicks, or of a click's value, on {evidence.compared} of {evidence.requests} requests.",
    )


def _regret(evidence: Evidence, kind: str) -> tuple[Outcome, str]:
    who = np.asarray(evidence.groups[kind])
    found = evidence.regrets.greatest(who)
    silent = int(np.isinf(evidence.regrets.high[who]).sum())
    unknown = f" {silent} won too little here to tell of other requests." if silent else ""
    tried = max(len(evidence.found[i].multiples) for i in who) - 1
    scope = f"{_count(len(who), 'advertiser')} × {tried} deviations × {evidence.requests} requests"
    if found.mean < THRESHOLD:
        gains = max(
            float(evidence.found[i].total.max()) / evidence.found[i].value_per_click for i in who
        )
        told = (
            "No deviation gains anything"
            if gains <= 0
            else (
                f"Gains up to {small(found.mean)} of the value attained, rounding included "
                f"{small(gains)} of a click's value"
            )
        )
        high = evidence.regrets.high[who]
        most = float(high[np.isfinite(high)].max(initial=0.0))
        beyond = f"; over requests like these at most {figure(most)} %" if most > THRESHOLD else ""
        return "holds", f"{told} ({scope}){beyond}.{unknown}"
    worst = evidence.found[int(who[evidence.regrets.regret[who].argmax()])]
    truth = "v" if kind == "utility" else "v / target ROI"
    how = f"bidding {worst.multiples[worst.best]:.3g} × {truth}"
    if worst.best == worst.truth:
        how = "what truth owes to its target"
    gaining = int((evidence.regrets.regret[who] >= THRESHOLD).sum())
    who_gains = evidence.names[worst.index]
    text = (
        f"Gains up to {percent(found)} of the value attained: {who_gains} by {how}; "
        f"{gaining} of {scope.replace(' ×', ' gain, of', 1)} each."
    )
    owing = sum(bool(evidence.found[i].owed.any()) for i in who)
    if owing:
        text += f" Truth misses the target ROI of {owing}: what is owed counts as a gain."
    return ("fails" if found.low > 0 else "may fail"), text + unknown


def _conditional(evidence: Evidence) -> tuple[Outcome, str]:
    largest, regret, pairs, gaining = 0.0, 0.0, 0, 0
    for i in evidence.groups["utility"]:
        each = evidence.found[i]
        gain = each.conditional
        stake = each.stake.sum()
        pairs += len(gain)
        gaining += int((gain > THRESHOLD * each.value_per_click).sum())
        largest = max(largest, float(gain.max(initial=0.0)) / each.value_per_click)
        if stake > 0 and gain.sum() > ROUNDING * len(gain) * each.value_per_click:
            regret = max(regret, float(gain.sum() / stake))
    return _holds(largest), (
        f"Greatest gain in a request {small(largest)} of a click's value; in {gaining} of {pairs} "
        f"(request, ad) pairs there is one. All its requests together: up to {small(regret)} of "
        "the value attained."
    )


def _reports(evidence: Evidence) -> tuple[Outcome, str]:
    lies = evidence.misreports
    worst = lies.row(int(lies["largest"].arg_max()), named=True)
    largest = max(float(worst["largest"]), 0.0)
    pairs = lies.filter(pl.col("kind") == worst["kind"])["requests"].sum()
    by = ""
    if largest >= NOTHING:
        by = f": {evidence.names[worst['advertiser']]}, report {worst['kind']}"
    return _holds(largest), (
        f"Greatest gain in a request {small(largest)} of a click's value, over "
        f"{lies['kind'].n_unique()} kinds of reports, two searches among them, in {pairs} "
        f"(request, ad) pairs on {evidence.misreported} of {evidence.requests} requests{by}."
    )


def _participation(lost: Violations, kind: str) -> tuple[Outcome, str]:
    what = "utility below 0" if kind == "utility" else "value below target ROI × payment"
    size = max(-lost.worst_request, 0.0)
    outcome: Outcome = "holds" if lost.none else "fails"
    if kind == "value" and lost.totals == 0:
        outcome = "holds"  # a target is for the total
    worst = f"least total {signed(lost.worst_total)} of the value attained"
    return outcome, (
        f"With {what}: in total {_share(lost.totals)} of {_count(lost.advertisers, 'advertiser')} "
        f"({worst}); in expectation {_share(lost.requests)} of requests (worst {small(size)} of a "
        f"click's value); once the reply is drawn {_share(lost.replies)} (worst "
        f"{small(max(-lost.worst_reply, 0.0))})."
    )


def _monotone(found: Shape) -> tuple[Outcome, str]:
    return _holds(found.fall), (
        f"Greatest fall in a request {small(found.fall)} clicks, in {_share(found.fall_share)} of "
        f"(request, ad) pairs; of an advertiser's clicks in all its requests "
        f"{small(found.total_fall)}."
    )


def _bounded(found: Shape) -> tuple[Outcome, str]:
    above, below = max(found.above, 0.0), max(-found.below, 0.0)
    return _holds(max(above, below)), (
        f"At most {small(above)} of a click's value above, {small(below)} below."
    )


def _holds(violation: float) -> Outcome:
    return "holds" if violation < THRESHOLD else "fails"


def percent(found: Estimate) -> str:
    """`12.3 % [10.1, 14.0]`."""
    mean, low, high = (figure(x) for x in found)
    return f"{mean} % [{low}, {high}]"


def figure(x: float) -> str:
    """A fraction in per cent, three figures of it."""
    if np.isinf(x):
        return "∞"
    return f"{100 * x:,.0f}" if x >= 10 else f"{100 * x:.3g}"


def small(x: float) -> str:
    """A fraction: three figures, with an exponent where it is small; `0` where it is rounding."""
    return "0" if abs(x) < NOTHING else f"{x:.1e}" if abs(x) < 1e-3 else f"{x:.3g}"


def signed(x: float) -> str:
    """As `small`, with its sign."""
    return "0" if abs(x) < NOTHING else f"{'−' if x < 0 else '+'}{small(abs(x))}"


def _share(x: float) -> str:
    return "none" if x == 0 else f"{100 * x:.3g} %"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
