"""Answers of the User-LLM are read to the letter or refused, with the reason."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.judge import REFUSALS, Answer, Refused, read_answer

quick = settings(max_examples=60, deadline=None)
GOOD = '{"code": "c0de", "clicks": {"Ad-1": 1, "Ad-2": 0}, "satisfaction": 4}'


def read(text):
    return read_answer(text, ["Ad-1", "Ad-2"], "c0de")


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"\n {GOOD}\n",
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}```",
        GOOD.replace(" ", "\n"),
        '{"satisfaction": 4, "clicks": {"Ad-2": 0, "Ad-1": 1}, "code": "c0de"}',
    ],
)
def test_good_answers(text):
    assert read(text) == Answer((1, 0), 4)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not-json"),
        ("Yes, I would click on Ad-1.", "not-json"),
        (f"Sure! {GOOD}", "not-json"),
        (f"{GOOD} I hope that helps.", "not-json"),
        (f"{GOOD}{GOOD}", "not-json"),
        (GOOD[:-1], "not-json"),
        (GOOD.replace('"', "'"), "not-json"),
        (f"[{GOOD}]", "not-json"),
        ("1", "not-json"),
        ("null", "not-json"),
        ("[" * 100_000, "not-json"),
        ('{"code": ' + "9" * 5000 + "}", "not-json"),
        ("{}", "wrong-keys"),
        ('{"Ad-1": 1, "Ad-2": 0}', "wrong-keys"),
        (GOOD.replace("code", "Code"), "wrong-keys"),
        (GOOD[:-1] + ', "why": "it is nice"}', "wrong-keys"),
        (GOOD[:-1] + ', "code": "c0de"}', "wrong-keys"),
        (GOOD.replace('"Ad-1": 1', '"Ad-1": 1, "Ad-1": 0'), "wrong-keys"),
        (GOOD.replace("c0de", "00000000"), "wrong-code"),
        (GOOD.replace('"c0de"', "null"), "wrong-code"),
        (GOOD.replace("Ad-2", "Ad-3"), "wrong-clicks"),
        (GOOD.replace(', "Ad-2": 0', ""), "wrong-clicks"),
        (GOOD.replace('"Ad-2": 0', '"Ad-2": 0, "Ad-3": 0'), "wrong-clicks"),
        (GOOD.replace("1,", "2,"), "wrong-clicks"),
        (GOOD.replace("1,", "0.5,"), "wrong-clicks"),
        (GOOD.replace("1,", "true,"), "wrong-clicks"),
        (GOOD.replace("1,", "NaN,"), "wrong-clicks"),
        (GOOD.replace("1,", '"1",'), "wrong-clicks"),
        (re.sub(r"\{\"Ad.*?\}", "[1, 0]", GOOD), "wrong-clicks"),
        (GOOD.replace("4", "0"), "wrong-satisfaction"),
        (GOOD.replace("4", "6"), "wrong-satisfaction"),
        (GOOD.replace("4", "4.5"), "wrong-satisfaction"),
        (GOOD.replace("4", '"4"'), "wrong-satisfaction"),
        (GOOD.replace("4", "true"), "wrong-satisfaction"),
    ],
)
def test_refused_answers(text, reason):
    with pytest.raises(Refused) as caught:
        read(text)
    assert caught.value.reason == reason
    assert reason in REFUSALS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 6) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["code", "clicks", "satisfaction", "Ad-1", "Ad-2"]), inner
        )
    ),
    max_leaves=6,
)


@quick
@given(st.text(max_size=20) | json_values.map(json.dumps))
def test_anything_is_read_or_refused(text):
    try:
        found = read(text)
    except Refused as why:
        assert why.reason in REFUSALS
    else:
        assert json.loads(text)["code"] == "c0de"
        assert set(found.clicks) <= {0, 1}
