"""Densities of recorded replies are exact, under every condition: by enumeration and by hand.

The LLM here knows a few words, and what it writes next depends on the prompt and its last word. All
replies that it can write under a condition are enumerated by running the real guide on every choice
there is; what `write` hands on as log-densities must be the logs of these probabilities.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache, cached_property
from zlib import crc32

import numpy as np
import pytest

from agents.users import BehaviouralUsers
from mechanisms import insertion, policies
from mechanisms.insertion import INLINE, GuidedInsertion
from mechanisms.llm.base import END, Sample
from mechanisms.mentions import MENTION, parse
from mechanisms.openings import Title, title_at_end
from mechanisms.policies import InsertionPolicy, Rules
from mechanisms.recording import Design, Request, describe, record, writing
from mechanisms.recording.conditions import (
    Condition,
    conditions,
    on_behalf_of,
    prompt,
    reference,
)
from mechanisms.recording.writing import write
from tests.tiny_llm import Copy, HashEncoder

GENERATIONS = ("reference", "guided", "context", "mixture")
USERS = BehaviouralUsers(HashEncoder())
STOP = 0
# As many ways to phrase a mention as it takes to tell them apart: enumeration pays for each.
TWO_PHRASES = (" Take {ad},", " One is {ad},")


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


PLAIN = """
       > Try Sleep
