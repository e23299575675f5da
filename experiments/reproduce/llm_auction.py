"""`admarket reproduce llm-auction`: the claims of LLM-Auction, measured on Ad-LLMs of our own.

(a) What do Ad-LLMs earn, before and after training, beside MOSAIC with 20 candidates and the ideal
rule? (b) Is the trained allocation monotone and continuous in a bid? (c) Is the format kept? (d)
What would value and utility maximizers bid? (e) What does a request cost in LLM tokens?

All on requests that nobody was trained on, under fresh bids that are common to all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import polars as pl

from agents.judge import JudgeSettings, JudgingUsers
from experiments.ad_llm import evaluation
from experiments.ad_llm.clicks import Predicted, predicted_clicks
from experiments.ad_llm.curves import FINE, MIDDLE, Sweep
from experiments.ad_llm.evaluation import Answers
from experiments.ad_llm.examples import side_by_side
from experiments.ad_llm.responses import responses
from experiments.ad_llm.stages import Stage
from experiments.ad_llm.table import differences, table
from experiments.ad_llm.trials import Trials
from experiments.ad_llm.writers import Engines, Readers, Writer
from experiments.agreement import Agreement, user_agreement
from experiments.training.data import (
    POOL_TEMPERATURE,
    training_pool,
    training_requests,
    users_by,
)
from market.environment import LazyEngine
from market.scenario import Scenario
from market.training import TrainingSpec
from mechanisms.errors import BadInput
from mechanisms.llm.chat import ChatTokenizer
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.llm_auction.prompt import PromptStyle
from mechanisms.llm_auction.reward import ResponseReward
from mechanisms.pool import ReplyPool
from mechanisms.recording import Request

DRAWS = 4
"""Bid profiles per request of the trials, which all writers meet."""
SWEPT, SWEEP_DRAWS = 24, 1
"""Requests, and draws of the others' bids, of the curves before and after training."""
RANKED = 16
"""Requests of the other writers' curves, and of the fine grid: choice shares alone."""
CANDIDATES = 20
"""Of MOSAIC, as in the paper."""
EXAMPLES, JUDGED = 8, 8
"""Requests shown before and after, and those on which a User-LLM is asked beside the users."""
T = TypeVar("T")
PRETRAINED, TRAINED = "pre-trained", "LLM-Auction"


@dataclass(frozen=True, eq=False)
class Field:
    """On what Ad-LLMs are compared.

    Attributes:
        scenario: the market.
        requests: held out from training.
        candidates: (B, M, n) recorded replies to them, by guided insertion under the rules for
            ending a reply of `experiments.training.data.pool_design`, which allow fewer tokens than
            the Ad-LLM's; MOSAIC and the ideal rule trade on these.
        engines: of the reference LLM and the Ad-LLMs.
        readers: judge, by the norms of the pool that training used.
        reward: R.
        beta: tau of MOSAIC, in money per nat, and of the ideal rule, per nat of bids as the Ad-LLM
            reads them and of bids in money (`experiments.ad_llm.measures.ideal`).
    """

    scenario: Scenario
    requests: Sequence[Request]
    candidates: ReplyPool
    engines: Engines
    readers: Readers
    reward: ResponseReward
    beta: float

    @classmethod
    def of(cls, scenario: Scenario, say: Callable[[str], None] = lambda _: None) -> Field:
        """The scenario's held-out requests; candidates are recorded, or reused.

        Raises:
            BadInput: replies of the scenario are not an LLM's on an engine that takes adapters.
        """
        spec, replies = scenario.training or TrainingSpec(), scenario.replies
        if replies.source == "synthetic" or replies.engine == "openai":
            raise BadInput(
                f"scenario {scenario.name} has {replies.source} replies, engine {replies.engine}; "
                "Ad-LLMs need an LLM's replies, on engine transformers or vllm"
            )
        split = training_requests(scenario)
        lazy = LazyEngine(scenario)
        engines = Engines(replies.model, replies.dtype, replies.engine, lazy.open)
        learned = training_pool(scenario, split.train, split.num_ads, say, engine=lazy)
        users = users_by(learned)
        pool = training_pool(
            scenario, split.held_out, split.num_ads, say, CANDIDATES, users.norms, lazy
        )
        return cls(
            scenario=scenario,
            requests=split.held_out,
            candidates=pool,
            engines=engines,
            readers=Readers.of(users, engines, POOL_TEMPERATURE, split.num_ads),
            reward=ResponseReward(spec.reward.user_weight, spec.max_ads, spec.reward.unfinished),
            beta=spec.pool_beta,
        )


