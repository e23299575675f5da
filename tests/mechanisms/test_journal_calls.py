"""Which calls of an engine a journal takes for the same work, and what it shows their guides."""

from itertools import chain

import numpy as np
import pytest

from mechanisms.errors import BadInput
from mechanisms.llm.base import END, Sample
from mechanisms.llm.journal import Journaled
from mechanisms.llm.transformers_engine import TransformersEngine
from tests.mechanisms.interrupted import GUIDED, Counting, recorded
from tests.tiny_llm import ADS, Copy


@pytest.fixture(scope="module")
def engine(tiny_llm):
    return TransformersEngine(tiny_llm, dtype="fp32", device="cpu", batch_rows=16)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


def test_another_call_is_other_work(engine, path):
    def calls(**changed):
        counter = Counting(engine)
        options = {"max_new_tokens": 5, "temperature": 1.0, "seed": 1} | changed
        prompts, n = options.pop("prompts", ["Tea?", "Bed?"]), options.pop("n", 2)
        with Journaled(counter, path) as journaled:
            first = journaled.generate(prompts, n, **options)
        plain = engine.generate(prompts, n, **options)
        for a, b in zip(*map(chain.from_iterable, (first, plain)), strict=True):
            np.testing.assert_array_equal(a.tokens, b.tokens)
        return counter.batches

    assert calls() == 1
    assert calls() == calls(keys=[0, 1]) == calls(seed=np.int64(1), keys=np.arange(2)) == 0
    for other in (
        {"prompts": ["Tea?", "Bed!"]},
        {"n": 3},
        {"max_new_tokens": 6},
        {"temperature": 0.9},
        {"seed": 2},
        {"keys": [1, 0]},
        {"guide": Writes([])},
    ):
        assert calls(**other) == 1, other
        assert calls(**other) == 0, other


def test_another_engine_is_other_work(engine, tiny_llm, path):
    ask = {"max_new_tokens": 5, "temperature": 1.0, "seed": 1}
    with Journaled(engine, path) as journaled:
        journaled.generate(["Tea?"], 2, **ask)
    counter = Counting(TransformersEngine(tiny_llm, dtype="bf16", device="cpu", batch_rows=16))
    with Journaled(counter, path) as journaled:
        journaled.generate(["Tea?"], 2, **ask)
        assert journaled.dtype == "bf16"
        assert journaled.model == tiny_llm
        assert journaled.encode("Tea?") == engine.encode("Tea?")
    assert counter.batches == 1


def test_scores_of_other_replies_are_other_work(engine, path):
    counter = Counting(engine)
    with Journaled(counter, path) as journaled:
        for replies in ([[[5, 6], [7]]], [[np.array([5, 6]), np.array([7])]], [[[5, 6], [8]]]):
            expected = engine.score(["Tea?"], replies, temperature=0.8)
            scores = journaled.score(["Tea?"], replies, temperature=0.8)
            for x, y in zip(scores[0], expected[0], strict=True):
                np.testing.assert_array_equal(x, y)
    assert counter.batches == 2


class Writes:
    """A guide that inserts `words` after every third token, and ends a reply at its tenth."""

    def __init__(self, words):
        self.words, self.seen = words, []

    def step(self, prompt, sample, tokens):
        self.seen.append((prompt, sample, tuple(tokens)))
        if len(tokens) >= 10:
            return END
        return self.words if len(tokens) % 3 == 0 else ()


