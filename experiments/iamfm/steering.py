"""Do configurations steer? Exposure of an ad by its strength: exact on a pool, and written live.

On a pool it follows by reweighting for every request. Live, the LLM writes to a few requests, with
common random numbers across strengths, in both ways of steering: by guided insertion, and by a
prompt that names the ads and says how strongly to recommend them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from mechanisms.iamfm.configuration import WAYS, Steering
from mechanisms.iamfm.exposure import OTHERS, live_exposure, recorded_exposure
from mechanisms.iamfm.live import LiveEvaluator
from mechanisms.llm.base import Engine
from mechanisms.pool import Floats, ReplyPool
from mechanisms.recording import Design, Request, Users

RECORDED = "recorded, exact"
LIVE = 28
"""Requests, and an ad of each, that the LLM writes to for every strength and way: all those of the
scenario, so that none counts twice."""


def exposure(
    pool: ReplyPool,
    requests: Sequence[Request],
    users: Users,
    steering: Steering,
    engine: Callable[[], Engine],
    design: Design,
    seed: int,
    live: int = LIVE,
) -> pl.DataFrame:
    """A row per way, request, own strength and rivals' strength: `exposure`, mean over ads.

    Args:
        pool: replies by guided insertion.
        requests: that it was recorded from.
        users: by norms of their own; the evaluator asks for some.
        steering: what strengths mean.
        engine: opens the LLM; not called if `live` is 0.
        design: how replies are written.
        seed: of what is written.
        live: requests that the LLM writes to, in each way.
    """
    frames = [_frame(RECORDED, recorded_exposure(pool, steering))]
    if live:
        nobody = np.zeros((1, pool.num_advertisers), dtype=np.int64)
        for way in WAYS:
            evaluator = LiveEvaluator(
                engine(), requests, users, nobody, steering, way=way, design=design, seed=seed
            )
            frames.append(_frame(f"{way}, live", live_exposure(evaluator, live)))
    return pl.concat(frames)


def _frame(way: str, shown: Floats) -> pl.DataFrame:
    """Of `shown` (requests, K + 1, others)."""
    B, strengths, others = np.indices(shown.shape)
    return pl.DataFrame(
        {
            "way": way,
            "request": B.ravel(),
            "strength": strengths.ravel(),
            "others": np.array(OTHERS)[others.ravel()],
            "exposure": shown.ravel(),
        }
    )