Try    > the Oak well.
the    > Tea Oak
Tea    > Pot well.
Pot    > well. .
Oak    > well. and
and    > Tea Oak
well.  > Try Oak .
Sleep  > well. and
"""
SETTINGS = {
    "plain": Setting(("Tea Pot", "Oak"), PLAIN, Rules(2, 2, max_tokens=7, room=1, loop=99)),
    "one title begins another": Setting(
        ("Oak", "Oak Bed"),
        "> Try\nTry > Oak Bed the\nthe > Oak\nOak > Bed well.\nBed > well. the .\nwell. > Oak Try",
        Rules(2, 2, max_tokens=7, room=1, loop=99),
    ),
    "one title ends another": Setting(
        ("Tea", "Best of Tea"),
        "> Try\nTry > Best Tea\nBest > of well.\nof > Tea Try\nTea > well. .\nwell. > Best Try",
        Rules(2, 2, max_tokens=7, room=1, loop=99),
    ),
    "one title ends another, last first": Setting(
        ("Best of Tea", "Tea"),
        "> Try\nTry > Best Tea\nBest > of well.\nof > Tea Try\nTea > well. .\nwell. > Best Try",
        Rules(2, 2, max_tokens=7, room=1, loop=99),
    ),
    "sentences end in titles": Setting(
        ("Yahoo!", "Wake up. Rest"),
        "> Try\nTry > Yahoo! Wake\nWake > up. the\nup. > Rest Try\nRest > well. .\n"
        "Yahoo! > Try .\nwell. > Try Yahoo! Wake\nthe > Yahoo! Wake",
        Rules(2, 2, max_tokens=6, room=1, loop=99),
    ),
    "titles beyond the limit": Setting(
        ("Oak Bed Of Bath", "Tea Pot"),
        "> Try\nTry > the Oak Tea\nthe > Oak Tea\nOak > Bed\nBed > Of well.\nOf > Bath Tea\n"
        "Bath > well. the\nTea > Pot\nPot > well. the\nwell. > Try Oak",
        Rules(2, 2, max_tokens=6, room=1, loop=99),
    ),
    "titles that loop": Setting(
        ("Hop Hop Hop Hop Hop", "Hop Hop Oak"),
        "> Try\nTry > Hop\nHop > Hop Oak well.\nOak > well. the\nthe > Hop Oak\nwell. > Hop Try",
        Rules(2, 2, max_tokens=8, room=1, loop=2),
    ),
    "two spellings": Setting(
        ("Oak", "Tea Pot"),
        "> Try +Oak\nTry > / Oak +Oak the\nthe > +Tea Tea Oak\n/ > +Oak Oak +Tea\nTea > Pot\n"
        "Oak > well. /\nPot > well. the\nwell. > / Oak +Oak",
        Rules(2, 2, max_tokens=6, room=1, loop=99),
    ),
}


LAST = "two spellings"


@pytest.fixture
def two_phrases(monkeypatch):
    for module in (insertion, policies, writing):
        monkeypatch.setattr(module, "PHRASES", TWO_PHRASES)


enumerated = pytest.mark.usefixtures("two_phrases")


@cache
def _law(name, kind, inline, rates, shares, *rest):
    policy = InsertionPolicy("any", np.array(rates), np.array(shares), *rest)
    return law(SETTINGS[name], Condition(kind, policy, 1), inline)


def law_of(name, design, condition):
    """`law`, computed once for all conditions that are alike."""
    p = condition.policy
    values = tuple(p.rates), tuple(p.shares), p.inline, p.own_words
    return _law(name, condition.prompt, design.inline_rate > 0, *values)


def law_of_reference(name, design):
    return law_of(name, design, Condition("reference", reference(design, 2), 0))


def law_on_behalf_of(i, name, design):
    return law_of(name, design, Condition(f"advertiser:{i}", on_behalf_of(i, design, 2), 0))


def law_of_mixture(name, design):
    mixed = Counter()
    for condition in conditions(design, 2):
        for reply, p in law_of(name, design, condition).items():
            mixed[reply] += p * condition.count / design.replies
    return mixed


def written(name, design, seed=0):
    """What `write` hands on, and the replies it comes from and their drafts, in its order."""
    setting = SETTINGS[name]
    setting.llm.seen = []
    recorded = write([setting.request], setting.llm, design, seed, None)
    replies = [key(sample.tokens, draft) for sample, draft in setting.llm.seen]
    return recorded, replies, [draft for _, draft in setting.llm.seen]


@enumerated
@pytest.mark.parametrize("name", SETTINGS)
def test_every_condition_is_a_distribution(name):
    for generation in GENERATIONS:
        design = SETTINGS[name].design(generation, 24)
        found = [law_of(name, design, condition) for condition in conditions(design, 2)]
        for each in (*found, law_on_behalf_of(1, name, design)):
            assert sum(each.values()) == pytest.approx(1, abs=1e-12)
            assert len(each) > 10


@enumerated
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize(
    ("name", "inline_rate"), [*((name, 0.25) for name in SETTINGS), ("plain", 0), (LAST, 0)]
)
def test_densities_are_the_enumerated_probabilities(name, inline_rate, generation):
    """Of every reply under every condition, also of those that it can not write."""
    design = SETTINGS[name].design(generation, 600, inline_rate=inline_rate, log_ratios=True)
    recorded, replies, drafts = written(name, design)
    under, mixed = law_of_reference(name, design), law_of_mixture(name, design)

    def check(logs, want):
        np.testing.assert_allclose(np.exp(logs), want, rtol=1e-9)

    check(recorded.log_ref[0], [under[reply] for reply in replies])
    check(recorded.log_gen[0], [mixed[reply] for reply in replies])
    for i in range(2):
        theirs = law_on_behalf_of(i, name, design)
        ratios = recorded.extras["log_ratios"][0, :, i]
        check(ratios, [theirs.get(reply, 0) / under[reply] for reply in replies])
    named = law_of(name, design, conditions(replace(design, generation="context"), 2)[0])
    spelled = [reply for reply, draft in zip(replies, drafts, strict=True) if draft.spelled]
    assert not any(reply in named for reply in spelled)
    assert bool(spelled) == (generation != "context" and inline_rate > 0)


@enumerated
@pytest.mark.parametrize("generation", ["guided", "mixture"])
def test_frequencies_are_the_densities(generation):
    design = SETTINGS["plain"].design(generation, 6000)
    _, replies, _ = written("plain", design)
    start = 0
    for condition in conditions(design, 2):
        seen = Counter(replies[start : start + condition.count])
        start += condition.count
        if condition.count < 100:
            continue
        expected = law_of("plain", design, condition)
        assert set(seen) <= set(expected)
        common = [reply for reply, p in expected.items() if p * condition.count > 5]
        p = np.array([expected[reply] for reply in common])
        observed = np.array([seen[reply] for reply in common])
        p = condition.count * np.append(p, 1 - p.sum())  # all others are one cell
        observed = np.append(observed, condition.count - observed.sum())
        statistic = ((observed - p) ** 2 / np.maximum(p, 1)).sum()
        freedom = len(common)
        assert freedom > 5
        assert statistic < freedom + 4.5 * np.sqrt(2 * freedom)


def measured(replies):
    """What one may want to know of replies: (len(replies), 7)."""
    the = SETTINGS["plain"].llm.id(" the")

    def shows(mentions, ad, inline):
        return any(m.ad == ad and (m.phrase == INLINE) == inline for m in mentions)

    return np.array(
        [
            [
                1.0,
                *(shows(mentions, ad, inline) for ad in (0, 1) for inline in (False, True)),
                len(tokens),
                the in tokens,
            ]
            for tokens, mentions in replies
        ]
    )


@enumerated
@pytest.mark.parametrize("inline_rate", [0.25, 0])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_weighted_replies_are_those_of_the_reference(generation, inline_rate):
    """In expectation, over all that is ever generated: `context` can not write every reply."""
    changes = {"inline_rate": inline_rate, "log_ratios": True, "mention_rate": 0.2}
    design = SETTINGS["plain"].design(generation, 5000, **changes)
    recorded, replies, _ = written("plain", design, seed=1)
    under, mixed = law_of_reference("plain", design), law_of_mixture("plain", design)
    possible = [reply for reply in under if reply in mixed]
    p = np.array([under[reply] for reply in possible])
    some = generation == "context" and inline_rate > 0
    assert 0.3 < p.sum() < 0.9 if some else p.sum() == pytest.approx(1)

    def check(values, truth):
        error = values.std(axis=0) / np.sqrt(design.replies) + 1e-9
        assert (abs(values.mean(axis=0) - truth) < 4 * error).all()

    w = np.exp(recorded.log_ref[0] - recorded.log_gen[0])[:, None]
    truth = p @ measured(possible)
    assert (truth > 0.01)[[0, 1, 3, 5, 6]].all()
    assert (truth[[2, 4]] > 0).all() == (inline_rate > 0)
    check(w * measured(replies), truth)
    # The LLMs on behalf of advertisers are distributions over the same replies.
    for i in range(2):
        theirs = law_on_behalf_of(i, "plain", design)
        ratio = np.exp(recorded.extras["log_ratios"][0, :, i])[:, None]
        check(w * ratio, sum(theirs.get(reply, 0) for reply in possible))
        check(w * ratio * measured(replies), p_of(theirs, possible) @ measured(possible))


def p_of(law, replies):
    return np.array([law.get(reply, 0) for reply in replies])


@enumerated
@pytest.mark.parametrize("name", SETTINGS)
def test_texts_show_what_was_mentioned(name):
    """Without an inline rate, titles in one's own words are prose, and show nobody."""
    setting = SETTINGS[name]
    for inline_rate in (0.25, 0):
        design = setting.design("mixture", 300, inline_rate=inline_rate)
        recorded, _, drafts = written(name, design)
        own = prose = 0
        for reply, draft in zip(recorded.written[0], drafts, strict=True):
            shown = [mention.ad for mention in draft.mentions]
            parsed = parse(reply.text, setting.ads)
            assert list(parsed.ads) == shown == [event for event in draft.events if event >= 0]
            assert parsed.malformed == reply.forged == 0
            bare = any(mention.phrase == INLINE for mention in draft.mentions)
            own += bare and reply.condition == "context"
            outside = MENTION.sub("", reply.text)
            prose += not shown and any(title in outside for title in setting.titles)
        assert (own > 0) == (inline_rate > 0)
        assert prose > 0 or name == "sentences end in titles"


