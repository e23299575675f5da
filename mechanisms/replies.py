"""Recording: an LLM writes candidate replies to requests, and a pool keeps all that was measured.

Two ways to write replies with ads (`Design.generation`):

`guided` - guided insertion (DESIGN 3.0) by a mixture of conditions: `reference` (no ads), `guided`
    (all ads, at a larger rate than the reference policy's) and `single:i` (ad i only, so that every
    ad has replies that show it alone). Weights are exact; nothing is scored.
`context` - half the replies without ads, half under a prompt that names the ads, for LLMs that can
    mention an ad when asked. Titles are parsed into the mention symbol and leave both densities;
    all free tokens are scored under both prompts, and weights are against the mixture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl

from mechanisms.errors import BadInput
from mechanisms.insertion import (
    GuidedInsertion,
    InsertionPolicy,
    Rules,
    masked_mean,
    mixture_log_density,
    reference_policy,
)
from mechanisms.llm.base import Engine, Sample
from mechanisms.mentions import MENTION, AdCopy, disarm, ends_sentence, parse, render
from mechanisms.pool import Bools, Floats, Ints, ReplyPool

REFERENCE_PROMPT = "{query}\n\nGive friendly advice in one short paragraph of plain English."
CONTEXT_PROMPT = (
    "{query}\n\nGive friendly advice in one short paragraph of plain English, "
    "and recommend one of these products by name where it helps:\n{ads}"
)


@dataclass(frozen=True, eq=False)
class Request:
    """One query by one user, with its n candidate ads and the advertisers behind them."""

    query_id: str
    query: str
    user_id: str
    user: str
    ads: Sequence[AdCopy]
    advertisers: Sequence[int]


@dataclass(frozen=True)
class Design:
    """How the M candidate replies of a request are written.

    Attributes:
        replies: M.
        generation: `guided` or `context`.
        mention_rate: ρ of the reference policy, per decision.
        guided_rate: insertion probability of the condition `guided`, per decision.
        temperature: sampling temperature; all densities are at this temperature.
        rules: when replies offer a decision and when they end.
    """

    replies: int = 24
    generation: str = "guided"
    mention_rate: float = 0.1
    guided_rate: float = 0.35
    temperature: float = 0.5
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        if self.generation not in ("guided", "context"):
            raise BadInput(
                f"generation {self.generation!r} is unknown; choose 'guided' or 'context'"
            )
        if self.replies < 1:
            raise BadInput(f"replies is {self.replies}; record at least one reply a request")
        for name in ("mention_rate", "guided_rate"):
            if not 0 < getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}; give a probability in (0, 1)")

    def policies(self, ads: int) -> list[tuple[InsertionPolicy, int]]:
        """Conditions of guided insertion with their numbers of replies, summing to M.

        Half of the replies show a single ad in turn, a sixth none, the rest any. `single:i` inserts
        at its first decision with probability one half and else at its second, which makes sure of
        the mention in every reply of two sentences and varies its place.
        """
        K, M = self.rules.decisions, self.replies
        nobody = np.zeros(ads)
        single = M // (2 * ads) if ads else 0
        none = min(max(1, M // 6), M - single * ads) if ads else M
        conditions = [(InsertionPolicy("reference", np.zeros(K), nobody), none)]
        if guided := M - none - single * ads:
            rates = np.full(K, self.guided_rate)
            conditions.append((InsertionPolicy("guided", rates, np.ones(ads)), guided))
        for i in range(ads if single else 0):
            only = np.arange(ads) == i
            rates = np.where(np.arange(K) == 0, 0.5, 1.0)
            conditions.append((InsertionPolicy(f"single:{i}", rates, only.astype(float)), single))
        return conditions


@dataclass(frozen=True, eq=False)
class Features:
    """What is measured about replies; a user model turns it into clicks and satisfaction.

    Attributes:
        text: (B * M) reply texts, request-major.
        exposure: (B, M, n) the ad is shown.
        nativeness: (B, M, n) mean log-probability per token, under the reference LLM, of the
            sentence that mentions the ad, in nats; 0 where not shown.
        place: (B, M, n) number of sentences before the mention; 0 where not shown.
        sentences: (B, M) sentences of the reply.
        fluency: (B, M) mean log-probability per free token under the reference LLM, in nats.
        complete: (B, M) the reply ends where a sentence does.
        malformed: (B, M) malformed mentions.
    """

    text: list[str]
    exposure: Bools
    nativeness: Floats
    place: Floats
    sentences: Floats
    fluency: Floats
    complete: Bools
    malformed: Floats


@dataclass(frozen=True, eq=False)
class Judgement:
    """What users do with replies: `ctr` (B, M, n) and satisfaction `quality` (B, M) in [0, 1]."""

    ctr: Floats
    quality: Floats


Users = Callable[[Sequence[Request], Features], Judgement]


@dataclass(frozen=True, eq=False)
class _Written:
    """One reply: its text, its densities, and the token spans of its mentions."""

    text: str
    condition: str
    log_free: float
    fluency: float
    nativeness: dict[int, float]
    tokens: int
    events: Sequence[int] = ()


def record(
    requests: Sequence[Request],
    engine: Engine,
    users: Users,
    design: Design | None = None,
    *,
    seed: int = 0,
    num_advertisers: int | None = None,
    keys: Sequence[int] | None = None,
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

    Raises:
        BadInput: no requests, or requests with different numbers of ads.
    """
    design = design or Design()
    if not requests:
        raise BadInput("there are no requests to record; the market needs at least one query")
    counts = {len(request.ads) for request in requests}
    if len(counts) > 1:
        raise BadInput(f"requests have {sorted(counts)} candidate ads; give each the same number")
    write = _write_guided if design.generation == "guided" else _write_in_context
    written, log_ref, log_gen = write(requests, engine, design, seed, keys)
    features = _measure(requests, written)
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
        replies=_reply_table(written, features),
        requests=_request_table(requests),
    )
    return with_manifest(
        pool,
        source="recorded",
        model=engine.model,
        dtype=getattr(engine, "dtype", None),
        design=asdict(design),
        seed=seed,
        prompt=REFERENCE_PROMPT,
        tokens=int(sum(reply.tokens for row in written for reply in row)),
        writing=describe(pool),
    )


