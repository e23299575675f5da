"""`record`: requests in, a measured `ReplyPool` out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mechanisms.errors import BadInput
from mechanisms.gibbs import effective_sample_size, normalised
from mechanisms.llm.base import Engine
from mechanisms.mentions import check_copy
from mechanisms.pool import ReplyPool
from mechanisms.recording.auction import write_auction
from mechanisms.recording.conditions import templates
from mechanisms.recording.design import Design, Recorded, Request, Users
from mechanisms.recording.measure import measure, reply_table, request_table
from mechanisms.recording.tokens import write_tokens
from mechanisms.recording.writing import write


def record(
    requests: Sequence[Request],
    engine: Engine,
    users: Users,
    design: Design | None = None,
    *,
    seed: int = 0,
    num_advertisers: int | None = None,
    keys: Sequence[int] | None = None,
    writer: Engine | None = None,
) -> ReplyPool:
    """Have `engine` write M candidate replies to each request, and measure them.

    Args:
        requests: B requests, each with the same number n of candidate ads.
        engine: writes and scores.
        users: turns what was measured into click probabilities and satisfaction.
        design: see `Design`.
        seed: of everything random; equal seeds give equal pools on the same machine.
        num_advertisers: N, default the largest index plus one.
        keys: (B,) numbers that identify the requests' random streams, default 0..B-1.
        writer: writes in place of `engine`, for generation `auction` (`Design.ad_llm`).

    Raises:
        BadInput: no requests, requests with different numbers of ads, or an ad that mentions cannot
            hold (`mechanisms.mentions.check_copy`).
    """
    design = design or Design()
    if not requests:
        raise BadInput("there are no requests to record; the market needs at least one query")
    counts = {len(request.ads) for request in requests}
    if len(counts) > 1:
        raise BadInput(f"requests have {sorted(counts)} candidate ads; give each the same number")
    for request in requests:
        for ad in request.ads:
            check_copy(ad)
    written, log_ref, log_gen, extras = _write(requests, engine, design, seed, keys, writer)
    features = measure(requests, written)
    judged = users(requests, features)
    pool = ReplyPool.from_arrays(
        judged.ctr,
        log_ref,
        log_gen,
        judged.quality,
        np.array([request.advertisers for request in requests], dtype=np.int64).reshape(
            len(requests), counts.pop()
        ),
        exposure=features.exposure,
        malformed=features.malformed,
        num_advertisers=num_advertisers,
        extras=extras,
        replies=reply_table(written, features),
        requests=request_table(requests),
    )
    pool = with_manifest(
        pool,
        source="recorded",
        model=engine.model,
        dtype=getattr(engine, "dtype", None),
        threads=getattr(engine, "threads", None),
        design=design.described,
        seed=seed,
        prompts=templates(design, pool.shape[2]),
        weights_to=design.weights_to,
        users=dict(judged.provenance),
        tokens=int(sum(reply.tokens for row in written for reply in row)),
    )
    return with_manifest(pool, writing=describe(pool))


def _write(
    requests: Sequence[Request],
    engine: Engine,
    design: Design,
    seed: int,
    keys: Sequence[int] | None,
    writer: Engine | None,
) -> Recorded:
    """Replies by the way of writing that the design asks for."""
    if design.generation == "auction":
        return write_auction(requests, engine, design, seed, keys, writer)
    if writer is not None:
        raise BadInput(
            f"generation {design.generation!r} has no writer of its own; leave it out, or choose "
            "generation 'auction'"
        )
    by = write_tokens if design.generation == "token" else write
    return by(requests, engine, design, seed, keys)


def with_manifest(pool: ReplyPool, **entries: Any) -> ReplyPool:
    """The same pool with entries added to its manifest, and its content hash."""
    manifest = {**pool.manifest, **entries, "content_hash": pool.content_hash}
    return replace(pool, manifest=manifest)


def describe(pool: ReplyPool) -> dict[str, float]:
    """Share of replies with a mention, ads per reply, malformed share, and effective sample size.

    `reference_mention_rate` weighs replies by their importance weights: it is what the reference
    policy itself would show, and the weight that replies with ads carry. The effective sample size
    is given for all replies of a request, and among those that show an ad (0 where none does). Both
    are left out where no weights are claimed.
    """
    shown = pool.exposure.sum(2)
    said = {
        "mention_rate": float((shown > 0).mean()),
        "ads_per_reply": float(shown.mean()),
        "malformed_rate": float((pool.malformed > 0).mean()),
    }
    if not pool.weighted:
        return said
    with_ads = normalised(pool.log_weights) * (shown > 0)
    ess, of_ads = pool.effective_sample_size, effective_sample_size(with_ads)
    return said | {
        "reference_mention_rate": float(with_ads.sum(1).mean()),
        "effective_sample_size_min": float(ess.min()),
        "effective_sample_size_median": float(np.median(ess)),
        "effective_sample_size_of_ads_min": float(of_ads.min()),
        "effective_sample_size_of_ads_median": float(np.median(of_ads)),
    }
