"""Requests, candidates and writers whose answer to bids is known, without an LLM."""

from dataclasses import replace

import numpy as np
import polars as pl

from experiments.ad_llm import measures
from experiments.ad_llm.trials import Trials
from mechanisms.llm_auction.reward import ResponseReward
from mechanisms.pool import ReplyPool
from mechanisms.recording import Request
from tests.tiny_llm import ADS

REWARD = ResponseReward()
TEXTS = ("Sleep well. You could try @{}@[{}].", "Sleep well.")


def requests(count=12):
    return [
        Request(f"Query-{b}", f"Question {b}?", "User-1", "A nurse.", ADS, range(len(ADS)))
        for b in range(count)
    ]


def candidates(count=12, per_ad=4, seed=0):
    """Per request `per_ad` replies that show each ad alone, and as many that show none."""
    rng = np.random.default_rng(seed)
    n = len(ADS)
    M = per_ad * (n + 1)
    shown = np.tile(np.arange(M) % (n + 1), (count, 1))
    exposure = shown[:, :, None] == np.arange(n)
    ctr = exposure * rng.uniform(0.1, 0.3, (count, 1, n)) * rng.uniform(0.8, 1.2, (count, M, 1))
    texts = [TEXTS[0].format(ADS[i].title, ADS[i].id) if i < n else TEXTS[1] for i in shown.ravel()]
    table = pl.DataFrame({"text": texts}).with_columns(
        tokens=pl.lit(30), written=pl.lit(30), read=pl.lit(200), complete=pl.lit(True)
    )
    return ReplyPool.from_arrays(
        ctr, quality=rng.uniform(0.4, 0.8, (count, M)), exposure=exposure, replies=table
    )


def written(pool, trials, tau, seed=0):
    """One reply to each of the trials, drawn from the ideal rule at `tau`: a writer's pool."""
    B, M, _ = pool.shape
    chosen = measures.ideal(pool, trials, REWARD, tau)
    rng = np.random.default_rng(seed)
    picked = np.array([rng.choice(M, p=row) for row in chosen])
    rows = np.repeat(np.arange(B), trials.bids.shape[1])
    return ReplyPool.from_arrays(
        pool.ctr[rows, picked][:, None],
        quality=pool.quality[rows, picked][:, None],
        exposure=pool.exposure[rows, picked][:, None],
        replies=pool.replies[(rows * M + picked).tolist()],
    )


def trials(count=12, draws=4, seed=0):
    return Trials.draw(requests(count), draws, seed)


def malformed(pool):
    """The same replies with a broken marker in each."""
    return replace(pool, malformed=pool.malformed + 1)
