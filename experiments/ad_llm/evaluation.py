"""Putting Ad-LLMs, and rules over candidate replies, on the same trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from experiments.ad_llm import measures
from experiments.ad_llm.curves import (
    Curve,
    Sweep,
    clicks,
    first_before,
    shares,
    texts_before,
)
from experiments.ad_llm.trials import Trials
from experiments.ad_llm.writers import Readers, Writer
from mechanisms.errors import BadInput
from mechanisms.llm.chat import ChatTokenizer
from mechanisms.llm_auction.reward import ResponseReward
from mechanisms.pool import Floats, ReplyPool
from mechanisms.recording import Request
from mechanisms.recording.conditions import prompt


@dataclass(frozen=True, eq=False)
class Answers:
    """How a writer answers to one ad's bid.

    Attributes:
        clicks: on the moved ad, in sampled replies; None if none were sampled.
        shares: choice shares at such levels and bids; None where too few replies mention an ad.
        fixed: choice shares on a fine grid, the others' bids fixed; None likewise, or not asked.
    """

    clicks: Curve | None
    shares: Curve | None
    fixed: Curve | None = None


def evaluate(
    writers: Sequence[Writer],
    readers: Readers,
    trials: Trials,
    reward: ResponseReward,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, pl.DataFrame], dict[str, ReplyPool]]:
    """Frames (`measures.of_writer`) and replies (B * D, 1, n) by writer."""
    frames, pools = {}, {}
    for writer in writers:
        say(f"evaluating {writer.name}: {trials.flat.shape[0]} replies")
        pools[writer.name] = readers.replies(writer, trials.asked, trials.seed)
        frames[writer.name] = measures.of_writer(pools[writer.name], trials, reward)
    return frames, pools


def rules(
    pool: ReplyPool, trials: Trials, reward: ResponseReward, tau: float, read: Floats
) -> dict[str, pl.DataFrame]:
    """Frames of rules over the M candidates of `pool`, which is one of the trials' requests.

    MOSAIC with and without offset at tau, in money per nat; at first price the ideal rule at tau
    per nat of bids as the Ad-LLM reads them, at tau of bids in money, and in the limit of tau to 0
    (the best of the candidates).

    Args:
        pool: (B, M, n) with importance weights.
        trials: B requests.
        reward: R.
        tau: see above.
        read: (B,) tokens of the prompt under which candidates are written.
    """
    if pool.shape[0] != len(trials.requests):
        raise BadInput(
            f"candidates for {pool.shape[0]} requests, trials of {len(trials.requests)}; record "
            "the requests of the trials"
        )
    M = pool.shape[1]

    def of(probabilities: Floats, paid: Floats | None = None) -> pl.DataFrame:
        return measures.of_candidates(pool, trials, reward, probabilities, paid, read)

    def ideal(tau: float | None, money: bool = False) -> pl.DataFrame:
        return of(measures.ideal(pool, trials, reward, tau, money))

    plain, without = (measures.mosaic(pool, trials, tau, offset) for offset in (True, False))
    return {
        f"mosaic, {M} candidates": of(*plain),
        f"mosaic without offset, {M} candidates": of(*without),
        f"ideal rule, {M} candidates": ideal(tau),
        f"ideal rule on bids in money, {M} candidates": ideal(tau, money=True),
        f"best of {M} candidates": ideal(None),
    }


def prompt_lengths(requests: Sequence[Request], tokenizer: ChatTokenizer) -> Floats:
    """(B,) tokens of the reference prompt, under which candidates are written."""
    asked = [prompt("reference", request) for request in requests]
    return np.array([len(tokenizer.chat_tokens(each)) for each in asked], dtype=np.float64)


def answers(writer: Writer, readers: Readers, sweep: Sweep, fixed: Sweep | None = None) -> Answers:
    """Curves of a writer: clicks in replies to all of `sweep`, and choice shares in these.

    Args:
        writer: on trial.
        readers: judge.
        sweep: the others' bids drawn.
        fixed: a finer grid for choice shares, of requests of the sweep; None for none.
    """
    pool = readers.replies(writer, sweep.asked, sweep.seed, sweep.keys.tolist())
    before = texts_before(pool, sweep)
    found = clicks(pool, sweep)
    if fixed is None:
        return Answers(found, _shares(writer, sweep, before))
    texts = {
        request: next((text for text in row if text is not None), None)
        for request, row in zip(sweep.requests, before, strict=True)
    }
    first = [[texts[request]] for request in fixed.requests]
    return Answers(found, _shares(writer, sweep, before), _shares(writer, fixed, first))


def choice_shares(writer: Writer, sweep: Sweep, trials: Trials, pool: ReplyPool) -> Answers:
    """Choice shares alone, in the replies `pool` (B * D, 1, n) that are there from the trials.

    Args:
        writer: on trial.
        sweep: one draw of the others' bids, for requests of the trials.
        trials: what the replies answer.
        pool: written by the writer.
    """
    D = trials.bids.shape[1]
    texts = pool.replies["text"].to_list()
    said = {
        request: first_before(texts[b * D : (b + 1) * D], request)
        for b, request in enumerate(trials.requests)
    }
    before = [[said[request]] for request in sweep.requests]
    return Answers(None, _shares(writer, sweep, before))


def _shares(writer: Writer, sweep: Sweep, before: Sequence[Sequence[str | None]]) -> Curve | None:
    """The curve, where at least two requests have a text before a mention."""
    told = sum(any(text is not None for text in row) for row in before)
    return shares(writer, sweep, before) if told >= 2 else None
