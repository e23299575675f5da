"""Replies of a guided pool, weighed anew for any configuration.

All replies of such a pool share the reference LLM's free tokens, so what a configuration s would
write is what is there with other weights (`mechanisms.policies`): with π_s its insertion policy,

    w_s(y) = π_ref(free tokens of y)·π_s(insertions of y) / π_gen(y),    P_s(y) ∝ w_s(y),

per request. Free tokens cancel in w_s, so it is exact in any dtype; P_s is consistent as M grows.

Only the strengths of a request's own n candidate ads matter there, so its (K + 1)^n
sub-configurations are worked out once and looked up ever after.

Shapes: requests B, replies M, candidate ads n, sub-configurations C = (K + 1)^n, K the strongest
strength.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mechanisms.errors import BadInput
from mechanisms.iamfm.configuration import Steering, check_strengths, full_grid
from mechanisms.policies import Rules, reference_policy
from mechanisms.pool import Floats, Ints, ReplyPool

_MOST_PROBABILITIES = 50_000_000  # 400 MB


class Insertions(NamedTuple):
    """What was inserted into the replies of a pool.

    Attributes:
        events: (B, M, decisions), see `mechanisms.policies`.
        log_base: (B, M) `log π_ref(free tokens) − log π_gen(reply)`, in nats.
        tokens: (B, M) written, mentions included.
    """

    events: Ints
    log_base: Floats
    tokens: Floats


class Weighed(NamedTuple):
    """Replies under every sub-configuration.

    Attributes:
        probabilities: (B, C, M).
        cumulated: (B * C * M,) increasing: row number b·C + c plus the cumulated probability.
    """

    probabilities: Floats
    cumulated: Floats


def insertions(pool: ReplyPool) -> Insertions:
    """Of `pool.origin`; refuses pools whose replies cannot be weighed anew."""
    return pool.derived("iamfm-insertions", _read_insertions)


def _read_insertions(pool: ReplyPool) -> Insertions:
    design = pool.manifest.get("design") or {}
    generation = design.get("generation", pool.manifest.get("source", "none"))
    if generation != "guided" or design.get("inline_rate"):
        told = "an inline_rate above 0" if generation == "guided" else f"generation {generation!r}"
        raise BadInput(
            f"IAMFM needs replies of guided insertion alone, not of {told}; record them with "
            "replies.generation 'guided' and replies.inline_rate 0"
        )
    if pool.replies is None or not {"events", "tokens"} <= set(pool.replies.columns):
        raise BadInput(
            "IAMFM needs to know what was inserted into replies, which this pool does not tell "
            "(its table has no events or tokens); record it again"
        )
    B, M, n = pool.shape
    rules = Rules(**design["rules"])
    events = np.array(pool.replies["events"].to_list(), dtype=np.int64).reshape(B, M, -1)
    back = reference_policy(n, rules, design["mention_rate"])
    log_ref = back.log_density(events.reshape(B * M, -1)).reshape(B, M)
    tokens = pool.replies["tokens"].to_numpy().astype(np.float64).reshape(B, M)
    return Insertions(events, pool.log_ref - pool.log_gen - log_ref, tokens)


def weighed(pool: ReplyPool, steering: Steering) -> Weighed:
    """Of a whole pool, kept with it; sub-configurations in the order of `full_grid`.

    Raises:
        BadInput: another kind of pool, or one too large, or a reply missing (`_normalised`).
    """
    known = insertions(pool)
    B, M, n = pool.shape
    C = (steering.strongest + 1) ** n
    if B * C * M > _MOST_PROBABILITIES:
        raise BadInput(
            f"IAMFM would weigh {M} replies to {B} requests under {C} configurations of {n} ads; "
            "take fewer requests.ads or steering odds"
        )

    if pool.index is not None:
        raise BadInput("IAMFM evaluates a whole pool, not some of its requests; give pool.origin")

    def weigh(_: ReplyPool) -> Weighed:
        base = known.log_base
        grid = full_grid(n, steering.strongest, C)
        each = np.stack([base + _log_density(steering, s, known.events) for s in grid], axis=1)
        probabilities = _normalised(each)
        cumulated = np.cumsum(probabilities, axis=2)
        # exactly 1 from the last reply that is possible at all, so that none behind it is drawn
        cumulated /= cumulated[..., -1:]
        cumulated += np.arange(B * C).reshape(B, C, 1)
        return Weighed(probabilities, cumulated.ravel())

    return pool.derived(("iamfm-weighed", steering), weigh)


def steered(pool: ReplyPool, strengths: ArrayLike, steering: Steering | None = None) -> Floats:
    """(B, M) probability of each reply, every request under strengths of its own.

    Args:
        pool: of guided insertion; its replies may have been written just now.
        strengths: (B, n) by candidate ad.
        steering: what strengths mean.

    Raises:
        BadInput: another kind of pool, or strengths of another shape or range.
    """
    steering = steering or Steering()
    known = insertions(pool)
    B, _, n = pool.shape
    strengths = check_strengths(strengths, steering.strongest)
    if strengths.shape != (B, n):
        raise BadInput(f"strengths have shape {strengths.shape}; give (requests, ads) {(B, n)}")
    log_weights = known.log_base[pool.rows]
    different, kind = np.unique(strengths, axis=0, return_inverse=True)
    for number, each in enumerate(different):
        mine = np.flatnonzero(kind.ravel() == number)
        events = known.events[pool.rows[mine]]
        log_weights[mine] += _log_density(steering, each, events)
    return _normalised(log_weights)


def _log_density(steering: Steering, strengths: Ints, events: Ints) -> Floats:
    """(...) log-probability, in nats, of events (..., decisions)."""
    flat = events.reshape(-1, events.shape[-1])
    return steering.policy(strengths).log_density(flat).reshape(events.shape[:-1])


def _normalised(log_weights: Floats) -> Floats:
    """Probabilities (..., M) in proportion to weights; refuses where all weights are 0."""
    highest = log_weights.max(axis=-1, keepdims=True)
    if not np.isfinite(highest).all():
        raise BadInput(
            "a request has no reply that a configuration could have written; record more replies"
        )
    weights = np.exp(log_weights - highest)
    return weights / weights.sum(axis=-1, keepdims=True)
