"""Writing replies by guided insertion: exact weights with any model, and nothing to score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mechanisms.insertion import (
    PHRASES,
    GuidedInsertion,
    masked_mean,
    mixture_log_density,
    phrase_mention,
    reference_policy,
)
from mechanisms.llm.base import Engine, Sample
from mechanisms.mentions import AdCopy, disarm, ends_sentence, forged, render, without_mentions
from mechanisms.pool import Floats, Ints
from mechanisms.recording.design import REFERENCE_PROMPT, Design, Request, Written


def write_guided(
    requests: Sequence[Request],
    engine: Engine,
    design: Design,
    seed: int,
    keys: Sequence[int] | None,
) -> tuple[list[list[Written]], Floats, Floats]:
    """Write M replies to each request; returns them with `log_ref` and `log_gen` (B, M)."""
    n = len(requests[0].ads)
    conditions = design.policies(n)
    policies = [policy for policy, count in conditions for _ in range(count)]
    guide = GuidedInsertion(
        engine,
        [request.ads for request in requests],
        [policies] * len(requests),
        design.rules,
        seed,
        keys,
    )
    samples = engine.generate(
        [REFERENCE_PROMPT.format(query=request.query) for request in requests],
        design.replies,
        max_new_tokens=guide.max_new_tokens,
        temperature=design.temperature,
        seed=seed,
        guide=guide,
        keys=keys,
    )
    reference = reference_policy(n, design.rules, design.mention_rate)
    mixture, counts = [p for p, _ in conditions], [count for _, count in conditions]
    written, log_ref, log_gen = [], [], []
    for b, request in enumerate(requests):
        events = guide.events(b)
        row = [
            _read_guided(engine, sample, guide, (b, k), request.ads, policies[k].name, events[k])
            for k, sample in enumerate(samples[b])
        ]
        free = np.array([reply.log_free for reply in row])
        written.append(row)
        log_ref.append(free + reference.log_density(events))
        log_gen.append(free + mixture_log_density(mixture, counts, events))
    return written, np.array(log_ref), np.array(log_gen)


def _read_guided(
    engine: Engine,
    sample: Sample,
    guide: GuidedInsertion,
    key: tuple[int, int],
    ads: Sequence[AdCopy],
    condition: str,
    events: Ints,
) -> Written:
    """Turn tokens into the text shown: mentions rendered, an unfinished last sentence cut off.

    It is cut back to the last sentence end or mention, whichever is later, so that whatever was
    inserted is shown; a reply with neither is shown up to its last clause.
    """
    draft = guide.drafts[key]
    end = len(sample.tokens)
    mentioned = max((m.start + m.length for m in draft.mentions), default=0)
    # A reply may also end right behind a mention, which would leave "You could try this,".
    unfinished = draft.broken_off or (mentioned and end - mentioned <= 2)
    if unfinished:
        end = max(draft.last_boundary, mentioned) or end
    pieces, at, native, raw = [], 0, {}, []
    for ad, phrase, start, length in draft.mentions:
        raw.append(engine.decode(sample.tokens[at:start]))
        pieces.append(disarm(raw[-1]))
        pieces.append(phrase_mention(PHRASES[phrase], ads[ad], render(ads[ad])))
        at = start + length
        finish = _next_boundary(engine, sample.tokens, at, end)
        native[ad] = masked_mean(sample.log_probs, start, finish)
    raw.append(engine.decode(sample.tokens[at:end]))
    pieces.append(disarm(raw[-1]))
    text = "".join(pieces).strip()
    free = ~sample.forced
    return Written(
        text=close(text) if unfinished else text,
        condition=condition,
        log_free=float(sample.log_probs[free].sum()),
        fluency=float(sample.log_probs[free].mean()),
        nativeness=native,
        tokens=len(sample.tokens),
        forged=sum(map(forged, raw)),
        events=events.tolist(),
    )


def close(text: str) -> str:
    """End a text that was broken off: as it stands, behind its last mention, or at a clause."""
    if ends_sentence(without_mentions(text)):
        return text
    if text.endswith(","):
        return text[:-1] + "."
    clause = max(text.rfind(mark) for mark in (", ", "; ", ": "))
    return text[:clause] + "." if clause > 0 else text


def _next_boundary(engine: Engine, tokens: Ints, start: int, end: int) -> int:
    for stop in range(start + 1, end + 1):
        last = engine.decode(tokens[stop - 1 : stop])
        if any(mark in last for mark in ".!?") and ends_sentence(engine.decode(tokens[start:stop])):
            return stop
    return end
