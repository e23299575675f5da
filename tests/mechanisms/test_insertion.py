"""Insertion policies: densities that sum to one, exact weights, and a guide that follows them.

The LLM here is a fake of a few lines, fast enough to test frequencies; it behaves differently once
it has read a mention, as a real one does.
"""

import itertools
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.insertion import GuidedInsertion, masked_mean, phrase_mention, repeats
from mechanisms.llm.base import END, Sample
from mechanisms.mentions import ends_sentence
from mechanisms.policies import (
    NOTHING,
    PHRASES,
    UNREACHED,
    InsertionPolicy,
    Rules,
    mixture_log_density,
    reference_policy,
)
from mechanisms.recording import Design
from mechanisms.recording.conditions import conditions
from tests.tiny_llm import ADS

quick = settings(max_examples=100, deadline=None)
rates = st.floats(0, 1) | st.sampled_from([0.0, 1.0, 1e-12])


@st.composite
def policies(draw, ads=None, decisions=None):
    n = draw(st.integers(0, 4)) if ads is None else ads
    K = draw(st.integers(1, 4)) if decisions is None else decisions
    share = st.sampled_from([0.0, 0.2, 1.0, 7.0])
    return InsertionPolicy(
        "any",
        np.array(draw(st.lists(rates, min_size=K, max_size=K))),
        np.array(draw(st.lists(share, min_size=n, max_size=n))),
    )


def every_event(ads, decisions):
    """All sequences of full length, those that repeat an ad included."""
    return np.array(list(itertools.product(range(NOTHING, ads), repeat=decisions)))


def phrases_of(events):
    """How many ways of phrasing an event sequence stands for."""
    return len(PHRASES) ** (events >= 0).sum(axis=-1)


@quick
@given(policies())
def test_density_sums_to_one(policy):
    events = every_event(len(policy.shares), len(policy.rates))
    density = np.exp(policy.log_density(events)) * phrases_of(events)
    assert density.sum() == pytest.approx(1, abs=1e-12)
    repeated = [len(set(row[row >= 0])) < (row >= 0).sum() for row in events]
    assert (density[repeated] == 0).all()


@quick
@given(policies(), st.integers(1, 3))
def test_density_sums_to_one_with_a_cap_on_mentions(policy, most):
    """What comes after the last mention allowed is not reached, and has no part in the density."""
    events = every_event(len(policy.shares), len(policy.rates))
    capped = (np.cumsum(events >= 0, axis=1) - (events >= 0)) >= most
    events = np.unique(np.where(capped, UNREACHED, events), axis=0)
    density = np.exp(policy.log_density(events)) * phrases_of(events)
    assert density.sum() == pytest.approx(1, abs=1e-12)


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.integers(1, 4), st.integers(1, 4))
@quick
def test_weight_formula(rho, q, ads, decisions):
    """DESIGN 3.0: (ρ/q)^mentions · ((1−ρ)/(1−q))^decisions without, whatever the ads."""
    reference = InsertionPolicy("reference", np.full(decisions, rho), np.ones(ads))
    guided = InsertionPolicy("guided", np.full(decisions, q), np.ones(ads))
    events = every_event(ads, decisions)
    distinct = [len(set(row[row >= 0])) == (row >= 0).sum() < ads for row in events]
    events = events[distinct]
    mentions, without = (events >= 0).sum(1), (events == NOTHING).sum(1)
    expected = mentions * np.log(rho / q) + without * np.log((1 - rho) / (1 - q))
    got = reference.log_density(events) - guided.log_density(events)
    np.testing.assert_allclose(got, expected, atol=1e-10)


def test_reference_density_by_hand():
    policy = reference_policy(3, Rules(sentences=3), 0.1)
    events = np.array([[-1, -1, -1], [2, -1, -2], [0, 1, -2], [-2, -2, -2], [1, 1, -2]])
    expected = [0.9**3, 0.1 / 3 / 4 * 0.9, 0.1 / 3 / 4 * 0.1 / 2 / 4, 1, 0]
    np.testing.assert_allclose(np.exp(policy.log_density(events)), expected)


@quick
@given(st.data(), st.integers(1, 3), st.integers(1, 3))
def test_mixture_is_logsumexp(data, ads, decisions):
    mix = [data.draw(policies(ads, decisions)) for _ in range(3)]
    counts = data.draw(st.lists(st.integers(1, 20), min_size=3, max_size=3))
    events = every_event(ads, decisions)
    densities = np.exp([policy.log_density(events) for policy in mix])
    expected = (np.array(counts)[:, None] * densities).sum(0) / sum(counts)
    got = np.exp(mixture_log_density(densities_of(mix, events), counts))
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-300)
    assert not np.isnan(mixture_log_density(densities_of(mix, events), counts)).any()


