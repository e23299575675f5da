"""`admarket compare`: the map as a results folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import polars as pl

from experiments.compare import figures
from experiments.compare.report import (
    DRAWS,
    KEYS,
    LEARNERS,
    MEASURES,
    MECHANISMS,
    ROUNDS,
    SHARES,
    STARTS,
    Comparison,
    compare,
)
from experiments.equilibrium.diagnosis import EXPLOITABILITY, MOVEMENT
from experiments.page import (
    Column,
    Subject,
    Table,
    Tone,
    Verdict,
    Verdicts,
    check_folder,
    write_page,
)
from experiments.parallel import Executor
from experiments.provenance import where
from experiments.report import number, pool_facts, replies_label
from market.result import interval
from market.scenario import Scenario

NOTE = (
    "Changes are from the smallest to the greatest share of value maximizers, paired population by "
    "population, with 95 % t-intervals over the populations drawn, on the same requests and "
    "replies. Price of anarchy: welfare of the best reply to each request, by true values and user "
    "satisfaction, over welfare as played (not of the worst equilibrium). Exploitability: what all "
    "advertisers together could gain by other fixed bids, and what value maximizers owe to their "
    "target ROI, as a share of the value that all attain. Converged: bids move at most "
    f"{100 * MOVEMENT:g} % of truthful in the last quarter of the rounds and exploitability is at "
    f"most {100 * EXPLOITABILITY:g} %, from most starting points; cycling: bids come back to where "
    "they were; drifting: else. Where learning does not converge, amounts are averages of the play."
)
HEAT = (
    "{learner} learners: means over populations by mechanism and share of value maximizers, with "
    "half of their 95 % t-interval. Colours are scaled panel by panel, exploitability "
    "logarithmically. Hatched: learning did not converge with every population."
)
LINES = (
    "{learner} learners: the same over the share of value maximizers. Bands: 95 % t-intervals of "
    "the mean over populations, most of whose width is how far populations differ, whatever the "
    "mechanism. Dashed: exploitability below which a cell may count as converged."
)
DIFFERENCES = (
    "{learner} learners: differences to {baseline}, paired: the same advertisers with the same "
    "values, targets and objectives. Bands: 95 % t-intervals of the mean difference over "
    "populations. Liquid welfare: value over target ROI for value maximizers, value for others."
)


def run_compare(
    scenario: Scenario,
    seed: int,
    folder: Path,
    say: Callable[[str], None],
    *,
    mechanisms: Sequence[str] | None = None,
    shares: Sequence[float] | None = None,
    learners: Sequence[str] | None = None,
    draws: int = DRAWS,
    rounds: int = ROUNDS,
    starts: int = STARTS,
    executor: Executor = "processes",
    workers: int | None = None,
) -> Path:
    """Compare, write the results folder, and return the path of its page.

    Finished jobs are kept beside the folder until it is written, so that an interrupted comparison
    goes on where it was. Arguments are those of `compare`, with its defaults for None.

    Raises:
        BadInput: what `compare` refuses, or a folder that holds something else.
    """
    asked = {
        "mechanisms": list(mechanisms or MECHANISMS),
        "shares": [float(share) for share in (shares or SHARES)],
        "learners": list(learners or LEARNERS),
        "draws": draws,
        "rounds": rounds,
        "starts": starts,
    }
    subject = Subject("comparison", scenario, seed, asked)
    check_folder(folder, subject)
    kept, began = folder.with_name(f".{folder.name}.jobs"), perf_counter()
    found = compare(
        scenario, **asked, seed=seed, executor=executor, workers=workers, kept=kept, say=say,
        progress=True,
    )  # fmt: skip
    say("figures and page")
    seconds = {"jobs": perf_counter() - began, "executor": executor, "workers": workers}
    path = write(found, folder, subject, seconds)
    shutil.rmtree(kept, ignore_errors=True)
    return path


def write(found: Comparison, folder: Path, subject: Subject, seconds: dict[str, Any]) -> Path:
    """Write a comparison's folder and return the path of its page."""
    pools = found.setting.pools
    pool = pools[found.baseline]
    return write_page(
        folder,
        subject,
        title=f"Mechanisms and populations: {subject.scenario.name}, seed {subject.seed}",
        label=replies_label(pool.manifest),
        verdicts=Verdicts(
            columns=("learners, mechanism", "from fewest to most value maximizers", "converged"),
            rows=verdicts(found),
            note=NOTE,
        ),
        figures=_figures(found),
        shown=[each for learner in _learners(found) for each in _shown(found, learner)],
        tables={"cells": found.frame, "means": found.table, "differences": found.differences},
        facts=[*_facts(found, subject, seconds), *pool_facts(pool)],
        summary={
            "means": found.table.to_dicts(),
            "differences": found.differences.to_dicts(),
            "baseline": found.baseline,
        },
        manifest={
            **where(),
            "seconds": seconds,
            "environment_seed": subject.scenario.environment_seed,
            "model": pool.manifest.get("model"),
            "replies": pool.manifest.get("source", "arrays"),
            "pool_hash": {name: each.content_hash for name, each in pools.items()},
        },
    )


