"""Going on from chunks gives what an engine with a guide inside would have written."""

import numpy as np
import pytest

from mechanisms.insertion import GuidedInsertion
from mechanisms.llm.base import END, Sample
from mechanisms.llm.continuation import Reply, Results
from mechanisms.policies import InsertionPolicy, Rules
from tests.mechanisms.llm_driver import Chunks, Script
from tests.tiny_llm import ADS

T = 0.8
PROMPTS = ("How do I sleep better?", "Tea", "", "Running shoes should fit well. " * 6)


@pytest.fixture
def chunks(tiny_llm):
    return Chunks(tiny_llm, T)


@pytest.fixture
def chats(engine):
    return [engine.chat_tokens(prompt) for prompt in PROMPTS]


@pytest.fixture
def insert(engine):
    return engine.encode(" One good option is Tea Pot,")


def rescored(engine, samples):
    return engine.score(
        PROMPTS, [[sample.tokens for sample in row] for row in samples], temperature=T
    )


def check(engine, samples):
    """Log-probabilities, of forced tokens too, are the scores of the replies."""
    for row, scores in zip(samples, rescored(engine, samples), strict=True):
        for sample, score in zip(row, scores, strict=True):
            np.testing.assert_allclose(sample.log_probs, score, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 48, None])
def test_a_guide_sees_what_is_recorded(chunks, chats, engine, insert, chunk):
    guide = Script(insert)
    samples = chunks.generate(chats, 6, max_new_tokens=40, seed=3, guide=guide, chunk=chunk)
    complete = 0
    for row in samples:
        for sample in row:
            if len(sample.tokens) < 3:
                assert sample.ended
                continue
            stop = 2 + len(insert)
            assert sample.tokens[2:stop].tolist() == insert
            assert np.flatnonzero(sample.forced).tolist() == list(range(2, stop))
            assert sample.ended == (sample.tokens[-1] == engine.end_token)
            assert sample.ended or len(sample.tokens) == 6 + len(insert)
            complete += not sample.ended
    assert complete
    assert len({(*seen[:2], len(seen[2])) for seen in guide.seen}) == len(guide.seen)
    for p, k, tokens in guide.seen:
        np.testing.assert_array_equal(samples[p][k].tokens[: len(tokens)], tokens)
        assert len(tokens) <= 2 or len(tokens) > 2 + len(insert)
    check(engine, samples)


def test_only_what_was_asked_for_behind_the_kept_is_kept(chunks, chats, insert):
    samples = chunks.generate(chats, 6, max_new_tokens=40, seed=3, guide=Script(insert))
    whole = {tuple(chats[p] + s.tokens.tolist()) for p, row in enumerate(samples) for s in row}
    for ask in chunks.asked:
        assert any(reply[: len(ask.tokens)] == tuple(ask.tokens) for reply in whole)
        assert ask.max_tokens or ask.start >= 1


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 12])
def test_limits(chunks, chats, engine, insert, limit):
    samples = chunks.generate(chats, 8, max_new_tokens=limit, seed=5, guide=Script(insert))
    lengths = [len(sample.tokens) for row in samples for sample in row]
    assert max(lengths) == limit
    assert all(s.ended or len(s.tokens) == limit for row in samples for s in row) or limit > 6
    check(engine, samples)  # also where an insertion was cut off


def test_without_a_guide_a_reply_is_one_request(chunks, chats, engine):
    samples = chunks.generate(chats, 5, max_new_tokens=30, seed=1)
    assert len(chunks.asked) == 20
    assert not any(ask.stops for ask in chunks.asked)
    assert {ask.max_tokens for ask in chunks.asked} == {30}
    assert not any(sample.forced.any() for row in samples for sample in row)
    check(engine, samples)


def test_forced_tokens_are_scored_once(chunks, chats, insert):
    class Often(Script):
        def step(self, prompt, sample, tokens):
            order = super().step(prompt, sample, tokens)
            return self.insert if order == () else order

    samples = chunks.generate(chats, 2, max_new_tokens=90, seed=1, guide=Often(insert))
    assert max(sample.forced.sum() for row in samples for sample in row) > 4 * len(insert)
    assert sum(not ask.max_tokens for ask in chunks.asked) <= 8


def test_seeds_and_batches(tiny_llm, chunks, chats, insert):
    draw = {"max_new_tokens": 24, "seed": 3}
    together = chunks.generate(chats, 4, guide=Script(insert), **draw)
    narrow = Chunks(tiny_llm, T, width=3)
    apart = narrow.generate(chats[:1:-1], 2, keys=[3, 2], guide=Script(insert), **draw)
    for row, other in zip(apart, together[:1:-1], strict=True):
        for one, two in zip(row, other[:2], strict=True):
            np.testing.assert_array_equal(one.tokens, two.tokens)
            np.testing.assert_allclose(one.log_probs, two.log_probs, atol=1e-4)
    seeds = [ask.seed for ask in chunks.asked if ask.max_tokens]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= min(seeds) <= max(seeds) < 2**63
    other = chunks.generate(chats, 4, guide=Script(insert), **{**draw, "seed": 4})
    texts = [{tuple(s.tokens) for row in run for s in row} for run in (together, other)]
    assert not texts[0] & texts[1]