@dataclass(frozen=True, eq=False)
class Study:
    """All that was measured, and on what.

    Attributes:
        field: on what.
        seed: of bids and replies.
        trained: name of the Ad-LLM that is on trial; `before` of what it was before training.
        trials: requests and bids.
        sweep: of the curves.
        frames: by row, see `experiments.ad_llm.measures.of_writer`.
        rows: the comparison (`experiments.ad_llm.table.table`).
        gains: paired differences to `before`.
        answers: to one ad's bid, by writer; sampled of `before` and `trained` only, on the fine
            grid of `trained`.
        best: best responses to both; column `name`.
        examples: `experiments.ad_llm.examples.side_by_side`, of `before` and `trained`.
        stages: how it was trained; empty if not told.
        encodings: of bids, see `experiments.ad_llm.stages.read_encodings`.
        seconds: wall time by what was done.
        market: best responses in the scenario's market, see `llm_auction_market`; None if not
            asked.
        clicks: what the click model of the training that is on trial predicts of the replies, and
            clicks on them; None if it has none.
        agreement: of the users with a User-LLM, on some of the candidates; None if not asked.
    """

    field: Field
    seed: int
    trained: str
    before: str
    trials: Trials
    sweep: Sweep
    frames: dict[str, pl.DataFrame]
    rows: pl.DataFrame
    gains: pl.DataFrame
    answers: dict[str, Answers]
    best: pl.DataFrame
    examples: pl.DataFrame
    stages: Sequence[Stage]
    encodings: pl.DataFrame | None
    seconds: dict[str, float]
    clicks: Predicted | None = None
    market: pl.DataFrame | None = None
    agreement: Agreement | None = None


def study(
    field: Field,
    ad_llm: AdLLM,
    stages: Sequence[Stage] = (),
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
    *,
    encodings: pl.DataFrame | None = None,
    draws: int = DRAWS,
    sweep_draws: int = SWEEP_DRAWS,
) -> Study:
    """Evaluate an Ad-LLM beside what it was before, its training's stages, and the rules.

    Args:
        field: requests, candidates, users.
        ad_llm: on trial.
        stages: of its training, in order; each with an Ad-LLM of its own becomes a row.
        seed: of bids and replies.
        say: told in a line what is going on.
        encodings: of bids, to be shown beside.
        draws: bid profiles per request.
        sweep_draws: profiles of the others' bids per request, in the curves.
    """
    seconds: dict[str, float] = {}
    clock = _Clock(seconds)
    writers = contestants(ad_llm, stages, field.engines)
    trained, before = writers[-1].name, _before(writers, stages)
    trials = Trials.draw(field.requests, draws, seed)
    frames, pools = evaluation.evaluate(writers, field.readers, trials, field.reward, say)
    clock.note("replies")
    read = evaluation.prompt_lengths(field.requests, ChatTokenizer(field.scenario.replies.model))
    frames |= evaluation.rules(field.candidates, trials, field.reward, field.beta, read)
    clock.note("rules")
    sweep, single, fixed = sweeps(field.requests, seed, sweep_draws)
    answers = {}
    for writer in writers:
        say(f"bidding curves of {writer.name}")
        if writer.name in (before, trained):
            finely = fixed if writer.name == trained else None
            found = evaluation.answers(writer, field.readers, sweep, finely)
        else:
            found = evaluation.choice_shares(writer, single, trials, pools[writer.name])
        answers[writer.name] = found
    clock.note("curves")
    return Study(
        field=field,
        seed=seed,
        trained=trained,
        before=before,
        trials=trials,
        sweep=sweep,
        frames=frames,
        rows=table(frames, against=PRETRAINED, seed=seed),
        gains=differences(frames, against=before, seed=seed),
        answers=answers,
        best=best_responses({name: answers[name] for name in (before, trained)}, seed),
        examples=side_by_side(pools[before], pools[trained], trials, EXAMPLES, seed),
        stages=stages,
        encodings=encodings,
        seconds=seconds,
        clicks=_predicted(field, stages, trained, pools[trained], seed),
    )


