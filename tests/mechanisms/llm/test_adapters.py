"""LoRA adapters merged by our own few lines: against peft, and against folders that do not fit."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mechanisms.errors import BadInput
from mechanisms.llm import adapters, transformers_engine
from mechanisms.llm.engines import make_engine
from mechanisms.llm.transformers_engine import TransformersEngine
from tests.tiny_adapter import random_adapter

PROMPTS = ("How do I sleep better?", "Which tea is good, and why?")
REPLIES = ["Drink warm tea.", "You could try a soft bed, which many people like."]


@pytest.fixture(scope="module")
def adapter(tiny_llm, tmp_path_factory):
    return random_adapter(tmp_path_factory.mktemp("adapter"), tiny_llm)


def adapted(tiny_llm, adapter, dtype="fp32"):
    return TransformersEngine(tiny_llm, dtype=dtype, device="cpu", adapter=adapter)


def scores(engine):
    replies = [[engine.encode(text) for text in REPLIES]] * len(PROMPTS)
    found = engine.score(PROMPTS, replies, temperature=0.8)
    return np.concatenate([row for rows in found for row in rows])


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_as_peft_merges(tiny_llm, tmp_path, rank_stabilised):
    peft = pytest.importorskip("peft")
    network = AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=torch.float32)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=8,
        target_modules=["q_proj", "o_proj", "up_proj"],
        use_rslora=rank_stabilised,
        init_lora_weights=False,  # else the product is 0
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        wrapped = peft.get_peft_model(network, config)
    wrapped.save_pretrained(tmp_path)
    ours = AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in ours.named_parameters()}
    adapters.merge(ours, tmp_path)
    changed = {n for n, w in ours.named_parameters() if not torch.equal(w, before[n])}
    assert len(changed) == 6  # three modules in each of two layers
    merged = wrapped.merge_and_unload()
    for (name, weight), theirs in zip(ours.named_parameters(), merged.parameters(), strict=True):
        torch.testing.assert_close(weight, theirs, rtol=1e-5, atol=1e-6, msg=name)


def test_the_engine_serves_what_is_merged(tiny_llm, adapter, engine):
    served, plain = scores(adapted(tiny_llm, adapter)), scores(engine)
    assert np.abs(served - plain).max() > 0.1
    again = adapted(tiny_llm, adapter)
    np.testing.assert_array_equal(scores(again), served)
    drawn = again.generate(PROMPTS, 3, max_new_tokens=12, temperature=0.8, seed=1)
    tokens = [[sample.tokens.tolist() for sample in row] for row in drawn]
    rescored = again.score(PROMPTS, tokens, temperature=0.8)
    for row, found in zip(drawn, rescored, strict=True):
        for sample, log_probs in zip(row, found, strict=True):
            np.testing.assert_allclose(log_probs, sample.log_probs, atol=1e-4)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_adapter_of_zeros_changes_nothing(tiny_llm, tmp_path, dtype):
    """Nor does loading the weights as they are stored, and rounding them later."""
    nothing = random_adapter(tmp_path, tiny_llm, size=0.0)
    plain = TransformersEngine(tiny_llm, dtype=dtype, device="cpu")
    np.testing.assert_array_equal(scores(adapted(tiny_llm, nothing, dtype)), scores(plain))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_adapters_can_be_exchanged(tiny_llm, tmp_path, adapter, dtype):
    other = random_adapter(tmp_path / "other", tiny_llm, seed=1)
    opened = {each: scores(adapted(tiny_llm, each, dtype)) for each in (adapter, other)}
    engine = adapted(tiny_llm, adapter, dtype)
    for each in (other, adapter, other):
        engine.load_adapter(each)
        assert engine.adapter == adapters.identity(each)
        np.testing.assert_array_equal(scores(engine), opened[each])
    plain = TransformersEngine(tiny_llm, dtype=dtype, device="cpu")
    with pytest.raises(BadInput, match="is of other modules than the one"):
        plain.load_adapter(adapter)


def test_an_adapter_that_is_refused_leaves_the_served_one(tiny_llm, tmp_path, adapter):
    engine = adapted(tiny_llm, adapter)
    served = scores(engine)
    bad = random_adapter(tmp_path / "bad", tiny_llm, seed=1)
    config = json.loads((bad / "adapter_config.json").read_text())
    (bad / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(BadInput, match="use_dora"):
        engine.load_adapter(bad)
    np.testing.assert_array_equal(scores(engine), served)


def test_a_bid_symbol_moves_its_input_and_no_other(tiny_llm, tmp_path, monkeypatch):
    """The addition reaches what is read, and leaves the output head alone."""
    monkeypatch.setattr(transformers_engine, "SYMBOLS", "#$%&*+/;<>~")
    folder = random_adapter(tmp_path, tiny_llm, size=0.0)
    levels = torch.randn(11, 32, generator=torch.Generator().manual_seed(1))
    save_file({"bid_embedding": levels}, folder / "bid_embedding.safetensors")
    plain = TransformersEngine(tiny_llm, dtype="fp32", device="cpu")
    served = adapted(tiny_llm, folder)
    np.testing.assert_array_equal(scores(served), scores(plain))  # no symbol is read
    embed = served.network.get_input_embeddings()
    ids = torch.tensor([served.encode("#~;a")])
    assert ids.shape == (1, 4)
    moved = embed(ids) - plain.network.get_input_embeddings()(ids)
    torch.testing.assert_close(moved[0], torch.cat([levels[[0, 10, 7]], torch.zeros(1, 32)]))
    torch.testing.assert_close(served.network.lm_head.weight, plain.network.lm_head.weight)
    read = [
        (e.score(["bid # or ~"], [[e.encode("tea")]], temperature=1.0)) for e in (served, plain)
    ]
    assert np.abs(read[0][0][0] - read[1][0][0]).max() > 0.01


def test_bid_embeddings_that_do_not_fit(tiny_llm, tmp_path, monkeypatch):
    folder = random_adapter(tmp_path, tiny_llm)
    save_file({"bid_embedding": torch.ones(11, 32)}, folder / "bid_embedding.safetensors")
    with pytest.raises(BadInput, match=r"embeds bid symbols that model .* has no token for"):
        adapted(tiny_llm, folder)
    monkeypatch.setattr(transformers_engine, "SYMBOLS", "#$%&*+/;<>~")
    save_file({"bid_embedding": torch.ones(11, 30)}, folder / "bid_embedding.safetensors")
    with pytest.raises(BadInput, match=r"bid_embedding has shape \(11, 30\), this LLM takes"):
        adapted(tiny_llm, folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "has use_dora True, which cannot be merged; train it with False"),
        ({"bias": "all"}, "has bias 'all', which cannot be merged; train it with 'none'"),
        ({"peft_type": "IA3"}, "has peft_type 'IA3', which cannot be merged"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save"),
        ({"r": 0}, "names no rank r >= 1"),
        ({"lora_alpha": "much"}, "names no rank r >= 1 and lora_alpha"),
    ],
)
def test_settings_that_cannot_be_merged(tiny_llm, tmp_path, config, message):
    folder = random_adapter(tmp_path, tiny_llm, **config)
    with pytest.raises(BadInput, match=message) as caught:
        adapted(tiny_llm, folder)
    assert "\n" not in str(caught.value)


def test_folders_that_hold_no_adapter_of_this_llm(tiny_llm, tmp_path, adapter):
    with pytest.raises(BadInput, match=r"adapter_config.json cannot be read \(No such file"):
        adapted(tiny_llm, tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"adapter_model.safetensors cannot be read"):
        adapted(tiny_llm, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(b"no tensors")
    with pytest.raises(BadInput, match=r"safetensors is damaged"):
        adapted(tiny_llm, tmp_path)
    good = load_file(adapter / "adapter_model.safetensors")
    name = min(good)
    for wrong, message in (
        ({name: good[name]}, "does not fit the LLM at model.layers.0"),
        (good | {name: good[name][:, :5].contiguous()}, "does not fit the LLM at model.layers.0"),
        ({n.replace("layers", "blocks"): t for n, t in good.items()}, "does not fit the LLM at"),
        (good | {max(good): good[max(good)][:, :2].contiguous()}, "does not fit the LLM at"),
        (good | {"lm_head.weight": torch.ones(2)}, "holds lm_head.weight, which is no LoRA weight"),
    ):
        save_file(wrong, file)
        with pytest.raises(BadInput, match=message):
            adapted(tiny_llm, tmp_path)


def test_damaged_bid_embeddings(tiny_llm, tmp_path):
    folder = random_adapter(tmp_path, tiny_llm)
    (folder / "bid_embedding.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BadInput, match=r"bid_embedding\.safetensors is damaged"):
        adapted(tiny_llm, folder)


def test_a_merge_that_is_refused_changes_nothing(tiny_llm, tmp_path, adapter):
    """The last module does not fit; and a head that shares its weights with the embeddings."""
    network = AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    (tmp_path / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    good = load_file(adapter / "adapter_model.safetensors")
    last = max(good).rpartition(".lora_")[0] + ".lora_A.weight"
    save_file(good | {last: good[last][:, :5].contiguous()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(BadInput, match=r"does not fit the LLM at model\.layers\.1"):
        adapters.merge(network, tmp_path)
    network.lm_head.weight = network.model.embed_tokens.weight
    before["lm_head.weight"] = before["model.embed_tokens.weight"]
    head = "base_model.model.lm_head.lora_"
    out, into = network.lm_head.weight.shape
    halves = {f"{head}A.weight": torch.ones(4, into), f"{head}B.weight": torch.ones(out, 4)}
    save_file(good | halves, tmp_path / "adapter_model.safetensors")
    with pytest.raises(BadInput, match=r"lm_head, whose weights are also model\.embed_tokens"):
        adapters.merge(network, tmp_path)
    for name, weight in network.named_parameters(remove_duplicate=False):
        assert torch.equal(weight, before[name]), name


def test_identity(tiny_llm, tmp_path, adapter):
    same = random_adapter(tmp_path / "same", tiny_llm)
    assert adapters.identity(same) == adapters.identity(adapter)
    other = random_adapter(tmp_path / "other", tiny_llm, seed=1)
    scaled = random_adapter(tmp_path / "scaled", tiny_llm, lora_alpha=9)
    assert len({adapters.identity(each) for each in (adapter, other, scaled)}) == 3


def test_engines(tiny_llm, adapter):
    made = make_engine(model=tiny_llm, dtype="fp32", adapter=adapter)
    assert made.adapter == adapters.identity(adapter)
    with pytest.raises(BadInput, match="engine openai cannot load adapter"):
        make_engine("openai", model=tiny_llm, server="http://127.0.0.1:9", adapter=adapter)
