"""LoRA adapters without peft: read from peft's folder layout and merged into an LLM's weights.

Low-rank adaptation (Hu et al., arXiv 2106.09685) adds to a weight matrix the product of two thin
ones, `W + s·B·A` with s = α/r (or α/√r, "rank-stabilised"). Once it is added, the LLM costs what it
did before; merged from the weights as stored, in fp32, it is rounded to the engine's dtype once.

An adapter may hold an addition to the *input* embeddings of the symbols that stand for bid levels
(`mechanisms.llm_auction.prompt.SYMBOLS`), a tensor `bid_embedding` (levels, width). It is added by
a hook, so that an output head which shares the embedding matrix stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mechanisms.errors import BadInput

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EMBEDDING = "bid_embedding"
"""Name of the tensor, in any safetensors file of the folder."""
_PREFIX = "base_model.model."  # peft's wrapping, in front of the name of a module
# Settings under which `W + s·B·A` is not what peft would serve, and the values that they may have.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "alpha_pattern": ({}, None),
    "rank_pattern": ({}, None),
    "fan_in_fan_out": (False, None),
}


def merge(network: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Add the LoRA adapter in `folder` to the weights of `network`, in place.

    Returns:
        By module, the weights that were there before.

    Raises:
        BadInput: no adapter there, one of a kind that is not a sum of low-rank products, or one
            that was trained on another LLM.
    """
    scale, found = _scale(folder), _checked(network, folder)
    before = {}  # all is checked: from here on nothing fails halfway
    for module, (weight, down, up) in found.items():
        before[module] = weight.data
        change = scale * (up.float() @ down.float())
        weight.data = (weight.data.float() + change.to(weight.device)).to(weight.dtype)
    return before


def check(network: nn.Module, folder: Path) -> None:
    """Refuse what `merge` would refuse, and change nothing.

    Raises:
        BadInput: as `merge`.
    """
    _scale(folder)
    _checked(network, folder)


def _checked(network: nn.Module, folder: Path) -> dict[str, tuple[nn.Parameter, Tensor, Tensor]]:
    """By module in order of names, what `_halves` gives."""
    tensors = _tensors(folder / WEIGHTS)
    adapted = _modules(tensors)
    foreign = set(tensors) - {f"{name}.lora_{half}.weight" for name in adapted for half in "AB"}
    foreign -= {EMBEDDING}
    if foreign:
        raise BadInput(
            f"adapter {folder} holds {min(foreign)}, which is no LoRA weight; train it with LoRA "
            "alone"
        )
    return {
        name.removeprefix(_PREFIX): _halves(network, folder, tensors, name)
        for name in sorted(adapted)
    }


def _halves(
    network: nn.Module, folder: Path, tensors: Mapping[str, Tensor], name: str
) -> tuple[nn.Parameter, Tensor, Tensor]:
    """The weight of a module, and the A (r, in) and B (out, r) to be added to it."""
    module = name.removeprefix(_PREFIX)
    down, up = (tensors.get(f"{name}.lora_{half}.weight") for half in "AB")
    weight = _weight(network, module)
    known = down is not None and up is not None and weight is not None
    fits = known and down.ndim == up.ndim == 2 and len(down) == up.shape[1]
    if not fits or weight.shape != (len(up), down.shape[1]):
        raise BadInput(
            f"adapter {folder} does not fit the LLM at {module}; give the LLM that it was "
            "trained on"
        )
    users = [n for n, w in network.named_parameters(remove_duplicate=False) if w is weight]
    if len(users) > 1:
        raise BadInput(
            f"adapter {folder} changes {module}, whose weights are also {users[0]}: merging would "
            "change both; train an adapter of other modules"
        )
    return weight, down, up


def modules(folder: Path) -> set[str]:
    """The modules whose weights the adapter changes."""
    return {name.removeprefix(_PREFIX) for name in _modules(_tensors(folder / WEIGHTS))}


def bid_embedding(folder: Path) -> Tensor | None:
    """(levels, width) the adapter's addition to the embeddings of bid symbols; None without."""
    for file in sorted(folder.glob("*.safetensors")):
        with _opened(file) as held:
            if EMBEDDING in held.keys():  # noqa: SIM118 (not a dict)
                return held.get_tensor(EMBEDDING)
    return None


def embed_levels(
    embedding: nn.Embedding, symbols: Sequence[int], levels: Tensor
) -> RemovableHandle:
    """Add `levels` (levels, width) to what `embedding` gives for the token ids `symbols`.

    Returns:
        What takes the addition away again.

    Raises:
        BadInput: not one row for each symbol, or rows of another width than the LLM's.
    """
    wanted = (len(symbols), embedding.embedding_dim)
    if tuple(levels.shape) != wanted:
        raise BadInput(
            f"{EMBEDDING} has shape {tuple(levels.shape)}, this LLM takes {wanted}; give the LLM "
            "that it was trained on"
        )
    weight = embedding.weight
    # one more row, of zeros, for all tokens that are no symbol
    added = torch.zeros(len(symbols) + 1, weight.shape[1], dtype=weight.dtype, device=weight.device)
    added[:-1] = levels.to(weight)
    row = torch.full((embedding.num_embeddings,), len(symbols), device=weight.device)
    row[torch.as_tensor(symbols, device=weight.device)] = torch.arange(
        len(symbols), device=weight.device
    )
    return embedding.register_forward_hook(lambda _, given, out: out + added[row[given[0]]])


def identity(folder: Path) -> str:
    """What tells an adapter from others: a digest of its settings and weights."""
    digest = hashlib.sha256()
    for file in (folder / CONFIG, *sorted(folder.glob("*.safetensors"))):
        digest.update(file.name.encode() + hashlib.sha256(_bytes(file)).digest())
    return digest.hexdigest()


def rank(folder: Path) -> int:
    """r of the adapter, which engines that do not merge have to make room for."""
    return int(_config(folder)["r"])


def _scale(folder: Path) -> float:
    config = _config(folder)
    for name, plain in _PLAIN.items():
        if config.get(name, plain[-1]) not in plain:
            raise BadInput(
                f"adapter {folder} has {name} {config[name]!r}, which cannot be merged; train it "
                f"with {plain[0]!r}"
            )
    r, alpha = config["r"], config["lora_alpha"]
    return alpha / math.sqrt(r) if config.get("use_rslora") else alpha / r


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    written = _bytes(file)
    try:
        config = json.loads(written)
        if config["r"] >= 1 and config["lora_alpha"] >= 0:
            return config
    except (ValueError, KeyError, TypeError):
        pass
    raise BadInput(f"{file} names no rank r >= 1 and lora_alpha of an adapter; train it again")


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{file} cannot be read ({error.strerror}); give a folder that holds a LoRA adapter"
        ) from None


def _modules(tensors: Iterable[str]) -> set[str]:
    return {name.partition(".lora_")[0] for name in tensors if ".lora_" in name}


def _tensors(file: Path) -> dict[str, Tensor]:
    _bytes(file)
    with _opened(file) as held:
        return {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as held:
            yield held
    except SafetensorError as error:
        raise BadInput(f"{file} is damaged ({error}); train it again") from None


def _weight(network: nn.Module, module: str) -> nn.Parameter | None:
    try:
        return network.get_submodule(module).weight
    except AttributeError:
        return None
