"""The mention-extended reference policy and guided insertion (DESIGN 3.0).

An ad mention is one atomic symbol of the reply. At a *decision* (a sentence boundary with room for
another mention) a policy inserts a mention of one of the ads not yet mentioned, behind one of a few
connecting phrases, or goes on without; in between the reference LLM writes, having read it all.

    density = Π free tokens · Π decisions { 1 − ρ, or ρ · share of the ad / phrases }

Policies differ only in their rates and shares at the decisions, so the free tokens cancel in every
ratio: importance weights are exact, whatever the model and its dtype. When a decision is offered,
and when a reply ends (`Rules`), depends on what is written so far, never on the policy.

Densities are of what was drafted. The reader sees a function of it: a draft that broke off in the
middle of a sentence is shown up to its last finished sentence or mention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mechanisms.llm.base import END, Engine
from mechanisms.mentions import AdCopy, ends_sentence
from mechanisms.pool import Floats, Ints

PHRASES = (
    " One good option is {ad},",
    " You could try {ad},",
    " Many people like {ad},",
    " It is worth looking at {ad},",
)
UNREACHED, NOTHING = -2, -1
"""Events at a decision: not reached, reached and nothing inserted; else the ad inserted."""


def phrase_mention(phrase: str, ad: AdCopy, title: str) -> str:
    """`phrase` with `title` in it, and in parentheses what the ad is for, if it says so.

    The tagline is there for the reader, and for a small LLM that would otherwise guess from the
    name what it is writing about.
    """
    return phrase.format(ad=f"{title} ({ad.tagline})" if ad.tagline else title)


@dataclass(frozen=True)
class Rules:
    """What is common to all policies: when there is a decision, and when a reply ends.

    Attributes:
        sentences: a reply ends with the boundary that completes this many sentences, unless a
            mention is inserted there; it then ends with the sentence of the mention.
        mentions: at most so many mentions in a reply.
        max_tokens: limit of the tokens that the LLM writes; mentions come on top, so that the
            length of an ad's title takes no room from its rivals.
        room: tokens the LLM must have left where a mention is inserted, to finish its sentence.
        loop: a reply ends where the LLM repeats its last so many tokens from earlier in the reply.
    """

    sentences: int = 3
    mentions: int = 2
    max_tokens: int = 96
    room: int = 8
    loop: int = 6

    @property
    def decisions(self) -> int:
        """K, the number of decisions a reply can have."""
        return self.sentences


@dataclass(frozen=True, eq=False)
class InsertionPolicy:
    """Insertion rates of one condition.

    Attributes:
        name: the condition (`reference`, `guided`, `single:2`, ...).
        rates: (K,) probability to insert at each decision, if an ad with a share is left.
        shares: (n,) relative frequency of the ads; 0 for an ad that is never inserted.
    """

    name: str
    rates: Floats
    shares: Floats

    def log_density(self, events: Ints) -> Floats:
        """(M,) log-probability of `events` (M, K) under this policy, in nats; −inf if impossible.

        `events[m, t]` is UNREACHED, NOTHING, or the index of the ad inserted at decision t.
        """
        M, K = events.shape
        total = np.zeros(M)
        # One share more, for nobody: there may be no ads.
        left = np.tile(np.append(self.shares, 0.0), (M, 1))
        rows = np.arange(M)
        with np.errstate(divide="ignore"):
            for t in range(K):
                event = events[:, t]
                open_share = left.sum(axis=1)
                rate = np.where(open_share > 0, self.rates[t], 0.0)
                ad = np.maximum(event, 0)
                share = left[rows, ad] / np.where(open_share > 0, open_share, 1.0)
                inserted = np.log(rate * share / len(PHRASES))
                step = np.where(event >= 0, inserted, np.log1p(-rate))
                total += np.where(event == UNREACHED, 0.0, step)
                left[rows[event >= 0], event[event >= 0]] = 0.0
        return total


def reference_policy(ads: int, rules: Rules, mention_rate: float) -> InsertionPolicy:
    """The reference: `mention_rate` (ρ) at every decision, ads uniform."""
    return InsertionPolicy("reference", np.full(rules.decisions, mention_rate), np.ones(ads))


def mixture_log_density(
    policies: Sequence[InsertionPolicy], counts: Sequence[int], events: Ints
) -> Floats:
    """(M,) log-density of `events` under the mixture in proportion to `counts`.

    The balance heuristic of multiple importance sampling (Veach & Guibas 1995): with `counts[c]`
    replies drawn from policy c, weights against the mixture are unbiased and have no outliers.
    """
    shares = np.log(np.asarray(counts, dtype=np.float64) / np.sum(counts))
    parts = np.stack([p.log_density(events) for p in policies]) + shares[:, None]
    return np.logaddexp.reduce(parts, axis=0)


class Inserted(NamedTuple):
    """A mention written into a reply: which ad and phrase, and where its tokens stand."""

    ad: int
    phrase: int
    start: int
    length: int


@dataclass(eq=False)
class _Draft:
    """State of one reply while it is written.

    `last_boundary` is the number of tokens up to the last sentence end; `broken_off` says that the
    reply was ended in the middle of a sentence.
    """

    rng: np.random.Generator
    sentences: int = 0
    last_boundary: int = 0
    broken_off: bool = False
    events: list[int] = field(default_factory=list)
    mentions: list[Inserted] = field(default_factory=list)


class GuidedInsertion:
    """A `Guide` that follows one `InsertionPolicy` per reply and remembers what it inserted.

    Args:
        engine: encodes and decodes.
        candidates: (P) lists of the candidate ads of each prompt.
        policies: (P) lists of the policy of each sample.
        rules: common rules.
        seed: of the insertions; reply k to prompt p draws from the stream (seed, keys[p], k).
        keys: (P,) default 0..P-1.
    """

    def __init__(
        self,
        engine: Engine,
        candidates: Sequence[Sequence[AdCopy]],
        policies: Sequence[Sequence[InsertionPolicy]],
        rules: Rules,
        seed: int,
        keys: Sequence[int] | None = None,
    ) -> None:
        self.engine = engine
        self.rules = rules
        self.policies = policies
        keys = range(len(candidates)) if keys is None else keys
        self.mention_tokens = [
            [[engine.encode(phrase_mention(p, ad, ad.title)) for p in PHRASES] for ad in ads]
            for ads in candidates
        ]
        longest = max(
            (len(tokens) for ads in self.mention_tokens for ad in ads for tokens in ad), default=0
        )
        # One more than can be written: replies end by the rules, not where the engine stops.
        self.max_new_tokens = rules.max_tokens + rules.mentions * longest + 1
        self.drafts = {
            (p, k): _Draft(np.random.default_rng([seed, keys[p], k, 1]))
            for p, each in enumerate(policies)
            for k in range(len(each))
        }

    def step(self, prompt: int, sample: int, tokens: Sequence[int]) -> Sequence[int] | str:
        """Decide at a sentence boundary; see `mechanisms.llm.base.Guide`."""
        last = self.engine.decode(tokens[-1:])
        draft = self.drafts[prompt, sample]
        if "\n" in last and draft.sentences > 1:
            return END
        free = len(tokens) - sum(mention.length for mention in draft.mentions)
        if any(mark in last for mark in ".!?") and ends_sentence(self.engine.decode(tokens[-16:])):
            draft.sentences += 1
            draft.last_boundary = len(tokens)
            return self._decide(prompt, sample, draft, len(tokens), free)
        draft.broken_off = free >= self.rules.max_tokens or repeats(tokens, self.rules.loop)
        return END if draft.broken_off else ()

    def _decide(
        self, prompt: int, sample: int, draft: _Draft, written: int, free: int
    ) -> Sequence[int] | str:
        rules = self.rules
        done = draft.sentences >= rules.sentences or free >= rules.max_tokens
        room = free + max(rules.room, 1) <= rules.max_tokens
        mentioned = [mention.ad for mention in draft.mentions]
        used_up = len(mentioned) >= min(rules.mentions, len(self.mention_tokens[prompt]))
        if len(draft.events) == rules.decisions or used_up or not room:
            return END if done else ()
        policy = self.policies[prompt][sample]
        shares = policy.shares.copy()
        shares[mentioned] = 0.0
        u, which, phrase = draft.rng.random(3)
        if shares.sum() == 0 or u >= policy.rates[len(draft.events)]:
            draft.events.append(NOTHING)
            return END if done else ()
        cumulative = np.cumsum(shares) / shares.sum()
        ad = int(np.searchsorted(cumulative, which, side="right"))
        draft.events.append(ad)
        chosen = int(phrase * len(PHRASES))
        mention = self.mention_tokens[prompt][ad][chosen]
        draft.mentions.append(Inserted(ad, chosen, written, len(mention)))
        return mention

    def events(self, prompt: int) -> Ints:
        """(n_samples, K) events of the replies to a prompt."""
        out = np.full((len(self.policies[prompt]), self.rules.decisions), UNREACHED)
        for k in range(len(out)):
            events = self.drafts[prompt, k].events
            out[k, : len(events)] = events
        return out


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