@pytest.mark.parametrize("words", [[9], [9, 8, 7, 6], [9] * 40])
def test_the_guide_is_shown_what_it_was_shown(engine, path, words):
    """Insertions of every length, also such as do not fit any more."""
    ask = {"max_new_tokens": 20, "temperature": 1.0, "seed": 1}
    first, second, third = Writes(words), Writes(words), Writes(words)
    with Journaled(engine, path) as journaled:
        journaled.generate(["Tea?", "My bed?"], 8, guide=first, **ask)
    with Journaled(engine, path) as journaled:
        journaled.generate(["Tea?", "My bed?"], 8, guide=second, **ask)
        assert sorted(second.seen) == sorted(first.seen)
        # a caller who has the results himself has shown them to his guide
        had = dict(enumerate(journaled.generate(["Tea?", "My bed?"], 8, **ask)))
        journaled.generate(["Tea?", "My bed?"], 8, guide=third, finished=had, **ask)
        assert not third.seen
    for other in ([9, 9], [], [10]):
        with (
            Journaled(engine, path) as journaled,
            pytest.raises(BadInput, match="other insertions than this"),
        ):
            journaled.generate(["Tea?", "My bed?"], 8, guide=Writes(other), **ask)


def test_calls_that_differ_in_their_guide_alone(engine, path):
    ask = {"max_new_tokens": 12, "temperature": 1.0, "seed": 1}
    for expected in (3, 0):
        counter = Counting(engine)
        with Journaled(counter, path) as journaled:
            for words in ([9], [], [9, 8]):
                ours = journaled.generate(["Tea?"], 4, guide=Writes(words), **ask)
                plain = engine.generate(["Tea?"], 4, guide=Writes(words), **ask)
                for x, y in zip(ours[0], plain[0], strict=True):
                    np.testing.assert_array_equal(x.tokens, y.tokens)
        assert counter.batches == expected


def test_what_the_server_calls_its_model_is_of_the_engine(engine, path):
    """Where it is given; what the engine finds out later comes too late."""
    ask = {"max_new_tokens": 5, "temperature": 1.0, "seed": 1}
    for name, expected in ((None, 1), ("adapter", 1), ("other", 1), ("adapter", 0), (None, 0)):
        counter = Counting(engine)
        counter.served_model = name
        with Journaled(counter, path) as journaled:
            counter.served_model = "found out"
            journaled.generate(["Tea?"], 2, **ask)
        assert counter.batches == expected


def test_other_ads_in_the_same_journal(engine, path):
    with Journaled(engine, path) as journaled:
        recorded(journaled)
    rivals = (Copy("Ad-1", "Iron Bed"), *ADS[1:])
    with Journaled(engine, path) as journaled, pytest.raises(BadInput) as caught:
        recorded(journaled, GUIDED, rivals)
    assert "\n" not in str(caught.value)


class Whole:
    """Does all or nothing and never reports."""

    model = "whole"

    def generate(self, prompts, n, *, finished, **_):
        self.asked = len(prompts) - len(finished)
        one = Sample(np.arange(3), np.full(3, -1.0), np.zeros(3, dtype=bool), False)
        return [[one] * n for _ in prompts]


def test_engines_that_do_not_report(path):
    ask = {"max_new_tokens": 3, "temperature": 1.0, "seed": 1}
    told = []
    for expected in (2, 0):
        engine = Whole()
        with Journaled(engine, path) as journaled:
            journaled.generate(["a", "b"], 2, done=told.append, **ask)
        assert engine.asked == expected
    assert [sorted(each) for each in told] == [[0, 1], [0, 1]]


def test_a_batch_that_is_finished_in_part_is_done_as_a_whole(engine, path):
    """The engine shows the guide such a batch again; the journal then must not."""
    ask = {"max_new_tokens": 20, "temperature": 1.0, "seed": 1}
    guides = Writes([9]), Writes([9])
    with Journaled(engine, path) as journaled:
        whole = journaled.generate(["Tea?", "My bed?"], 4, guide=guides[0], **ask)
        for results in journaled._known.values():
            del results[0]
        journaled._guided.clear()
        again = journaled.generate(["Tea?", "My bed?"], 4, guide=guides[1], **ask)
    assert sorted(guides[1].seen) == sorted(guides[0].seen)
    for x, y in zip(*map(chain.from_iterable, (whole, again)), strict=True):
        np.testing.assert_array_equal(x.log_probs, y.log_probs)
