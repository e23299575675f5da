"""Densities of recorded replies are exact, under every condition: by enumeration.

What `write` hands on as log-densities must be the logs of the probabilities that enumeration gives
to the replies of an LLM of a few words.
"""

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from mechanisms import insertion, policies
from mechanisms.insertion import INLINE
from mechanisms.mentions import MENTION, parse
from mechanisms.openings import Title, title_at_end
from mechanisms.policies import InsertionPolicy, Rules
from mechanisms.recording import writing
from mechanisms.recording.conditions import Condition, conditions, on_behalf_of, reference
from mechanisms.recording.writing import write
from tests.mechanisms.word_llm import Setting, key, law

GENERATIONS = ("reference", "guided", "context", "mixture")
# As many ways to phrase a mention as it takes to tell them apart: enumeration pays for each.
TWO_PHRASES = (" Take {ad},", " One is {ad},")

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
