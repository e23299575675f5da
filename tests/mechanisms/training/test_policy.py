"""The policy in training and the engine that serves it speak of the same LLM."""

import numpy as np
import pytest
import torch

from mechanisms.errors import BadInput
from mechanisms.llm.transformers_engine import TransformersEngine
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.llm_auction.prompt import PromptStyle
from mechanisms.llm_auction.training.packing import Pack
from mechanisms.llm_auction.training.policy import LoRA, Policy
from tests.mechanisms.training.conftest import stir
from tests.tiny_llm import ADS

BIDS = [10.0, 90.0, 50.0]
TEXTS = ("A soft bed helps you sleep well.", "Try @Tea Pot@[Ad-2], which is good!", "Tea.")


def packs_of(policy):
    prompts = [policy.prompt(q, "A nurse.", ADS, BIDS) for q in ("Which tea?", "A bed, please?")]
    return [Pack(prompt, [policy.reply(text) for text in TEXTS]) for prompt in prompts]


def test_log_probabilities_do_not_depend_on_company(policy):
    stir(policy)
    packs = packs_of(policy)
    together = torch.cat(policy.score(packs))
    alone = [policy.score([Pack(p.prompt, [reply])])[0] for p in packs for reply in p.replies]
    # bf16: products are rounded differently in batches of other shapes
    np.testing.assert_allclose(together, torch.cat(alone), rtol=0.02, atol=0.3)


@pytest.mark.parametrize("style", [PromptStyle("compact", "tally"), PromptStyle("full", "digits")])
def test_what_is_trained_is_what_is_served(spec, style, tmp_path):
    policy = Policy(AdLLM(spec.model, None, style, spec.rules), LoRA(2, 4.0), device="cpu")
    stir(policy)
    saved = policy.save(tmp_path / "policy", {"stages": []})
    assert AdLLM.load(tmp_path / "policy") == saved
    served = TransformersEngine(spec.model, dtype="bf16", device="cpu", adapter=saved.adapter)
    packs = packs_of(policy)
    message = style.message("Which tea?", "A nurse.", ADS, BIDS)
    scores = served.score([message], [packs[0].replies], temperature=spec.temperature)[0]
    trained = policy.score(packs[:1])[0]
    np.testing.assert_allclose([s.sum() for s in scores], trained, rtol=0.02, atol=0.5)
    untouched = TransformersEngine(spec.model, dtype="bf16", device="cpu")
    before = untouched.score([message], [packs[0].replies], temperature=spec.temperature)[0]
    assert abs(sum(s.sum() for s in before) - float(trained.sum())) > 2


def test_a_saved_policy_goes_on_where_it_was(policy, spec, tmp_path):
    stir(policy)
    saved = policy.save(tmp_path / "policy", {})
    again = Policy(saved, policy.lora, seed=5, device="cpu")
    for name, value in policy.trained.items():
        # kept in bf16
        np.testing.assert_allclose(again.trained[name].detach(), value.detach(), rtol=2**-8)
    assert again.save(tmp_path / "again", {}).adapter is not None
    twice = (tmp_path / "again" / "adapter_model.safetensors").read_bytes()
    assert twice == (tmp_path / "policy" / "adapter_model.safetensors").read_bytes()
    for other in (LoRA(3, 4.0), LoRA(2, 8.0), LoRA(2, 4.0, first_layer=1)):
        with pytest.raises(BadInput, match="another shape or alpha"):
            Policy(saved, other, device="cpu")


def test_full_fine_tuning_reaches_every_weight(spec, tmp_path):
    policy = Policy(spec, None, device="cpu")
    sums, lengths = policy.log_probs(packs_of(policy))
    (-(sums / lengths).sum()).backward()
    assert all(value.grad is not None for value in policy.trained.values())
    saved = policy.save(tmp_path / "whole", {})
    assert saved.adapter is None
    (tmp_path / "whole").rename(tmp_path / "moved")
    assert Policy(AdLLM.load(tmp_path / "moved"), None, device="cpu").fingerprint == (
        policy.fingerprint
    )


def test_layers_before_the_first_are_left_alone(spec):
    policy = Policy(spec, LoRA(2, 4.0, first_layer=1), device="cpu")
    assert {name.split(".layers.")[1][0] for name in policy.trained} == {"1"}
    with pytest.raises(BadInput, match=r"layers 0\.\.1"):
        Policy(spec, LoRA(2, 4.0, first_layer=2), device="cpu")


def test_symbols_of_bids_need_tokens_of_their_own(spec):
    with pytest.raises(BadInput, match="no token of its own"):
        Policy(AdLLM(spec.model, None, PromptStyle("compact", "embedding")), LoRA(2), device="cpu")
