"""Replies of which every word is known: where they end, what they show, how native it is.

Engines recite them, and the guide writes its mentions into them.
"""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mechanisms.insertion import Draft, Inserted, phrase_mention
from mechanisms.llm.base import END, Sample
from mechanisms.mentions import MENTION, parse, render
from mechanisms.policies import NOTHING, PHRASES, Rules
from mechanisms.recording import Design, describe, record
from mechanisms.recording.design import Written
from mechanisms.recording.measure import measure
from mechanisms.recording.writing import Drafted, close, read_reply
from tests.mechanisms.small_recording import GUIDED, RULES, USERS, requests
from tests.tiny_llm import ADS, Copy


class Speaking:
    """An engine that says the same thing every time, at ten nats a token."""

    model = "speaking"

    def __init__(self, engine, spoken):
        self.encode, self.decode, self.spoken = engine.encode, engine.decode, spoken
        self.end_token = engine.end_token

    def generate(self, prompts, n, **_):
        samples = []
        for k in range(n):
            tokens = np.array(self.spoken[k % len(self.spoken)])
            x = np.full(len(tokens), -10.0)
            samples.append(Sample(tokens, x, np.zeros(len(tokens), dtype=bool), False))
        return [samples for _ in prompts]

    def score(self, prompts, replies, *, temperature):
        return [[np.full(len(reply), -10.0) for reply in row] for row in replies]


class Reciting(Speaking):
    """Says the same thing every time, apart from what a guide writes into it, and stops."""

    def generate(self, prompts, n, *, max_new_tokens, guide, **_):
        return [[self.write(guide, p, k) for k in range(n)] for p in range(len(prompts))]

    def write(self, guide, p, k):
        tokens, forced, ended = [], [], True
        for token in self.spoken[0]:
            tokens.append(token)
            forced.append(False)
            order = guide.step(p, k, tokens)
            if order == END:
                ended = False
                break
            tokens += order
            forced += [True] * len(order)
        if ended:
            tokens.append(self.end_token)
            forced.append(False)
        x = np.full(len(tokens), -10.0)
        return Sample(np.array(tokens), x, np.array(forced), ended)


class Scoring(Reciting):
    """Likes every token less than the one before it."""

    @staticmethod
    def cost(places):
        return -1.0 - places**2 / 100.0

    def write(self, guide, p, k):
        sample = super().write(guide, p, k)
        return replace(sample, log_probs=self.cost(np.arange(len(sample.tokens))))

    def score(self, prompts, replies, *, temperature):
        return [[self.cost(np.arange(len(reply))) for reply in row] for row in replies]


def shown(words, ads=ADS[1:2], engine=None, **rules):
    """Texts of a reference reply and of one that mentions the only ad as soon as it can."""
    reciting = Reciting(engine, [engine.encode(words)])
    design = Design(2, temperature=0.8, rules=Rules(**rules))
    return record(requests(ads, ["Tea?"]), reciting, USERS, design)


def test_a_loop_is_cut_off(engine):
    said = (
        "Sleep well. Drink tea and read, and drink tea and read, and drink tea and read, and so on."
    )
    plain, mention = shown(said, engine=engine).replies["text"]
    assert plain == "Sleep well."
    assert re.fullmatch(r"Sleep well\. [^.]*@Tea Pot@\[Ad-2\]\.", mention)
    whole, _ = shown(said, engine=engine, loop=10**6).replies["text"]
    assert whole == said
    # without a sentence to go back to, at a clause
    plain, _ = shown(said.removeprefix("Sleep well. "), engine=engine).replies["text"]
    assert plain.startswith("Drink tea and read")
    assert plain.endswith("read.")
    assert len(plain) < 60


@pytest.mark.parametrize(
    ("rest", "most"), [("", 96), (" so", 96), ("\n", 96), (" well, we sleep and", 3)]
)
def test_a_reply_that_ends_behind_a_mention_ends_with_it(engine, rest, most):
    """By the LLM or by the limit: no "You could try Tea Pot, we" at the end, the mention stays."""
    most += len(engine.encode("Sleep well."))
    pool = shown("Sleep well." + rest, engine=engine, max_tokens=most, room=1)
    assert pool.exposure[0, :, 0].tolist() == [False, True]
    assert np.array(pool.replies["events"].to_list())[:, 0].tolist() == [NOTHING, 0]
    mention = pool.replies["text"][1].removeprefix("Sleep well. ")
    assert re.fullmatch(r"[A-Z][a-z ]+ @Tea Pot@\[Ad-2\]\.", mention)
    assert pool.replies["complete"][1]


def test_a_sentence_that_a_mention_opens_is_shown_whole(engine):
    pool = shown("Sleep well. which is good. Read on. So.", engine=engine)
    mention = pool.replies["text"][1].removeprefix("Sleep well. ")
    pattern = r"[A-Z][a-z ]+ @Tea Pot@\[Ad-2\], which is good. Read on."
    assert re.fullmatch(pattern, mention)
    assert pool.replies["text"][0] == "Sleep well. which is good. Read on."


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ("Sleep well.", "Sleep well."),
        ("You could try @Tea Pot@[Ad-2],", "You could try @Tea Pot@[Ad-2]."),
        ("Try @Tea Pot@[Ad-2] (a pot),", "Try @Tea Pot@[Ad-2] (a pot)."),
        ("Drink tea, read a book, and then", "Drink tea, read a book."),
        ("First: drink tea; then", "First: drink tea."),
        ("Drink tea and", "Drink tea and"),
        ("", ""),
    ],
)
def test_close(text, closed):
    assert close(text) == closed


