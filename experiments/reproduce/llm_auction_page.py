"""Puts the study of LLM-Auction together: measure, conclude, draw, write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from experiments.ad_llm.stages import (
    POLICY,
    correlations,
    read_encodings,
    read_stages,
    times,
    totals,
)
from experiments.ad_llm.table import own_gains
from experiments.ad_llm.trials import HIGHEST
from experiments.agreement import section
from experiments.page import Column, Subject, Table, check_folder, write_page
from experiments.provenance import where
from experiments.report import number, replies_label
from experiments.reproduce import llm_auction_figures as figures
from experiments.reproduce.llm_auction import (
    CANDIDATES,
    PRETRAINED,
    TRAINED,
    Field,
    Study,
    agreement,
    study,
)
from experiments.reproduce.llm_auction_conclusions import conclusions
from experiments.reproduce.llm_auction_market import market_responses
from experiments.reproduce.llm_auction_training import LAST, train_all
from experiments.reproduce.page import FEWEST, verdicts
from market.scenario import Scenario
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.llm_auction.mechanism import LLMAuction

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reproduce(
    scenario: Scenario,
    seed: int,
    folder: Path,
    say: Callable[[str], None],
    ad_llm: str | None = None,
    stages: Path | None = None,
    train: bool = False,
) -> Path:
    """Run the study, write its folder, and return the path of its page.

    Args:
        scenario: the market, with its `training`.
        seed: of training, bids and replies.
        folder: of the results.
        say: told what is going on.
        ad_llm: the Ad-LLM on trial, a folder or a bundled name; default that of the scenario's
            mechanism, or the last stage that is trained.
        stages: folder that `admarket train` wrote, whose stages become rows.
        train: first run the stages that are missing there.
    """
    if train:
        stages = train_all(
            scenario, seed, stages or Path("results") / f"train-{scenario.name}-seed{seed}", say
        )
        ad_llm = ad_llm or str(stages / LAST / POLICY)
    told = read_stages(stages) if stages is not None else []
    encodings = read_encodings(stages) if stages is not None else None
    named = scenario.mechanism.parameters.get("ad_llm", LLMAuction().ad_llm)
    tried = AdLLM.load(ad_llm or named)
    check_folder(folder, subject(scenario, seed, tried))
    field = Field.of(scenario, say)
    done = study(field, tried, told, seed, say, encodings=encodings)
    say("a User-LLM beside the users")
    judged = agreement(field, seed)
    market = market_responses(scenario, ad_llm or named, say)
    done = replace(done, agreement=judged, market=market)
    say("figures and page")
    return write(done, tried, folder)


def subject(scenario: Scenario, seed: int, ad_llm: AdLLM) -> Subject:
    """What its folder is about."""
    asked = {"paper": "llm-auction", "ad_llm": ad_llm.identity}
    return Subject("reproduction", scenario, seed, asked)


def write(study: Study, ad_llm: AdLLM, folder: Path) -> Path:
    """Write the study's folder and return the path of its page."""
    found = conclusions(study)
    return write_page(
        folder,
        subject(study.field.scenario, study.seed, ad_llm),
        title="LLM-Auction, reproduced",
        label=replies_label({"source": "recorded", "model": ad_llm.model}),
        verdicts=replace(verdicts(found), note=summary(study, ad_llm)),
        summary={
            "conclusions": [asdict(each) for each in found],
            "rows": study.rows.to_dicts(),
            "gains": study.gains.to_dicts(),
            "curves": curve_table(study).to_dicts(),
        },
        facts=facts(study, ad_llm),
        figures=captioned(study),
        tables=tables(study),
        manifest=manifest(study, ad_llm),
        shown=shown(study),
    )


def captioned(study: Study) -> dict[str, tuple[Figure, str]]:
    """Figures with their captions, by name."""
    found = {name: (figure, figures.CAPTIONS[name]) for name, figure in figures.draw(study).items()}
    if study.agreement is not None:
        about = section(study.agreement)
        found["user_llm"] = about.figure, about.caption
    return found


