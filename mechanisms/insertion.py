"""The mention-extended reference policy and guided insertion (DESIGN 3.0).

An ad mention is one atomic symbol of the reply. At a *decision* (a sentence boundary with room for
another mention) a policy inserts a mention of one of the ads not yet mentioned, behind one of a few
connecting phrases, or goes on without; in between the reference LLM writes, having read it all.

    density = Π free tokens · Π decisions { 1 − ρ, or ρ · share of the ad / phrases }

Policies that write with the same prompt differ only in their rates and shares at the decisions, so
the free tokens cancel in their ratio: importance weights are exact, whatever the model and its
dtype. When a decision is offered, and when a reply ends (`Rules`), depends on what is written so
far, never on the policy.

With an inline rate ε > 0 there are decisions in the middle of sentences too, at each opening
(`mechanisms.openings`): a bare title with probability ε, else the LLM writes on.

Densities are of what was drafted. The reader sees a function of it: a draft that broke off in the
middle of a sentence is shown up to its last finished sentence or mention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mechanisms.llm.base import END, Engine
from mechanisms.mentions import AdCopy, ends_sentence
from mechanisms.openings import Title, is_opening, title_at_end
from mechanisms.policies import NOTHING, PHRASES, UNREACHED, InsertionPolicy, Rules
from mechanisms.pool import Bools, Floats, Ints

INLINE = -1
"""The phrase of a mention that is a bare title at an opening."""


def phrase_mention(phrase: str, ad: AdCopy, title: str) -> str:
    """`phrase` with `title` in it, and in parentheses what the ad is for, if it says so.

    The tagline is there for the reader, and for a small LLM that would otherwise guess from the
    name what it is writing about.
    """
    return phrase.format(ad=f"{title} ({ad.tagline})" if ad.tagline else title)


class Inserted(NamedTuple):
    """A mention written into a reply: which ad and phrase, and where its tokens stand."""

    ad: int
    phrase: int
    start: int
    length: int


@dataclass(eq=False)
class Draft:
    """State of one reply while it is written.

    `last_boundary` is the number of tokens up to the last sentence end; `broken_off` says that the
    reply was ended in the middle of a sentence. `events` at decisions and openings stand in their
    order; `at` is None at a decision, and at an opening the number of tokens before it. `spelled`
    says that no LLM that knows the ads can write this in its own words: the title of one stands at
    an opening as prose, or was inserted at one where its tokens do not make a mention.
    """

    rng: np.random.Generator
    sentences: int = 0
    last_boundary: int = 0
    broken_off: bool = False
    spelled: bool = False
    events: list[int] = field(default_factory=list)
    at: list[int | None] = field(default_factory=list)
    mentions: list[Inserted] = field(default_factory=list)

    @property
    def decisions(self) -> int:
        """Decisions so far."""
        return self.at.count(None)

    def note(self, event: int, at: int | None = None) -> None:
        """Add an event, at a decision or at an opening behind `at` tokens."""
        self.events.append(event)
        self.at.append(at)

    def live_openings(self) -> set[int]:
        """Openings that the text has not gone past by a decision or a mention since."""
        live: set[int] = set()
        for event, at in zip(self.events, self.at, strict=True):
            if at is None or event != NOTHING:
                live.clear()
            else:
                live.add(at)
        return live

    def take_as_mention(self, ad: int, start: int, length: int) -> None:
        """The last `length` tokens are a title: forget openings since, they were no such thing."""
        while self.at and self.at[-1] is not None and self.at[-1] >= start:
            self.events.pop()
            self.at.pop()
        self.note(ad, start)
        self.mentions.append(Inserted(ad, INLINE, start, length))


class GuidedInsertion:
    """A `Guide` that follows one `InsertionPolicy` per reply and remembers what it inserted.

    Args:
        engine: encodes and decodes.
        candidates: (P) lists of the candidate ads of each prompt.
        policies: (P) lists of the policy of each sample.
        rules: common rules.
        seed: of the insertions; reply k to prompt p draws from the stream (seed, keys[p], k).
        keys: (P,) default 0..P-1.
        inline: whether bare titles at openings are mentions at all; if so openings are noted.
    """

    def __init__(
        self,
        engine: Engine,
        candidates: Sequence[Sequence[AdCopy]],
        policies: Sequence[Sequence[InsertionPolicy]],
        rules: Rules,
        seed: int,
        keys: Sequence[int] | None = None,
        inline: bool = False,
    ) -> None:
        self.engine = engine
        self.rules = rules
        self.policies = policies
        keys = range(len(candidates)) if keys is None else keys
        self.mention_tokens = [
            [[engine.encode(phrase_mention(p, ad, ad.title)) for p in PHRASES] for ad in ads]
            for ads in candidates
        ]
        self.titles = [[Title.of(engine, ad) for ad in ads] if inline else [] for ads in candidates]
        longest = max(
            (len(tokens) for ads in self.mention_tokens for ad in ads for tokens in ad), default=0
        )
        # One more than can be written: replies end by the rules, not where the engine stops.
        self.max_new_tokens = rules.max_tokens + rules.mentions * longest + 1
        self.drafts = {
            (p, k): Draft(np.random.default_rng([seed, keys[p], k, 1]))
            for p, each in enumerate(policies)
            for k in range(len(each))
        }

    def step(self, prompt: int, sample: int, tokens: Sequence[int]) -> Sequence[int] | str:
        """Decide at a sentence boundary or an opening; see `mechanisms.llm.base.Guide`."""
        draft, policy = self.drafts[prompt, sample], self.policies[prompt][sample]
        return self._step(prompt, draft, policy, tokens)

    def _step(
        self, prompt: int, draft: Draft, policy: InsertionPolicy, tokens: Sequence[int]
    ) -> Sequence[int] | str:
        last = self.engine.decode(tokens[-1:])
        if "\n" in last and draft.sentences > 1:
            return END
        if self.titles[prompt] and self._find_title(prompt, draft, policy, tokens):
            return ()
        free = len(tokens) - sum(mention.length for mention in draft.mentions)
        if any(mark in last for mark in ".!?") and ends_sentence(self.engine.decode(tokens[-16:])):
            draft.sentences += 1
            draft.last_boundary = len(tokens)
            inserted = self._decide(prompt, draft, policy, len(tokens), free)
            if len(inserted):
                return inserted
        else:
            draft.broken_off = free >= self.rules.max_tokens or repeats(tokens, self.rules.loop)
            if draft.broken_off:
                return END
        return self._at_opening(prompt, draft, policy, tokens, free) if self.titles[prompt] else ()

    def _find_title(
        self, prompt: int, draft: Draft, policy: InsertionPolicy, tokens: Sequence[int]
    ) -> bool:
        """Whether the LLM has just finished a mention of an ad, in its own words.

        As behind any other mention, there is no decision or opening right behind it.
        """
        found = title_at_end(self.engine, tokens, self.titles[prompt], draft.live_openings())
        if found is None or found[0] in (mention.ad for mention in draft.mentions):
            return False
        if policy.own_words:
            ad, length = found
            draft.take_as_mention(ad, len(tokens) - length, length)
        else:
            draft.spelled = True
        return policy.own_words

    def _at_opening(
        self,
        prompt: int,
        draft: Draft,
        policy: InsertionPolicy,
        tokens: Sequence[int],
        free: int,
    ) -> Sequence[int]:
        text = self.engine.decode(tokens[-16:])
        if not self._has_room(prompt, draft, free) or not is_opening(text):
            return ()
        shares = self._shares_left(policy, draft)
        if not policy.own_words and shares.sum() > 0:
            u, which = draft.rng.random(2)
            if u < policy.inline:
                ad = _pick(shares, which)
                title = self.titles[prompt][ad].behind(text)
                mention = Inserted(ad, INLINE, len(tokens), len(title))
                if not self._in_own_words(prompt, draft, policy, tokens, mention, title):
                    draft.spelled = True
                draft.note(ad, len(tokens))
                draft.mentions.append(mention)
                return title
        draft.note(NOTHING, len(tokens))
        return ()

    def _in_own_words(
        self,
        prompt: int,
        draft: Draft,
        policy: InsertionPolicy,
        tokens: Sequence[int],
        mention: Inserted,
        title: Sequence[int],
    ) -> bool:
        """Whether an LLM that knows the ads, writing `title` next, would make this mention.

        On the way there may be a decision, the title of another ad, or the end of the reply.
        """
        events, at = [*draft.events, NOTHING], [*draft.at, len(tokens)]
        spare = np.random.default_rng(0)
        trial = replace(draft, rng=spare, events=events, at=at, mentions=[*draft.mentions])
        knowing = replace(policy, own_words=True)
        ends = range(1, len(title) + 1)
        orders = (self._step(prompt, trial, knowing, [*tokens, *title[:end]]) for end in ends)
        return not any(map(len, orders)) and trial.mentions == [*draft.mentions, mention]

    def _has_room(self, prompt: int, draft: Draft, free: int) -> bool:
        """Whether another mention may be inserted, whatever the policy."""
        rules = self.rules
        most = min(rules.mentions, len(self.mention_tokens[prompt]))
        return len(draft.mentions) < most and free + max(rules.room, 1) <= rules.max_tokens

    def _shares_left(self, policy: InsertionPolicy, draft: Draft) -> Floats:
        shares = policy.shares.copy()
        shares[[mention.ad for mention in draft.mentions]] = 0.0
        return shares

    def _decide(
        self, prompt: int, draft: Draft, policy: InsertionPolicy, written: int, free: int
    ) -> Sequence[int] | str:
        rules = self.rules
        done = draft.sentences >= rules.sentences or free >= rules.max_tokens
        if draft.decisions == rules.decisions or not self._has_room(prompt, draft, free):
            return END if done else ()
        shares = self._shares_left(policy, draft)
        u, which, phrase = draft.rng.random(3)
        if shares.sum() == 0 or u >= policy.rate(draft.decisions, shares.sum()):
            draft.note(NOTHING)
            return END if done else ()
        ad = _pick(shares, which)
        draft.note(ad)
        chosen = int(phrase * len(PHRASES))
        mention = self.mention_tokens[prompt][ad][chosen]
        draft.mentions.append(Inserted(ad, chosen, written, len(mention)))
        return mention

    def events(self, prompt: int) -> tuple[Ints, Bools]:
        """`event_table` of the replies to a prompt."""
        row = [self.drafts[prompt, k] for k in range(len(self.policies[prompt]))]
        return event_table(row, self.rules.decisions)


def event_table(drafts: Sequence[Draft], least: int = 0) -> tuple[Ints, Bools]:
    """Events of drafts, and which of them were at openings, both (drafts, K); K >= `least`."""
    K = max(least, *(len(draft.events) for draft in drafts))
    events = np.full((len(drafts), K), UNREACHED)
    openings = np.zeros((len(drafts), K), dtype=bool)
    for k, draft in enumerate(drafts):
        events[k, : len(draft.events)] = draft.events
        openings[k, : len(draft.at)] = [at is not None for at in draft.at]
    return events, openings


def _pick(shares: Floats, u: float) -> int:
    return int(np.searchsorted(np.cumsum(shares) / shares.sum(), u, side="right"))


def repeats(tokens: Sequence[int], length: int) -> bool:
    """Whether the last `length` tokens stand earlier in `tokens` too: small LLMs get into loops."""
    tail = list(tokens[-length:])
    return any(
        tokens[i] == tail[0] and list(tokens[i : i + length]) == tail
        for i in range(len(tokens) - 2 * length + 1)
    )


def masked_mean(log_probs: NDArray[np.float64], start: int, end: int) -> float:
    """Mean log-probability of tokens start..end-1, in nats per token; 0 for none."""
    part = log_probs[start:end]
    return float(part.mean()) if len(part) else 0.0
