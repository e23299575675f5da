"""Writing replies under the conditions of a design, with their exact densities.

Replies are written condition by condition, and scored under the prompts of all the others. Where
all conditions share a prompt (`reference`, `guided`) free tokens cancel and nothing is scored; else
(`context`, `mixture`) weights are against the mixture of the conditions, by the balance heuristic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mechanisms.insertion import INLINE, GuidedInsertion, event_table, masked_mean, phrase_mention
from mechanisms.llm.base import Engine, Sample
from mechanisms.llm.streams import derived_seed
from mechanisms.mentions import (
    MENTION,
    AdCopy,
    disarm,
    ends_sentence,
    forged,
    render,
    without_mentions,
)
from mechanisms.policies import PHRASES, UNREACHED, mixture_log_density
from mechanisms.pool import Bools, Floats, Ints
from mechanisms.recording.conditions import Condition, conditions, on_behalf_of, prompt, reference
from mechanisms.recording.design import Design, Recorded, Request, Written

ByPrompt = dict[str, list[list[Floats]]]
"""By kind of prompt, request and reply: (T,) token log-probabilities."""


def write(
    requests: Sequence[Request],
    engine: Engine,
    design: Design,
    seed: int,
    keys: Sequence[int] | None,
) -> Recorded:
    """Write M replies to each request by `design.generation`."""
    n = len(requests[0].ads)
    planned = conditions(design, n)
    kinds = list(dict.fromkeys(condition.prompt for condition in planned))
    drafts: list[list[Drafted]] = [[] for _ in requests]
    for number, kind in enumerate(kinds):
        mine = [condition for condition in planned if condition.prompt == kind]
        own_seed = derived_seed(seed, kind) if number else seed
        for row, drawn in zip(
            drafts, _draw(kind, mine, requests, engine, design, own_seed, keys), strict=True
        ):
            row += drawn
    advertisers = [f"advertiser:{i}" for i in range(n)] if design.log_ratios else []
    wanted = list(dict.fromkeys(["reference", *kinds, *advertisers]))
    under = _score(wanted, drafts, requests, engine, design.temperature)

    shape = (len(requests), design.replies)
    log_ref, log_gen = np.empty(shape), np.empty(shape)
    ratios = np.empty((*shape, n)) if design.log_ratios else None
    back = Condition("reference", reference(design, n), 0)
    for b, row in enumerate(drafts):
        events = event_table([draft.noted for draft in row])
        log_ref[b] = _log_density(back, row, events, under, b)
        each = np.stack([_log_density(c, row, events, under, b) for c in planned])
        log_gen[b] = mixture_log_density(each, [condition.count for condition in planned])
        if ratios is not None:
            for i, kind in enumerate(advertisers):
                theirs = Condition(kind, on_behalf_of(i, design, n), 0)
                ratios[b, :, i] = _log_density(theirs, row, events, under, b) - log_ref[b]
    written = [
        [
            read_reply(engine, draft, request.ads, under["reference"][b][k], design.rules.decisions)
            for k, draft in enumerate(drafts[b])
        ]
        for b, request in enumerate(requests)
    ]
    extras = {} if ratios is None else {"log_ratios": ratios}
    return Recorded(written, log_ref, log_gen, extras)


class Drafted:
    """A sample, what its guide noted, and which of its tokens are free, inline or no mention."""

    def __init__(self, kind: str, condition: str, sample: Sample, guide: GuidedInsertion, key):
        self.kind = kind
        self.condition = condition
        self.sample = sample
        self.noted = guide.drafts[key]
        self.inline = np.zeros(len(sample.tokens), dtype=bool)
        self.prose = np.ones(len(sample.tokens), dtype=bool)
        for mention in self.noted.mentions:
            span = slice(mention.start, mention.start + mention.length)
            self.prose[span] = False
            self.inline[span] = mention.phrase == INLINE
        self.free = ~sample.forced & ~self.inline


def _draw(
    kind: str,
    planned: Sequence[Condition],
    requests: Sequence[Request],
    engine: Engine,
    design: Design,
    seed: int,
    keys: Sequence[int] | None,
) -> list[list[Drafted]]:
    """Have the LLM write under one kind of prompt, all requests at once."""
    policies = [condition.policy for condition in planned for _ in range(condition.count)]
    guide = GuidedInsertion(
        engine,
        [request.ads for request in requests],
        [policies] * len(requests),
        design.rules,
        seed,
        keys,
        inline=design.inline_rate > 0,
    )
    samples = engine.generate(
        [prompt(kind, request) for request in requests],
        len(policies),
        max_new_tokens=guide.max_new_tokens,
        temperature=design.temperature,
        seed=seed,
        guide=guide,
        keys=keys,
    )
    return [
        [Drafted(kind, policies[k].name, sample, guide, (b, k)) for k, sample in enumerate(row)]
        for b, row in enumerate(samples)
    ]


def _score(
    wanted: Sequence[str],
    drafts: list[list[Drafted]],
    requests: Sequence[Request],
    engine: Engine,
    temperature: float,
) -> ByPrompt:
    """Token log-probabilities of all replies under all kinds of prompt.

    Those under the prompt a reply was written by are the LLM's own, which it was drawn from. All
    prompts that score the same replies go to the engine together.
    """
    M = len(drafts[0])
    together: dict[tuple[int, ...], list[str]] = {}
    for kind in wanted:
        others = tuple(k for k in range(M) if drafts[0][k].kind != kind)
        together.setdefault(others, []).append(kind)
    under: ByPrompt = {
        kind: [[draft.sample.log_probs for draft in row] for row in drafts] for kind in wanted
    }
    for others, kinds in together.items():
        if not others:
            continue
        asked = [(b, kind) for b in range(len(requests)) for kind in kinds]
        scores = engine.score(
            [prompt(kind, requests[b]) for b, kind in asked],
            [[drafts[b][k].sample.tokens for k in others] for b, _ in asked],
            temperature=temperature,
        )
        for (b, kind), found in zip(asked, scores, strict=True):
            for k, log_probs in zip(others, found, strict=True):
                under[kind][b][k] = log_probs
    return under


def _log_density(
    condition: Condition,
    drafts: Sequence[Drafted],
    events: tuple[Ints, Bools],
    under: ByPrompt,
    b: int,
) -> Floats:
    """(M,) log-density of the replies to request b under a condition."""
    policy, tokens = condition.policy, under[condition.prompt][b]
    free = np.array([t[d.free].sum() for t, d in zip(tokens, drafts, strict=True)])
    inserted = policy.log_density(*events)
    if not policy.own_words:
        return free + inserted
    titles = np.array([t[d.inline].sum() for t, d in zip(tokens, drafts, strict=True)])
    impossible = np.array([draft.noted.spelled for draft in drafts])
    return np.where(impossible, -np.inf, free + inserted + titles)


def read_reply(
    engine: Engine, draft: Drafted, ads: Sequence[AdCopy], log_probs: Floats, decisions: int
) -> Written:
    """Turn tokens into the text shown: mentions rendered, an unfinished last sentence cut off.

    It is cut back to the last sentence end or mention, whichever is later, so that whatever was
    inserted is shown; a reply with neither is shown up to its last clause. `log_probs` (T,) are
    under the reference prompt.
    """
    noted, tokens = draft.noted, draft.sample.tokens
    end = len(tokens)
    mentioned = max((m.start + m.length for m in noted.mentions), default=0)
    # A reply may also end right behind a mention, which would leave "You could try this,".
    unfinished = noted.broken_off or (mentioned and end - mentioned <= 2)
    if unfinished:
        end = max(noted.last_boundary, mentioned) or end
    pieces, at, native, raw = [], 0, {}, []
    stops = sentence_ends(engine, tokens, draft.prose) if draft.inline.any() else []
    for ad, phrase, start, length in noted.mentions:
        raw.append(engine.decode(tokens[at:start]))
        pieces.append(disarm(raw[-1]))
        begin = start  # a phrase begins the sentence of its mention
        if phrase == INLINE:
            begin = max((stop for stop in stops if stop <= start), default=0)
            spaced = engine.decode(tokens[start : start + length])[:1].isspace()
            pieces.append(" " * spaced + render(ads[ad]))
        else:
            pieces.append(phrase_mention(PHRASES[phrase], ads[ad], render(ads[ad])))
        at = start + length
        finish = _next_boundary(engine, tokens, at, end)
        native[ad] = masked_mean(log_probs, begin, finish)
    raw.append(engine.decode(tokens[at:end]))
    pieces.append(disarm(raw[-1]))
    text = "".join(pieces).strip()
    free = log_probs[draft.free]
    return Written(
        text=close(text) if unfinished else text,
        condition=draft.condition,
        log_free=float(free.sum()),
        fluency=masked_mean(free, 0, len(free)),
        nativeness=native,
        tokens=len(tokens),
        forged=sum(map(forged, raw)),
        events=noted.events + [UNREACHED] * (decisions - len(noted.events)),
    )


def close(text: str) -> str:
    """End a text that was broken off: as it stands, behind its last mention, or at a clause."""
    if ends_sentence(without_mentions(text)):
        return text
    if text.endswith(","):
        return text[:-1] + "."
    if any(mention.end() == len(text) for mention in MENTION.finditer(text)):
        return text + "."
    clause = max(text.rfind(mark) for mark in (", ", "; ", ": "))
    return text[:clause] + "." if clause > 0 else text


def sentence_ends(engine: Engine, tokens: Sequence[int], prose: Bools) -> list[int]:
    """Numbers of tokens behind which a sentence ends, in order; titles are no `prose` (T,)."""
    stops, behind = [], None
    for stop in range(1, len(tokens) + 1):
        if not prose[stop - 1]:
            behind = stop
        elif any(mark in engine.decode(tokens[stop - 1 : stop]) for mark in ".!?"):
            near = max(stop - 16, behind or 0)
            said = "this" * (near == behind) + engine.decode(tokens[near:stop])
            if ends_sentence(said):
                stops.append(stop)
    return stops


def _next_boundary(engine: Engine, tokens: Ints, start: int, end: int) -> int:
    for stop in range(start + 1, end + 1):
        last = engine.decode(tokens[stop - 1 : stop])
        if any(mark in last for mark in ".!?") and ends_sentence(engine.decode(tokens[start:stop])):
            return stop
    return end