def summary(study: Study, ad_llm: AdLLM) -> str:
    """The answer in short, and what intervals and verdicts mean."""
    row = study.rows.row(by_predicate=pl.col("name") == study.trained, named=True)
    gain = study.gains.row(by_predicate=pl.col("name") == study.trained, named=True)
    multiples = (row["revenue_ratio"], row["reward_ratio"])
    revenue, reward = (
        "no multiple (that may be 0 or less) of" if ratio is None else f"{number(ratio)} times"
        for ratio in multiples
    )
    return (
        "The paper trains Qwen3-4B and reports 3 times the revenue and 2.17 times the reward per "
        f"query of the pre-trained LLM. Here {ad_llm.model}, on {len(study.trials.requests)} "
        f"requests held out from training: {revenue} the revenue and {reward} the reward of the "
        f"pre-trained, and {gain['revenue']:+.2f} revenue and {gain['reward']:+.2f} reward against "
        f"{study.before}. 95 % intervals are over requests: bootstrap-t of means and ratios, "
        "Wilson's of shares, percentile of curves and best responses. “Agrees” and “differs” are "
        "about the direction of the paper's conclusion, not its numbers; “open”: the interval does "
        f"not tell, or there are fewer than {FEWEST} requests; “figures only”: nothing is judged."
    )


def tables(study: Study) -> dict[str, pl.DataFrame]:
    """Everything that was measured, for Parquet."""
    label = (frame.with_columns(pl.lit(name).alias("name")) for name, frame in study.frames.items())
    found = {
        "measures": pl.concat(label),
        "rows": study.rows,
        "gains": study.gains,
        "curves": curve_table(study),
        "responses": study.best,
        "examples": study.examples,
        "stages": times(study.stages),
        "click_model": correlations(study.stages),
    }
    return found if study.market is None else found | {"market": study.market}


def curve_table(study: Study) -> pl.DataFrame:
    """Means by level with intervals, and what is said of each curve."""
    rows = []
    for name, answers in study.answers.items():
        for kind in ("clicks", "shares", "fixed"):
            curve = getattr(answers, kind)
            if curve is None:
                continue
            band, rank = curve.band(study.seed), curve.spearman(study.seed)
            said = {
                "name": name, "curve": kind, "requests": len(curve.answers),
                "spearman": rank.mean, "spearman_low": rank.low, "spearman_high": rank.high,
                "violation": curve.violation, "falls": curve.falls, "jump": curve.jump,
                "rise": curve.rise,
            }  # fmt: skip
            for level, mean, low, high in zip(
                curve.levels, curve.mean, band.low, band.high, strict=True
            ):
                point = {"bid": level, "mean": mean, "mean_low": low, "mean_high": high}
                rows.append(said | {key: float(x) for key, x in point.items()})
    return pl.DataFrame(rows, infer_schema_length=None)