def test_of_two_titles_that_end_alike_the_longer_is_meant():
    for name in ("one title ends another", "one title ends another, last first"):
        setting = SETTINGS[name]
        titles = [Title.of(setting.llm, ad) for ad in setting.ads]
        tokens = setting.llm.encode(" Try Best of Tea")
        longer = setting.titles.index("Best of Tea")
        assert title_at_end(setting.llm, tokens, titles, {1, 3}) == (longer, 3)
        assert title_at_end(setting.llm, tokens, titles, {3}) == (1 - longer, 1)
        assert title_at_end(setting.llm, tokens, titles, {1, 2}) == (longer, 3)
        assert title_at_end(setting.llm, tokens[:-1], titles, {1, 2}) is None


# One-word titles that the tiny LLM writes by itself.
WORDS = (Copy("Ad-1", "like"), Copy("Ad-2", "just"), Copy("Ad-3", "less"))
MIXTURE = Design(
    24,
    "mixture",
    inline_rate=0.05,
    log_ratios=True,
    temperature=0.8,
    rules=Rules(max_tokens=40),
)
QUERIES = ("How do I sleep better?", "Which tea is good?", "Do my shoes fit?")


def requests(ads, queries=QUERIES):
    return [
        Request(f"Query-{b}", query, f"User-{b}", f"User {b}.", ads, range(len(ads)))
        for b, query in enumerate(queries)
    ]