def _predicted(
    field: Field, stages: Sequence[Stage], trained: str, pool: ReplyPool, seed: int
) -> Predicted | None:
    """By the click model of the stage on trial, which is named in `trained`."""
    kept = [stage.pctr for stage in stages if trained == f"{TRAINED}: {stage.label}"]
    if not kept or kept[0] is None:
        return None
    encoder = field.readers.users.encoder
    return predicted_clicks(kept[0], pool, field.requests, encoder, seed)


def sweeps(
    requests: Sequence[Request], seed: int, draws: int = SWEEP_DRAWS
) -> tuple[Sweep, Sweep, Sweep]:
    """Of the curves before and after, of the other writers', and on the fine grid."""
    swept = spread(requests, SWEPT)
    ranked = spread(swept, RANKED)
    return (
        Sweep.of(swept, seed, draws),
        Sweep.of(ranked, seed),
        Sweep.of(ranked, seed, levels=FINE, others=MIDDLE),
    )


def contestants(ad_llm: AdLLM, stages: Sequence[Stage], engines: Engines) -> list[Writer]:
    """Writers in the order of rows: untrained under both prompts, stages, the one on trial.

    The stage that the one on trial comes from is no row of its own, but is named in its.
    """
    plain = replace(ad_llm, adapter=None)
    full = replace(plain, style=PromptStyle())
    found = [
        Writer.of(PRETRAINED, full, engines),
        Writer.of(f"{PRETRAINED}, {ad_llm.style.layout} prompt", plain, engines),
    ]
    name = TRAINED
    for stage in stages:
        if stage.ad_llm is not None and stage.ad_llm.identity == ad_llm.identity:
            name = f"{TRAINED}: {stage.label}"
        elif stage.ad_llm is not None:
            found.append(Writer.of(stage.label, stage.ad_llm, engines))
    return [*found, Writer.of(name, ad_llm, engines)]


def _before(writers: Sequence[Writer], stages: Sequence[Stage]) -> str:
    """The warm start if there is one, else the untrained LLM."""
    names = {writer.name for writer in writers}
    warm = [stage.label for stage in stages if stage.warm_start and stage.label in names]
    return warm[0] if warm else PRETRAINED


def agreement(field: Field, seed: int = 0) -> Agreement:
    """The users' click probabilities beside those of the reference LLM as a judge (User-LLM).

    It scores a yes against a no, since small LLMs write no JSON (`agents.judge`).
    """
    judge = JudgingUsers(field.engines.reference(), JudgeSettings(mode="score"))
    rng = np.random.default_rng([seed, 16])
    return user_agreement(field.candidates, field.requests, judge, rng, count=JUDGED)


def best_responses(answers: dict[str, Answers], seed: int) -> pl.DataFrame:
    """Best responses to the choice shares where there are, else to the sampled clicks.

    Shares stand for clicks up to a factor, if bids do not move whether any ad is mentioned.
    """
    found = []
    for name, each in answers.items():
        curve = each.shares or each.clicks
        label = pl.lit(name).alias("name"), pl.lit(curve.what).alias("curve")
        found.append(responses(curve, seed=seed).with_columns(*label))
    return pl.concat(found)


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly over their order: requests are in that of categories."""
    if len(items) <= count:
        return list(items)
    return [items[len(items) * k // count] for k in range(count)]


class _Clock:
    """Seconds between notes."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.at = time.perf_counter()

    def note(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self.at = now - self.at, now
