"""Writing replies under a prompt that names the ads, for LLMs that mention an ad when asked.

In a reply to the ad-naming prompt, the first occurrence of a title is parsed into the mention
symbol and leaves both densities; all free tokens are scored under both prompts, and weights are
against the mixture of both. A plain reply holds no symbols: a title that the LLM happens to write
there is prose, shows nobody, and cannot have come from the ad-naming prompt, where it would have
been a symbol.

The reference of these pools is cruder than that of guided insertion: ρ at every sentence end,
without phrases and `Rules`, and symbols stand where the LLM put them. Weights of replies with
mentions are therefore right up to how mentions are placed; they vanish anyway where the reference
LLM would not write the words around the mention (see the effective sample size).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from mechanisms.insertion import masked_mean
from mechanisms.llm.base import Engine, Sample
from mechanisms.mentions import AdCopy, disarm, ends_sentence, forged, render
from mechanisms.pool import Floats, Ints
from mechanisms.recording.design import REFERENCE_PROMPT, Design, Request, Written

CONTEXT_PROMPT = (
    "Question: {query}\n\nAnswer with practical advice in three short sentences, "
    "and recommend one of these products by name where it helps:\n{ads}"
)


def write_in_context(
    requests: Sequence[Request],
    engine: Engine,
    design: Design,
    seed: int,
    keys: Sequence[int] | None,
) -> tuple[list[list[Written]], Floats, Floats]:
    """Write M replies to each request; returns them with `log_ref` and `log_gen` (B, M)."""
    plain = design.replies - design.replies // 2
    named = design.replies // 2
    prompts = {
        "reference": [REFERENCE_PROMPT.format(query=request.query) for request in requests],
        "context": [
            CONTEXT_PROMPT.format(
                query=request.query,
                ads="\n".join(f"- {ad.title}: {ad.text}" for ad in request.ads),
            )
            for request in requests
        ],
    }
    samples: list[list[Sample]] = [[] for _ in requests]
    for offset, (name, count) in enumerate((("reference", plain), ("context", named))):
        if not count:
            continue
        drawn = engine.generate(
            prompts[name],
            count,
            max_new_tokens=design.rules.max_tokens,
            temperature=design.temperature,
            seed=seed * 2 + offset,
            keys=keys,
        )
        for b, row in enumerate(drawn):
            samples[b] += row
    tokens = [[sample.tokens for sample in row] for row in samples]
    scores = {
        name: engine.score(each, tokens, temperature=design.temperature)
        for name, each in prompts.items()
    }
    # Where only the reference writes, the prompt that names ads has no part in the mixture.
    log_plain, log_named = (np.log(c / design.replies) if c else -np.inf for c in (plain, named))
    shape = (len(requests), design.replies)
    log_ref, log_gen = np.empty(shape), np.empty(shape)
    written: list[list[Written]] = []
    for b, request in enumerate(requests):
        written.append([])
        for k, sample in enumerate(samples[b]):
            under = {name: scores[name][b][k] for name in scores}
            condition = "reference" if k < plain else "context"
            names = bool(_title_spans(engine.decode(sample.tokens), request.ads))
            reply, mentions, boundaries, log_context = _read_in_context(
                engine, sample, request.ads if k >= plain else (), under, condition
            )
            written[b].append(reply)
            rate = design.mention_rate
            symbols = mentions * np.log(rate / max(len(request.ads), 1))
            symbols += max(boundaries - mentions, 0) * np.log1p(-rate)
            log_ref[b, k] = reply.log_free + symbols
            by_plain = log_plain + reply.log_free if mentions == 0 else -np.inf
            by_named = log_named + log_context if k >= plain or not names else -np.inf
            log_gen[b, k] = np.logaddexp(by_plain, by_named)
    return written, log_ref, log_gen


def _read_in_context(
    engine: Engine,
    sample: Sample,
    ads: Sequence[AdCopy],
    under: dict[str, Floats],
    condition: str,
) -> tuple[Written, int, int, float]:
    """Parse titles into mention symbols; returns the reply, mentions, boundaries, log π_context.

    A token belongs to a mention if any of its characters does.
    """
    text, ends = _token_ends(engine, sample.tokens)
    spans = _title_spans(text, ads)
    free = np.ones(len(sample.tokens), dtype=bool)
    pieces, at, native, raw = [], 0, {}, []
    for ad, start, stop in spans:
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left")) + 1
        free[first:last] = False
        native[ad] = masked_mean(under["reference"], first, min(last + 16, len(free)))
        raw.append(text[at:start])
        pieces += [disarm(raw[-1]), render(ads[ad])]
        at = stop
    raw.append(text[at:])
    pieces.append(disarm(raw[-1]))
    shown = "".join(pieces).strip()
    starts = np.append(0, ends)[:-1]
    boundaries = sum(
        ends_sentence(text[:end])
        for start, end in zip(starts[free].tolist(), ends[free].tolist(), strict=True)
        if any(mark in text[start:end] for mark in ".!?")
    )
    reply = Written(
        text=shown,
        condition=condition,
        log_free=float(under["reference"][free].sum()),
        fluency=masked_mean(under["reference"][free], 0, len(free)),
        nativeness=native,
        tokens=len(sample.tokens),
        forged=sum(map(forged, raw)),
    )
    return reply, len(spans), boundaries, float(under["context"][free].sum())


def _token_ends(engine: Engine, tokens: Ints) -> tuple[str, Ints]:
    """The text of `tokens`, and where in it each of them ends.

    Decoded from the start each time, since a character may be spread over several tokens.
    """
    text = engine.decode(tokens)
    read = [len(engine.decode(tokens[: i + 1]).rstrip("\ufffd")) for i in range(len(tokens))]
    ends = np.minimum(np.maximum.accumulate(np.array(read, dtype=np.int64)), len(text))
    return text, ends


def _title_spans(text: str, ads: Sequence[AdCopy]) -> list[tuple[int, int, int]]:
    """First occurrence of each title as whole words, in order: (ad, start, end); none overlap."""
    found = []
    for i, ad in enumerate(ads):
        pattern = rf"(?<!\w){re.escape(ad.title)}(?!\w)"
        if match := re.search(pattern, text, flags=re.IGNORECASE):
            found.append((i, *match.span()))
    found.sort(key=lambda span: (span[1], -span[2]))
    kept: list[tuple[int, int, int]] = []
    for span in found:
        if not kept or span[1] >= kept[-1][2]:
            kept.append(span)
    return kept
