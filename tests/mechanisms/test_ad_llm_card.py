"""Cards of Ad-LLMs: what is read back, what is refused at once, and what tells one from others."""

import json
import shutil
from dataclasses import asdict, replace

import pytest

from mechanisms.errors import BadInput
from mechanisms.llm_auction.ad_llm import CARD, AdLLM
from mechanisms.llm_auction.prompt import PromptStyle
from mechanisms.policies import Rules

TRAINED = AdLLM(
    style=PromptStyle("compact", "tally"),
    rules=Rules(sentences=2, mentions=1, max_tokens=20),
    temperature=0.5,
    training={"seed": 3},
)


@pytest.fixture
def folder(tmp_path):
    """Of an adapter, as far as a card looks at it."""
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    replace(TRAINED, adapter=tmp_path).write_card(tmp_path)
    return tmp_path


@pytest.fixture
def whole(tmp_path):
    """Of a whole model."""
    folder = tmp_path / "whole"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    replace(TRAINED, model=str(folder)).write_card(folder)
    return folder


def test_what_is_written_is_read_back(folder, whole):
    assert AdLLM.load(folder) == replace(TRAINED, adapter=folder)
    assert AdLLM.load(whole) == replace(TRAINED, model=str(whole))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("folder", "adapter_config.json"),
        ("folder", "adapter_model.safetensors"),
        ("whole", "config.json"),
        ("whole", "model.safetensors"),
    ],
)
def test_lost_files(request, kind, name):
    folder = request.getfixturevalue(kind)
    found = AdLLM.load(folder)
    (folder / name).unlink()
    with pytest.raises(BadInput, match=r"has lost its .*; train it again") as caught:
        AdLLM.load(folder)
    assert "\n" not in str(caught.value)
    if kind == "folder":
        with pytest.raises(BadInput, match=f"has lost its {name}"):
            _ = found.identity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": 0}, "temperature is 0"),
        ({"temperature": "0.7"}, "temperature is '0.7'"),
        ({"rules": asdict(Rules()) | {"sentences": "two"}}, "rules.sentences is 'two'"),
        ({"rules": asdict(Rules()) | {"max_tokens": 0}}, "rules.max_tokens is 0"),
        ({"rules": {"phrases": 2}}, "cannot be read"),
        ({"style": {"bids": "roman"}}, "bids 'roman'"),
        ({"style": {"ordered": "yes"}}, "ordered is 'yes'"),
        ({"adapter": "here"}, "adapter is 'here'"),
        ({"model": 5}, "model is 5"),
        ({"training": ["distill"]}, "cannot be read"),
    ],
)
def test_cards_that_say_what_cannot_be(folder, change, message):
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | change))
    with pytest.raises(BadInput, match=message) as caught:
        AdLLM.load(folder)
    assert str(folder / CARD) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_identity_is_of_card_and_weights(folder, whole, monkeypatch):
    for each, file in ((folder, "adapter_model.safetensors"), (whole, "model.safetensors")):
        before, weights = AdLLM.load(each).identity, AdLLM.load(each).weights
        monkeypatch.chdir(each.parent)
        assert AdLLM.load(each.name).identity == before
        assert replace(AdLLM.load(each), training={}).identity == before
        warmer = replace(AdLLM.load(each), temperature=0.6)
        assert warmer.identity != before
        assert warmer.weights == weights
        (each / file).write_bytes(b"trained again")
        assert AdLLM.load(each).identity != before
        assert AdLLM.load(each).weights != weights
    moved = shutil.move(folder / "whole", folder / "moved")
    assert AdLLM.load(moved).model == str(moved)
