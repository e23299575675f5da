"""An LLM that knows a few words, of which every reply under a condition can be enumerated.

What it writes next depends on the prompt and its last word. `law` runs the real guide on every
choice that it and the guide have, and gives the probability of every reply.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache, cached_property
from zlib import crc32

import numpy as np

from mechanisms import insertion
from mechanisms.insertion import GuidedInsertion
from mechanisms.llm.base import END, Sample
from mechanisms.policies import Rules
from mechanisms.recording import Design, Request
from mechanisms.recording.conditions import prompt
from tests.tiny_llm import Copy

STOP = 0


@dataclass(frozen=True)
class Setting:
    """Two ads and an LLM: by its last word, what it may write next ("": at the start, or else).

    "." ends its turn.
    """

    titles: tuple[str, str]
    follows: str
    rules: Rules

    @property
    def ads(self):
        return tuple(Copy(f"Ad-{i}", title) for i, title in enumerate(self.titles))

    @property
    def request(self):
        return Request("Query-0", "Tea?", "User-0", "A user.", self.ads, (0, 1))

    def design(self, generation, replies, **changes):
        rates = {"mention_rate": 0.3, "guided_rate": 0.5, "inline_rate": 0.25, **changes}
        return Design(replies, generation, rules=self.rules, **rates)

    @cached_property
    def llm(self):
        table = {}
        for line in self.follows.strip().splitlines():
            word, _, rest = line.strip().partition(">")
            table[self._word(word.strip())] = [self._word(each) for each in rest.split()]
        return WordLLM(table)

    @staticmethod
    def _word(text):
        if text in ("", "."):
            return text
        return "\n" if text == "/" else text[1:] if text.startswith("+") else f" {text}"


class WordLLM:
    """Samples and scores; "+word" has no space before it, and "/" is a line break."""

    model = "words"

    def __init__(self, table):
        self.table = table
        self.words, self.ids = [""], {".": STOP}

    def id(self, word):
        if word not in self.ids:
            self.ids[word] = len(self.words)
            self.words.append(word)
        return self.ids[word]

    def encode(self, text):
        return [self.id(word) for word in re.findall(r"\s?\S+", text)]

    def decode(self, tokens):
        return "".join(self.words[t] for t in tokens)

    def next(self, asked, last):
        """By token id, its probability after the token `last` (None: at the start)."""
        return self._next(asked, "" if last is None else self.words[last])

    @cache  # noqa: B019
    def _next(self, asked, last):
        words = self.table.get(last, self.table[""])
        p = np.random.default_rng(crc32(f"{asked}|{last}".encode())).uniform(0.2, 1, len(words))
        return {self.id(word): q for word, q in zip(words, p / p.sum(), strict=True)}

    def generate(self, prompts, n, *, max_new_tokens, seed, guide, keys=None, **_):
        self.guide = guide
        rng = np.random.default_rng([seed, 9])
        self.samples = [
            [self._write(rng, asked, max_new_tokens, guide, p, k) for k in range(n)]
            for p, asked in enumerate(prompts)
        ]
        self.seen = [
            *getattr(self, "seen", []),
            *((s, guide.drafts[0, k]) for k, s in enumerate(self.samples[0])),
        ]
        return self.samples

    def _write(self, rng, asked, most, guide, p, k):
        tokens, forced = [], []
        while len(tokens) < most:
            law = self.next(asked, tokens[-1] if tokens else None)
            tokens.append(int(rng.choice(list(law), p=list(law.values()))))
            forced.append(False)
            if tokens[-1] == STOP:
                break
            order = guide.step(p, k, tokens)
            if order == END:
                break
            tokens += order
            forced += [True] * len(order)
        assert len(tokens) < most
        log_probs = self._score(asked, tokens)
        return Sample(np.array(tokens), log_probs, np.array(forced), tokens[-1] == STOP)

    def _score(self, asked, tokens):
        """Of what it never writes (the words of a mention, where they stand out), −inf."""
        pairs = zip([None, *tokens[:-1]], tokens, strict=True)
        with np.errstate(divide="ignore"):
            return np.log([self.next(asked, last).get(token, 0) for last, token in pairs])

    def score(self, prompts, replies, *, temperature):
        return [
            [self._score(asked, list(reply)) for reply in row]
            for asked, row in zip(prompts, replies, strict=True)
        ]


def key(tokens, draft):
    """A reply as it was drafted: its tokens, and which of them are mentions."""
    return tuple(map(int, tokens)), tuple(draft.mentions)


class Script:
    """In place of a draft's random numbers: every cell of their cube in turn, and its volume."""

    def __init__(self, policy, draft):
        self.policy, self.draft = policy, draft
        self.todo, self.at, self.volume = [], 0, 1.0

    def random(self, size):
        if self.at == len(self.todo):
            self.todo.append(self._cells(size))
        cell, volume = self.todo[self.at][0]
        self.at += 1
        self.volume *= volume
        return cell

    def _cells(self, size):
        at_decision = size == 3
        rate = self.policy.rates[self.draft.decisions] if at_decision else self.policy.inline
        phrases = len(insertion.PHRASES) if at_decision else 1
        shares = self.policy.shares.copy()
        shares[[mention.ad for mention in self.draft.mentions]] = 0
        rate = rate if shares.any() else 0.0
        cells, below = [((1 - 1e-12, *[0.0] * (size - 1)), 1 - rate)], 0.0
        for share in shares[shares > 0] / shares.sum():
            for phrase in range(phrases):
                inner = ((phrase + 0.5) / phrases,) if at_decision else ()
                cells.append(((0.0, below + share / 2, *inner), rate * share / phrases))
            below += share
        return [(cell, volume) for cell, volume in cells if volume > 0]

    def next(self):
        """Go on to the next cell; False if there is none."""
        while self.todo and len(self.todo[-1]) == 1:
            self.todo.pop()
        if self.todo:
            self.todo[-1].pop(0)
        self.at, self.volume = 0, 1.0
        return bool(self.todo)


def outcomes(guide, draft, tokens):
    """All that the guide may do after `tokens`: (order, draft, probability)."""
    script, more = Script(guide.policies[0][0], draft), True
    while more:
        trial = copied(draft, script)
        script.draft = trial
        guide.drafts[0, 0] = trial
        order = guide.step(0, 0, tokens)
        yield order, trial, script.volume
        more = script.next()


def copied(draft, rng):
    lists = {name: list(getattr(draft, name)) for name in ("events", "at", "mentions")}
    return replace(draft, rng=rng, **lists)


def law(setting, condition, inline=True):
    """The probability of every reply under a condition."""
    llm, asked = setting.llm, prompt(condition.prompt, setting.request)
    guide = GuidedInsertion(
        llm, [setting.ads], [[condition.policy]], setting.rules, 0, None, inline
    )
    found = Counter()
    todo = [([], guide.drafts[0, 0], 1.0)]
    while todo:
        tokens, draft, p = todo.pop()
        for token, q in llm.next(asked, tokens[-1] if tokens else None).items():
            longer = [*tokens, token]
            if token == STOP:
                found[key(longer, draft)] += p * q
                continue
            for order, then, r in outcomes(guide, draft, longer):
                if order == END:
                    found[key(longer, then)] += p * q * r
                else:
                    todo.append(([*longer, *order], then, p * q * r))
    return dict(found)
