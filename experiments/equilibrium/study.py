"""`admarket equilibrium`: where learners end under each mechanism, in one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from experiments.arms import chosen
from experiments.equilibrium import figures
from experiments.equilibrium.empirical import nash_solver, sinks
from experiments.equilibrium.findings import Finding, findings, styles_of
from experiments.equilibrium.play import check_size
from experiments.equilibrium.solver import DEFAULT_ROUNDS, PROFILES, STARTS, EquilibriumReport
from experiments.equilibrium.verdicts import NOTE, PLAYED, verdicts
from experiments.page import Column, Subject, Table, Verdicts, check_folder, write_page
from experiments.provenance import where
from experiments.report import number, pool_facts, replies_label
from market.environment import titles
from market.scenario import Scenario


def find_equilibrium(
    scenario: Scenario,
    seed: int,
    folder: Path,
    say: Callable[[str], None] = lambda _: None,
    *,
    learner: str = "hedge",
    mechanisms: Sequence[str] | None = None,
    rounds: int | None = None,
    starts: int = STARTS,
    requests: int | None = None,
    **learner_parameters: Any,
) -> Path:
    """Let the scenario's advertisers learn under each mechanism; write the results folder.

    Args:
        scenario: who takes part, and on which replies.
        seed: of starting points and dice.
        folder: where to; an earlier result of the same inquiry is replaced.
        say: told in a line what is going on.
        learner: everybody's, or `scenario`: as the scenario has it.
        mechanisms: names; default those of the scenario.
        rounds: of play; default `solver.ROUNDS`.
        starts: starting points.
        requests: requests a round; default the whole pool.
        learner_parameters: of `learner`.

    Returns:
        The path of `report.html`.

    Raises:
        BadInput: anything out of range, or a folder that holds something else.
    """
    folder = Path(folder)
    # what would be refused at the end is refused before anything is done
    nash_solver()
    styles_of(scenario, learner, learner_parameters)
    arms = chosen(scenario, mechanisms)
    check_size(
        DEFAULT_ROUNDS if rounds is None else rounds, starts, requests, scenario.requests.queries
    )
    asked = {
        "learner": learner,
        "learner_parameters": learner_parameters,
        "mechanisms": [arm.name for arm in arms],
        "rounds": rounds,
        "starts": starts,
        "requests": requests,
    }
    subject = Subject("equilibrium", scenario, seed, asked)
    check_folder(folder, subject)
    found = findings(
        scenario,
        seed,
        say,
        learner=learner,
        mechanisms=mechanisms,
        rounds=rounds,
        starts=starts,
        requests=requests,
        **learner_parameters,
    )
    return _write(folder, subject, found, learner)


def _write(folder: Path, subject: Subject, found: Mapping[str, Finding], learner: str) -> Path:
    first = next(iter(found.values())).report
    pool, people = first.game.pool, first.game.people
    names = titles(pool)
    reports = {name: each.report for name, each in found.items()}
    parts = {
        "bids": figures.trajectories(reports),
        "exploitability": figures.exploitability(reports),
        "deviations": figures.deviation_graphs({n: each.roles for n, each in found.items()}),
    }
    if first.bids.size > 1:
        parts |= {
            "portrait": figures.portraits({n: each.portrait for n, each in found.items()}, names),
            "pair": figures.deviation_graphs(
                {n: each.pair for n, each in found.items()}, {n: e.nash for n, e in found.items()}
            ),
            "externality": figures.externality_graphs(
                {n: (each.lost, each.clicks) for n, each in found.items()},
                names,
                people.value_maximizer,
            ),
        }
    written = tables(found)
    seconds = {name: report.seconds for name, report in reports.items()}
    return write_page(
        folder,
        subject,
        title=f"Equilibria of {subject.scenario.name}, {learner}, seed {subject.seed}",
        label=replies_label(pool.manifest),
        verdicts=Verdicts(("mechanism", "in short", "evidence", ""), list(verdicts(found)), NOTE),
        figures=dict(figures.drawn(**parts)),
        shown=[_table(name, written["advertisers"], reports[name]) for name in found],
        tables=written,
        facts=[
            ("Learner", learner),
            ("Rounds and starts", f"{len(first.play.bids):,} from {len(first.cce_gap)}"),
            ("Budgets", _budgets(subject.scenario)),
            *pool_facts(pool),
        ],
        summary={name: _summary(each) for name, each in found.items()},
        manifest={
            **where(),
            "pool_hash": {name: each.game.pool.content_hash for name, each in reports.items()},
            "seconds": seconds,
            "produced_by": {name: each.produced_by for name, each in reports.items()},
        },
    )


def tables(found: Mapping[str, Finding]) -> dict[str, pl.DataFrame]:
    """The tables of the results folder: advertisers, trajectories, exploitability, deviations."""
    reports = {name: each.report for name, each in found.items()}
    names = titles(next(iter(reports.values())).game.pool)
    titled = (
        report.frame.select(pl.lit(name).alias("mechanism"), pl.Series("title", names), pl.all())
        for name, report in reports.items()
    )
    return {
        "advertisers": pl.concat(titled),
        "trajectories": pl.concat(_trajectories(n, r) for n, r in reports.items()),
        "exploitability": pl.concat(_snapshots(n, r) for n, r in reports.items()),
        "deviations": pl.concat(_deviations(n, each) for n, each in found.items()),
    }


def _table(name: str, advertisers: pl.DataFrame, report: EquilibriumReport) -> Table:
    profile, start = report.fixed_profile
    return Table(
        f"Advertisers under {name}, at the start in the middle",
        advertisers.filter(pl.col("mechanism") == name),
        note=(
            f"Start {report.start + 1}. Graphs and portraits are at the {PLAYED[profile]} of start "
            f"{start + 1}, whose exploitability is {number(100 * report.fixed_exploitability)} %."
        ),
        columns=[
            Column("title", "Advertiser"),
            Column("objective", "Maximises"),
            Column("value_per_click", "Value", "money per click"),
            Column("bid_over_truthful", "Bid", "× truthful"),
            Column("lowest_over_truthful", "Lowest start", "× truthful"),
            Column("highest_over_truthful", "Highest start", "× truthful"),
            Column("best_over_truthful", "Best reply", "× truthful"),
            Column("value", "Attains", "value per request"),
            Column("payment", "Pays", "money per request"),
            Column("relative_utility_loss", "Could gain", "% of its best", show=_hundred),
        ],
    )


def _trajectories(name: str, report: EquilibriumReport) -> pl.DataFrame:
    rounds = np.unique(np.geomspace(1, len(report.play.bids), 60).astype(int))
    bids = report.play.bids[rounds - 1]
    R, N = bids.shape[1:]
    t, start, who = np.meshgrid(rounds, np.arange(R), np.arange(N), indexing="ij")
    return pl.DataFrame(
        {
            "mechanism": [name] * bids.size,
            "round": t.ravel(),
            "start": start.ravel(),
            "advertiser": who.ravel(),
            "bid": bids.ravel(),
            "bid_over_truthful": (bids / report.game.people.truthful_bids).ravel(),
        }
    )


def _snapshots(name: str, report: EquilibriumReport) -> pl.DataFrame:
    S, _, R = report.trajectory.shape
    return pl.DataFrame(
        {
            "mechanism": [name] * (S * R),
            "round": np.repeat(report.snapshots, R),
            "start": np.tile(np.arange(R), S),
            "last": report.trajectory[:, 0].ravel(),
            "average": report.trajectory[:, 1].ravel(),
        }
    )


def _deviations(name: str, each: Finding) -> pl.DataFrame:
    rows = [
        {
            "mechanism": name,
            "game": kind,
            "role": game.roles[edge["role"]].name,
            "from": game.label(p),
            "to": game.label(q),
            "gain": edge["gain"],
            "support": edge["support"],
            "best": edge["best"],
        }
        for kind, game in (("roles", each.roles), ("pair", each.pair))
        if game is not None
        for p, q, edge in game.graph().edges(data=True)
    ]
    text, real = pl.String, pl.Float64
    schema = {"mechanism": text, "game": text, "role": text, "from": text, "to": text}
    return pl.DataFrame(rows, {**schema, "gain": real, "support": real, "best": pl.Boolean})


def _summary(each: Finding) -> dict[str, Any]:
    report = each.report
    return {
        "status": report.status,
        "starts": report.counts,
        "exploitability": report.exploitability,
        "profile": report.profile,
        "start": report.start,
        "best_start": float(report.judged.min()),
        "worst_start": float(report.judged.max()),
        "fixed_bids": {
            "profile": report.fixed_profile[0],
            "start": report.fixed_profile[1],
            "exploitability": report.fixed_exploitability,
            "bids": report.fixed_bids.tolist(),
        },
        "exploitability_by_start": dict(zip(PROFILES, report.ends.tolist(), strict=True)),
        "exploitability_of_mixture": report.mixture.exploitability._asdict(),
        "nash_conv_per_mean_value_per_click": report.per_click_value,
        "cce_gap": report.cce_gap.tolist(),
        "relative_utility_loss": report.relative_utility_loss.tolist(),
        "bids": report.bids.tolist(),
        "evidence": [diagnosis.evidence for diagnosis in report.diagnoses],
        "iterated_best_response": {
            "converged": each.independent.converged,
            "sweeps": each.independent.sweeps,
            "exploitability": each.independent_exploitability,
            "bids": each.independent.bids.tolist(),
        },
        "sinks": [[each.roles.label(p) for p in nodes] for nodes in sinks(each.roles.graph())],
        "equilibria_of_roles": [each.roles.label(p) for p in each.roles.equilibria],
        "nash_of_closest_rivals": [
            {"mixtures": [m.tolist() for m in nash.mixtures], "payoffs": nash.payoffs}
            for nash in each.nash
        ],
    }


def _budgets(scenario: Scenario) -> str:
    limited = sum(spec.budget is not None for spec in scenario.advertisers)
    return f"left out, of {limited} advertisers" if limited else "none"


def _hundred(x: float | None) -> str:
    return number(None if x is None else 100 * x)