def densities_of(policies, events):
    return np.stack([policy.log_density(events) for policy in policies])


def guided_conditions(design, ads):
    return [(condition.policy, condition.count) for condition in conditions(design, ads)]


class FakeEngine:
    """Words as tokens. `say(rng, tokens, read)` gives the next, `read`: a mention was read."""

    model = "fake"

    def __init__(self, say):
        self.say, self.words, self.ids = say, [], {}

    def encode(self, text):
        return [self.id(word) for word in re.findall(r"\s?\S+", text)]

    def id(self, word):
        if word not in self.ids:
            self.ids[word] = len(self.words)
            self.words.append(word)
        return self.ids[word]

    def decode(self, tokens):
        return "".join(self.words[t] for t in tokens)

    def generate(self, prompts, n, *, max_new_tokens, seed, guide=None, **_):
        rng = np.random.default_rng(seed)
        return [
            [self.write(rng, max_new_tokens, guide, p, k) for k in range(n)]
            for p in range(len(prompts))
        ]

    def write(self, rng, most, guide, p, k):
        tokens, forced, ended = [], [], False
        while len(tokens) < most and not ended:
            word = self.say(rng, tokens, any(forced))
            ended = word is None
            if ended:
                break
            tokens.append(self.id(word))
            forced.append(False)
            order = guide.step(p, k, tokens) if guide else ()
            if order == END:
                break
            tokens += order
            forced += [True] * len(order)
        zeros = np.zeros(len(tokens))
        return Sample(np.array(tokens), zeros, np.array(forced, dtype=bool), ended)


def steady(rng, tokens, read):
    """Sentences of two words, without end."""
    return " Sleep" if len(tokens) % 2 == 0 else " well."


def moody(rng, tokens, read):
    """May stop after any sentence, sooner once it has read a mention."""
    if tokens and rng.random() < (0.3 if read else 0.05):
        return None
    return " Sleep" if rng.random() < 0.5 else " well."


def simulate(policy, count, say, rules=None, ads=ADS, seed=0):
    """(count, K) events of replies written under `policy`, the guide and the samples."""
    engine = FakeEngine(say)
    rules = rules or Rules(max_tokens=200)
    guide = GuidedInsertion(engine, [ads], [[policy] * count], rules, seed)
    most = guide.max_new_tokens
    samples = engine.generate(["x"], count, max_new_tokens=most, seed=seed, guide=guide)
    return guide.events(0)[0], guide, samples[0]


@pytest.mark.parametrize(
    "policy",
    [
        InsertionPolicy("guided", np.array([0.3, 0.5, 0.4]), np.array([1.0, 2.0, 0.5])),
        InsertionPolicy("some", np.array([1.0, 0.2, 0.9]), np.array([0.0, 1.0, 1.0])),
    ],
    ids=lambda policy: policy.name,
)
def test_frequencies_are_the_densities(policy):
    count, rules = 12000, Rules(mentions=2, max_tokens=200)
    events, guide, _ = simulate(policy, count, steady, rules)
    seen = Counter(map(tuple, events.tolist()))
    distinct = np.array(list(seen))
    expected = count * np.exp(policy.log_density(distinct)) * phrases_of(distinct)
    assert expected.sum() == pytest.approx(count)  # nothing impossible, nothing missed
    observed = np.array(list(seen.values()))
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = len(distinct) - 1
    assert statistic < freedom + 4.5 * np.sqrt(2 * freedom)
    phrases = np.bincount([m.phrase for d in guide.drafts.values() for m in d.mentions])
    assert phrases.min() > 0.95 * phrases.mean()


def test_single_always_mentions():
    """Given two decisions, `single:i` shows ad i, and no other; some replies do at the first."""
    policies = guided_conditions(Design(replies=24), 3)
    assert sum(count for policy, count in policies if policy.name == "single:1") == 4
    for policy, _ in policies:
        if not policy.name.startswith("single:"):
            continue
        for say in (steady, moody):
            events, _, _ = simulate(policy, 400, say)
            reached = (events != UNREACHED).sum(1)
            mentions = events == int(policy.name[-1])
            assert mentions[reached >= 2].any(1).all()
            assert not (events >= 0)[~mentions].any()
            first = mentions[reached >= 1, 0].mean()
            assert first == 1 if policy.rates[0] == 1 else 0.4 < first < 0.6
            assert np.isfinite(policy.log_density(events)).all()