def shown(study: Study) -> list[Table]:
    """Tables on the page."""
    rows = study.rows.with_columns(
        pl.col("name").replace({study.trained: f"{study.trained} (on trial)"})
    )
    money, share = "money per request", "share"
    found = [
        Table(
            "Ways of writing (Table 2 of the paper, and more)",
            rows,
            [
                Column("name", ""),
                Column("revenue", "Revenue", money),
                Column("revenue_ratio", "Revenue", f"times {PRETRAINED}; paper: 3"),
                Column("value", "Value", f"to advertisers, {money}"),
                Column("reward", "Reward", money),
                Column("reward_ratio", "Reward", f"times {PRETRAINED}; paper: 2.17"),
                Column("satisfaction", "Satisfaction", "0 to 1"),
                Column("compliant", "In the format", f"with an ad, {share} of replies"),
                Column("well_formed", "Nothing malformed", f"{share} of replies"),
                Column("read", "Prompt", "tokens"),
                Column("written", "Written", "tokens"),
            ],
            note=(
                "95 % intervals over requests: bootstrap-t, of shares Wilson's. A dash for a "
                "ratio: what it is to may be 0 or less, by its interval. Of MOSAIC revenue is its "
                "payments; of all others first prices, which are all that advertisers say a reply "
                "is worth: compare value, not revenue, with MOSAIC."
            ),
        ),
        Table(
            f"Differences to {study.before}, on the same requests and bids",
            study.gains,
            [
                Column("name", ""),
                Column("revenue", "Revenue", money),
                Column("value", "Value", money),
                Column("reward", "Reward", money),
                Column("satisfaction", "Satisfaction"),
                Column("compliant", "In the format", share),
            ],
        ),
        Table(
            "Answers to one ad's bid",
            curve_table(study).unique(["name", "curve"], maintain_order=True),
            [
                Column("name", ""),
                Column("curve", "Curve"),
                Column("spearman", "Spearman"),
                Column("rise", "Rise"),
                Column("violation", "Violation", "largest"),
                Column("falls", "Falls", "sum"),
                Column("jump", "Largest step"),
                Column("requests", "Requests", show=lambda x: f"{x:.0f}"),
            ],
            note=(
                "Rise of the closest non-decreasing curve; violation: largest distance to it; all "
                "of the mean over requests. clicks: sampled replies; shares: choice shares at the "
                "same bids; fixed: choice shares with the others' bids at 50, on finer levels."
            ),
        ),
        Table(
            "Before and after: the same requests and bids, drawn without looking",
            study.examples,
            [
                Column("query", "Question"),
                Column("ads", "Ads with bids"),
                Column("before", study.before),
                Column("after", study.trained),
                Column("revenue_before", "Revenue", "before"),
                Column("revenue_after", "Revenue", "after"),
            ],
        ),
    ]
    if study.stages:
        found.append(_stage_table(study))
    if study.encodings is not None and study.encodings.height:
        found.append(_encoding_table(study.encodings))
    if study.agreement is not None:
        found.append(section(study.agreement).table)
    return found


def _encoding_table(frame: pl.DataFrame) -> Table:
    order = pl.when("ordered").then(pl.lit("by falling bid")).otherwise(pl.lit("as given"))
    return Table(
        "How bids stand in the prompt",
        frame.with_columns(order=order),
        [
            Column("bids", "Bids as"),
            Column("order", "Ads listed"),
            Column("steps", "Distillation", "steps"),
            Column("loss", "Loss", "nats per token, last tenth"),
            Column("spearman", "Spearman", "of choice shares with the bid"),
            Column("lowest", "Share of an ad", "at the lowest bid"),
            Column("highest", "Share of an ad", "at the highest bid"),
            Column("gain", "Gain", "highest less lowest"),
        ],
        note=(
            "Each distilled from the untrained LLM by itself, to choose the setting; from "
            "encodings.json beside the stages. Measured on held-out requests that all other tables "
            "are on too: the curves of the way chosen may owe a little to the choice."
        ),
    )


def _stage_table(study: Study) -> Table:
    own = times(study.stages).group_by("stage", maintain_order=True).agg(pl.col("seconds").sum())
    total = totals(study.stages)
    start = {stage.label: stage.start for stage in study.stages}
    measured = study.rows.with_columns(stage=pl.col("name").str.replace("^LLM-Auction: ", ""))
    ranks = curve_table(study).filter(pl.col("curve") == "shares").unique("name")
    ranks = ranks.select("name", "spearman", "spearman_low", "spearman_high")
    frame = own.with_columns(
        start=pl.col("stage").replace_strict(start),
        minutes=pl.col("seconds") / 60,
        total=pl.col("stage").replace_strict(total) / 60,
    ).join(
        measured.join(ranks, on="name", how="left"), on="stage", how="left", maintain_order="left"
    )
    frame = frame.join(_own_gains(study), on="stage", how="left", maintain_order="left")
    return Table(
        "Stages of training",
        frame,
        [
            Column("stage", "Stage"),
            Column("start", "From"),
            Column("minutes", "Wall time", "minutes"),
            Column("total", "From the start", "minutes"),
            Column("revenue", "Revenue", "money per request"),
            Column("own_revenue", "Its own gain", "revenue, to where it began"),
            Column("reward", "Reward", "money per request"),
            Column("own_reward", "Its own gain", "reward, to where it began"),
            Column("compliant", "In the format", "share of replies"),
            Column("spearman", "Spearman", "of choice shares with the bid"),
        ],
        note=(
            "Wall time: of the stage, and with all stages that it went on from. Gains are paired, "
            "on the same requests and bids; where no stage went before, to the pre-trained LLM "
            "under the prompt that the stages use."
        ),
    )


