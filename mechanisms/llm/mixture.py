"""Writing with the mixture of several prompts' next-token distributions (arXiv 2310.10826).

n LLMs, here one model under n prompts, write a reply together: they read the same tokens, and the
next is drawn from the linear aggregation of what they would write (Duetting et al. 2023),

    q(v) = Σ_i α_i·p_i(v),     Σ_i α_i = 1.

So n·R rows advance in step for R replies, and a token is drawn once for the n rows of a reply.
Only an engine that gives whole next-token distributions can do this: the embedded one.

Shapes: requests P, replies R, prompts per request n, vocabulary V.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mechanisms.errors import BadInput
from mechanisms.llm.base import NONE_FINISHED, Engine, Guide, Mixed
from mechanisms.llm.decoding import Row, choose, compact
from mechanisms.llm.transformers_engine import TransformersEngine
from mechanisms.pool import Floats


@torch.inference_mode()
def generate_mixture(
    engine: Engine,
    prompts: Sequence[Sequence[str]],
    shares: Floats,
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    guide: Guide | None = None,
    keys: Sequence[int] | None = None,
    finished: Mapping[int, Sequence[Mixed]] = NONE_FINISHED,
    done: Callable[[Mapping[int, Sequence[Mixed]]], None] | None = None,
) -> list[list[Mixed]]:
    """Draw R replies to each of P requests, each from its own mixture of n prompts.

    Reply k to request p is driven by the random stream (seed, keys[p], k), as `Engine.generate` is:
    with all weight on one prompt it is the reply that the engine alone would write to it.

    Args:
        engine: the embedded engine, or one around it with a `generate_mixture` of its own.
        prompts: (P) lists of n user messages.
        shares: (P, R, n) weights α, each row summing to 1.
        max_new_tokens: longest reply, what the guide writes included.
        temperature: of every p_i, before mixing.
        seed: of everything random.
        guide: writes into replies; its tokens are read by all n.
        keys: (P,) default 0..P-1.
        finished: by request, as in `Engine.generate`; batches are done as a whole.
        done: called with every batch, by request.

    Raises:
        BadInput: another engine, or n different among requests.
    """
    around = getattr(engine, "generate_mixture", None)
    if around is not None:
        return around(
            prompts,
            shares,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            guide=guide,
            keys=keys,
            finished=finished,
            done=done,
        )
    if not isinstance(engine, TransformersEngine):
        raise BadInput(
            f"engine {engine.model} does not give whole next-token distributions, which mixing "
            "needs; use the embedded engine"
        )
    if temperature <= 0 or max_new_tokens < 1:
        raise BadInput("generate_mixture needs temperature > 0 and max_new_tokens >= 1")
    P, R, n = shares.shape
    if len(prompts) != P or any(len(each) != n for each in prompts):
        raise BadInput(f"shares have shape {shares.shape}; give {P} requests {n} prompts each")
    keys = range(P) if keys is None else keys
    results = [list(finished.get(p, ())) for p in range(P)]
    for batch, tokens in _batches(engine, prompts, n * R):
        if all(p in finished for p in batch):
            continue
        for p in batch:
            results[p] = []
        rows = [
            _MixedRow(p, k, np.random.default_rng([seed, keys[p], k]).random(max_new_tokens))
            for p in batch
            for k in range(R)
        ]
        weights = torch.as_tensor(shares[batch], dtype=torch.float32, device=engine.device)
        _decode(engine, tokens, rows, weights, temperature, guide)
        for row in rows:
            results[row.prompt].append(Mixed(row.sample(), np.array(row.under).T))
        if done:
            done({p: results[p] for p in batch})
    return results


def mix(logits: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The mixture of next-token distributions, and what normalises each of them.

    Args:
        logits: (P, n, R, V) at the sampling temperature.
        shares: (P, R, n)

    Returns:
        `log q` (P, R, V), and (P, n, R, 1) such that `log p_i = logits − normaliser`.
    """
    normaliser = torch.logsumexp(logits, dim=-1, keepdim=True)
    # Context by context: a vocabulary for every row is large enough once.
    shift = shares.log().transpose(1, 2)[..., None] - normaliser
    mixed = torch.zeros_like(logits[:, 0])
    for i in range(logits.shape[1]):
        mixed += torch.exp(logits[:, i] + shift[:, i])
    return mixed.log_(), normaliser


@dataclass(eq=False)
class _MixedRow(Row):
    """A reply being written: also the log-probabilities (n,) of its tokens under each prompt."""

    under: list[list[float]] = field(default_factory=list)


def _batches(
    engine: TransformersEngine, prompts: Sequence[Sequence[str]], rows: int
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Requests in batches of about `batch_rows` rows, of like length; prompts request-major."""
    tokens = [[engine.chat_tokens(prompt) for prompt in each] for each in prompts]
    order = sorted(range(len(prompts)), key=lambda p: (max(map(len, tokens[p])), p))
    size = max(1, engine.batch_rows // rows)
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        yield batch, [each for p in batch for each in tokens[p]]


def _decode(
    engine: TransformersEngine,
    tokens: list[list[int]],
    rows: list[_MixedRow],
    shares: Tensor,
    temperature: float,
    guide: Guide | None,
) -> None:
    """Write all rows to their end.

    The cache takes every prompt of every request for a prompt of its own: row (p, i, k) reads
    reply k to request p behind prompt i.
    """
    P, R, n = shares.shape
    cache, lengths, last = engine.prefill(tokens)
    cache.open(R, capacity=len(rows[0].uniforms))
    starts = lengths.repeat_interleave(R)
    hidden = last.repeat_interleave(R, 0)
    live = rows
    while True:
        logits = engine.network.lm_head(hidden).float().div_(temperature).view(P, n, R, -1)
        mixed, normaliser = mix(logits, shares)
        ids, log_probs = choose(mixed.flatten(0, 1), live)
        wanted = ids.view(P, 1, R, 1).expand(P, n, R, 1)
        under = (logits.gather(3, wanted) - normaliser)[..., 0].transpose(1, 2).reshape(P * R, n)
        for row, token, log_prob, each in zip(
            live, ids.tolist(), log_probs.tolist(), under.tolist(), strict=True
        ):
            if not row.done:
                row.under.append(each)
                row.take(token, log_prob, engine.end_token, guide)
        if all(row.done for row in live):
            return
        ids = wanted.flatten()
        kept = compact(live, P)
        if kept is not None:
            requests, index = (t.to(engine.device) for t in kept)
            contexts, every = _of_each_prompt(requests, index, R, n)
            cache.keep(contexts, every)
            live = [live[i] for i in index.tolist()]
            shares = shares.flatten(0, 1)[index].view(len(requests), -1, n)
            P, R, _ = shares.shape
            starts, ids = starts[every], ids[every]
        hidden = engine.extend(cache, ids[:, None], starts)


def _of_each_prompt(requests: Tensor, index: Tensor, R: int, n: int) -> tuple[Tensor, Tensor]:
    """Prompts of `requests`, and rows (p, i, k) of the replies `index` (p, k), i for every prompt.

    Args:
        requests: (P') those kept.
        index: (P'·R') replies kept, as p·R + k.
        R: replies per request so far.
        n: prompts per request.
    """
    inner = torch.arange(n, device=index.device)
    p, k = (each.view(len(requests), 1, -1) for each in (index // R, index % R))
    return (requests[:, None] * n + inner).flatten(), ((p * n + inner[:, None]) * R + k).flatten()