class Choosy:
    """Writes behind the first token if its id is odd; ends behind the second free token."""

    def __init__(self, insert):
        self.insert = list(insert)

    def step(self, prompt, sample, tokens):
        return END if len(tokens) > 1 else self.insert if tokens[0] % 2 else ()


@pytest.mark.parametrize("chunk", [4])
def test_what_is_thrown_away_leaves_no_trace(chunks, engine, insert, chunk):
    """The second free token has the exact distribution, although guides choose by the first."""
    chat, vocabulary, draws = engine.chat_tokens("Tea"), len(engine.tokenizer), 4000
    every = [[token] for token in range(vocabulary)]
    first = np.exp(np.concatenate(engine.score(["Tea"], [every], temperature=T)[0]))
    expected = np.zeros(vocabulary)
    for token in np.flatnonzero(first * draws > 1e-2):
        if token == engine.end_token:
            continue
        behind = [int(token), *(insert if token % 2 else ())]
        chunks.texts = {"behind": chat + behind}
        scored = chunks.engine.score(["behind"], [every], temperature=T)[0]
        expected += first[token] * np.exp(np.concatenate(scored))
    (samples,) = chunks.generate(
        [chat], draws, max_new_tokens=len(insert) + 2, seed=7, guide=Choosy(insert), chunk=chunk
    )
    second = [s.tokens[~s.forced][1] for s in samples if len(s.tokens) > 1]
    for observed, p in (
        (np.bincount([s.tokens[0] for s in samples], minlength=vocabulary), first),
        (np.bincount(second, minlength=vocabulary), expected),
    ):
        big = draws * p >= 5
        count = np.append(observed[big], observed[~big].sum())
        mean = draws * np.append(p[big], p[~big].sum())
        statistic = ((count - mean) ** 2 / mean).sum()
        freedom = len(count) - 1
        assert freedom > 20
        assert statistic < freedom + 4 * np.sqrt(2 * freedom)


def test_guided_insertion(chunks, chats, engine):
    """With the real guide: each mention stands where the guide says, and free tokens are free."""
    rules = Rules(max_tokens=60, loop=10**6)
    policies = [[InsertionPolicy("all", np.full(rules.decisions, 0.7), np.ones(3))] * 8] * 4
    guide = GuidedInsertion(engine, [ADS] * 4, policies, rules, seed=2)
    samples = chunks.generate(chats, 8, max_new_tokens=guide.max_new_tokens, seed=2, guide=guide)
    mentions = 0
    for p, row in enumerate(samples):
        for k, sample in enumerate(row):
            expected = np.zeros(len(sample.tokens), dtype=bool)
            for mention in guide.drafts[p, k].mentions:
                expected[mention.start : mention.start + mention.length] = True
                mentions += 1
            np.testing.assert_array_equal(sample.forced, expected)
            assert (~sample.forced).sum() <= rules.max_tokens + 1
    assert mentions > 10
    check(engine, samples)


def test_a_guide_must_return_tokens_or_end():
    class Wrong:
        def step(self, prompt, sample, tokens):
            return "stop"

    reply = Reply(0, 0, [1], 5, 2, Wrong(), (0, 0, 0))
    with pytest.raises(ValueError, match="tokens or END, not 'stop'"):
        reply.take([3], [-1.0])


def test_a_forced_end_token_does_not_end():
    reply = Reply(0, 0, [1], 5, 2, Script([2, 2], at=1), (0, 0, 0))
    assert not reply.take([3, 4, 4], [-1.0, -1.0, -1.0])
    assert not reply.done
    assert reply.ask().tokens == [1, 3, 2, 2]
    reply.take([2], [-0.5])
    assert reply.ended
    ask = reply.ask()
    assert (ask.tokens, ask.start, ask.max_tokens) == ([1, 3, 2, 2], 2, 0)
    reply.take_scores([-3.0, -4.0])
    assert reply.ask() is None
    sample = reply.sample()
    assert sample.log_probs.tolist() == [-1.0, -3.0, -4.0, -0.5]
    assert sample.forced.tolist() == [False, True, True, False]


def test_results_are_reported_prompt_by_prompt():
    reported = []
    kept = [Sample(np.zeros(1, int), np.zeros(1), np.zeros(1, bool), False)]
    results = Results([2, 1, 0, 1], {1: kept, 9: kept}, reported.append)
    assert reported == [{2: []}]
    assert list(results.missing()) == [(0, 0), (0, 1), (3, 0)]
    results.put(0, 1, "b")
    results.put(3, 0, "c")
    assert reported[1:] == [{3: ["c"]}]
    results.put(0, 0, "a")
    assert reported[2:] == [{0: ["a", "b"]}]
    assert results.all() == [["a", "b"], kept, [], ["c"]]
