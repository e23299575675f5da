"""Pools as guided insertion would record them, without an LLM: insertions are all there is."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import polars as pl

from mechanisms.policies import (
    NOTHING,
    UNREACHED,
    InsertionPolicy,
    Rules,
    mixture_log_density,
    reference_policy,
)
from mechanisms.pool import ReplyPool

RULES, RHO, GUIDED = Rules(), 0.1, 0.45


def guided_pool(rng, requests=5, replies=60, ads=3, advertisers=3) -> ReplyPool:
    """`replies` to each request, written by guided insertion; relevance differs by ad.

    A sixth of them have no ads, so that no configuration is left without a reply. Satisfaction
    falls with every ad, and all ads of a request are different advertisers.
    """
    B, M, n, N = requests, replies, ads, advertisers
    none = max(1, M // 6)
    rates = np.where(np.arange(M) < none, 0.0, GUIDED)
    events = np.array([_events(n, rate, rng) for _ in range(B) for rate in rates])
    shown = (events[:, :, None] == np.arange(n)).any(axis=1).reshape(B, M, n)
    relevance = rng.uniform(0.1, 0.6, (B, 1, n))
    ctr = np.where(shown, relevance * rng.uniform(0.6, 1.4, (B, M, n)), 0.0)
    written = np.stack(
        [
            InsertionPolicy("any", np.full(RULES.decisions, rate), np.ones(n)).log_density(events)
            for rate in (0.0, GUIDED)
        ]
    )
    return ReplyPool.from_arrays(
        ctr,
        log_ref=reference_policy(n, RULES, RHO).log_density(events).reshape(B, M),
        log_gen=mixture_log_density(written, (none, M - none)).reshape(B, M),
        quality=rng.uniform(0.6, 0.8, (B, M)) - 0.15 * shown.sum(axis=2),
        ads=np.array([rng.permutation(N)[:n] for _ in range(B)]),
        exposure=shown,
        num_advertisers=N,
        replies=pl.DataFrame(
            {
                "events": pl.Series(events.tolist(), dtype=pl.List(pl.Int64)),
                "tokens": rng.integers(20, 61, B * M),
            }
        ),
        manifest={
            "source": "recorded",
            "design": {
                "generation": "guided",
                "mention_rate": RHO,
                "inline_rate": 0.0,
                "rules": asdict(RULES),
            },
        },
    )


def _events(n: int, rate: float, rng: np.random.Generator) -> list[int]:
    """What is inserted at the decisions of one reply: at a rate, among ads not yet in it."""
    found: list[int] = []
    for _ in range(RULES.decisions):
        left = [ad for ad in range(n) if ad not in found]
        if n - len(left) == RULES.mentions:
            found.append(UNREACHED)
        else:
            found.append(int(rng.choice(left)) if left and rng.random() < rate else NOTHING)
    return found
