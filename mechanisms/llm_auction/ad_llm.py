"""The Ad-LLM: an LLM, what it was trained to be, how it is asked, and when its replies end.

A trained one is a folder: a LoRA adapter in peft's layout (`adapter_config.json`,
`adapter_model.safetensors`), or a whole model, and beside it `ad_llm.json`, which is an `AdLLM`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mechanisms.checks import one_of, positive, whole
from mechanisms.errors import BadInput
from mechanisms.llm.weights import identity as identity_of
from mechanisms.llm_auction.prompt import PromptStyle
from mechanisms.policies import Rules

CARD, CONFIG, WEIGHTS = "ad_llm.json", "adapter_config.json", "adapter_model.safetensors"
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
        temperature: at which it is served; a trained one is written at that of its training.
        training: how it came about (scenario, stages, seed, figures); for the reader.
    """

    model: str = "smollm2-135m"
    adapter: Path | None = None
    style: PromptStyle = field(default_factory=lambda: PromptStyle("compact"))
    rules: Rules = field(default_factory=lambda: Rules(sentences=2, mentions=1, max_tokens=48))
    temperature: float = 0.7
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise BadInput(f"model is {self.model!r}; give the name of an LLM, or a folder")
        positive("temperature", self.temperature)
        one_of("ordered", self.style.ordered, (False, True))
        for name, least in _LEAST.items():
            whole(f"rules.{name}", getattr(self.rules, name), least)

    @classmethod
    def load(cls, name: str | Path) -> AdLLM:
        """The Ad-LLM in folder `name`, or the bundled one of that name.

        Raises:
            BadInput: there is none, its card cannot be read, or files of its weights are missing.
        """
        folder = Path(name)
        if not os.path.exists(folder / CARD) and os.path.exists(BUNDLED / str(name) / CARD):
            folder = BUNDLED / str(name)
        try:
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            one_of("adapter", card["adapter"], (False, True))
            found = cls(
                model=str(folder) if card["model"] == HERE else card["model"],
                adapter=folder if card["adapter"] else None,
                style=PromptStyle(**card["style"]),
                rules=Rules(**card["rules"]),
                temperature=card["temperature"],
                training=dict(card["training"]),
            )
        except OSError:
            known = ", ".join(sorted(each.parent.name for each in BUNDLED.glob(f"*/{CARD}")))
            raise BadInput(
                f"{name} is no trained Ad-LLM (it has no {CARD}); give a folder that `admarket "
                f"train` wrote, or one of: {known or 'none is bundled'}"
            ) from None
        except BadInput as error:
            raise BadInput(f"{folder / CARD}: {error}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{folder / CARD} cannot be read ({error!r}); train it again") from None
        if found.adapter is not None:
            _check_there(folder, CONFIG, WEIGHTS)
        elif card["model"] == HERE:
            _check_there(folder, "config.json", "model*.safetensors")
        return found

    def write_card(self, folder: Path) -> None:
        """Write `ad_llm.json`, beside which the adapter's files stand."""
        card = asdict(replace(self, adapter=None)) | {"adapter": self.adapter is not None}
        if self.model == str(folder):
            card["model"] = HERE  # the folder may be moved
        text = json.dumps(card, indent=1, ensure_ascii=False, sort_keys=True)
        (folder / CARD).write_text(text + "\n", encoding="utf-8")

    @property
    def identity(self) -> list[str]:
        """What tells this Ad-LLM from others: its card and its weights."""
        model, *_ = identity_of(self.model)
        card = asdict(replace(self, model=model, adapter=None, training={}))
        return [json.dumps(card, sort_keys=True), *self.weights[1:]]

    @property
    def weights(self) -> list[str]:
        """What tells its weights from others': the model, its files, the bytes of its adapter.

        Raises:
            BadInput: files of the adapter are missing.
        """
        said = identity_of(self.model)
        if self.adapter is not None:
            _check_there(self.adapter, CONFIG, WEIGHTS)
            for file in sorted([*self.adapter.glob("*.safetensors"), self.adapter / CONFIG]):
                said.append(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}")
        return said


_LEAST = {"sentences": 1, "mentions": 0, "max_tokens": 1, "room": 0, "loop": 1}


def _check_there(folder: Path, *names: str) -> None:
    for name in names:
        if not any(folder.glob(name)):
            raise BadInput(f"the Ad-LLM in {folder} has lost its {name}; train it again")
