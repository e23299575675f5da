"""IRPO and the online stage on the tiny LLM: stopped anywhere, they end where they would have."""

from dataclasses import replace

import numpy as np
import pytest

from agents.users import BehaviouralUsers, Norms
from mechanisms.errors import BadInput
from mechanisms.llm.transformers_engine import TransformersEngine
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.llm_auction.impressions import examples_of
from mechanisms.llm_auction.pctr import Embeddings
from mechanisms.llm_auction.prompt import PromptStyle
from mechanisms.llm_auction.reward import ResponseReward
from mechanisms.llm_auction.training import sampling
from mechanisms.llm_auction.training import trainer as trainers
from mechanisms.llm_auction.training.irpo import IRPO, IRPOSettings
from mechanisms.llm_auction.training.online import Online, OnlineSettings
from mechanisms.llm_auction.training.policy import LoRA, Policy
from mechanisms.llm_auction.training.sampling import Sampler, with_bids
from mechanisms.llm_auction.training.streams import seeded
from mechanisms.llm_auction.training.supervised import learn
from mechanisms.llm_auction.training.targets import PoolTeacher
from mechanisms.llm_auction.training.trainer import Schedule
from tests.mechanisms.training.conftest import RULES
from tests.tiny_llm import HashEncoder

SETTINGS = IRPOSettings(
    epochs=2, deployed=24, requests=8, samples=4, margin=0.5, batch=2, lr=3e-3, pctr_epochs=2
)
ONLINE = OnlineSettings(iterations=2, requests=4, samples=3, batch=2, lr=3e-3)


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """So that a few requests are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "CHUNK", 3)
        yield


class Killed(RuntimeError):
    pass


@pytest.fixture(scope="module")
def start(tiny_llm, pool, requests, tmp_path_factory):
    """A warm start of all weights, long enough for a third of the replies to show an ad."""
    spec = AdLLM(model=tiny_llm, style=PromptStyle("compact", "tally"), rules=RULES)
    policy = Policy(spec, None, device="cpu")
    teacher = PoolTeacher(policy, pool, requests, 3.0, ResponseReward())
    learn(policy, teacher.demonstration, Schedule(180, 4, 1e-2), None, (0, 1))
    return policy.save(tmp_path_factory.mktemp("start") / "policy", {})


@pytest.fixture(scope="module")
def sampler(engine):
    users = BehaviouralUsers(HashEncoder(), norms=Norms(-3.0, 1.0, -3.0, 1.0))

    def writer_of(ad_llm):
        return TransformersEngine(ad_llm.model, "bf16", "cpu", adapter=ad_llm.adapter)

    return Sampler(engine, users, writer_of, 0.8)


@pytest.fixture(scope="module")
def logs(pool):
    return examples_of(pool, np.random.default_rng(0), rounds=2)


def irpo(start, sampler, requests, folder, logs=None, **changes):
    policy = Policy(start, LoRA(8, 16.0), device="cpu")
    settings = replace(SETTINGS, **changes)
    embeddings = None if settings.oracle else Embeddings(HashEncoder())
    trained = IRPO(
        policy, sampler, requests, ResponseReward(), embeddings, settings, folder, 3, logs
    )
    return policy, trained


@pytest.fixture(scope="module")
def undisturbed(start, sampler, requests, logs, tmp_path_factory):
    policy, training = irpo(start, sampler, requests, tmp_path_factory.mktemp("irpo"), logs)
    seen = training.run()
    return policy.fingerprint, policy, seen


def test_an_epoch_tells_what_it_saw(undisturbed, start):
    _, policy, seen = undisturbed
    assert [each["epoch"] for each in seen] == [1, 2]
    for each in seen:
        assert set(each["seconds"]) == {"deploy", "sample", "reference", "train"}
        assert each["pairs"] > 0
        assert each["first"]["winner"] == pytest.approx(0, abs=2)  # from where it started
    assert seen[0]["pctr_before"] is None  # nobody has clicked yet
    assert seen[1]["pctr_before"]["validation_loss"] > 0
    assert len(seen[0]["pctr"]) == SETTINGS.pctr_epochs
    assert policy.fingerprint != Policy(start, LoRA(8, 16.0), device="cpu").fingerprint


@pytest.mark.parametrize("kill", ["_write", "_sample", "_start", "_train", "_step"])
def test_killed_and_resumed(
    start, sampler, requests, logs, tmp_path, monkeypatch, undisturbed, kill
):
    monkeypatch.setattr(trainers, "EVERY", 1)
    owner = Sampler if kill == "_write" else IRPO
    real, calls = getattr(owner, kill), []

    def killing(self, *given):
        calls.append(given)
        if len(calls) == (3 if kill in ("_step", "_write") else 2):  # amid a phase, or an epoch on
            raise Killed
        return real(self, *given)

    monkeypatch.setattr(owner, kill, killing)
    with pytest.raises(Killed):
        irpo(start, sampler, requests, tmp_path, logs)[1].run()
    monkeypatch.setattr(owner, kill, real)
    policy, again = irpo(start, sampler, requests, tmp_path, logs)
    assert len(again.run()) == 2
    assert policy.fingerprint == undisturbed[0]


def test_oracle_needs_no_click_model(start, sampler, requests, tmp_path):
    _, training = irpo(start, sampler, requests, tmp_path, oracle=True, epochs=1)
    (seen,) = training.run()
    assert "pctr" not in seen
    assert "deploy" not in seen["seconds"]
    assert not (tmp_path / "epoch-1" / "pctr").exists()


def test_online_killed_and_resumed(start, sampler, requests, tmp_path, monkeypatch):
    def online(folder):
        policy = Policy(start, LoRA(8, 16.0), device="cpu")
        return policy, Online(policy, sampler, requests, ResponseReward(), ONLINE, folder, seed=2)

    policy, training = online(tmp_path / "whole")
    seen = training.run()
    assert [each["iteration"] for each in seen] == [1, 2]
    assert policy.fingerprint != Policy(start, LoRA(8, 16.0), device="cpu").fingerprint
    real = Online._train

    def killing(self, iteration, *given):
        if iteration == 1:
            raise Killed
        return real(self, iteration, *given)

    monkeypatch.setattr(Online, "_train", killing)
    with pytest.raises(Killed):
        online(tmp_path / "killed")[1].run()
    monkeypatch.setattr(Online, "_train", real)
    resumed, training = online(tmp_path / "killed")
    training.run()
    assert resumed.fingerprint == policy.fingerprint


def test_replies_to_other_requests_are_not_taken_for_these(start, sampler, requests, tmp_path):
    policy = Policy(start, LoRA(8, 16.0), device="cpu")
    sampler.sample(policy, with_bids(requests, seeded(1)), 2, 0, tmp_path)
    with pytest.raises(BadInput, match="other requests"):
        sampler.sample(policy, with_bids(requests, seeded(2)), 2, 0, tmp_path)


def test_fresh_bids_and_a_fresh_order_each_time(requests):
    one, two = with_bids(requests, seeded(1)), with_bids(requests, seeded(2))
    assert [r.bids for r in one] != [r.bids for r in two]
    assert [r.bids for r in one] == [r.bids for r in with_bids(requests, seeded(1))]
    for asked, request in zip(one, requests, strict=True):
        assert sorted(ad.id for ad in asked.ads) == [ad.id for ad in request.ads]
        assert all(1 <= bid <= 100 and bid == int(bid) for bid in asked.bids)
        owners = {ad.id: i for ad, i in zip(request.ads, request.advertisers, strict=True)}
        assert [owners[ad.id] for ad in asked.ads] == asked.advertisers
    bids = np.array([r.bids for i in range(200) for r in with_bids(requests, seeded(i))])
    assert abs(bids.mean() - 50.5) < 2
