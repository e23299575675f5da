"""Puts the study of IAMFM together: measure, conclude, draw, write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl

from experiments.bootstrap import mean_of
from experiments.iamfm.market import bids_by_advertiser, by_replication, steps_of
from experiments.iamfm.ranges import PLAYED, SEEDS
from experiments.iamfm.searches import CONTENDERS
from experiments.page import Column, Subject, Table, check_folder, write_page
from experiments.provenance import where
from experiments.report import replies_label
from experiments.reproduce import iamfm_figures as figures
from experiments.reproduce.iamfm import FEW, Study, study
from experiments.reproduce.iamfm_conclusions import NOTE, conclusions, samples
from experiments.reproduce.page import verdicts
from market.scenario import Scenario


def reproduce(scenario: Scenario, seed: int, folder: Path, say: Callable[[str], None]) -> Path:
    """Run the study, write its folder, and return the path of its page."""
    check_folder(folder, subject(scenario, seed))
    done = study(scenario, seed, say)
    say("figures and page")
    return write(done, folder)


def subject(scenario: Scenario, seed: int) -> Subject:
    """What its folder is about."""
    return Subject("reproduction", scenario, seed, {"paper": "iamfm"})


def write(done: Study, folder: Path) -> Path:
    """Write the study's folder and return the path of its page."""
    found = conclusions(done)
    return write_page(
        folder,
        subject(done.scenario, done.seed),
        title="IAMFM, reproduced",
        label=replies_label(done.pool.manifest),
        verdicts=replace(verdicts(found), note=NOTE),
        summary=[asdict(each) for each in found],
        facts=facts(done),
        figures={
            name: (figure, figures.CAPTIONS[name]) for name, figure in figures.draw(done).items()
        },
        tables=tables(done),
        manifest=manifest(done),
        shown=[welfare_table(done), ranges_table(done)],
    )


def tables(done: Study) -> dict[str, pl.DataFrame]:
    """Everything that was measured, for Parquet; of the market, means by replication."""
    return {
        "welfare": done.welfare,
        "payments": done.payments,
        "misreports": done.misreports,
        "small_misreports": done.small_misreports,
        "unlimited": done.exact,
        "exposure": done.exposure,
        "market": by_replication(done.market),
        "market_bids": bids_by_advertiser(done.market),
        "other_bids": done.other_bids,
        "ranges": done.ranges,
    }


def welfare_table(done: Study) -> Table:
    """Shares of the optimum by world and method, a column for each budget."""
    rows, points = [], min(len(budgets) for _, budgets in done.sizes.budgets)
    for world in done.worlds:
        _, shares = samples(done.welfare, world, "share")
        for name in CONTENDERS:
            row: dict[str, Any] = {"world": world, "method": name}
            for x, column in enumerate(shares[name].T, start=1):
                ends = zip(("", "_low", "_high"), mean_of(column), strict=True)
                row |= {f"budget{x}{end}": value for end, value in ends}
            rows.append(row)
    headings = [
        " / ".join(dict.fromkeys(f"{budgets[x]:,.0f}" for _, budgets in done.sizes.budgets))
        for x in range(points)
    ]
    return Table(
        "True welfare of the configuration found, as a share of the optimum",
        pl.DataFrame(rows, infer_schema_length=None),
        [
            Column("world", ""),
            Column("method", ""),
            *(
                Column(f"budget{x}", words, "tokens", show=lambda v: f"{v:.4f}" if v else "–")
                for x, words in enumerate(headings, start=1)
            ),
        ],
        "By tokens of a search; where worlds differ, in the order of the table.",
    )


def ranges_table(done: Study) -> Table:
    """Welfare by restriction of the range of configurations, a column for each odds."""
    odds = {
        factor: ", ".join(f"{each:g}" for each in found)
        for factor, found in done.ranges["factor", "odds"].rows()
    }
    rows = done.ranges.with_columns(pl.col("factor").replace_strict(odds, return_dtype=pl.String))
    return Table(
        "What the range of configurations costs: welfare at true values, money per request",
        rows.pivot("factor", index="range", values="welfare"),
        [
            Column("range", "configuration"),
            *(Column(words, f"strengths of odds {words}") for words in odds.values()),
        ],
        "By the odds of mentioning an ad of strength 1, 2, ... against mentioning nothing. "
        f"“{PLAYED.capitalize()}”: by the scenario's mechanism and tokens, mean over {SEEDS} "
        "searches. “Of all strengths”: by coordinate ascent from every configuration of the "
        "design. “Auction”: mosaic under truthful bids.",
    )


def facts(done: Study) -> list[tuple[str, str]]:
    """What was done, in words."""
    sizes, pool = done.sizes, done.pool
    B, M, n = pool.shape
    synthetic, recorded = (world.problem(done.seed) for world in done.worlds.values())
    seconds = done.seconds
    return [
        ("Paper", "IAMFM, arXiv 2604.06263; its full text was not at hand"),
        (
            "Synthetic truth",
            f"{len(synthetic.truth)} configurations of {len(synthetic.bids)} advertisers, drawn "
            f"anew by each of {sizes.seeds} seeds: {_settings(done)}",
        ),
        (
            "Recorded replies",
            f"{B} requests x {M} replies by {done.scenario.replies.model}, {n} ads each, "
            f"{pool.num_advertisers} advertisers; {len(recorded.truth)} configurations; truth by "
            "exact reweighting of this pool, with effective sample sizes from "
            f"{done.support['effective_sample_size_min']:.1f} (median "
            f"{done.support['effective_sample_size_median']:.1f}); {sizes.seeds} seeds draw bids "
            "and evaluations",
        ),
        ("Searches", "the whole budget goes to the search; welfare is the truth's"),
        (
            "Payments",
            f"successive halving with {sizes.allocation:,.0f} tokens, then each way on the same "
            "data; problems for each n, at n = {}, and on recorded replies: {}, {}, {}".format(
                FEW, *sizes.payment_seeds
            ),
        ),
        (
            "Market",
            "; ".join(
                f"{key}: {steps:,} learning steps x {replications} replications"
                for key, (steps, replications) in steps_of(done.market).items()
            ),
        ),
        ("Seeds", f"environment {done.scenario.environment_seed}, analysis {done.seed}"),
        (
            "Time",
            f"{seconds['wall']:.0f} s in all. Summed over jobs, of which one runs on each core: "
            + ", ".join(f"{part} {took:.0f} s" for part, took in seconds.items() if part != "wall"),
        ),
        ("pool", pool.content_hash),
    ]


def _settings(done: Study) -> str:
    settings = asdict(done.worlds["synthetic"].settings)
    return ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in settings.items())


def manifest(done: Study) -> dict[str, Any]:
    """Provenance: sizes, pool, wall time, versions, machine."""
    return {
        "sizes": asdict(done.sizes),
        "seconds": done.seconds,
        "pool": done.pool.content_hash,
        "writing": done.pool.manifest.get("writing"),
        "support": done.support,
        **where(),
    }
