"""`admarket compare DIR DIR`: the page of finished runs side by side, from their folders alone.

What is compared with what, and how, is in `run_differences.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from experiments import plots
from experiments.colours import OF_RUN
from experiments.measures import MEASURES
from experiments.page import Column, Subject, Table, Verdict, Verdicts, check_folder, write_page
from experiments.provenance import where
from experiments.report.captions import NO_BUDGETS, bids_seen, market_seen
from experiments.report.records import Records
from experiments.report.render import scale, source
from experiments.report.wording import (
    listed,
    number,
    percent,
    replies_label,
    told,
    told_difference,
    told_percent,
)
from experiments.run_differences import (
    BEHAVIOUR,
    TOTALS,
    Pair,
    Side,
    differences_of,
    measures,
    names_of,
    pairs,
    settings_that_differ,
)

NOTE = (
    "Means over the last quarter of each run's rounds and 95 % t-intervals over replications: "
    "other seeds of the same market, with the same requests and replies. Differences are to "
    "{baseline}."
)
CHANCE = (
    "Of many rows with 95 % intervals about one in twenty says “more” or “less” by chance alone, "
    "even between runs that differ in nothing but their dice."
)


def side_by_side(folders: Sequence[Path], out: Path) -> Path:
    """Write the page that compares finished runs, and return its path.

    Args:
        folders: of two runs or more; the first is the baseline.
        out: where to write.

    Raises:
        BadInput: fewer than two folders, the same one twice, one that holds no finished run, or an
            `out` that holds something else.
    """
    sides = [
        Side(name, Records.read(folder))
        for name, folder in zip(names_of(folders), folders, strict=True)
    ]
    asked = {side.name: [side.run.manifest["seed"], side.run.settings] for side in sides}
    subject = Subject("comparison of runs", None, 0, {"runs": asked})
    check_folder(out, subject)
    found = pairs(sides)
    differences, settings = differences_of(sides[0], found), settings_that_differ(sides)
    labels = {replies_label(side.run.pool_manifest) for side in sides}
    return write_page(
        out,
        subject,
        title=f"Runs side by side: {listed([side.name for side in sides])}",
        label=labels.pop() if len(labels) == 1 else "replies differ from run to run, see below",
        verdicts=Verdicts(
            columns=("mechanism · run", "measure", sides[0].name, "that run", "difference", ""),
            rows=verdicts(differences),
            note=f"{NOTE.format(baseline=sides[0].name)} {paired_words(found)} "
            f"{CHANCE} {_settings_words(settings)}",
        ),
        figures=figures(sides),
        tables={"differences": differences, "measures": measures(sides), "settings": settings},
        shown=list(_shown(sides, settings)),
        facts=list(chain.from_iterable(_facts(side) for side in sides)),
        summary={"differences": differences.to_dicts(), "measures": measures(sides).to_dicts()},
        manifest={
            **where(),
            "runs": {side.name: _without(side.run.manifest, "pool", "pools") for side in sides},
        },
    )


def verdicts(differences: pl.DataFrame) -> list[Verdict]:
    """A line per difference: more, less, or not told apart from none."""
    lines = []
    for row in differences.iter_rows(named=True):
        measure = MEASURES[row["measure"]]
        parts = [
            say({"mean": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]})
            for name, say in zip(
                ("baseline", "other", "difference"),
                (told_percent,) * 3 if measure.share else (told, told, told_difference),
                strict=True,
            )
        ]
        low, high = row["difference_low"], row["difference_high"]
        if low is None:
            word = "one replication"
        else:
            word = "more" if low > 0 else "less" if high < 0 else "not told apart"
        what = f"{measure.label} ({measure.unit})"
        lines.append(Verdict((row["compared"], what, *parts), word))
    return lines


def paired_words(found: Sequence[Pair]) -> str:
    """Which differences are paired, and why others are not."""
    apart = {pair.side.name: pair.unlike for pair in found}
    paired = [name for name, unlike in apart.items() if not unlike]
    words = []
    if paired:
        words.append(
            f"Those of {listed(paired)} are paired, replication by replication: seed, requests and "
            "dice are the same."
        )
    words += [
        f"Those of {name} are not paired, since the two differ in {listed(unlike)}: Welch's "
        "intervals."
        for name, unlike in apart.items()
        if unlike
    ]
    return " ".join(words)


def figures(sides: Sequence[Side]) -> dict[str, tuple[Any, str]]:
    """Bids and market totals of all runs in shared axes."""
    single = len({label for side in sides for label in side.run.labels}) == 1
    stacked = [
        side.run.relabelled(
            {m: side.name if single else f"{m}{OF_RUN}{side.name}" for m in side.run.labels}
        )
        for side in sides
    ]
    rounds, advertisers = (
        pl.concat((getattr(run, name) for run in stacked), how="diagonal_relaxed")
        for name in ("rounds", "advertisers")
    )
    kept = [run.best for run in stacked if run.best is not None]
    best = pl.concat(kept, how="diagonal_relaxed") if kept else None
    summary = {label: part for run in stacked for label, part in run.summary.items()}
    drawn = {
        "bids": (plots.bid_trajectories(advertisers, best), bids_seen(summary)),
        "market": (plots.market_over_rounds(rounds), market_seen(summary)),
    }
    budgets = {"bids": f" {NO_BUDGETS}" if any(side.run.budgets_bind for side in sides) else ""}
    return {
        name: (figure, f"{plots.CAPTIONS[name]}{budgets.get(name, '')} {seen}")
        for name, (figure, seen) in drawn.items()
    }


def _shown(sides: Sequence[Side], settings: pl.DataFrame) -> Iterator[Table]:
    columns = [Column("setting", "Setting")]
    columns += [Column(f"run {k}", side.name) for k, side in enumerate(sides, start=1)]
    if settings.height:
        yield Table("Settings that differ", settings, columns)
    yield _arms("Market totals, by run and mechanism", sides, TOTALS)
    yield _arms(
        "Bids and incentives, by run and mechanism",
        sides,
        [*BEHAVIOUR, "exploitability", "regret"],
        "Exploitability: what all advertisers together could gain by other fixed bids, each alone, "
        "the others at their average bids of the last quarter. Regret of play: the same against "
        "the bids played in it, by one bid each in all rounds. Lower bounds, without replications "
        "in which nobody attains any value, and of markets without budgets.",
    )


def _arms(title: str, sides: Sequence[Side], names: Sequence[str], note: str = "") -> Table:
    """Some of the measures, a line per run and mechanism."""
    columns = [Column("run", "Run"), Column("mechanism", "Mechanism")]
    for name in names:
        each = MEASURES[name]
        columns.append(Column(name, each.label, each.unit, percent if each.share else number))
    return Table(title, measures(sides), columns, note)


def _facts(side: Side) -> Iterator[tuple[str, str]]:
    run, manifest = side.run, side.run.manifest
    yield side.name, f"{run.title}: {scale(run)}"
    yield f"{side.name}: replies", source(run).removeprefix("replies: ")
    for key, words in (("pool_hash", "pool"), ("revision", "revision"), ("kernel", "kernel")):
        yield f"{side.name}: {words}", str(manifest.get(key, "not told"))
    if run.missing:
        yield f"{side.name}: lacks", ", ".join(run.missing)


def _settings_words(settings: pl.DataFrame) -> str:
    count = settings.height
    if not count:
        return "No setting differs."
    names = settings["setting"].head(4).to_list()
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return f"Settings that differ (values below): {', '.join(names)}{more}."


def _without(mapping: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in names}
