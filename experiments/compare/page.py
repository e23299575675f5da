"""`admarket compare`: the map as a results folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import polars as pl

from experiments.compare import figures
from experiments.compare.cells import LAST, MIXTURE
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
from mechanisms.pool import ReplyPool
from mechanisms.slots import SlotAuction

NOTE = (
    "Changes are from the smallest to the greatest share of value maximizers, paired population by "
    "population, with 95 % t-intervals over the populations drawn. Amounts and exploitability are "
    "of the same profiles: {profiles}. Price of anarchy: welfare of the best reply to each "
    "request, by true values and user satisfaction, over welfare in these profiles (not in the "
    "worst equilibrium). Exploitability: what all advertisers together could gain by other fixed "
    "bids, as far as a search over them finds, and what value maximizers owe to their target ROI, "
    "as a share of the value that all attain. Converged: strategies move at most "
    f"{100 * MOVEMENT:g} % of truthful in the last quarter of the rounds and exploitability is at "
    f"most {100 * EXPLOITABILITY:g} %, from most starting points; cycling: bids come back to where "
    "they were; drifting: else, also where bids rest at what can still be exploited. Where "
    "learning does not converge, these profiles are no equilibrium; they are where learning was, "
    "or its averages."
)
PROFILES = {
    MIXTURE: "where learners keep mixtures ({}), every advertiser draws its bid from its own, "
    "averaged over the second half of the rounds, independently of the others",
    LAST: "where they bid one bid at a time ({}), the last bids",
}
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
    draws: int | None = None,
    rounds: int | None = None,
    starts: int | None = None,
    executor: Executor = "processes",
    workers: int | None = None,
) -> Path:
    """Compare, write the results folder, and return the path of its page.

    Finished jobs are kept beside the folder until it is written, so that an interrupted comparison
    goes on where it was. Arguments are those of `compare`, and its defaults where they are None.

    Raises:
        BadInput: what `compare` refuses, or a folder that holds something else.
    """
    asked = {
        "mechanisms": list(mechanisms or MECHANISMS),
        "shares": [float(share) for share in (shares or SHARES)],
        "learners": list(learners or LEARNERS),
        "draws": DRAWS if draws is None else draws,
        "rounds": ROUNDS if rounds is None else rounds,
        "starts": STARTS if starts is None else starts,
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
            note=note(found),
        ),
        figures=_figures(found),
        shown=[each for learner in _learners(found) for each in _shown(found, learner)],
        tables={"cells": found.frame, "means": found.table, "differences": found.differences},
        facts=[*_facts(found, subject, seconds), *_pool_facts(found)],
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


def note(found: Comparison) -> str:
    """What the page's lines are of, and on which replies."""
    judged = {
        words: found.frame.filter(pl.col("profile") == profile)["learner"].unique(
            maintain_order=True
        )
        for profile, words in PROFILES.items()
    }
    kinds = [words.format(", ".join(who)) for words, who in judged.items() if len(who)]
    lines = [NOTE.format(profiles="; ".join(kinds))]
    shared = len(_by_pool(found)) == 1
    lines.append(
        "All mechanisms trade on the same requests and replies."
        if shared
        else "All mechanisms serve the same requests, but not all with the same replies: "
        + "; ".join(f"those of {', '.join(names)}" for names in _by_pool(found))
        + ". Differences between these are of the writing too."
    )
    places = {name: each.slots for name, each in _slot_auctions(found).items()}
    if places:
        sold = ", ".join(f"{name} {slots}" for name, slots in places.items())
        lines.append(f"Ads that slot auctions show at most: {sold}.")
    if places.get("gsp") == places.get("vcg") == 1:
        lines.append(
            "With one place to sell, gsp and vcg are the same auction wherever each ad has a reply "
            "of its own."
        )
    return " ".join(lines)


def _slot_auctions(found: Comparison) -> dict[str, SlotAuction]:
    given = found.setting.mechanisms.items()
    return {name: each for name, each in given if isinstance(each, SlotAuction)}


def _by_pool(found: Comparison) -> dict[tuple[str, ...], ReplyPool]:
    """The distinct pools, by the names of the mechanisms that trade on them."""
    names: dict[str, list[str]] = {}
    for name, pool in found.setting.pools.items():
        names.setdefault(pool.content_hash, []).append(name)
    return {tuple(each): found.setting.pools[each[0]] for each in names.values()}


def _pool_facts(found: Comparison) -> list[tuple[str, str]]:
    """Facts of every distinct pool; of several, with the mechanisms that trade on each."""
    pools = _by_pool(found)
    if len(pools) == 1:
        return pool_facts(*pools.values())
    return [
        (f"{', '.join(names)}: {name}", value)
        for names, pool in pools.items()
        for name, value in pool_facts(pool)
    ]


def _first_best(found: Comparison) -> str:
    """By pool: it depends on the replies, and on no mechanism."""
    frame, pools = found.frame, _by_pool(found)
    means = {
        ", ".join(names): frame.filter(pl.col("mechanism") == names[0])["first_best"].mean()
        for names in pools
    }
    told = [
        number(mean) if len(pools) == 1 else f"{who}: {number(mean)}" for who, mean in means.items()
    ]
    return f"{'; '.join(told)} money per request, mean over populations"


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
            f"{setting.rounds} rounds from {setting.starts} starting points, the first at the "
            "truthful bids (learners that keep mixtures: half of their weight there; one start for "
            "learners that have no choice); "
            "exact expected feedback over all requests; populations and starting points are the "
            "same for all mechanisms (points at the same quantiles of their ranges for all shares)",
        ),
        ("Budgets", _budgets(subject.scenario)),
        ("First best", _first_best(found)),
        ("Seeds", f"environment {subject.scenario.environment_seed}, comparison {subject.seed}"),
        ("Wall time", f"{seconds['jobs']:.0f} s for {frame.height} jobs, {seconds['executor']}"),
    ]


def _budgets(scenario: Scenario) -> str:
    given = sum(group.count for group in scenario.population if group.budget is not None)
    if not given:
        return "none, as in the scenario"
    return f"left out: the scenario gives one to {given} advertisers, who play without it here"


def _percent(fraction: float | None) -> str:
    return number(None if fraction is None else 100 * fraction)