def verdicts(found: Comparison) -> list[Verdict]:
    """A line for each learner and mechanism: what value maximizers change, and what converged."""
    lines = []
    for (learner, mechanism), rows in found.frame.group_by(KEYS[:2], maintain_order=True):
        settled, cells = int((rows["status"] == "converged").sum()), rows.height
        tone: Tone = "good" if settled == cells else "open" if settled else "bad"
        evidence = [
            _change(rows, "revenue", "revenue"),
            _change(rows, "welfare", "welfare"),
            _change(rows, "user_satisfaction", "user satisfaction"),
            _change(rows, "price_of_anarchy", "price of anarchy"),
            f"exploitability {_percent(rows['exploitability'].mean())} % on average, "
            f"at most {_percent(rows['exploitability'].max())} %",
        ]
        head = f"{learner}, {mechanism}"
        lines.append(Verdict((head, "; ".join(evidence)), f"{settled} of {cells}", tone))
    return lines


def _change(rows: pl.DataFrame, name: str, words: str) -> str:
    """From the smallest share to the greatest, with the paired change."""
    ends = sorted(rows["share"].unique())
    low, high = (rows.filter(pl.col("share") == ends[k]).sort("draw")[name] for k in (0, -1))
    if len(ends) == 1:
        return f"{words} {number(low.mean())}"
    found = interval((high - low).to_numpy())
    change = number(found["mean"]).removeprefix("−")
    sign = "−" if found["mean"] < 0 else "+"
    reach = "" if found["low"] is None else f" [{number(found['low'])}, {number(found['high'])}]"
    return f"{words} {number(low.mean())} → {number(high.mean())}, {sign}{change}{reach}"


def _learners(found: Comparison) -> list[str]:
    return found.frame["learner"].unique(maintain_order=True).to_list()


def _figures(found: Comparison) -> dict[str, tuple[Any, str]]:
    drawn = {}
    for learner in _learners(found):
        ours = pl.col("learner") == learner
        table, less = found.table.filter(ours), found.differences.filter(ours)
        words = {"learner": learner.capitalize(), "baseline": found.baseline}
        drawn[f"map-{learner}"] = (figures.heat_maps(table), HEAT.format(**words))
        if table["share"].n_unique() > 1:
            drawn[f"lines-{learner}"] = (figures.lines(table), LINES.format(**words))
            if less.height:
                figure = figures.differences(less, found.baseline)
                drawn[f"differences-{learner}"] = (figure, DIFFERENCES.format(**words))
    return drawn


def _shown(found: Comparison, learner: str) -> list[Table]:
    ours = pl.col("learner") == learner
    keys = [Column("mechanism", "Mechanism"), Column("share", "Share", show=lambda x: f"{x:g}")]
    units = {"user_satisfaction": "0 to 1", "exploitability": "% of value"}
    columns = [
        Column(
            name,
            name.replace("_", " ").capitalize().replace("Advertisers value", "Advertisers' value"),
            units.get(name, "" if "over" in name or "anarchy" in name else "money/request"),
            _percent if name == "exploitability" else number,
        )
        for name in MEASURES
    ]
    ended = [
        Column(name, name.capitalize(), "populations", str)
        for name in ("converged", "cycling", "drifting")
    ]
    tables = [
        Table(
            f"{learner.capitalize()} learners",
            found.table.filter(ours),
            [*keys, *columns, *ended],
            "Means over populations with 95 % t-intervals.",
        )
    ]
    less = found.differences.filter(ours)
    if less.height:
        note = "Paired by population; means of differences with 95 % t-intervals."
        title = f"{learner.capitalize()} learners, less {found.baseline}"
        tables.append(Table(title, less, [*keys, *columns], note))
    return tables


def _facts(found: Comparison, subject: Subject, seconds: dict[str, Any]) -> list[tuple[str, str]]:
    setting, frame = found.setting, found.frame
    draws, N = setting.populations.values.shape
    counts = frame.select("share", "value_maximizers").unique().sort("share")
    members = ", ".join(f"{k} at {share:g}" for share, k in counts.iter_rows())
    return [
        *((f"Mechanism {name}", repr(each)) for name, each in setting.mechanisms.items()),
        (
            "Populations",
            f"{draws} of {N} advertisers; values and target ROIs drawn from the scenario's ranges, "
            f"the same in all cells; value maximizers: {members}, the same and more",
        ),
        (
            "Learning",
            f"{setting.rounds} rounds from {setting.starts} starting points, the first truthful; "
            "exact expected feedback over all requests; dice shared by mechanisms and shares",
        ),
        ("First best", f"{number(frame['first_best'].mean())} money per request, mean"),
        ("Seeds", f"environment {subject.scenario.environment_seed}, comparison {subject.seed}"),
        ("Wall time", f"{seconds['jobs']:.0f} s for {frame.height} jobs, {seconds['executor']}"),
    ]


def _percent(fraction: float | None) -> str:
    return number(None if fraction is None else 100 * fraction)
