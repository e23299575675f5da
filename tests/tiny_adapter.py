"""LoRA adapters with random weights for the tiny LLM, in peft's layout, written without peft."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from mechanisms.llm_auction.ad_llm import AdLLM

MODULES = ("q_proj", "v_proj", "down_proj")


def random_adapter(folder: Path, model: str, *, size=0.05, rank=4, seed=0, **config) -> Path:
    """Save an adapter of `model` whose low-rank halves are drawn with spread `size`."""
    folder.mkdir(parents=True, exist_ok=True)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in network.named_modules():
        if name.endswith(MODULES):
            out, into = module.weight.shape
            key = f"base_model.model.{name}.lora_"
            tensors[f"{key}A.weight"] = torch.randn(rank, into, generator=draw) * size**0.5
            tensors[f"{key}B.weight"] = torch.randn(out, rank, generator=draw) * size**0.5
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    said |= {"target_modules": list(MODULES), "base_model_name_or_path": model, **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


def random_ad_llm(folder: Path, model: str, **options) -> AdLLM:
    """An Ad-LLM with such an adapter and its card, in `folder`."""
    said = {
        name: options.pop(name) for name in ("style", "rules", "temperature") if name in options
    }
    ad_llm = AdLLM(model=model, adapter=random_adapter(folder, model, **options), **said)
    ad_llm.write_card(folder)
    return ad_llm