class Spy:
    """An engine that remembers what it has generated, by kind of prompt."""

    def __init__(self, engine):
        self.engine, self.drawn = engine, []

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def generate(self, prompts, n, *, guide, **options):
        samples = self.engine.generate(prompts, n, guide=guide, **options)
        self.drawn.append((samples, guide))
        return samples

    def replies(self, b):
        """Samples and drafts of a request, in the order of recording."""
        for samples, guide in self.drawn:
            for k, sample in enumerate(samples[b]):
                yield sample, guide.drafts[b, k]


@pytest.fixture(scope="module")
def spied(engine):
    spy = Spy(engine)
    return record(requests(WORDS), spy, USERS, MIXTURE), spy


def decided(draft, rates, shares, inline=0.0, own_words=False):
    """Log-probability of a draft's events, in the words of DESIGN 3.0."""
    left, decision, total = list(shares), 0, 0.0
    for event, at in zip(draft.events, draft.at, strict=True):
        rate = rates[decision] if at is None else inline
        decision += at is None
        if (at is None or not own_words) and sum(left) > 0:
            ways = len(insertion.PHRASES) if at is None else 1
            p = 1 - rate if event < 0 else rate * left[event] / sum(left) / ways
            total += np.log(p) if p > 0 else -np.inf
        elif event >= 0 and not own_words:
            return -np.inf
        if event >= 0:
            left[event] = 0
    return total


def free_and_own(sample, draft):
    """Which tokens the LLM wrote as prose, and which as a title in its own words."""
    mention = np.zeros(len(sample.tokens), dtype=bool)
    own = mention.copy()
    for _, phrase, start, length in draft.mentions:
        mention[start : start + length] = True
        own[start : start + length] = phrase == INLINE
    assert not (sample.forced & ~mention).any()
    return ~mention, own


def test_densities_by_hand(engine, spied):
    """Of the tiny LLM, from nothing but its scores of the tokens."""
    pool, spy = spied
    kinds = ["reference", "context", *(f"advertiser:{i}" for i in range(3))]
    inline = spelled = 0
    for b, request in enumerate(requests(WORDS)):
        replies = list(spy.replies(b))
        tokens = [[sample.tokens for sample, _ in replies]] * len(kinds)
        scores = engine.score([prompt(k, request) for k in kinds], tokens, temperature=0.8)
        for j, (sample, draft) in enumerate(replies):
            by_kind = dict(zip(kinds, (row[j] for row in scores), strict=True))
            free, own = free_and_own(sample, draft)
            inline += own.any()
            spelled += draft.spelled

            def log_p(kind, *policy, **more):
                return by_kind[kind][free].sum() + decided(draft, *policy, **more)  # noqa: B023

            log_ref = log_p("reference", [0.1] * 3, [1, 1, 1], 0.05)
            assert pool.log_ref[b, j] == pytest.approx(log_ref, abs=5e-3)
            with_titles = -np.inf if draft.spelled else by_kind["context"][own].sum()
            only = np.eye(3)
            terms = {
                "reference": (2, log_p("reference", [0] * 3, [0] * 3)),
                "guided": (4, log_p("reference", [0.35] * 3, [1, 1, 1], 0.05)),
                **{
                    f"single:{i}:{p}": (1, log_p("reference", [p, 1, 1], only[i]))
                    for i in range(3)
                    for p in (1, 0.5)
                },
                "context": (
                    12,
                    with_titles + log_p("context", [0.35] * 3, [1, 1, 1], own_words=True),
                ),
            }
            assert sum(count for count, _ in terms.values()) == 24
            mixed = [np.log(count / 24) + log for count, log in terms.values()]
            assert pool.log_gen[b, j] == pytest.approx(np.logaddexp.reduce(mixed), abs=5e-3)
            for i in range(3):
                shares = np.where(np.arange(3) == i, 0.9, 0.05)
                theirs = log_p(f"advertiser:{i}", [0.35] * 3, shares, 0.05)
                ratio = pool.extras["log_ratios"][b, j, i]
                assert ratio == pytest.approx(theirs - log_ref, abs=1e-2)
    assert inline > 1
    assert spelled > 0


