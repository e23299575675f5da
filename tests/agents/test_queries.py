"""Questions written by the User-LLM: what is taken of its words, and that they make a catalog."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.queries import CHARACTERS, REFUSALS, clean, generated_queries, objection, query_prompt
from market.catalog import Catalog, UserProfile
from mechanisms.errors import BadInput
from mechanisms.mentions import parse
from tests.agents.scripted import Scripted
from tests.mechanisms.hostile import ATTACKS
from tests.tiny_llm import ADS

MARA = UserProfile("User-1", "A 34-year-old nurse who works night shifts and reads crime novels.")
TOBIAS = UserProfile("User-2", "A physics student.")


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Which bed is good for my back?", "Which bed is good for my back?"),
        ('"Which bed is good?"', "Which bed is good?"),
        ("Question: Which bed is good?", "Which bed is good?"),
        ("**Question:** Which bed is good?", "Which bed is good?"),
        ("1. Which bed is good?\n2. Which sheets?", "Which bed is good?"),
        ('A: "Which bed is good?', "Which bed is good?"),
        ('She might ask: "Which bed is good?" and go.', "Which bed is good?"),
        ('Is a "king size" bed too big?', 'Is a "king size" bed too big?'),
        ("- Which bed\n  is good for me?", "is good for me?"),
        ("Which bed is good? Which is bad?", "Which bed is good?"),
        ("Sure!\n\nWhich  bed\tis good?", "Which bed is good?"),
        ("I wake up stiff. Could it be my bed?", "I wake up stiff. Could it be my bed?"),
        ("Is @Tea Pot@[Ad-2] any good?", "Is Tea PotAd-2 any good?"),
        ("Buy a bed.", "Buy a bed."),
        ("\n\n'Buy a bed.'\nNow", "Buy a bed."),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_clean(text, question):
    assert clean(text) == question


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Which bed is good?", None),
        ("", "no-question"),
        ("Which bed is good", "no-question"),
        ("Which bed?", "too-short"),
        ("?", "too-short"),
        ("Which bed " + "very " * 30 + "good?", "too-long"),
        ("What would this person like to know?", "about-the-task"),
        ("Which bed would a chatbot choose?", "about-the-task"),
        ("What is a 34-year-old nurse who works nights?", "copies-profile"),
        ("What does a nurse who works night shifts and reads in bed need?", "copies-profile"),
        ("Which bed suits a nurse who works nights?", None),
    ],
)
def test_objections(text, why):
    assert objection(text, MARA.description) == why


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40) | st.sampled_from([f"Is it {a}?" for a in ATTACKS.values()]))
def test_what_is_taken_is_one_plain_line(text):
    found = clean(text)
    assert "\n" not in found
    assert not set("@[]") & set(found)
    assert parse(found, ADS) == parse("", ADS)
    if objection(found, "") is None:
        assert found.endswith("?")
        assert len(found) <= CHARACTERS
        assert clean(found) == found


def test_the_profile_cannot_break_the_prompt():
    calm = query_prompt("Calm.", "beds")
    for attack in ATTACKS.values():
        message = query_prompt(attack, "beds")
        assert message.count("\n") == calm.count("\n")
        assert message.split("\n")[2:] == calm.split("\n")[2:]
        json.loads(message.split("\n")[0].removeprefix("Person: "))


def writer(prompt, k):
    """Writes nonsense first, then a question that names its topic, then the same again."""
    topic = prompt.partition("about ")[2].partition(".")[0]
    return ["Buy it.", f"Which {topic} should I get?", f"Which {topic} should I get?", "Why?"][
        k % 4
    ]


def test_questions_of_everyone_about_everything():
    found = generated_queries(Scripted(writer), [MARA, TOBIAS], ["beds", "tea pots"], 1, seed=0)
    assert [query.text for query in found.queries] == [
        "Which beds should I get?",
        "Which tea pots should I get?",
    ]
    assert [query.id for query in found.queries] == [
        "Asked-User-1-beds-1",
        "Asked-User-1-tea-pots-1",
    ]
    assert [query.user_id for query in found.queries] == ["User-1", "User-1"]
    # Tobias would ask what Mara has asked already.
    assert found.missing == 2
    assert found.tries == 16
    assert found.refused == dict.fromkeys(REFUSALS, 0) | {
        "no-question": 4,
        "too-short": 4,
        "repeated": 6,
    }
    json.dumps(found.provenance)


def test_off_topic_questions_are_refused():
    class Encoder:
        model = "topics"

        def embed(self, texts):
            return np.array([[float("bed" in text), float("bed" not in text)] for text in texts])

    engine = Scripted(lambda *_: "What is the answer to that?")
    found = generated_queries(engine, [MARA], ["beds"], 1, seed=0, encoder=Encoder())
    assert found.refused["off-topic"] == 4
    assert not found.queries
    assert generated_queries(engine, [MARA], [], 1, seed=0, encoder=Encoder()).queries


def test_they_are_a_catalogs_queries():
    found = generated_queries(Scripted(writer), [MARA], ["coffee", "running shoes"], 1, seed=0)
    bundled = Catalog.bundled()
    catalog = Catalog(bundled.ads, bundled.users, found.queries)
    assert len(catalog.content_hash) == 64
    assert [query.category for query in catalog.select(["coffee"]).queries] == ["coffee"]


def test_by_a_real_engine(engine):
    """Deterministic by seed; what one user asks does not depend on who else does."""

    def ask(users, seed=3):
        return generated_queries(engine, users, ["beds", "tea"], 2, seed, tries=8, temperature=1.0)

    both = ask([MARA, TOBIAS])
    assert both == ask([MARA, TOBIAS])
    assert both.tries == 64
    assert len(both.queries) + both.missing == 8
    assert sum(both.refused.values()) > 0
    # The tiny LLM writes word salad: few questions, and none of them from nowhere.
    assert both.queries
    assert all(query.text.endswith("?") for query in both.queries)
    mara = tuple(query for query in both.queries if query.user_id == MARA.id)
    assert ask([MARA]).queries == mara
    assert ask([MARA, TOBIAS], seed=4).queries != both.queries


def test_bad_input():
    engine = Scripted(writer)
    for users, topics, count, message in (
        ([], ["beds"], 1, "no users"),
        ([MARA, MARA], ["beds"], 1, "user ids hold 'User-1' twice"),
        ([MARA], ["beds", "beds"], 1, "categories hold 'beds' twice"),
        ([MARA], ["beds"], 0, "per_user is 0"),
    ):
        with pytest.raises(BadInput, match=message):
            generated_queries(engine, users, topics, count, seed=0)
