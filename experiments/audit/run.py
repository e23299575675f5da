"""`admarket audit`: audit a scenario's mechanisms on its recorded replies, and write the folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from agents.learners.base import Population
from experiments.arms import chosen
from experiments.audit import figures
from experiments.audit.deviations import MULTIPLES
from experiments.audit.findings import THRESHOLD, Finding
from experiments.audit.report import TIMES, AuditReport, audit
from experiments.audit.resampling import COVERAGE
from experiments.audit.tables import tables_of
from experiments.best_response import BestResponse, best_responses
from experiments.page import (
    Subject,
    Tone,
    Verdict,
    Verdicts,
    check_folder,
    write_page,
)
from experiments.provenance import where
from experiments.report import pool_facts, replies_label
from experiments.run import population
from market.environment import pools_of, titles
from market.scenario import Scenario
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.gibbs import check_weights
from mechanisms.pool import ReplyPool

Others = Literal["truthful", "learned"]
OTHERS = {
    "truthful": "truthfully",
    "learned": "what iterated best response ended in",
}
NOTE = (
    "A property holds where the largest violation is below {threshold:g} of value, and fails "
    "otherwise; amounts are expectations, exact on the requests of the pool. Brackets: 95 % over "
    "requests, the lower end of deviations chosen on other requests; where it is 0, a property may "
    "fail. {coverage} “Not claimed”: theory does not claim the property of this mechanism. Truth "
    "is the value per click v for utility maximizers, v / target ROI for value maximizers; the "
    "others bid {others}."
)


@dataclass(frozen=True, eq=False)
class Audited:
    """A mechanism with its pool, its report, and where the others' bids come from."""

    mechanism: Mechanism
    pool: ReplyPool
    report: AuditReport
    best: BestResponse | None
    seconds: float


def run_audit(
    scenario: Scenario,
    seed: int,
    folder: Path,
    say: Callable[[str], None] = lambda _: None,
    *,
    mechanisms: Sequence[str] | None = None,
    others: str = "truthful",
) -> Path:
    """Audit mechanisms on the scenario's replies and advertisers; return the page's path.

    Args:
        scenario: whose requests, replies, values, objectives and targets; budgets are left out.
        seed: of resampled requests, random misreports and dice.
        folder: to write to.
        say: told in a line what is going on.
        mechanisms: by name; default the scenario's.
        others: what the others bid while one deviates: "truthful", or "learned" for the bids in
            which iterated best response ends.

    Raises:
        BadInput: unknown mechanisms or others, or a folder that holds something else.
    """
    if others not in OTHERS:
        raise BadInput(f"others is {others!r}; give one of {', '.join(OTHERS)}")
    arms = chosen(scenario, mechanisms)
    asked = {"mechanisms": [[arm.name, arm.parameters] for arm in arms], "others": others}
    subject = Subject("audit", scenario, seed, asked)
    check_folder(folder, subject)
    people = population(scenario)
    pools = pools_of(scenario, arms, say)
    audited = []
    for mechanism, pool in zip(arms, pools, strict=True):
        check_weights(pool)
        say(
            f"audit: {mechanism.name}, {pool.num_advertisers} advertisers, {len(pool.ads)} requests"
        )
        audited.append(_audited(mechanism, pool, people, others, seed))
    say("figures and page")
    return _write(folder, subject, audited, others)


def _audited(
    mechanism: Mechanism, pool: ReplyPool, people: Population, others: str, seed: int
) -> Audited:
    started = time.perf_counter()
    best = best_responses(mechanism, pool, people) if others == "learned" else None
    report = audit(
        mechanism,
        pool,
        people.values,
        ["value" if vm else "utility" for vm in people.value_maximizer],
        people.target_roi,
        np.random.default_rng(seed),
        others="truthful" if best is None else best.bids,
        names=titles(pool),
    )
    return Audited(mechanism, pool, report, best, time.perf_counter() - started)


