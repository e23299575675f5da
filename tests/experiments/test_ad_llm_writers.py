"""Writers and readers on the tiny LLM: replies that are kept, and exact choice shares."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from agents.users import BehaviouralUsers, Norms
from experiments.ad_llm import evaluation
from experiments.ad_llm.curves import Sweep, shares
from experiments.ad_llm.table import table
from experiments.ad_llm.trials import Trials
from experiments.ad_llm.writers import Engines, Readers, Writer
from mechanisms.errors import BadInput
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.llm_auction.prompt import PromptStyle
from mechanisms.llm_auction.reward import ResponseReward
from mechanisms.mentions import render
from mechanisms.policies import Rules
from tests.experiments.small_auction import requests
from tests.tiny_adapter import random_ad_llm
from tests.tiny_llm import HashEncoder, engine, tiny_llm

__all__ = ["engine", "tiny_llm"]
RULES = Rules(sentences=2, mentions=1, max_tokens=12)
COMPACT = PromptStyle("compact")
NORMS = Norms(-3.0, 1.0, -3.0, 1.0)


@pytest.fixture
def readers(engine, tmp_path):
    users = BehaviouralUsers(HashEncoder(), norms=NORMS)
    return Readers(users, lambda: engine, 0.5, 3, ("tiny",), tmp_path / "kept")


def writer(engine, *identity, style=COMPACT, opened=None):
    def opens():
        if opened is not None:
            opened.append(1)
        return engine

    return Writer("tiny", AdLLM("tiny", None, style, RULES, 0.8), opens, identity)


def test_replies_are_written_once_and_kept(engine, readers):
    asked = Trials.draw(requests(2), 2, 0)
    opened = []
    one = writer(engine, "weights", opened=opened)
    first = readers.replies(one, asked.asked, asked.seed)
    again = readers.replies(one, asked.asked, asked.seed)
    assert len(opened) == 1
    assert again.content_hash == first.content_hash
    assert again.replies.equals(first.replies)
    assert first.shape == (4, 1, 3)
    read = [len(engine.chat_tokens(one.prompt(request))) for request in asked.asked]
    assert first.replies["read"].to_list() == read
    assert (first.replies["written"] <= RULES.max_tokens + 60).all()
    # other weights, other bids, another seed: written anew; a writer that still changes: always
    others = [
        (writer(engine, "other", opened=opened), asked, asked.seed),
        (one, Trials.draw(requests(2), 2, 1), asked.seed),
        (one, asked, asked.seed + 1),
        (writer(engine, opened=opened), asked, asked.seed),
        (writer(engine, opened=opened), asked, asked.seed),
    ]
    for k, (each, trials, seed) in enumerate(others, start=2):
        readers.replies(each, trials.asked, seed)
        assert len(opened) == k


def test_the_same_prompt_and_stream_give_the_same_reply(engine, readers):
    """One candidate ad is always the highest bid: its prompt does not depend on the bid."""
    alone = [replace(request, ads=request.ads[:1], advertisers=[0]) for request in requests(2)]
    sweep = Sweep.of(alone, 0, levels=(1, 50, 100))
    ranked = writer(engine, style=PromptStyle("compact", "ranks"))
    texts = readers.replies(ranked, sweep.asked, sweep.seed, sweep.keys.tolist()).replies["text"]
    assert texts.to_list() == [texts[0]] * 3 + [texts[3]] * 3
    assert texts[0] != texts[3]


def test_choice_shares_are_the_llm_s_own(engine):
    sweep = Sweep.of(requests(3), 0, levels=(1, 100))
    before = [["Drink tea. Try "], [None], ["Sleep. "]]
    mine = writer(engine)
    found = shares(mine, sweep, before)
    assert found.answers.shape == (2, 2)
    for row, r in zip(found.answers, (0, 2), strict=True):
        for answer, bids in zip(row, sweep.bids[r, 0], strict=True):
            request = replace(sweep.requests[r], bids=tuple(bids))
            replies = [[engine.encode(before[r][0] + render(ad)) for ad in request.ads]]
            scored = engine.score([mine.prompt(request)], replies, temperature=0.8)[0]
            likely = np.exp([each.sum() for each in scored])
            assert answer == pytest.approx(likely[sweep.moved[r]] / likely.sum(), rel=1e-4)
    with pytest.raises(BadInput, match="at least two requests"):
        shares(mine, sweep, [[None], [None], ["Sleep. "]])


def test_choice_shares_are_kept(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("ADMARKET_CACHE", str(tmp_path))
    sweep = Sweep.of(requests(2), 0, levels=(1, 100))
    opened = []
    for _ in range(2):
        found = shares(writer(engine, "weights", opened=opened), sweep, [["Try "], ["Try "]])
        assert len(opened) == 1
    other = shares(writer(engine, "other", opened=opened), sweep, [["Try "], ["Try "]])
    np.testing.assert_array_equal(other.answers, found.answers)
    assert len(opened) == 2


def test_a_writer_that_shows_nothing(engine, readers):
    mine, asked = writer(engine), Trials.draw(requests(3), 1, 0)
    frames, _ = evaluation.evaluate([mine], readers, asked, ResponseReward())
    row = table(frames).row(0, named=True)
    assert row["revenue"] == row["compliant"] == 0
    found = evaluation.answers(mine, readers, Sweep.of(requests(3), 0, levels=(1, 100)))
    assert found.clicks.spearman() == (0, 0, 0)
    assert found.shares is None


def test_an_adapter_writes_and_the_reference_reads(tiny_llm, tmp_path):
    engines = Engines(tiny_llm, dtype="fp32")
    trained = random_ad_llm(tmp_path / "a", tiny_llm, size=0.3, rules=RULES)
    other = random_ad_llm(tmp_path / "b", tiny_llm, size=0.3, seed=1, rules=RULES)
    plain = replace(trained, adapter=None)
    assert engines.of(plain) is engines.reference()
    assert engines.of(trained) is engines.of(trained)
    assert engines.of(other) is not engines.of(trained)
    users = BehaviouralUsers(HashEncoder(), norms=NORMS)
    readers = replace(Readers.of(users, engines, 0.5, 3), folder=tmp_path / "kept")
    asked = Trials.draw(requests(2), 1, 0)
    written = [
        readers.replies(Writer.of("x", each, engines), asked.asked, 0).replies["text"].to_list()
        for each in (plain, trained, other)
    ]
    assert len({tuple(texts) for texts in written}) == 3
    assert Writer.of("x", plain, engines).identity != Writer.of("x", trained, engines).identity


def test_weights_that_are_written_again_are_opened_again(tiny_llm, tmp_path, monkeypatch):
    """In the same folder, by an adapter or a whole model; the same folder by two names is one."""
    engines = Engines(tiny_llm, dtype="fp32")
    trained = random_ad_llm(tmp_path / "a", tiny_llm, rules=RULES)
    first, told = engines.of(trained), Writer.of("x", trained, engines).identity
    assert engines.of(replace(trained, temperature=0.9)) is first
    again = random_ad_llm(tmp_path / "a", tiny_llm, seed=1, rules=RULES)
    assert again == trained
    assert Writer.of("x", again, engines).identity != told
    assert engines.of(again).adapter != first.adapter
    folder = tmp_path / "whole"
    shutil.copytree(tiny_llm, folder)
    AdLLM(str(folder), rules=RULES).write_card(folder)
    whole, engine = AdLLM.load(folder), engines.of(AdLLM.load(folder))
    told = Writer.of("x", whole, engines).identity
    monkeypatch.chdir(tmp_path)
    assert Writer.of("x", AdLLM.load("whole"), engines).identity == told
    assert engines.of(AdLLM.load("whole")) is engine
    os.utime(folder / "model.safetensors", (1, 1))
    assert Writer.of("x", whole, engines).identity != told
    assert engines.of(whole) is not engine


def test_users_need_norms(engine):
    with pytest.raises(BadInput, match="would judge every writer by its own replies"):
        Readers(BehaviouralUsers(HashEncoder()), lambda: engine, 0.5, 3)
