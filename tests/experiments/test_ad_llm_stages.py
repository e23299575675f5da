"""What training has left in its folder is read in order, or refused in one line."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.ad_llm.curves import Curve
from experiments.ad_llm.stages import correlations, read_encodings, read_stages, times, totals
from experiments.training import encodings
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.llm_auction.ad_llm import AdLLM
from tests.experiments.small_auction import candidates, requests

LEVELS = np.array([1.0, 25.0, 50.0, 75.0, 100.0])


def stage(folder, name, kind, start=None, oracle=None, epochs=None):
    (folder / name).mkdir(parents=True)
    told = {
        "stage": kind,
        "start": start and str(folder / start / "policy"),
        "seconds": 120.0,
        "phases": {"sample": 20.0, "train": 100.0},
        "training": {"irpo": {"oracle": oracle}},
    }
    told |= {"epochs": epochs} if epochs else {}
    (folder / name / "stage.json").write_text(json.dumps(told))
    (folder / name / "policy").mkdir()
    AdLLM(temperature=0.5 + 0.1 * len(name)).write_card(folder / name / "policy")


def test_stages_are_read_in_the_order_of_training(tmp_path):
    epoch = {"epoch": 1, "correlation_before": 0.4, "correlation": 0.6}
    stage(tmp_path, "a-irpo", "irpo", "distill", oracle=False, epochs=[epoch])
    stage(tmp_path, "b-irpo", "irpo", "distill", oracle=True)
    stage(tmp_path, "distill", "distill", "warm")
    stage(tmp_path, "warm", "warm-start")
    click_model = tmp_path / "a-irpo" / "work" / "epoch-1" / "pctr"
    click_model.mkdir(parents=True)
    found = read_stages(tmp_path)
    assert [each.pctr for each in found] == [None, None, click_model, None]
    assert [each.label for each in found] == [
        "warm", "distill", "a-irpo (pCTR)", "b-irpo (Oracle)",
    ]  # fmt: skip
    assert [each.warm_start for each in found] == [True, False, False, False]
    assert found[1].start == "warm"
    assert found[0].ad_llm == AdLLM(temperature=0.5 + 0.1 * 4)
    assert times(found)["seconds"].sum() == 480
    assert totals(found) == {
        "warm": 120, "distill": 240, "a-irpo (pCTR)": 360, "b-irpo (Oracle)": 360,
    }  # fmt: skip
    assert correlations(found).rows() == [("a-irpo (pCTR)", 1, 0.4, 0.6)]
    assert read_encodings(tmp_path).height == 0


def test_encodings_are_read_as_they_are_written(tmp_path, monkeypatch):
    """Training and the LLM are stood in for; the file is by `experiments.training.encodings`."""
    pool = candidates(4)
    rising = Curve(np.array(LEVELS), np.tile([0.1, 0.2, 0.3, 0.4, 0.6], (4, 1)), "share")

    def train(scenario, stage, seed, out, start, say):
        out.mkdir(parents=True)
        log = [{"loss_per_token": 2.0 - k / 10} for k in range(10)]
        (out / "stage.json").write_text(json.dumps({"seconds": 3.0, "log": log}))
        return out / "policy"

    users = SimpleNamespace(norms=None)
    stands_in = {
        "train": train,
        "training_requests": lambda _: SimpleNamespace(
            train=requests(4), held_out=requests(4), num_ads=3
        ),
        "training_pool": lambda *_, **__: pool,
        "users_by": lambda _: users,
        "shares": lambda *_: rising,
        "Engines": lambda *_: None,
        "Writer": SimpleNamespace(of=lambda *_: None),
        "AdLLM": SimpleNamespace(load=lambda _: None),
    }
    for name, each in stands_in.items():
        monkeypatch.setattr(encodings, name, each)
    ways = (("tally", False), ("digits", True))
    scenario = Scenario.from_yaml("default")
    file = encodings.compare_encodings(scenario, 10, 0, tmp_path, ways=ways)
    assert file == tmp_path / "encodings.json"
    found = read_encodings(tmp_path)
    assert found.select("bids", "ordered", "steps").rows() == [
        ("tally", False, 10), ("digits", True, 10),
    ]  # fmt: skip
    row = found.row(0, named=True)
    assert row["loss"] == pytest.approx(1.1)
    assert (row["lowest"], row["highest"]) == pytest.approx((0.1, 0.6))
    assert (row["spearman"], row["gain"]) == pytest.approx((1, 0.5))


@pytest.mark.parametrize("content", ["no json", '{"stage": "irpo"}', '{"stage": "cook"}', "[]"])
def test_refuses_folders_that_are_no_training(tmp_path, content):
    with pytest.raises(BadInput, match="holds no stage of training"):
        read_stages(tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "stage.json").write_text(content)
    with pytest.raises(BadInput, match="train that stage again") as caught:
        read_stages(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "encodings.json").write_text(content)
    if content != "[]":
        with pytest.raises(BadInput, match="mend it or take it away"):
            read_encodings(tmp_path)
