"""The Ad-LLM as a policy to be trained: log-probabilities of replies that can be differentiated.

Weights that are trained are fp32 and computed with in bf16 (autocast): updates of the size that
preference training makes vanish in the rounding of bf16 weights. Densities are at the sampling
temperature, as everywhere (`mechanisms.llm.base`): what is trained is what is served.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechanisms.errors import BadInput
from mechanisms.llm.chat import ChatTokenizer
from mechanisms.llm.weights import locate
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.llm_auction.prompt import SYMBOLS
from mechanisms.llm_auction.training.keeping import keep_text
from mechanisms.llm_auction.training.packing import Pack, batches, rows_of
from mechanisms.mentions import AdCopy

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SYMBOL_ROWS = "bid_embedding"


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation (Hu et al. 2022, arXiv 2106.09685) of all linear layers of a depth.

    Attributes:
        rank: r.
        alpha: updates are scaled by alpha / r.
        first_layer: layers before it stay as they are, so that no gradient need reach them.
    """

    rank: int = 8
    alpha: float = 16.0
    first_layer: int = 0


class Policy:
    """An LLM whose answer to bids is trained.

    Args:
        spec: which LLM, how it is asked; the adapter it names is where training starts.
        lora: what is trained; None for all weights.
        seed: of the adapter's first weights.
        device: default CUDA where there is one.
    """

    def __init__(
        self, spec: AdLLM, lora: LoRA | None, seed: int = 0, device: str | None = None
    ) -> None:
        from transformers import AutoModelForCausalLM

        self.spec = spec
        self.lora = lora
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = ChatTokenizer(spec.model)
        # A frozen base is served in bf16 and may be trained upon in bf16.
        dtype = torch.float32 if lora is None else torch.bfloat16
        network = AutoModelForCausalLM.from_pretrained(locate(spec.model), dtype=dtype)
        torch.manual_seed(seed)
        self.network = (network if lora is None else _adapted(network, lora)).to(self.device)
        self.network.eval()  # no dropout: what is trained is what is served
        self.base = self.network.get_base_model() if lora is not None else self.network
        self.symbols = self._learn_symbols() if spec.style.bids == "embedding" else None
        if spec.adapter is not None:
            self.load(spec.adapter)

    @property
    def trained(self) -> dict[str, Tensor]:
        """What is trained, by name, in fp32."""
        named = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        return named | ({} if self.symbols is None else {SYMBOL_ROWS: self.symbols})

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all trained weights."""
        digest = hashlib.sha256()
        for name, value in sorted(self.trained.items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    def prompt(
        self, query: str, profile: str, ads: Sequence[AdCopy], bids: Sequence[float]
    ) -> list[int]:
        """Token ids of what the LLM is asked."""
        return self.tokenizer.chat_tokens(self.spec.style.message(query, profile, ads, bids))

    def reply(self, text: str) -> list[int]:
        """Token ids of a reply, with its end of turn."""
        return [*self.tokenizer.encode(text), self.tokenizer.end_token]

    def token_log_probs(self, packs: Sequence[Pack]) -> tuple[Tensor, Tensor]:
        """Log-probability of each reply token of some packs, pack-major.

        Returns:
            (T,) in nats, at the sampling temperature; and (T,) which of the K replies it is of.
        """
        rows = rows_of(packs)
        ids, mask = rows.ids.to(self.device), rows.mask.to(self.device)
        blocked = torch.zeros(mask.shape, dtype=torch.bfloat16, device=self.device)
        blocked.masked_fill_(~mask, float("-inf"))
        with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16):
            hidden = self.base.model(
                input_ids=ids,
                position_ids=rows.positions.to(self.device),
                attention_mask=blocked,
                use_cache=False,
            ).last_hidden_state
            logits = self.base.lm_head(hidden.flatten(0, 1)[rows.before.to(self.device)])
        scaled = logits.float() / self.spec.temperature
        targets = rows.targets.to(self.device)
        each = -torch.nn.functional.cross_entropy(scaled, targets, reduction="none")
        return each, rows.reply.to(self.device)

    def log_probs(self, packs: Sequence[Pack]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the replies of some packs, pack-major.

        Returns:
            Their sums over tokens (K,) in nats, and their lengths (K,).
        """
        each, reply = self.token_log_probs(packs)
        count = sum(len(pack.replies) for pack in packs)
        total = torch.zeros(count, device=each.device).index_add(0, reply, each)
        return total, torch.bincount(reply, minlength=count)

    @torch.no_grad()
    def score(self, packs: Sequence[Pack], tokens: int = 4096) -> list[Tensor]:
        """By pack, (replies,) log-probabilities on the CPU, without gradients."""
        each = self.score_tokens(packs, tokens)
        return [
            torch.stack([part.sum() for part in row.split([len(r) for r in pack.replies])])
            for row, pack in zip(each, packs, strict=True)
        ]

    @torch.no_grad()
    def score_tokens(self, packs: Sequence[Pack], tokens: int = 4096) -> list[Tensor]:
        """By pack, the log-probabilities of its reply tokens on the CPU, without gradients."""
        found: list[Tensor] = [torch.empty(0)] * len(packs)
        for batch in batches(packs, tokens):
            each, _ = self.token_log_probs([packs[i] for i in batch])
            sizes = [sum(map(len, packs[i].replies)) for i in batch]
            for i, part in zip(batch, each.cpu().split(sizes), strict=True):
                found[i] = part
        return found

    def state(self) -> dict[str, Tensor]:
        """A copy of all trained weights."""
        return {name: value.detach().cpu().clone() for name, value in self.trained.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Set all trained weights."""
        for name, value in self.trained.items():
            value.data.copy_(state[name])

    def save(self, folder: Path, training: dict[str, Any]) -> AdLLM:
        """Write the trained Ad-LLM into `folder`; what comes back says how to serve it.

        Adapters are written in peft's layout, in bf16: a few megabytes.
        """
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        if self.lora is None:
            with contextlib.redirect_stderr(io.StringIO()):
                self.network.save_pretrained(folder)
            self.tokenizer.tokenizer.save_pretrained(folder)
            spec = replace(self.spec, model=str(folder), adapter=None, training=training)
        else:
            config = self.network.peft_config["default"]
            config.base_model_name_or_path = self.spec.model
            config.inference_mode = True
            config.save_pretrained(str(folder))
            _in_order(folder / "adapter_config.json")
            weights = {
                name.replace(".default.", "."): value.detach().to(torch.bfloat16).contiguous()
                for name, value in self.trained.items()
                if name != SYMBOL_ROWS
            }
            save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            spec = replace(self.spec, adapter=folder, training=training)
        if self.symbols is not None:
            save_file(
                {SYMBOL_ROWS: self.symbols.detach().contiguous()},
                folder / f"{SYMBOL_ROWS}.safetensors",
            )
        spec.write_card(folder)
        return spec

    def load(self, folder: Path) -> None:
        """Take over the weights of an adapter that `save` wrote.

        Raises:
            BadInput: an adapter of another shape.
        """
        from safetensors.torch import load_file

        there = load_file(folder / "adapter_model.safetensors")
        if (rows := folder / f"{SYMBOL_ROWS}.safetensors").exists():
            there |= load_file(rows)
        mine = {name.replace(".default.", "."): value for name, value in self.trained.items()}
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        shapes = {name: value.shape for name, value in mine.items()}
        if (
            shapes != {name: value.shape for name, value in there.items()}
            or self.lora is None
            or config["lora_alpha"] != self.lora.alpha
        ):
            raise BadInput(
                f"{folder} holds an adapter of another shape or alpha than {self.lora}; train with "
                "the settings it was trained with"
            )
        for name, value in mine.items():
            value.data.copy_(there[name])

    def _learn_symbols(self) -> Tensor:
        """(11, width) additions to the embeddings of the bid symbols, at their places."""
        ids = [self.tokenizer.encode(symbol) for symbol in SYMBOLS]
        if any(len(each) != 1 for each in ids):
            raise BadInput(f"model {self.spec.model} has no token of its own for each of {SYMBOLS}")
        index = torch.full((self.base.config.vocab_size,), -1)
        index[[each[0] for each in ids]] = torch.arange(len(ids))
        index = index.to(self.device)
        width = self.base.config.hidden_size
        rows = torch.zeros(len(ids), width, device=self.device, requires_grad=True)

        def add(_: torch.nn.Module, given: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
            at = index[given[0]]
            extra = rows[at.clamp(min=0)] * (at >= 0)[..., None]
            return embedded + extra.to(embedded.dtype)

        self.base.get_input_embeddings().register_forward_hook(add)
        return rows


def _adapted(network: torch.nn.Module, lora: LoRA) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    layers = network.config.num_hidden_layers
    if not 0 <= lora.first_layer < layers:
        raise BadInput(f"first_layer is {lora.first_layer}; the LLM has layers 0..{layers - 1}")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=PROJECTIONS,
        layers_to_transform=list(range(lora.first_layer, layers)),
    )
    with warnings.catch_warnings():
        # peft asks transformers by a name that it has given up.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(network, config)


def _in_order(file: Path) -> None:
    """The same configuration in the same bytes: peft writes sets in any order."""
    said = json.loads(file.read_text(encoding="utf-8"))
    lists = {name: sorted(value) for name, value in said.items() if isinstance(value, list)}
    keep_text(json.dumps(said | lists, indent=1, sort_keys=True) + "\n", file)