@pytest.mark.parametrize("ads", [1, 2, 3, 5])
@pytest.mark.parametrize("M", [1, 2, 3, 7, 24, 60])
def test_conditions_of_a_design(M, ads):
    planned = guided_conditions(Design(replies=M), ads)
    assert sum(count for _, count in planned) == M
    assert all(count > 0 for _, count in planned)
    assert planned[0][0].name == "reference"
    assert np.all(planned[0][0].rates == 0)
    for i in range(ads if 2 * ads <= M else 0):
        # every ad has a reply that shows it as soon as there is a decision
        at_once = [p for p, _ in planned if p.name == f"single:{i}" and (p.rates == 1).all()]
        assert len(at_once) == 1
    assert [p.name for p, _ in guided_conditions(Design(replies=M), 0)] == ["reference"]


@pytest.mark.parametrize("say", [steady, moody])
def test_weights_recover_the_reference_policy(say):
    """Replies of the mixture, weighted, are those of the reference policy (no bias, no scoring)."""
    count, rules, design = 6000, Rules(max_tokens=200), Design(replies=24)
    reference = reference_policy(3, rules, 0.1)
    truth = (simulate(reference, count, say, seed=1)[0] >= 0).mean(axis=0)
    mixture = guided_conditions(design, 3)
    parts = []
    for c, (policy, share) in enumerate(mixture):
        parts.append(simulate(policy, count * share // 24, say, seed=2 + c)[0])
    events = np.concatenate(parts)
    counts = [len(part) for part in parts]
    mix = mixture_log_density(densities_of([p for p, _ in mixture], events), counts)
    w = np.exp(reference.log_density(events) - mix)
    error = 1 / np.sqrt(count)
    assert w.mean() == pytest.approx(1, abs=4 * w.std() * error)
    for t in range(3):
        f = w * (events[:, t] >= 0)
        spread = np.hypot(f.std(), np.sqrt(truth[t] * (1 - truth[t])))
        assert f.mean() == pytest.approx(truth[t], abs=4 * spread * error)
    for ad in range(3):
        f = w * (events == ad).any(1)
        assert f.mean() == pytest.approx(truth.sum() / 3, abs=4 * (f.std() + 0.3) * error)
    # the balance heuristic bounds every weight by that of the plain replies
    assert w.max() < 24 * 2


@quick
@given(
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(3, 60),
    st.integers(0, 30),
    st.sampled_from([1, 3, 6, 10**6]),
    st.integers(0, 99),
)
def test_rules_are_kept(sentences, mentions, max_tokens, room, loop, seed):
    rules = Rules(sentences, mentions, max_tokens, room, loop)
    policy = InsertionPolicy("guided", np.full(sentences, 0.7), np.ones(3))
    events, guide, samples = simulate(policy, 20, moody, rules, seed=seed)
    for k, sample in enumerate(samples):
        tokens = sample.tokens.tolist()
        free = np.cumsum(~sample.forced)  # tokens of the LLM so far: mentions come on top
        assert free[-1] <= max_tokens
        assert len(tokens) < guide.max_new_tokens  # so that it is the rules that end a reply
        draft = guide.drafts[0, k]
        shown = [m.ad for m in draft.mentions]
        assert shown == [event for event in events[k] if event >= 0]
        assert len(set(shown)) == len(shown) <= mentions
        assert draft.sentences <= sentences + mentions
        for ad, phrase, start, length in draft.mentions:
            assert free[start - 1] + max(room, 1) <= max_tokens
            text = guide.engine.decode(sample.tokens[start : start + length])
            assert text == phrase_mention(PHRASES[phrase], ADS[ad], ADS[ad].title)
            assert sample.forced[start : start + length].all()
        assert sample.forced.sum() == sum(m.length for m in draft.mentions)
        whole = draft.last_boundary == len(tokens)
        looped = repeats(tokens, loop) and not whole
        out_of_tokens = free[-1] == max_tokens
        assert draft.broken_off == ((looped or out_of_tokens) and not whole and not sample.ended)
        free_end = draft.sentences >= sentences and not sample.ended
        assert free_end or sample.ended or out_of_tokens or looped
        # It ends with the first loop, unless a sentence ends right there.
        for stop in np.flatnonzero(~sample.forced)[:-1] + 1:
            if repeats(tokens[:stop], loop):
                assert ends_sentence(guide.engine.decode(tokens[:stop]))


@quick
@given(st.lists(st.integers(0, 2), max_size=16), st.integers(1, 6))
def test_repeats(tokens, length):
    """By brute force: the last tokens, apart from themselves, stand somewhere before."""
    text = "".join(map(str, tokens))
    tail, before = text[-length:], text[:-length]
    expected = len(text) >= 2 * length and tail in before
    assert repeats(tokens, length) == expected


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 1, 2, 3], True),
        ([1, 2, 3, 9, 1, 2, 3], True),
        ([9, 1, 2, 3, 9, 9, 1, 2, 3], True),
        ([7, 7, 7, 7, 7, 7], True),
        ([7, 7, 7, 7, 7], False),  # five of a kind: the last three overlap any earlier three
        ([1, 2, 3, 1, 2, 3, 9], False),  # it has gone on
        ([1, 2, 3, 1, 2], False),
        ([1, 2, 3], False),
        ([], False),
    ],
)
def test_repeats_by_example(tokens, expected):
    assert repeats(tokens, 3) == expected
    assert repeats(np.array(tokens), 3) == expected


