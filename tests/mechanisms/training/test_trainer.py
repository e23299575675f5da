"""Stopped at any step and taken up again: the same weights, to the last bit."""

import numpy as np
import pytest

from mechanisms.errors import BadInput
from mechanisms.llm_auction.reward import ResponseReward
from mechanisms.llm_auction.training import trainer as trainers
from mechanisms.llm_auction.training.policy import LoRA, Policy
from mechanisms.llm_auction.training.supervised import learn
from mechanisms.llm_auction.training.targets import PoolTeacher
from mechanisms.llm_auction.training.trainer import Schedule, Trainer

SCHEDULE = Schedule(steps=7, batch=2, lr=3e-3)


class Killed(RuntimeError):
    pass


def trained(spec, pool, requests, folder, stop_at=None, monkeypatch=None):
    policy = Policy(spec, LoRA(2, 4.0), device="cpu")
    teacher = PoolTeacher(policy, pool, requests, 3.0, ResponseReward())

    def killing(row):
        if row["step"] == stop_at:
            raise Killed

    log = learn(policy, teacher.distilled, SCHEDULE, folder, (1, 2), killing)
    return policy, log


@pytest.fixture(scope="session")
def undisturbed(tiny_llm, pool, requests):
    from mechanisms.llm_auction.ad_llm import AdLLM
    from mechanisms.llm_auction.prompt import PromptStyle
    from tests.mechanisms.training.conftest import RULES

    spec = AdLLM(model=tiny_llm, style=PromptStyle("compact", "tally"), rules=RULES)
    policy, log = trained(spec, pool, requests, None)
    return policy.fingerprint, [row["loss"] for row in log]


@pytest.mark.parametrize("stop_at", [0, 1, 2, 5, 6])
def test_resumed_is_undisturbed(spec, pool, requests, tmp_path, monkeypatch, stop_at, undisturbed):
    monkeypatch.setattr(trainers, "EVERY", 2)
    with pytest.raises(Killed):
        trained(spec, pool, requests, tmp_path / "work", stop_at)
    policy, log = trained(spec, pool, requests, tmp_path / "work")
    assert (policy.fingerprint, [row["loss"] for row in log]) == undisturbed
    assert [row["step"] for row in log] == list(range(7))


def test_killed_while_the_state_is_being_exchanged(
    spec, pool, requests, tmp_path, monkeypatch, undisturbed
):
    monkeypatch.setattr(trainers, "EVERY", 2)
    real, calls = trainers.os.rename, []

    def rename(old, new):
        calls.append(old)
        if len(calls) == 3:  # the second state stands ready, the first is already moved away
            raise Killed
        real(old, new)

    monkeypatch.setattr(trainers.os, "rename", rename)
    with pytest.raises(Killed):
        trained(spec, pool, requests, tmp_path / "work")
    monkeypatch.setattr(trainers.os, "rename", real)
    policy, _ = trained(spec, pool, requests, tmp_path / "work")
    assert policy.fingerprint == undisturbed[0]


def test_learning_lowers_the_loss(spec, pool, requests):
    policy = Policy(spec, None, device="cpu")
    teacher = PoolTeacher(policy, pool, requests, 3.0, ResponseReward())
    log = learn(policy, teacher.distilled, Schedule(30, 4, 1e-2), None, (0, 2))
    losses = [row["loss_per_token"] for row in log]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_rates_rise_and_fall():
    schedule = Schedule(steps=100, lr=1.0, warm_up=0.1)
    rates = [schedule.rate(k) for k in range(100)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert max(rates) == pytest.approx(1, rel=0.03)
    assert np.argmax(rates) in (9, 10)
    assert rates[-1] < 0.001
    assert {Schedule(steps=9, lr=0.5, flat=True).rate(k) for k in range(9)} == {0.5}


def test_a_state_of_other_training_is_refused(spec, pool, requests, tmp_path):
    trained(spec, pool, requests, tmp_path / "work")
    other = Trainer(Policy(spec, LoRA(2, 4.0), device="cpu"), Schedule(steps=9), tmp_path / "work")
    with pytest.raises(BadInput, match="another schedule"):
        other.run(lambda k: {})
