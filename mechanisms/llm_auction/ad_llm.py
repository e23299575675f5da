"""The Ad-LLM: an LLM, what it was trained to be, how it is asked, and when its replies end.

A trained one is a folder: a LoRA adapter in peft's layout (`adapter_config.json`,
`adapter_model.safetensors`), or a whole model, and beside it `ad_llm.json`, which is an `AdLLM`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mechanisms.errors import BadInput
from mechanisms.llm_auction.prompt import PromptStyle
from mechanisms.policies import Rules

CARD, CONFIG = "ad_llm.json", "adapter_config.json"
HERE = "."
"""The model of a card beside which the whole model stands."""
BUNDLED = Path(__file__).with_name("adapters")
"""Adapters that come with the program; their names can be given instead of a path."""


@dataclass(frozen=True)
class AdLLM:
    """What serves an LLM-Auction.

    Attributes:
        model: the LLM that was trained, see `mechanisms.llm.weights.locate`.
        adapter: folder of its LoRA adapter; None for the LLM as it is.
        style: how it is asked.
        rules: when its replies end; `rules.mentions` ads at most are free of penalty.
        temperature: at which it was trained, and is sampled.
        training: how it came about (scenario, stages, seed, figures); for the reader.
    """

    model: str = "smollm2-135m"
    adapter: Path | None = None
    style: PromptStyle = field(default_factory=lambda: PromptStyle("compact"))
    rules: Rules = field(default_factory=lambda: Rules(sentences=2, mentions=1, max_tokens=48))
    temperature: float = 0.7
    training: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str | Path) -> AdLLM:
        """The Ad-LLM in folder `name`, or the bundled one of that name.

        Raises:
            BadInput: there is none, or its card cannot be read.
        """
        folder = Path(name)
        if not (folder / CARD).exists() and (BUNDLED / str(name) / CARD).exists():
            folder = BUNDLED / str(name)
        try:
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            return cls(
                model=str(folder) if card["model"] == HERE else card["model"],
                adapter=folder if card["adapter"] else None,
                style=PromptStyle(**card["style"]),
                rules=Rules(**card["rules"]),
                temperature=float(card["temperature"]),
                training=card["training"],
            )
        except OSError:
            known = ", ".join(sorted(each.parent.name for each in BUNDLED.glob(f"*/{CARD}")))
            raise BadInput(
                f"{name} is no trained Ad-LLM (it has no {CARD}); give a folder that `admarket "
                f"train` wrote, or one of: {known or 'none is bundled'}"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{folder / CARD} cannot be read ({error!r}); train it again") from None

    def write_card(self, folder: Path) -> None:
        """Write `ad_llm.json`, beside which the adapter's files stand."""
        card = asdict(replace(self, adapter=None)) | {"adapter": self.adapter is not None}
        if self.model == str(folder):
            card["model"] = HERE  # the folder may be moved
        text = json.dumps(card, indent=1, ensure_ascii=False, sort_keys=True)
        (folder / CARD).write_text(text + "\n", encoding="utf-8")

    @property
    def identity(self) -> list[str]:
        """What tells this Ad-LLM from others: its card and the bytes of its adapter."""
        card = asdict(replace(self, adapter=None, training={}))
        said = [json.dumps(card, sort_keys=True)]
        if self.adapter is not None:
            for file in sorted([*self.adapter.glob("*.safetensors"), self.adapter / CONFIG]):
                said.append(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}")
        return said
