"""A tiny LLM with random weights and a real tokenizer, built on the spot in under two seconds.

What it writes is word salad, yet with words, sentences, line breaks, stray markers and accents. It
is an ordinary Hugging Face directory, so everything that reads one is tested for real.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mechanisms.llm.transformers_engine import TransformersEngine
from mechanisms.llm.weights import cache_dir

END, START = "<|im_end|>", "<|im_start|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LINES = """
A soft bed helps you sleep well. Try to read a book before you sleep!
How do I sleep better at night? Drink warm tea, and keep the room cool and dark.
Fresh coffee beans make the morning good. Grind them just before you brew, not the day before.
Running shoes should fit well. Walk around the shop in them. Do they feel right?
One good option is CloudRest Mattress, which many people like. You could try Oak Bed Frame, too.
It is worth looking at Tea Pot, said Dr. Moss, e.g. for the price: 3.5 dollars (or less).
user assistant Give friendly advice in one short paragraph of plain English.
An email to me@home.org [or a letter] is fine; so is "a call" to the shop's own number.
Un café crème, naïve and über – “good”, he said… 😀 never mind. The end of the story.
"""
PUSH = {".": 3.6, "!": 2.0, "?": 1.5, ",": 1.5, "Ċ": 1.5, "@": 2.0, "[": 1.5, "]": 1.5, END: 1.5}


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE on `LINES`, with a ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[START, END],
        # Not every byte, or most of what it writes would be no text at all.
        initial_alphabet=[chr(i) for i in range(33, 127)],
        show_progress=False,
    )
    tokenizer.train_from_iterator([LINES], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, chat_template=CHATML
    )


def build_tiny_llm(folder: Path, **options) -> Path:
    """Save the tiny LLM in `folder`: every build on the same machine is the same.

    `options` go to its configuration (vLLM, for one, needs `head_dim=32`).
    """
    tokenizer = train_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
        **options,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        model = LlamaForCausalLM(config)
        model.model.embed_tokens.weight.normal_()
        # Dimension 0 is the same everywhere, so that its output weight is a bias of each token.
        model.lm_head.weight.normal_(std=0.2)
        model.model.embed_tokens.weight[:, 0] = 8.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        for token, index in tokenizer.get_vocab().items():
            word = re.fullmatch(r"Ġ?[A-Za-z]{2,}", token)
            model.lm_head.weight[index, 0] = PUSH.get(token, 0.0 if word else -2.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory) -> str:
    """Directory of the tiny LLM."""
    return str(build_tiny_llm(tmp_path_factory.mktemp("tiny-llm")))


@pytest.fixture(scope="session")
def engine(tiny_llm) -> TransformersEngine:
    """The embedded engine on the tiny LLM, in fp32."""
    return TransformersEngine(tiny_llm, dtype="fp32", device="cpu")


@dataclass(frozen=True)
class Copy:
    """An ad as `mechanisms` sees it, with nothing neutralised."""

    id: str
    title: str
    text: str = "Something to buy."
    tagline: str = ""


ADS = (
    Copy("Ad-1", "CloudRest Mattress", "A soft bed.", "the bed that cools"),
    Copy("Ad-2", "Tea Pot", "Keeps tea warm."),
    Copy("Ad-3", "Oak Bed Frame", "Solid oak.", "a frame of solid oak"),
)


class HashEncoder:
    """Stands in for the text encoder: equal texts have equal embeddings, others unrelated ones."""

    model = "hash"

    def embed(self, texts) -> np.ndarray:
        """(len(texts), 16) embeddings of unit length."""
        rows = [_hashed(text) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, 16))


def _hashed(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    row = np.random.default_rng(seed).normal(size=16)
    return row / np.linalg.norm(row)


def needs_model(name: str) -> pytest.MarkDecorator:
    """Skip unless the real model `name` is already in the cache: no test downloads anything."""
    there = (cache_dir() / "models" / name / "config.json").exists()
    return pytest.mark.skipif(not there, reason=f"{name} is not in {cache_dir()}/models")
