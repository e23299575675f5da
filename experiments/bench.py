"""Measurements as ratios in one run, so that they mean the same on any machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np
import torch

from market.catalog import Catalog
from mechanisms.errors import BadInput
from mechanisms.llm.transformers_engine import DTYPES, TransformersEngine
from mechanisms.llm.weights import locate
from mechanisms.recording.conditions import REFERENCE_PROMPT

NEW_TOKENS = 64
TEMPERATURE = 0.7


def measurements(
    parts: Sequence[str] | None,
    model: str,
    dtype: str,
    requests: int,
    replies: int,
    say: Callable[[str], None],
) -> Iterator[str]:
    """Lines of the measurements named, or of all; those of the LLM take minutes.

    Raises:
        BadInput: an unknown part.
    """
    from experiments.bench_kernel import kernel
    from experiments.bench_market import market
    from experiments.bench_recording import overhead

    known: dict[str, Callable[[], Iterator[str]]] = {
        "kernel": lambda: kernel(say),
        "market": lambda: market(say),
        "llm": lambda: chain(
            *(part(model, dtype, requests, replies, say) for part in (recording, overhead))
        ),
    }
    unknown = [part for part in parts or () if part not in known]
    if unknown:
        raise BadInput(f"--part {unknown[0]}: give {', '.join(known)}")
    for part in parts or known:
        yield from known[part]()


def recording(
    model: str, dtype: str, requests: int, replies: int, say: Callable[[str], None]
) -> Iterator[str]:
    """Generate and score the same prompts with our engine and with transformers' own means.

    Both sides write `NEW_TOKENS` tokens to every reply (ends of turn are ignored, so the work is
    equal) and score all of them under the same prompts. Theirs: `model.generate` on left-padded
    batches of as many rows as ours, and a full forward pass over prompt and reply, 32 rows at once
    (a batch of ours would need gigabytes of logits there).
    """
    prompts = [REFERENCE_PROMPT.format(query=query.text) for query in _queries(requests)]
    count = requests * replies * NEW_TOKENS
    say(f"ours: {requests} prompts x {replies} replies x {NEW_TOKENS} tokens, {dtype}")
    engine = TransformersEngine(model, dtype=dtype)
    engine.end_token = -1
    engine.generate(prompts[:1], 2, max_new_tokens=4, temperature=TEMPERATURE, seed=0)
    start = time.perf_counter()
    samples = engine.generate(
        prompts, replies, max_new_tokens=NEW_TOKENS, temperature=TEMPERATURE, seed=0
    )
    generated = time.perf_counter() - start
    engine.end_token = int(engine.tokenizer.eos_token_id)
    tokens = [[sample.tokens for sample in row] for row in samples]
    start = time.perf_counter()
    engine.score(prompts, tokens, temperature=TEMPERATURE)
    scored = time.perf_counter() - start
    encoded = [engine.chat_tokens(prompt) for prompt in prompts]
    batch = engine.batch_rows
    del engine

    say("transformers: generate, then scoring with the prompt recomputed")
    theirs_generated, theirs_scored = _theirs(model, dtype, encoded, tokens, batch)
    ours, theirs = generated + scored, theirs_generated + theirs_scored
    yield f"threads {torch.get_num_threads()}, dtype {dtype}, replies {requests * replies}"
    yield f"ours          {count / generated:8.0f} tokens/s generated, {_rate(tokens, scored)}"
    yield (
        f"transformers  {count / theirs_generated:8.0f} tokens/s generated, "
        f"{_rate(tokens, theirs_scored)}"
    )
    yield (
        f"ratio         {theirs_generated / generated:.2f} generate, "
        f"{theirs_scored / scored:.2f} score, {theirs / ours:.2f} together"
    )


def _queries(count: int):
    queries = Catalog.bundled().queries
    picked = np.linspace(0, len(queries) - 1, count).astype(int)
    return [queries[i] for i in picked]


def _rate(tokens: Sequence[Sequence], seconds: float) -> str:
    return f"{sum(len(row) for row in tokens) / seconds:.1f} replies/s scored"


@torch.inference_mode()
def _theirs(
    model: str, dtype: str, prompts: list[list[int]], replies: list[list], batch: int
) -> tuple[float, float]:
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(locate(model), dtype=DTYPES[dtype]).eval()

    def write(rows: list[list[int]], tokens: int) -> None:
        width = max(map(len, rows))
        given = torch.tensor([[0] * (width - len(ids)) + ids for ids in rows])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in rows])
        network.generate(
            given,
            attention_mask=mask,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
        )

    write(prompts[:2], 4)
    rows = [ids for ids, row in zip(prompts, replies, strict=True) for _ in row]
    start = time.perf_counter()
    for at in range(0, len(rows), batch):
        write(rows[at : at + batch], NEW_TOKENS)
    generated = time.perf_counter() - start
    score_from_scratch(network, prompts[:1], [row[:2] for row in replies[:1]])  # warm up
    start = time.perf_counter()
    score_from_scratch(network, prompts, replies)
    return generated, time.perf_counter() - start


@torch.inference_mode()
def score_from_scratch(network: torch.nn.Module, prompts: list[list[int]], replies: list) -> None:
    """Score each prompt's replies by a full forward pass over prompt and reply, 32 at once.

    Replies of a batch are sorted by length and padded on the right.
    """
    for ids, row in zip(prompts, replies, strict=True):
        ordered = sorted(row, key=len)
        for at in range(0, len(ordered), 32):
            some = ordered[at : at + 32]
            longest = max(map(len, some))
            part = torch.tensor(
                [[*map(int, reply), *[0] * (longest - len(reply))] for reply in some]
            )
            whole = torch.cat([torch.tensor([ids] * len(part)), part], dim=1)
            # of the reply's positions only: the prompt's would be a fifth of the work
            logits = network(whole, logits_to_keep=longest + 1).logits[:, :-1].float() / TEMPERATURE
            torch.log_softmax(logits, dim=-1).gather(2, part[..., None])
