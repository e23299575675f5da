"""The User-LLM: what it is asked, and what clicks and satisfaction its answers become."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from agents.judge import REFUSALS, JudgeSettings, JudgingUsers, cases_of, json_prompt
from mechanisms.errors import BadInput
from mechanisms.mentions import render
from mechanisms.policies import Rules
from mechanisms.recording import Design, load_pool, record, save_pool
from tests.agents.scripted import SCORE, TEXTS, Scripted, answer, asked, features, request
from tests.tiny_llm import ADS, Copy


def test_json_answers_become_rates():
    def say(prompt, k):
        return answer(prompt, ["Ad-1"] if k < 3 else ["Ad-1", "Ad-2"], satisfaction=1 + k)

    judge = JudgingUsers(Scripted(say), JudgeSettings(samples=5))
    found = judge([request()], features(TEXTS))
    np.testing.assert_allclose(found.ctr, [[[1, 0.4, 0], [0, 0, 0], [0, 0, 0]]])
    np.testing.assert_allclose(found.quality, [[0.5, 0.5, 0.5]])
    assert found.provenance["refused"] == dict.fromkeys(REFUSALS, 0)
    assert found.provenance["answers"] == 15
    np.testing.assert_array_equal(
        judge.click_probabilities([request()], features(TEXTS)), found.ctr
    )
    json.dumps(found.provenance)


def test_clicks_alone_ask_about_replies_with_ads():
    engine = Scripted(answer)
    engine.say = lambda prompt, _: answer(prompt)
    JudgingUsers(engine).click_probabilities([request()], features(TEXTS))
    assert len(engine.prompts) == 2


def test_what_the_llm_reads():
    """Profile, query, the reply as the user sees it, and its ads in the order of the reply."""
    (case, *_) = cases_of([request()], features(TEXTS))
    assert case.shown == (1, 0)
    message = json_prompt(case, "c0de")
    lines = message.split("\n")
    question, reader, reply, ads = (json.loads(line.partition(": ")[2]) for line in lines[:4])
    assert (question, reader, reply) == ("How do I sleep?", "A user.", TEXTS[0])
    assert [ad["id"] for ad in ads] == ["Ad-2", "Ad-1"]
    assert [ad["title"] for ad in ads] == ["Tea Pot", "CloudRest Mattress"]
    assert asked(message) == ("c0de", ["Ad-2", "Ad-1"])


def test_refusals_are_counted_and_few_are_borne():
    def say(prompt, k):
        return "Yes!" if "Oak" in prompt and k == 0 else answer(prompt, ["Ad-3"], 5)

    judge = JudgingUsers(Scripted(say), JudgeSettings(samples=4))  # 1 of 12, less than a tenth
    found = judge([request()], features(TEXTS))
    assert found.provenance["refused"] == dict.fromkeys(REFUSALS, 0) | {"not-json": 1}
    assert found.provenance["replies_without_answer"] == 0
    np.testing.assert_allclose(found.ctr[0, 2], [0, 0, 1])  # of the answers that were read


def test_the_share_of_refusals_is_of_all_that_was_asked():
    """In small batches, as in a live market: a few refusals early on do not stop it."""
    one = features(TEXTS[:1])

    def judge_of(every):
        numbers = itertools.count()
        return JudgingUsers(Scripted(lambda p, _: "?" if next(numbers) % every == 0 else answer(p)))

    seldom, often = judge_of(11), judge_of(4)
    for _ in range(300):  # of the first three answers one is refused
        seldom([request()], one)
    with pytest.raises(BadInput, match=r"\d+ of \d+ answers .* not the JSON"):
        for _ in range(33):
            often([request()], one)


@pytest.mark.parametrize("tolerance", [0.1, 0.5])
def test_an_llm_that_cannot_write_json_is_refused(tolerance):
    judge = JudgingUsers(
        Scripted(lambda *_: "Yes!"), JudgeSettings(samples=12, tolerance=tolerance)
    )
    with pytest.raises(BadInput, match=r"36 of 36 .* \(not-json 36\); choose mode 'score'"):
        judge([request()], features(TEXTS))


def test_who_does_not_answer_has_not_clicked():
    def say(prompt, _):
        return "?" if "Oak" in prompt else answer(prompt, ["Ad-1", "Ad-2"], 5)

    judge = JudgingUsers(Scripted(say), JudgeSettings(tolerance=0.5))
    found = judge([request()], features(TEXTS))
    np.testing.assert_allclose(found.ctr, [[[1, 1, 0], [0, 0, 0], [0, 0, 0]]])
    np.testing.assert_allclose(found.quality, [[1, 1, 0.5]])
    assert found.provenance["replies_without_answer"] == 1


def test_what_is_judged_beside_a_reply_does_not_matter():
    """Neither to what stands for an answer that is missing, nor to how long an answer may be."""

    def say(prompt, _):
        padded = " " * 200 * ("Tea" in prompt)  # more than its form has room for
        return "?" if "Oak" in prompt else padded + answer(prompt, ["Ad-2"], 5)

    long = Copy("Ad-" + "9" * 300, "Bench")
    texts = [*TEXTS, f"Rest on {render(long)}."]
    setting = JudgeSettings(tolerance=1)
    ads = (*ADS, long)
    asked_by = request(ads=ads)
    beside = JudgingUsers(Scripted(say), setting)([asked_by], features(texts, ads))
    for j, text in enumerate(texts):
        alone = JudgingUsers(Scripted(say), setting)([asked_by], features([text], ads))
        np.testing.assert_array_equal(alone.ctr[0, 0], beside.ctr[0, j])
        assert alone.quality[0, 0] == beside.quality[0, j]


def test_the_same_reply_is_judged_once_and_the_same():
    rng = np.random.default_rng(0)
    engine = Scripted(lambda prompt, _: answer(prompt, ["Ad-2"] * rng.integers(2)))
    found = JudgingUsers(engine, JudgeSettings(samples=1))([request()] * 1, features(TEXTS * 3))
    assert len(engine.prompts) == 3
    np.testing.assert_array_equal(found.ctr[0, :3], found.ctr[0, 3:6])


def test_scores_are_calibrated_by_asking_about_nothing():
    """An LLM that says yes to everything alike: no ad is better than another, the level is ours."""
    for bias in (-3.0, 0.0, 4.0):
        judge = JudgingUsers(Scripted(yes=lambda _, z=bias: z), replace(SCORE, base_click=0.07))
        found = judge([request()], features(TEXTS))
        np.testing.assert_allclose(found.ctr, np.where(features(TEXTS).exposure, 0.07, 0))
        np.testing.assert_allclose(found.quality, 0.5)


def test_scores_by_the_formula():
    odds = {"Tea Pot. ": 1.0, "CloudRest Mattress. ": -2.0, "Oak Bed Frame. ": 0.5}

    def yes(prompt):
        last = prompt.split("\n")[-2]
        return 0.3 + sum(z for title, z in odds.items() if last.startswith(f'Ad in it: "{title}'))

    engine = Scripted(yes=yes)
    found = JudgingUsers(engine, SCORE)([request()], features(TEXTS))
    logit = np.log(found.ctr[0, [0, 0, 2], [1, 0, 2]] / (1 - found.ctr[0, [0, 0, 2], [1, 0, 2]]))
    np.testing.assert_allclose(logit, np.log(0.1 / 0.9) + np.array([1.0, -2.0, 0.5]))
    assert found.provenance["answer_mass"]["ads"] == pytest.approx(0.5)
    assert len(engine.prompts) == 3 + 1 + 3 + 1  # ads, replies, and nothing for each
    again = JudgingUsers(Scripted(yes=yes), SCORE).click_probabilities([request()], features(TEXTS))
    np.testing.assert_array_equal(again, found.ctr)


def test_nothing_shown_is_nothing_clicked():
    found = JudgingUsers(Scripted(yes=lambda _: 1.0), SCORE)([request()], features(["Rest."]))
    assert not found.ctr.any()
    assert found.quality.shape == (1, 1)


@pytest.fixture(scope="module")
def recorded(engine):
    requests = [request(), request("Which tea is best?", "A student."), request("Shoes?")]
    design = Design(6, rules=Rules(max_tokens=24))
    users = JudgingUsers(engine, SCORE)
    return record(requests, engine, users, design), requests, users


def test_a_recording_may_be_judged_by_an_llm(recorded, engine, tmp_path):
    pool, requests, users = recorded
    assert ((pool.ctr > 0) == pool.exposure).all()
    assert 0 < pool.exposure.mean() < 1
    assert (pool.ctr < 1).all()
    assert np.ptp(pool.quality) > 0
    again = load_pool(save_pool(pool, tmp_path / "pool"))
    assert again.content_hash == pool.content_hash
    assert again.manifest["users"]["kind"] == "user-llm"
    same = record(requests, engine, users, Design(6, rules=Rules(max_tokens=24)))
    assert same.content_hash == pool.content_hash


def test_a_judgement_depends_on_request_and_reply_alone(recorded):
    """Which replies are judged beside it does not matter, up to the rounding of a batch."""
    pool, requests, users = recorded
    b = int(pool.exposure.sum((1, 2)).argmax())
    texts = pool.replies["text"].to_list()[6 * b : 6 * b + 6]
    alone = users([requests[b]], features(texts))
    np.testing.assert_allclose(alone.ctr[0], pool.ctr[b], rtol=1e-4)
    np.testing.assert_allclose(alone.quality[0], pool.quality[b], rtol=1e-4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mode": "yaml"}, "mode is 'yaml'; give one of 'json', 'score'"),
        ({"samples": 0}, "samples is 0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1 << 32}, "below 2"),
        ({"base_click": 1.0}, "base_click is 1.0"),
        ({"tolerance": -0.1}, "tolerance is -0.1"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(BadInput, match=message):
        JudgeSettings(**setting)


def test_settings_are_a_key():
    key = json.dumps(SCORE.identity, sort_keys=True)
    assert key == json.dumps(JudgeSettings("score").identity, sort_keys=True)
    assert key != json.dumps(replace(SCORE, base_click=0.2).identity, sort_keys=True)
