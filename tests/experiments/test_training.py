"""`admarket train` on the tiny LLM: what is trained on what, what is refused, and going on."""

import json

import pytest

from experiments.training import data, stages
from experiments.training.stages import train
from market import environment
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.llm_auction.ad_llm import AdLLM
from tests.tiny_llm import HashEncoder

TRAINING = {
    "rank": 2, "alpha": 4.0, "first_layer": 0, "max_tokens": 24, "pool_tokens": 20,
    "pool_replies": 8, "held_out": 205,
    "warm_start": {"steps": 3, "batch": 2}, "distill": {"steps": 3, "batch": 2},
}  # fmt: skip


@pytest.fixture
def scenario(tiny_llm, tmp_path, monkeypatch):
    monkeypatch.setenv("ADMARKET_CACHE", str(tmp_path / "cache"))
    for module in (data, environment):
        monkeypatch.setattr(module, "TextEncoder", HashEncoder)
    return Scenario.from_dict(
        {
            "name": "tiny",
            "requests": {"queries": 30, "ads": 3},
            "replies": {"model": tiny_llm, "dtype": "fp32"},
            "population": [{"objective": "utility", "count": 6}],
            "training": TRAINING,
        }
    )


def test_what_is_trained_on_is_not_asked_elsewhere(scenario):
    split = data.training_requests(scenario)
    market, _ = environment.make_requests(scenario)
    trained = {request.query for request in split.train}
    held = {request.query for request in split.held_out}
    assert not trained & held
    assert {request.query for request in market} <= held
    assert len(held) == 30 + TRAINING["held_out"]
    assert len(trained) == len(split.train) == 247 - len(held)
    assert split.num_ads == 86
    again = data.training_requests(scenario)
    assert [r.query for r in again.train] == [r.query for r in split.train]


@pytest.mark.parametrize("kind", ["user-llm", "content"])
def test_users_by_whom_training_is_not_judged(scenario, kind):
    with pytest.raises(BadInput, match=f"users is {kind}, but training"):
        data.training_requests(scenario.with_(users=kind))


def test_stages_go_on_from_each_other_and_are_done_once(scenario, tmp_path):
    said = []
    first = train(scenario, "warm-start", 1, tmp_path / "warm", None, said.append)
    assert AdLLM.load(first).temperature == 0.5
    second = train(scenario, "distill", 1, tmp_path / "distill", first, said.append)
    told = json.loads((tmp_path / "distill" / "stage.json").read_text())
    assert [row["step"] for row in told["log"]] == [0, 1, 2]
    names = [stage["stage"] for stage in AdLLM.load(second).training["stages"]]
    assert names == ["warm-start", "distill"]
    before = (second / "adapter_model.safetensors").read_bytes()
    assert train(scenario, "distill", 1, tmp_path / "distill", first, said.append) == second
    assert "done before" in said[-1]
    elsewhere = train(scenario, "distill", 1, tmp_path / "again", first)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (elsewhere / name).read_bytes() == (second / name).read_bytes()
    assert (first / "adapter_model.safetensors").read_bytes() != before


def test_a_stopped_stage_goes_on(scenario, tmp_path, monkeypatch):
    whole = train(scenario, "distill", 1, tmp_path / "whole")
    monkeypatch.setattr("mechanisms.llm_auction.training.trainer.EVERY", 1)
    real = stages.Policy.save
    monkeypatch.setattr(stages.Policy, "save", lambda *_: 1 / 0)  # all steps done, nothing written
    with pytest.raises(ZeroDivisionError):
        train(scenario, "distill", 1, tmp_path / "stopped")
    monkeypatch.setattr(stages.Policy, "save", real)
    resumed = train(scenario, "distill", 1, tmp_path / "stopped")
    name = "adapter_model.safetensors"
    assert (resumed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("polish", {}, "there are warm-start, distill"),
        ("irpo", {}, "give --start"),
        ("online", {}, "give --start"),
        ("distill", {"held_out": 300}, "hold fewer out"),
    ],
)
def test_bad_input(scenario, tmp_path, stage, changes, message):
    given = scenario.with_(training={**TRAINING, **changes})
    with pytest.raises(BadInput, match=message) as error:
        train(given, stage, 0, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "request.json").exists()


def test_a_folder_of_another_run_and_a_start_of_other_settings(scenario, tmp_path):
    first = train(scenario, "warm-start", 0, tmp_path / "warm")
    with pytest.raises(BadInput, match="another run of training"):
        train(scenario, "warm-start", 1, tmp_path / "warm")
    for change in ({"bids": "digits"}, {"max_tokens": 30}):
        other = scenario.with_(training={**TRAINING, **change})
        with pytest.raises(BadInput, match="the scenario has"):
            train(other, "distill", 0, tmp_path / "other", first)


def test_a_start_is_trained_at_the_temperature_of_the_scenario(scenario, tmp_path):
    """Whatever it was served at."""
    first = train(scenario, "warm-start", 0, tmp_path / "warm")
    hotter = scenario.with_(training={**TRAINING, "temperature": 0.9})
    second = train(hotter, "distill", 0, tmp_path / "distill", first)
    assert AdLLM.load(second).temperature == 0.9
