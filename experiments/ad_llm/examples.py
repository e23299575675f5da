"""Replies to the same request under the same bids by two writers, side by side."""

from __future__ import annotations

import numpy as np
import polars as pl

from experiments.ad_llm.trials import Trials
from mechanisms.pool import ReplyPool


def side_by_side(
    before: ReplyPool, after: ReplyPool, trials: Trials, count: int, seed: int = 0
) -> pl.DataFrame:
    """`count` requests drawn without looking at the replies, with both writers' answers.

    Args:
        before: replies to `trials.asked`, (B * D, 1, n).
        after: likewise.
        trials: what was asked.
        count: rows, at most B; a request has one row.
        seed: of the draw.

    Returns:
        `query`, `ads` (title and bid, highest first), `before`, `after`, and the expected revenue
        of both replies at these bids, `revenue_before` and `revenue_after`.
    """
    B, D, _ = trials.bids.shape
    rng = np.random.default_rng([seed, 15])
    rows = []
    for b in np.sort(rng.permutation(B)[:count]):
        at = int(b * D + rng.integers(D))
        request, bids = trials.requests[b], trials.flat[at]
        listed = [f"{request.ads[i].title} {bids[i]:.0f}" for i in np.argsort(-bids)]
        row = {"query": request.query, "ads": ", ".join(listed)}
        for name, pool in (("before", before), ("after", after)):
            row[name] = pool.replies["text"][at]
            row[f"revenue_{name}"] = float(pool.ctr[at, 0] @ bids)
        rows.append(row)
    names = ("query", "ads", "before", "after", "revenue_before", "revenue_after")
    return pl.DataFrame(rows).select(names)