def test_the_balance_heuristic_has_no_outliers(spied):
    """A weight is at most M over the number of replies by a policy like the reference's."""
    pool, spy = spied
    weights = np.exp(pool.log_weights)
    for b in range(3):
        for j, (_, draft) in enumerate(spy.replies(b)):
            none, guided = 24 / 2, 24 / 4
            if draft.mentions:
                assert weights[b, j] <= guided * (0.9 / 0.65) ** 3 + 1e-9
            else:
                assert weights[b, j] <= none * 0.9 ** draft.at.count(None) + 1e-9
    assert pool.effective_sample_size.min() > 2


def test_an_advertiser_like_the_reference_has_no_log_ratio(engine, spied, monkeypatch):
    likewise = "advertiser:1"

    def asked(kind, request):
        return prompt("reference" if kind == likewise else kind, request)

    def policy(i, design, ads):
        return reference(design, ads) if i == 1 else on_behalf_of(i, design, ads)

    monkeypatch.setattr(writing, "prompt", asked)
    monkeypatch.setattr(writing, "on_behalf_of", policy)
    pool = record(requests(WORDS), engine, USERS, MIXTURE)
    ratios, others = pool.extras["log_ratios"], spied[0].extras["log_ratios"]
    assert abs(ratios[:, :, 1]).max() < 5e-3
    np.testing.assert_allclose(ratios[:, :, [0, 2]], others[:, :, [0, 2]], atol=5e-3)
    assert np.abs(others).min(axis=(0, 1)).max() > 1e-3
    np.testing.assert_array_equal(pool.log_gen, spied[0].log_gen)


def test_log_ratios_change_nothing_else(engine, spied):
    pool = record(requests(WORDS), engine, USERS, replace(MIXTURE, log_ratios=False))
    assert not pool.extras
    np.testing.assert_array_equal(pool.log_ref, spied[0].log_ref)
    np.testing.assert_array_equal(pool.log_gen, spied[0].log_gen)
    assert pool.replies.equals(spied[0].replies)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_same_seed_same_pool(engine, generation):
    design = replace(MIXTURE, replies=7, generation=generation)
    first, again, other = (
        record(requests(WORDS), engine, USERS, design, seed=seed) for seed in (5, 5, 6)
    )
    assert again.content_hash == first.content_hash
    assert again.replies.equals(first.replies)
    assert other.content_hash != first.content_hash


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("ads", [0, 1, 3])
def test_small_numbers(engine, generation, ads):
    for replies in (1, 2, 5):
        design = replace(MIXTURE, replies=replies, generation=generation)
        pool = record(requests(WORDS[:ads]), engine, USERS, design)
        assert pool.shape == (3, replies, ads)
        assert pool.extras["log_ratios"].shape == (3, replies, ads)
        for array in (pool.log_weights, pool.extras["log_ratios"], *describe(pool).values()):
            assert np.isfinite(array).all()
        if generation == "reference" or (ads == 0 and generation == "guided"):
            np.testing.assert_array_equal(pool.log_weights, 0)
