"""What recording costs on top of the LLM, and what scoring conditions together saves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from agents.users import BehaviouralUsers
from experiments.bench import score_from_scratch
from market.catalog import Catalog
from market.retrieval import retrieve
from mechanisms.llm.base import END, Engine, Guide, Sample
from mechanisms.llm.encoder import TextEncoder
from mechanisms.llm.transformers_engine import DTYPES, TransformersEngine
from mechanisms.llm.weights import locate
from mechanisms.recording import Design, Request, record
from mechanisms.recording.conditions import prompt


class Timed:
    """An engine that remembers what it was asked and what it answered."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.generated: list[tuple[tuple, dict, list[list[Sample]]]] = []
        self.scored: list[tuple[tuple, dict]] = []

    def __getattr__(self, name: str):
        return getattr(self.engine, name)

    def generate(self, *args, **options) -> list[list[Sample]]:
        """As the engine's; noted."""
        answer = self.engine.generate(*args, **options)
        self.generated.append((args, options, answer))
        return answer

    def score(self, *args, **options):
        """As the engine's; noted."""
        self.scored.append((args, options))
        return self.engine.score(*args, **options)


class Replay(Guide):
    """Writes what another guide wrote at the same places, and nothing else is done."""

    def __init__(self, samples: Sequence[Sequence[Sample]]) -> None:
        self.orders = {
            (p, k): _orders(sample) for p, row in enumerate(samples) for k, sample in enumerate(row)
        }
        self.lengths = {
            (p, k): (len(sample.tokens), sample.ended)
            for p, row in enumerate(samples)
            for k, sample in enumerate(row)
        }

    def step(self, prompt: int, sample: int, tokens: Sequence[int]) -> Sequence[int] | str:
        """What was forced behind so many tokens, or the end."""
        if len(tokens) >= self.lengths[prompt, sample][0]:
            return END
        return self.orders[prompt, sample].get(len(tokens), ())


def _orders(sample: Sample) -> dict[int, list[int]]:
    """By number of tokens before it, each stretch that was forced."""
    orders: dict[int, list[int]] = {}
    start = None
    for at, (token, forced) in enumerate(zip(sample.tokens, sample.forced, strict=True)):
        if forced:
            start = at if start is None else start
            orders.setdefault(start, []).append(int(token))
        else:
            start = None
    return orders


def overhead(
    model: str, dtype: str, requests: int, replies: int, say: Callable[[str], None]
) -> Iterator[str]:
    """Recording against the bare engine, then n + 2 conditions together against from scratch.

    The bare engine writes the very same tokens under the same prompts, with forced tokens put in
    from a list, and scores the same conditions: what is left out is all that recording adds
    (insertion, parsing, the users). From scratch: a full forward pass over prompt and reply for
    every condition, 32 replies at once.
    """
    asked = some_requests(requests)
    n = len(asked[0].ads)
    engine = Timed(TransformersEngine(model, dtype=dtype))
    users = BehaviouralUsers(TextEncoder())
    design = Design(replies=replies, log_ratios=True)
    record(asked[:1], engine.engine, users, Design(replies=2), seed=1)  # warm up
    say(f"recording {requests} requests x {replies} replies, scored for {n} advertisers")
    start = time.perf_counter()
    pool = record(asked, engine, users, design, seed=0)
    recorded = time.perf_counter() - start
    say("the bare engine, same tokens")
    start = time.perf_counter()
    for args, options, answer in engine.generated:
        again = engine.engine.generate(*args, **{**options, "guide": Replay(answer)})
        same = all(
            np.array_equal(x.tokens, y.tokens)
            for ours, theirs in zip(again, answer, strict=True)
            for x, y in zip(ours, theirs, strict=True)
        )
        if not same:
            raise RuntimeError("the bare engine wrote other tokens: nothing to compare")
    for args, options in engine.scored:
        engine.engine.score(*args, **options)
    bare = time.perf_counter() - start
    total = int(pool.replies["tokens"].sum())
    yield (
        f"recording     {total / recorded:8.0f} tokens/s written, measured and scored for {n} "
        f"advertisers; bare engine {total / bare:.0f}; ratio {bare / recorded:.2f}"
    )

    kinds = ["reference", "context", *(f"advertiser:{i}" for i in range(n))]
    prompts = [prompt(kind, request) for request in asked for kind in kinds]
    rows = engine.generated[0][2]
    tokens = [[sample.tokens for sample in row] for row in rows for _ in kinds]
    say(f"scoring {len(kinds)} conditions of {requests * replies} replies")
    start = time.perf_counter()
    engine.engine.score(prompts, tokens, temperature=design.temperature)
    together = time.perf_counter() - start
    encoded = [engine.engine.chat_tokens(each) for each in prompts]
    del engine
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(locate(model), dtype=DTYPES[dtype]).eval()
    score_from_scratch(network, encoded[:1], [tokens[0][:2]])  # warm up
    start = time.perf_counter()
    score_from_scratch(network, encoded, tokens)
    scratch = time.perf_counter() - start
    yield (
        f"{len(kinds)} conditions  together {together:.1f} s, each from scratch {scratch:.1f} s; "
        f"ratio {together / scratch:.2f} (threads {torch.get_num_threads()})"
    )


def some_requests(count: int, ads: int = 4) -> list[Request]:
    """Queries of the bundled catalog with the ads most similar to them."""
    catalog, encoder = Catalog.bundled(), TextEncoder()
    picked = np.linspace(0, len(catalog.queries) - 1, count).astype(int)
    queries = [catalog.queries[i] for i in picked]
    asked = encoder.embed([query.text for query in queries])
    copies = encoder.embed([f"{ad.title}. {ad.text}" for ad in catalog.ads])
    user = catalog.users[0]
    return [
        Request(query.id, query.text, user.id, user.description, [catalog.ads[i] for i in row], row)
        for query, row in zip(queries, retrieve(asked, copies, ads).tolist(), strict=True)
    ]
