"""A copy of a model that is at temperature 1 what the model is at temperature T: for servers.

Servers temper what they sample, but score prompts at temperature 1. Logits are linear in the weight
of the final norm, so dividing that by T divides them all, in any server and for any architecture
that has such a norm. All other files are links.

    python -m mechanisms.llm.tempered smollm2-135m 0.7 smollm2-135m-0.7
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mechanisms.errors import BadInput
from mechanisms.llm.weights import locate

KEY = "admarket_temperature"
NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm")
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def served_temperature(model: str) -> float:
    """The temperature that a directory says its model is at; 1 for any other model."""
    path = Path(locate(model)) / "config.json"
    if not path.is_file():
        return 1.0
    return float(json.loads(path.read_text(encoding="utf-8")).get(KEY, 1.0))


def tempered_copy(model: str, temperature: float, folder: str | Path) -> Path:
    """Make the copy of `model` in the new directory `folder`.

    Args:
        model: a packaged name or a directory.
        temperature: T.
        folder: must not exist.

    Raises:
        BadInput: `model` cannot be tempered this way, or one of the arguments is wrong.
    """
    source, folder = Path(locate(model)), Path(folder)
    if not source.is_dir():
        raise BadInput(f"model {model} is not a directory; download it, and give its directory")
    if temperature <= 0:
        raise BadInput(f"temperature {temperature} is not above 0")
    if folder.exists():
        raise BadInput(f"{folder} exists already; give the name of a new directory")
    if served_temperature(model) != 1:
        raise BadInput(f"model {model} is tempered already; give the model that it was made from")
    changed, shard = _divided(source, temperature)
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix not in OTHER_WEIGHTS:
            (folder / file.name).symlink_to(file.resolve())
    _write_shard(source / shard, changed, folder / shard)
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | {KEY: temperature}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def _divided(source: Path, temperature: float) -> tuple[dict[str, Any], str]:
    """The final norm's tensors for temperature T, and the file that holds them."""
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in NORMS]
    depth = min((name.count(".") for name in names), default=0)
    finals = [name for name in names if name.count(".") == depth]
    biased = getattr(model.get_output_embeddings(), "bias", None) is not None
    capped = getattr(config.get_text_config(), "final_logit_softcapping", None)
    if len(finals) != 1 or biased or capped:
        raise BadInput(
            f"the logits of {source} are not linear in one final norm; sample at temperature 1"
        )
    norm = model.get_submodule(finals[0]).to_empty(device="cpu")
    shard = _shard(source, f"{finals[0]}.weight")
    with safe_open(source / shard, "pt") as tensors:
        old = {name: tensors.get_tensor(f"{finals[0]}.{name}") for name in norm.state_dict()}
    probe = torch.linspace(-3, 3, 2 * old["weight"].numel()).view(2, -1)
    norm.float()
    # Some architectures keep the norm's weight less 1.
    for shift in (0.0, 1.0):
        new = {name: (value.float() + shift) / temperature - shift for name, value in old.items()}
        norm.load_state_dict({name: value.float() for name, value in old.items()})
        before = norm(probe)
        norm.load_state_dict(new)
        if torch.allclose(norm(probe) * temperature, before, rtol=1e-4, atol=1e-5):
            changed = {f"{finals[0]}.{name}": new[name].to(old[name].dtype) for name in new}
            return changed, shard
    raise BadInput(f"the final norm of {source} is of an unknown kind; sample at temperature 1")


def _shard(source: Path, tensor: str) -> str:
    """The file that holds `tensor`."""
    index = source / "model.safetensors.index.json"
    if index.exists():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if tensor in shards:
            return shards[tensor]
    elif (source / "model.safetensors").exists():
        return "model.safetensors"
    raise BadInput(f"{source} has no safetensors file with {tensor}; convert it to safetensors")


def _write_shard(source: Path, changed: dict[str, Any], target: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(source, "pt") as tensors:
        metadata = tensors.metadata()
        held = {name: changed.get(name, tensors.get_tensor(name)) for name in tensors.keys()}  # noqa: SIM118
    target.unlink()
    save_file(held, target, metadata)
    target.chmod(source.stat().st_mode & 0o666)  # it would be readable to ourselves only


def main() -> None:
    """`python -m mechanisms.llm.tempered MODEL TEMPERATURE DIR`."""
    try:
        model, temperature, folder = sys.argv[1:]
        made = tempered_copy(model, float(temperature), folder)
    except BadInput as error:
        sys.exit(f"error: {error}")
    except ValueError:
        sys.exit("usage: python -m mechanisms.llm.tempered MODEL TEMPERATURE DIR")
    print(f"serve {made} under this name, and set the model to {made}")


if __name__ == "__main__":
    main()