def test_marks_in_a_title_do_not_move_the_other_ads(engine):
    """Sentences are counted without titles: nobody pays for a rival's full stops."""
    loud = (replace(ADS[0], title="Sleep! Rest. Why? Well. Buy."), *ADS[1:])
    for ads in (ADS, loud):
        bed, tea, oak = map(render, ads)
        text = f"Hello there. Try {bed} (the bed), or {tea}. It is good! So is {oak}."
        reply = Written(text, "guided", -1.0, -1.0, {}, 30)
        measured = measure(requests(ads, ["Tea?"]), [[reply]])
        assert measured.place.tolist() == [[[1, 1, 3]]]
        assert measured.sentences.tolist() == [[4]]
        assert measured.complete.all()
        assert not measured.malformed.any()
    # nor do they when replies are written: the same decisions, at the same places
    words = "Sleep well. Then read a book. Drink some tea. It is good. And so to bed, my friend."
    design = replace(GUIDED, rules=RULES)
    ours, theirs = (
        record(requests(ads, ["Tea?"]), Reciting(engine, [engine.encode(words)]), USERS, design)
        for ads in (ADS, loud)
    )
    for name in ("events", "place", "sentences", "complete"):
        assert ours.replies[name].to_list() == theirs.replies[name].to_list(), name
    assert (ours.exposure.sum(2) == 2).any()
    np.testing.assert_allclose(theirs.ctr[:, :, 1:], ours.ctr[:, :, 1:])


@pytest.mark.parametrize("generation", ["guided", "context"])
def test_forged_mentions_of_the_llm_are_counted_and_taken_apart(engine, generation):
    """Two attempts: an ad that there is, and one that there is not; nobody is shown by them."""
    words = "Buy @CloudRest Mattress@[Ad-1] now. Or @Rival@[Ad-9], or write to me@home now. So."
    spoken = [engine.encode(words)]
    rules = Rules(sentences=4, loop=10**6)
    design = Design(8, generation, temperature=0.8, rules=rules)
    reading = Reciting if generation == "guided" else Speaking
    asked = requests((Copy("Ad-1", "Cloud Bed"), Copy("Ad-2", "Tea Pot")), ["Tea?"])
    pool = record(asked, reading(engine, spoken), USERS, design)
    assert (pool.malformed == 2).all()
    for text in pool.replies["text"]:
        assert "Buy CloudRest Mattress[Ad-1] now." in text
        assert parse(text, asked[0].ads).malformed == 0
        bare = MENTION.sub("", text)
        assert "@" not in bare
        assert "Or Rival[Ad-9], or write to mehome now." in bare
    if generation == "context":
        assert not pool.exposure.any()
    honest = [engine.encode(words.replace("@", ""))]
    other = record(asked, reading(engine, honest), USERS, design)
    assert (other.malformed == 0).all()
    assert other.replies["text"].to_list() == pool.replies["text"].to_list()
    assert (other.quality > pool.quality).all()
    assert describe(pool)["malformed_rate"] == 1


def test_nativeness_is_of_the_sentence(engine):
    """From where it begins, also where the title stands within it, to where it ends."""
    words = "Sleep well. You should try the Tea Pot now! Then we rest."
    tokens = engine.encode(words)
    said = [engine.decode(tokens[: t + 1]) for t in range(len(tokens))]
    ends = [t + 1 for t, text in enumerate(said) if text[-1] in ".!" and text[-2].isalpha()]
    assert len(ends) == 3
    asked = requests(queries=["Tea?"])
    for generation in ("context", "guided"):
        rates = {"mention_rate": 1e-9, "guided_rate": 1e-9, "inline_rate": 0.05}
        design = Design(2, generation, rules=Rules(sentences=9, loop=10**6), **rates)
        pool = record(asked, Scoring(engine, [tokens]), USERS, design)
        own = generation == "context"
        assert pool.exposure[0].tolist() == [[False, own, False]] * 2
        if own:
            # the second sentence, and no token of the others
            expected = np.mean(Scoring.cost(np.arange(len(tokens)))[ends[0] : ends[1]])
            for row in pool.replies["nativeness"]:
                assert row.to_list() == [0.0, pytest.approx(expected), 0.0]


def test_nativeness_of_a_phrase_is_of_its_sentence(engine):
    """The phrase begins it: nothing before counts."""
    tokens = engine.encode("Sleep well. It is good. Then we rest.")
    draft = Draft(np.random.default_rng(0))
    guide = SimpleNamespace(drafts={0: draft})
    title = engine.encode(phrase_mention(PHRASES[1], ADS[1], ADS[1].title))
    ends = [len(engine.encode(text)) for text in ("Sleep well.", "Sleep well. It is good.")]
    written = [*tokens[: ends[0]], *title, *tokens[ends[0] :]]
    draft.mentions.append(Inserted(1, 1, ends[0], len(title)))
    forced = np.zeros(len(written), dtype=bool)
    forced[ends[0] : ends[0] + len(title)] = True
    costs = Scoring.cost(np.arange(len(written)))
    sample = Sample(np.array(written), costs, forced, ended=False)
    reply = read_reply(engine, Drafted("reference", "guided", sample, guide, 0), ADS, costs, 3)
    assert reply.text == "Sleep well. You could try @Tea Pot@[Ad-2], It is good. Then we rest."
    expected = costs[ends[0] : ends[1] + len(title)].mean()
    assert reply.nativeness == {1: pytest.approx(expected)}
