"""Writing replies by an LLM that reads the bids: the Ad-LLM prompt (LLM-Auction, arXiv 2512.10551).

The markers that the LLM itself writes are the mentions, if they name a candidate ad exactly; any
other is malformed, is counted, and is taken apart before the user reads it.

The LLM may be one that was trained for it (`Design.ad_llm`); how fluent its replies are is said by
the reference LLM all the same.

`log_ref` and `log_gen` are 0, that is, no importance weights are claimed. Each reply was drawn from
a distribution of its own, the LLM's at its bid profile, and all that is known of other bids is that
near ones read alike (`mechanisms.pretrained`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mechanisms import pretrained
from mechanisms.errors import BadInput
from mechanisms.insertion import masked_mean, repeats
from mechanisms.llm.base import END, Engine, Sample
from mechanisms.llm_auction.prompt import PromptStyle, shown_bids
from mechanisms.mentions import (
    AdCopy,
    disarm,
    ends_sentence,
    loose_ids,
    parse,
    render,
    without_mentions,
)
from mechanisms.policies import Rules
from mechanisms.pool import Floats
from mechanisms.recording.conditions import prompt
from mechanisms.recording.design import Design, Recorded, Request, Written
from mechanisms.recording.writing import close, sentence_ends

PROFILES = 3  # after (seed, key, reply): apart from the streams of tokens and of guides
HIGHEST = 100.0  # bids are drawn log-uniform from [1, HIGHEST]
_REPLIES = 1 << 20  # more than any request has: replies get keys of their own
# A mention that is still being written, at the end of a text; titles are cut to 80 characters.
_OPEN = re.compile(r"@[^@\[\]\n]{0,80}(?:@(?:\[[A-Za-z0-9_.-]*)?)?$")


def write_auction(
    requests: Sequence[Request],
    engine: Engine,
    design: Design,
    seed: int,
    keys: Sequence[int] | None,
    writer: Engine | None = None,
) -> Recorded:
    """Write M replies to each request, each under the request's bids or a profile of its own.

    Args:
        requests: B requests.
        engine: the reference LLM, by which users judge what is fluent.
        design: `design.writing` says how the LLM that writes is asked.
        seed: of bid profiles and replies.
        keys: (B,) see `mechanisms.recording.record`.
        writer: the LLM that writes; default `engine`.

    Returns:
        The replies; `log_ref` and `log_gen` (B, M), which are 0; and the extra array `bid_profile`
        (B, M, n), the bids as the LLM read them.
    """
    B, M = len(requests), design.replies
    keys = range(B) if keys is None else keys
    profiles = bid_profiles(requests, M, seed, keys)
    writer, writing = writer or engine, design.writing
    guide = Ending(writer, requests, writing.rules)
    ask = {
        "max_new_tokens": guide.limit + 1,
        "temperature": writing.temperature,
        "seed": seed,
        "guide": guide,
    }
    drawn: list[list[tuple[Sample, _Draft]]]
    if all(request.bids is not None for request in requests):
        # One prompt for all replies to a request, so that it runs once.
        prompts = [_prompt(writing.style, r, profiles[b, 0]) for b, r in enumerate(requests)]
        samples = writer.generate(prompts, M, keys=keys, **ask)
        drawn = [[(s, guide.drafts[b, k]) for k, s in enumerate(r)] for b, r in enumerate(samples)]
    else:
        prompts = [
            _prompt(writing.style, request, bids)
            for request, row in zip(requests, profiles, strict=True)
            for bids in row
        ]
        own = [int(key) * _REPLIES + k for key in keys for k in range(M)]
        flat = writer.generate(prompts, 1, keys=own, **ask)
        each = [(row[0], guide.drafts[p, 0]) for p, row in enumerate(flat)]
        drawn = [each[b * M : (b + 1) * M] for b in range(B)]
    read = [
        [_read(writer, engine, sample, draft, request.ads) for sample, draft in row]
        for row, request in zip(drawn, requests, strict=True)
    ]
    scores = engine.score(
        [prompt("reference", request) for request in requests],
        [[reading.tokens for reading in row] for row in read],
        temperature=design.temperature,
    )
    written = [
        [reading.measured(engine, found) for reading, found in zip(row, log_probs, strict=True)]
        for row, log_probs in zip(read, scores, strict=True)
    ]
    extras = {pretrained.PROFILES: shown_bids(profiles).astype(np.float64)}
    return Recorded(written, np.zeros((B, M)), np.zeros((B, M)), extras)


def bid_profiles(
    requests: Sequence[Request], replies: int, seed: int, keys: Sequence[int]
) -> Floats:
    """(B, M, n) bids to write under: the request's own, or log-uniform from [1, 100] per reply.

    Log-uniform, because replies depend on ratios of bids: any ratio is met as often as its inverse.
    Reply k to request b draws from the stream (seed, keys[b], k), so it does not depend on M. (A
    scrambled Sobol sequence in its place left the error of response surfaces as it was.)

    Raises:
        BadInput: bids of a wrong number, negative, NaN or infinite.
    """
    n = len(requests[0].ads)
    profiles = np.empty((len(requests), replies, n))
    for b, request in enumerate(requests):
        if request.bids is None:
            for k in range(replies):
                u = np.random.default_rng([seed, int(keys[b]), k, PROFILES]).random(n)
                profiles[b, k] = HIGHEST**u
            continue
        bids = np.asarray(request.bids, dtype=np.float64)
        if bids.shape != (n,) or not (np.isfinite(bids).all() and (bids >= 0).all()):
            raise BadInput(
                f"request {b} has bids {list(request.bids)}; give {n} finite numbers >= 0"
            )
        profiles[b] = bids
    return profiles


def _prompt(style: PromptStyle, request: Request, bids: Floats) -> str:
    return style.message(request.query, request.user, request.ads, bids)


@dataclass(eq=False)
class _Draft:
    """State of one reply, as in guided insertion."""

    sentences: int = 0
    last_boundary: int = 0
    broken_off: bool = False


def _new_drafts() -> defaultdict[tuple[int, int], _Draft]:
    return defaultdict(_Draft)


@dataclass(eq=False)
class Ending:
    """A `Guide` that writes nothing and ends replies by the rules of guided insertion.

    Args:
        engine: decodes.
        requests: their longest marker is what mentions may take on top of `rules.max_tokens`.
        rules: when a reply ends.
    """

    engine: Engine
    requests: Sequence[Request]
    rules: Rules
    limit: int = 0
    drafts: defaultdict[tuple[int, int], _Draft] = field(default_factory=_new_drafts)

    def __post_init__(self) -> None:
        ads = {render(ad) for request in self.requests for ad in request.ads}
        longest = max((len(self.engine.encode(marker)) for marker in ads), default=0)
        self.limit = self.rules.max_tokens + self.rules.mentions * longest

    def step(self, prompt: int, sample: int, tokens: Sequence[int]) -> Sequence[int] | str:
        """End the reply or let it go on; see `mechanisms.llm.base.Guide`."""
        last = self.engine.decode(tokens[-1:])
        draft = self.drafts[prompt, sample]
        if "\n" in last and draft.sentences > 1:
            return END
        if any(mark in last for mark in ".!?") and _ends_sentence(self.engine.decode(tokens)):
            draft.sentences += 1
            draft.last_boundary = len(tokens)
            done = draft.sentences >= self.rules.sentences or len(tokens) >= self.limit
            return END if done else ()
        draft.broken_off = len(tokens) >= self.limit or repeats(tokens, self.rules.loop)
        return END if draft.broken_off else ()


def _ends_sentence(text: str) -> bool:
    """As `ends_sentence`, where titles are no prose, not even while they are being written."""
    return ends_sentence(_OPEN.sub("@", without_mentions(text)))


class _Reading(NamedTuple):
    """A reply as shown, and as the reference LLM reads it: with plain titles.

    Attributes:
        text: as shown.
        tokens: of the text with plain titles.
        titles: by ad mentioned, where in `tokens` its title stands: (start, end).
        malformed: markers taken apart, and ids without one.
        written: tokens that the LLM wrote.
        raw: all that the LLM sampled.
        broken_off: it was stopped in the middle of a sentence.
    """

    text: str
    tokens: list[int]
    titles: dict[int, tuple[int, int]]
    malformed: int
    written: int
    raw: list[int]
    broken_off: bool

    def measured(self, engine: Engine, log_probs: Floats) -> Written:
        """With `log_probs` (T,) of `tokens` under the reference prompt."""
        prose = np.ones(len(self.tokens), dtype=bool)
        for start, end in self.titles.values():
            prose[start:end] = False
        stops = sentence_ends(engine, self.tokens, prose)
        native = {}
        for ad, (start, end) in self.titles.items():
            first = max((stop for stop in stops if stop <= start), default=0)
            finish = min((stop for stop in stops if stop >= end), default=len(self.tokens))
            native[ad] = masked_mean(log_probs, first, finish)
        free = log_probs[prose]
        return Written(
            text=self.text,
            condition="auction",
            log_free=float(free.sum()),
            fluency=masked_mean(free, 0, len(free)),
            nativeness=native,
            tokens=self.written,
            forged=self.malformed,
            raw=self.raw,
            broken_off=self.broken_off,
        )


def _read(
    writer: Engine, engine: Engine, sample: Sample, draft: _Draft, ads: Sequence[AdCopy]
) -> _Reading:
    """What is shown of the writer's sample: its mentions stand, other markers are taken apart.

    A reply that was broken off is shown up to its last finished sentence, or else to a clause. The
    tokens are those of `engine`, which scores them.
    """
    end = (draft.last_boundary if draft.broken_off else 0) or len(sample.tokens)
    raw = writer.decode(sample.tokens[:end]).strip()
    if draft.broken_off:
        raw = close(raw)
    parsed = parse(raw, ads)
    malformed = parsed.malformed + loose_ids(raw, ads)
    pieces, tokens, titles, at = [], [], {}, 0
    for ad, (start, stop) in zip(parsed.ads, parsed.spans, strict=True):
        prose = disarm(raw[at:start])
        pieces += [prose, raw[start:stop]]
        spaced = prose.endswith(" ")
        tokens += engine.encode(prose[:-1] if spaced else prose)
        title = engine.encode(" " * spaced + ads[ad].title)
        titles[ad] = (len(tokens), len(tokens) + len(title))
        tokens += title
        at = stop
    rest = disarm(raw[at:])
    tokens += engine.encode(rest)
    text = "".join([*pieces, rest]).strip()
    sampled = sample.tokens.tolist()
    return _Reading(text, tokens, titles, malformed, len(sampled), sampled, draft.broken_off)