def test_a_loop_ends_the_reply():
    words = [" Sleep", " well.", *[" Read", " and", " drink", " tea"] * 20]
    policy = InsertionPolicy("reference", np.zeros(3), np.ones(3))

    def ends(loop):
        rules = Rules(max_tokens=60, loop=loop)
        _, guide, samples = simulate(policy, 1, lambda rng, tokens, _: words[len(tokens)], rules)
        draft = guide.drafts[0, 0]
        assert draft.broken_off
        assert draft.last_boundary == 2
        return len(samples[0].tokens)

    # four words from 2 on stand again at 6; six of them, which must not overlap, at 10
    assert [ends(loop) for loop in (4, 6, 10**6)] == [6 + 4, 10 + 6, 60]


def test_a_long_title_takes_no_decisions_from_its_rivals():
    """Same seed, one title longer: the same decisions and words, wherever the limit bites."""
    long = (replace(ADS[0], title="A Very Long Name of " + "Bed " * 15), *ADS[1:])
    policy = InsertionPolicy("guided", np.full(3, 0.5), np.ones(3))
    cut = 0
    for most in (20, 28, 36, 60):
        rules = Rules(max_tokens=most, room=12)
        (events, guide, samples), (theirs, other, longer) = (
            simulate(policy, 300, moody, rules, ads) for ads in (ADS, long)
        )
        np.testing.assert_array_equal(theirs, events)
        for ours, its in zip(samples, longer, strict=True):
            written = guide.engine.decode(ours.tokens[~ours.forced])
            assert written == other.engine.decode(its.tokens[~its.forced])
            assert its.ended == ours.ended
        assert sum(len(its.tokens) for its in longer) > sum(len(ours.tokens) for ours in samples)
        cut += (events[:, -1] == UNREACHED).sum()
        assert (events >= 0).any(0).sum() >= 1
    assert cut > 100  # the limit on tokens did take decisions, from all alike


def test_a_line_break_ends_after_two_sentences():
    words = [" One", " two.", "\n", " Three", " four.", "\n", " Five."]
    policy = InsertionPolicy("reference", np.zeros(4), np.zeros(3))
    rules = Rules(sentences=4, max_tokens=200)
    _, guide, samples = simulate(policy, 1, lambda rng, tokens, read: words[len(tokens)], rules)
    assert guide.engine.decode(samples[0].tokens) == "".join(words[:6])


def test_no_ads():
    for name in ("reference", "guided"):
        policy = InsertionPolicy(name, np.full(3, 0.5), np.ones(0))
        events, _, samples = simulate(policy, 5, steady, ads=())
        assert (events == UNREACHED).all()
        np.testing.assert_array_equal(policy.log_density(events), np.zeros(5))
        np.testing.assert_array_equal(
            mixture_log_density(densities_of([policy], events), [5]), np.zeros(5)
        )
        assert all(len(sample.tokens) == 6 for sample in samples)


def test_streams_of_the_guide():
    """Insertions depend on seed, key and sample, not on what else is asked."""

    def decide(keys, seed, count=40):
        engine = FakeEngine(steady)
        policy = InsertionPolicy("guided", np.full(3, 0.5), np.ones(3))
        rules = Rules(max_tokens=200)
        guide = GuidedInsertion(
            engine, [ADS] * len(keys), [[policy] * count] * len(keys), rules, seed, keys
        )
        most = guide.max_new_tokens
        engine.generate(["x"] * len(keys), count, max_new_tokens=most, seed=0, guide=guide)
        return [guide.events(p)[0].tolist() for p in range(len(keys))]

    first, second = decide([4, 9], seed=1)
    assert decide([9], seed=1) == [second]
    assert decide([9, 4], seed=1, count=10) == [second[:10], first[:10]]
    assert first != second
    assert decide([9], seed=2) != [second]


def test_masked_mean():
    x = np.array([-1.0, -2.0, -6.0])
    assert masked_mean(x, 1, 3) == -4
    assert masked_mean(x, 0, 9) == -3
    assert masked_mean(x, 2, 2) == 0