def _write(folder: Path, subject: Subject, audited: Sequence[Audited], others: str) -> Path:
    names = titles(audited[0].pool)
    reports = {each.mechanism.name: each.report for each in audited}
    B = len(audited[0].pool.ads)
    drawn = {
        "regret": (
            figures.regrets(reports, names),
            figures.REGRET_CAPTION.format(requests=B, coverage=COVERAGE),
        )
    }
    heat = figures.HEAT_CAPTION.format(requests=B, others=OTHERS[others])
    for name, report in reports.items():
        drawn[f"deviations-{name}"] = (figures.heat_map(report, names), f"{name}. {heat}")
    titled = pl.DataFrame({"advertiser": range(len(names)), "title": names})
    tables = {
        "advertisers": _stacked(reports, lambda report: report.frame.join(titled, "advertiser")),
        "deviations": _stacked(reports, lambda report: report.table),
    }
    lies = {name: report for name, report in reports.items() if report.misreports is not None}
    if lies:
        tables["misreports"] = _stacked(lies, lambda report: report.misreports)
    return write_page(
        folder,
        subject,
        title=f"Audit of {subject.scenario.name}, seed {subject.seed}",
        label=replies_label(audited[0].pool.manifest),
        verdicts=Verdicts(
            columns=("mechanism", "property", "evidence", ""),
            rows=[
                Verdict((name, each.statement, each.evidence), each.conclusion, _tone(each))
                for name, report in reports.items()
                for each in report.findings
            ],
            note=NOTE.format(threshold=THRESHOLD, coverage=COVERAGE, others=OTHERS[others]),
        ),
        figures=drawn,
        shown=list(tables_of(reports, titled, B)),
        tables=tables,
        facts=_facts(subject, audited, others),
        summary={name: _summary(report) for name, report in reports.items()},
        manifest={
            "pools": {each.mechanism.name: each.pool.content_hash for each in audited},
            "seconds": {each.mechanism.name: each.seconds for each in audited},
            "model": audited[0].pool.manifest.get("model"),
            **where(),
        },
    )


def _tone(finding: Finding) -> Tone:
    if finding.verdict == "holds":
        return "good"
    return "plain" if finding.claimed is False else "bad"


def _stacked(
    reports: Mapping[str, AuditReport], frame: Callable[[AuditReport], pl.DataFrame]
) -> pl.DataFrame:
    return pl.concat(
        (
            frame(report).select(pl.lit(name).alias("mechanism"), pl.all())
            for name, report in reports.items()
        ),
        how="vertical_relaxed",
    )


def _facts(subject: Subject, audited: Sequence[Audited], others: str) -> list[tuple[str, str]]:
    """What was done, in words."""
    scenario, people = subject.scenario, audited[0].report.people
    vm = int(people.value_maximizer.sum())
    facts = [
        ("Scenario", f"{scenario.name}, environment seed {scenario.environment_seed}"),
        ("Seed", f"{subject.seed}, of resampled requests, random misreports and dice"),
        (
            "Advertisers",
            f"{len(people.values)}: {len(people.values) - vm} utility maximizers, {vm} value "
            "maximizers; budgets are left out",
        ),
        (
            "Deviations",
            f"{len(MULTIPLES)} multiples of the truthful bid from {MULTIPLES[0]:g} to "
            f"{MULTIPLES[-1]:g}, finer ones around the best; others bid {OTHERS[others]}; all "
            "deviations meet the same requests",
        ),
        ("Dice", f"each request served {TIMES} times, truthful and not with the same numbers"),
    ]
    for each in audited:
        name, given = each.mechanism.name, each.mechanism.parameters
        told = ", ".join(f"{key} {value}" for key, value in given.items()) or "no parameters"
        if each.best is not None:
            state = "converged" if each.best.converged else "did not converge"
            told += f"; best response {state} after {each.best.sweeps} sweeps"
        facts.append((f"Mechanism {name}", told))
    pools = {each.pool.content_hash: each for each in audited}
    for each in pools.values():
        of = "" if len(pools) == 1 else f" of {each.mechanism.name}"
        kept = [fact for fact in pool_facts(each.pool) if not fact[0].startswith("manifest")]
        facts += [(f"Pool{of}: {name}", value) for name, value in kept]
    return facts


def _summary(report: AuditReport) -> dict[str, Any]:
    return {
        "max_regret": report.max_regret,
        "interval": report.interval,
        "regret": report.regret,
        "findings": [
            {**asdict(each), "property": each.statement, "conclusion": each.conclusion}
            for each in report.findings
        ],
        "ir_violations": {kind: asdict(each) for kind, each in report.ir_violations.items()},
    }