def _own_gains(study: Study) -> pl.DataFrame:
    """By `stage`; none for one that has no row, or none where it began."""
    rows = {name.removeprefix(f"{TRAINED}: "): name for name in study.frames}
    labels = {stage.name: stage.label for stage in study.stages}
    untrained = next((name for name in rows if name.startswith(f"{PRETRAINED}, ")), None)
    begun = {
        rows.get(stage.label): rows.get(labels.get(stage.start)) if stage.start else untrained
        for stage in study.stages
    }
    known = {name: before for name, before in begun.items() if name and before}
    found = own_gains(study.frames, known, study.seed)
    return found.select(
        pl.col("name").str.replace(f"^{TRAINED}: ", "").alias("stage"), pl.exclude("name")
    )


def facts(study: Study, ad_llm: AdLLM) -> list[tuple[str, str]]:
    """What was done, in words."""
    field, reward = study.field, study.field.reward
    B, D, n = study.trials.bids.shape
    M = field.candidates.shape[1]
    ess = field.candidates.effective_sample_size
    R, S, L, _ = study.sweep.bids.shape
    return [
        ("Paper", "LLM-Auction, arXiv 2512.10551 (its LLM: Qwen3-4B)"),
        (
            "Ad-LLM",
            f"{ad_llm.model}, prompt {ad_llm.style.layout}, bids as {ad_llm.style.bids}"
            f"{', listed by falling bid' if ad_llm.style.ordered else ''}, temperature "
            f"{ad_llm.temperature:g}, at most {ad_llm.rules.max_tokens} tokens and "
            f"{ad_llm.rules.sentences} sentences",
        ),
        ("Requests", f"{B} held out from training, {n} ads each, {D} bid profiles each"),
        ("Bids", "uniform on [1, 100], common to all rows; replies by common random streams"),
        (
            "Reward",
            f"expected clicks by the users' model; {reward.user_weight:g} for each broken or "
            f"surplus mention, {reward.unfinished:g} of that for a reply that breaks off; for a "
            f"bid of {HIGHEST:g} no such mention pays up to a click probability of "
            f"{reward.covers(HIGHEST):g}",
        ),
        (
            "Candidates",
            f"{M} a request (the paper's MOSAIC: {CANDIDATES}), by guided insertion; effective "
            f"sample sizes from {ess.min():.1f} (median {np.median(ess):.1f})",
        ),
        (
            "tau",
            f"{field.beta:g} per nat: of MOSAIC in money; of the ideal rule on bids as the LLM "
            "reads them (1 to 100, relative to the highest) and, in a row of its own, in money",
        ),
        ("Curves", f"{R} requests, {S} draws of the others' bids, {L} levels"),
        ("Seeds", f"environment {field.scenario.environment_seed}, analysis {study.seed}"),
        ("Wall time", ", ".join(f"{what} {s:.0f} s" for what, s in study.seconds.items())
         + "; replies written earlier are reused"),
        ("pool of candidates", field.candidates.content_hash),
    ]  # fmt: skip


def manifest(study: Study, ad_llm: AdLLM) -> dict[str, Any]:
    """Provenance: the Ad-LLM, its training, pools, wall time, versions, machine."""
    return {
        "seconds": study.seconds,
        "ad_llm": {"identity": ad_llm.identity, "training": dict(ad_llm.training)},
        "stages": {stage.name: dict(stage.settings) for stage in study.stages},
        "candidates": study.field.candidates.content_hash,
        **where(),
    }