def with_manifest(pool: ReplyPool, **entries: Any) -> ReplyPool:
    """The same pool with entries added to its manifest, and its content hash."""
    from dataclasses import replace

    manifest = {**pool.manifest, **entries, "content_hash": pool.content_hash}
    return replace(pool, manifest=manifest)


def describe(pool: ReplyPool) -> dict[str, float]:
    """Share of replies with a mention, ads per reply, malformed share, and effective sample size.

    `reference_mention_rate` weighs replies by their importance weights: it is what the reference
    policy itself would show.
    """
    ess = pool.effective_sample_size
    weights = np.exp(pool.log_weights - pool.log_weights.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    shown = pool.exposure.sum(2)
    return {
        "mention_rate": float((shown > 0).mean()),
        "reference_mention_rate": float((weights * (shown > 0)).sum(1).mean()),
        "ads_per_reply": float(shown.mean()),
        "malformed_rate": float((pool.malformed > 0).mean()),
        "effective_sample_size_min": float(ess.min()),
        "effective_sample_size_median": float(np.median(ess)),
    }


def _write_guided(
    requests: Sequence[Request],
    engine: Engine,
    design: Design,
    seed: int,
    keys: Sequence[int] | None,
) -> tuple[list[list[_Written]], Floats, Floats]:
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
        max_new_tokens=design.rules.max_tokens,
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
) -> _Written:
    """Turn tokens into the text shown: mentions rendered, an unfinished last sentence cut off."""
    draft = guide.drafts[key]
    end = len(sample.tokens)
    cut_short = not sample.ended and draft.last_boundary and draft.last_boundary < end
    if cut_short and end >= guide.rules.max_tokens:
        end = draft.last_boundary
    pieces, at, native = [], 0, {}
    for ad, start, length in draft.mentions:
        if start + length > end:
            break
        pieces.append(disarm(engine.decode(sample.tokens[at:start])))
        phrase = engine.decode(sample.tokens[start : start + length])
        pieces.append(phrase.replace(ads[ad].title, render(ads[ad])))
        at = start + length
        finish = _next_boundary(engine, sample.tokens, at, end)
        native[ad] = masked_mean(sample.log_probs, start, finish)
    pieces.append(disarm(engine.decode(sample.tokens[at:end])))
    free = ~sample.forced
    return _Written(
        text="".join(pieces).strip(),
        condition=condition,
        log_free=float(sample.log_probs[free].sum()),
        fluency=float(sample.log_probs[free].mean()),
        nativeness=native,
        tokens=len(sample.tokens),
        events=events.tolist(),
    )


def _next_boundary(engine: Engine, tokens: Ints, start: int, end: int) -> int:
    for stop in range(start + 1, end + 1):
        last = engine.decode(tokens[stop - 1 : stop])
        if any(mark in last for mark in ".!?") and ends_sentence(engine.decode(tokens[start:stop])):
            return stop
    return end


def _write_in_context(
    requests: Sequence[Request],
    engine: Engine,
    design: Design,
    seed: int,
    keys: Sequence[int] | None,
) -> tuple[list[list[_Written]], Floats, Floats]:
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
    written: list[list[_Written]] = []
    for b, request in enumerate(requests):
        written.append([])
        for k, sample in enumerate(samples[b]):
            under = {name: scores[name][b][k] for name in scores}
            reply, mentions, boundaries, log_context = _read_in_context(
                engine, sample, request.ads, under, "reference" if k < plain else "context"
            )
            written[b].append(reply)
            rate = design.mention_rate
            symbols = mentions * np.log(rate / max(len(request.ads), 1))
            symbols += max(boundaries - mentions, 0) * np.log1p(-rate)
            log_ref[b, k] = reply.log_free + symbols
            without = log_plain + reply.log_free if mentions == 0 else -np.inf
            log_gen[b, k] = np.logaddexp(without, log_named + log_context)
    return written, log_ref, log_gen


def _read_in_context(
    engine: Engine,
    sample: Sample,
    ads: Sequence[AdCopy],
    under: dict[str, Floats],
    condition: str,
) -> tuple[_Written, int, int, float]:
    """Parse titles into mention symbols; returns the reply, mentions, boundaries, log π_context.

    A token belongs to a mention if any of its characters does.
    """
    ends = np.cumsum(
        [len(engine.decode(sample.tokens[i : i + 1])) for i in range(len(sample.tokens))]
    )
    text = "".join(engine.decode(sample.tokens[i : i + 1]) for i in range(len(sample.tokens)))
    spans = _title_spans(text, ads)
    free = np.ones(len(sample.tokens), dtype=bool)
    pieces, at, native = [], 0, {}
    for ad, start, stop in spans:
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left")) + 1
        free[first:last] = False
        native[ad] = masked_mean(under["reference"], first, min(last + 16, len(free)))
        pieces += [disarm(text[at:start]), render(ads[ad])]
        at = stop
    pieces.append(disarm(text[at:]))
    shown = "".join(pieces).strip()
    boundaries = sum(
        ends_sentence(text[:end])
        for end in ends[free].tolist()
        if text[:end].rstrip("\"')]”’").endswith((".", "!", "?"))
    )
    reply = _Written(
        text=shown,
        condition=condition,
        log_free=float(under["reference"][free].sum()),
        fluency=masked_mean(under["reference"][free], 0, len(free)),
        nativeness=native,
        tokens=len(sample.tokens),
    )
    return reply, len(spans), boundaries, float(under["context"][free].sum())


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


def _measure(requests: Sequence[Request], written: list[list[_Written]]) -> Features:
    """Parse the texts: what is shown, and where, is read off what the user reads."""
    B, M, n = len(requests), len(written[0]), len(requests[0].ads)
    exposure = np.zeros((B, M, n), dtype=bool)
    nativeness, place = np.zeros((B, M, n)), np.zeros((B, M, n))
    sentences, malformed = np.zeros((B, M)), np.zeros((B, M))
    complete = np.zeros((B, M), dtype=bool)
    for b, request in enumerate(requests):
        for j, reply in enumerate(written[b]):
            parsed = parse(reply.text, request.ads)
            malformed[b, j] = parsed.malformed
            bare = MENTION.sub(lambda match: match["title"], reply.text)
            sentences[b, j] = max(count_sentences(bare), 1)
            complete[b, j] = ends_sentence(bare)
            for ad, (start, _) in zip(parsed.ads, parsed.spans, strict=True):
                exposure[b, j, ad] = True
                nativeness[b, j, ad] = reply.nativeness.get(ad, 0.0)
                place[b, j, ad] = count_sentences(
                    MENTION.sub(lambda match: match["title"], reply.text[:start])
                )
    return Features(
        text=[reply.text for row in written for reply in row],
        exposure=exposure,
        nativeness=nativeness,
        place=place,
        sentences=sentences,
        fluency=np.array([[reply.fluency for reply in row] for row in written]),
        complete=complete,
        malformed=malformed,
    )


def count_sentences(text: str) -> int:
    """Sentences that end in `text`, by the same rule by which replies are written."""
    stops = (match.end() for match in re.finditer(r"[.!?]+[\"')\]”’]*", text))
    return sum(ends_sentence(text[:stop]) for stop in stops)


def _reply_table(written: list[list[_Written]], features: Features) -> pl.DataFrame:
    flat = [reply for row in written for reply in row]
    M = len(written[0])
    return pl.DataFrame(
        {
            "request": np.repeat(np.arange(len(written)), M),
            "reply": np.tile(np.arange(M), len(written)),
            "condition": [reply.condition for reply in flat],
            "text": features.text,
            "tokens": [reply.tokens for reply in flat],
            "log_free": [reply.log_free for reply in flat],
            "events": pl.Series([list(reply.events) for reply in flat], dtype=pl.List(pl.Int64)),
            "sentences": features.sentences.ravel(),
            "fluency": features.fluency.ravel(),
            "complete": features.complete.ravel(),
            "nativeness": _rows(features.nativeness),
            "place": _rows(features.place),
        }
    )


def _rows(array: Floats) -> pl.Series:
    return pl.Series(array.reshape(-1, array.shape[2]).tolist(), dtype=pl.List(pl.Float64))


def _request_table(requests: Sequence[Request]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "request": np.arange(len(requests)),
            "query_id": [request.query_id for request in requests],
            "query": [request.query for request in requests],
            "user_id": [request.user_id for request in requests],
            "user": [request.user for request in requests],
            "ad_ids": [[ad.id for ad in request.ads] for request in requests],
            "ad_titles": [[ad.title for ad in request.ads] for request in requests],
        },
        schema_overrides={"ad_ids": pl.List(pl.String), "ad_titles": pl.List(pl.String)},
    )
