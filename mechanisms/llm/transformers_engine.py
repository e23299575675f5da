"""The embedded engine: any full-attention decoder of transformers, on CPU or one GPU.

Generation is one lean loop over a batch of (prompt, reply) rows with a shared prompt cache
(`mechanisms.llm.prefix`); rows that are done leave the batch. Each row is driven by its own random
stream, so what it says does not depend on which rows it shares a batch with, up to the rounding of
the batch's matrix products.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechanisms.errors import BadInput
from mechanisms.llm.base import END, Guide, Sample
from mechanisms.llm.prefix import NAME as SHARED_PREFIX
from mechanisms.llm.prefix import SharedPrefixCache
from mechanisms.llm.weights import locate

SCORED_TOKENS = 3072  # scored at once: more would not fit the caches of a CPU core
PAD = 0  # any id will do: padding is masked, or comes after all that is read
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class TransformersEngine:
    """Samples and scores with a transformers model.

    Args:
        model: a name that `mechanisms.llm.weights.locate` understands.
        dtype: `bf16` or `fp32`, of weights and cache; probabilities are always computed in fp32.
        device: `cpu`, `cuda`, or None for CUDA where there is one.
        batch_rows: replies decoded at once.
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        dtype: str = "bf16",
        device: str | None = None,
        batch_rows: int = 192,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if dtype not in DTYPES:
            raise BadInput(f"dtype {dtype!r} of the LLM is unknown; choose from {sorted(DTYPES)}")
        self.model = model
        self.dtype = dtype
        self.batch_rows = batch_rows
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        path = locate(model)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.network = AutoModelForCausalLM.from_pretrained(
            path, dtype=DTYPES[dtype], attn_implementation=SHARED_PREFIX
        )
        if getattr(self.network.config, "sliding_window", None):
            raise BadInput(
                f"model {model} uses sliding-window attention, which this engine does not serve; "
                "serve it with vLLM, or choose a full-attention model"
            )
        self.network.to(self.device).eval()
        self.end_token = int(self.tokenizer.eos_token_id)
        # Not only those that have a role: any special token would be encoded as one.
        added = self.tokenizer.added_tokens_decoder.values()
        control = {token.content for token in added if token.special}
        control.update(self.tokenizer.all_special_tokens)
        self._control = re.compile("|".join(map(re.escape, sorted(control))))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        return self.tokenizer.encode(self._plain(text), add_special_tokens=False)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def chat_tokens(self, prompt: str) -> list[int]:
        """Token ids of the user message in the model's chat template, up to the reply."""
        encoded = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": self._plain(prompt)}],
            add_generation_prompt=True,
            return_dict=True,
        )
        return list(encoded["input_ids"])

    def _plain(self, text: str) -> str:
        """`text` without the names of control tokens: ads and queries must not end our turn."""
        while self._control.search(text):
            text = self._control.sub("", text)
        return text

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str],
        n: int,
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        guide: Guide | None = None,
        keys: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        """See `mechanisms.llm.base.Engine.generate`."""
        if temperature <= 0 or n < 1 or max_new_tokens < 1:
            raise BadInput("generate needs temperature > 0, n >= 1 and max_new_tokens >= 1")
        keys = range(len(prompts)) if keys is None else keys
        results: list[list[Sample]] = [[] for _ in prompts]
        for batch, tokens in self._batches(prompts, n, self.batch_rows):
            rows = [
                _Row(p, k, np.random.default_rng([seed, keys[p], k]).random(max_new_tokens))
                for p in batch
                for k in range(n)
            ]
            self._decode(tokens, rows, temperature, guide)
            for row in rows:
                results[row.prompt].append(row.sample())
        return results

    @torch.inference_mode()
    def score(
        self,
        prompts: Sequence[str],
        replies: Sequence[Sequence[Sequence[int]]],
        *,
        temperature: float,
    ) -> list[list[NDArray[np.float64]]]:
        """See `mechanisms.llm.base.Engine.score`; all prompts need equally many replies."""
        if len(prompts) != len(replies):
            raise BadInput(f"{len(prompts)} prompts but {len(replies)} sets of replies to score")
        n = max((len(each) for each in replies), default=0)
        scored: list[list[NDArray[np.float64]]] = [[] for _ in prompts]
        long = max((len(reply) for each in replies for reply in each), default=1)
        rows = min(self.batch_rows, max(1, SCORED_TOKENS // max(long, 1)))
        for batch, tokens in self._batches(prompts, max(n, 1), rows):
            longest = max((len(reply) for p in batch for reply in replies[p]), default=0)
            if not longest:
                for p in batch:
                    scored[p] = [np.zeros(0) for _ in replies[p]]
                continue
            ids = torch.full((len(batch) * n, longest), PAD)
            for r, p in enumerate(batch):
                for k, reply in enumerate(replies[p]):
                    ids[r * n + k, : len(reply)] = torch.as_tensor(np.asarray(reply))
            ids = ids.to(self.device)
            cache, lengths, first = self._prefill(tokens, capacity=longest)
            cache.open(n)
            hidden = self._extend(cache, ids, lengths.repeat_interleave(n), keep_all=True)
            states = torch.cat([first.repeat_interleave(n, 0)[:, None], hidden[:, :-1]], dim=1)
            got = self._token_log_probs(states, ids, temperature).cpu().numpy()
            for r, p in enumerate(batch):
                scored[p] = [got[r * n + k, : len(reply)] for k, reply in enumerate(replies[p])]
        return scored

    def _batches(
        self, prompts: Sequence[str], n: int, rows: int
    ) -> Iterator[tuple[list[int], list]]:
        """Prompts in batches of about `rows` rows, of like length to save padding."""
        tokens = [self.chat_tokens(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda p: (len(tokens[p]), p))
        size = max(1, rows // n)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            yield batch, [tokens[p] for p in batch]

    def _prefill(
        self, tokens: list[list[int]], capacity: int
    ) -> tuple[SharedPrefixCache, Tensor, Tensor]:
        """Run the prompts; returns the cache, lengths (P,) and last hidden states (P, width)."""
        lengths = torch.tensor([len(t) for t in tokens], device=self.device)
        L = int(lengths.max())
        ids = torch.tensor([t + [PAD] * (L - len(t)) for t in tokens])
        positions = torch.arange(L, device=self.device)[None]
        cache = SharedPrefixCache(
            layers=self.network.config.num_hidden_layers,
            prefix_mask=positions < lengths[:, None],
            padded=min(map(len, tokens)) < L,
            capacity=capacity,
        )
        future = torch.full((L, L), float("-inf"), dtype=self.network.dtype, device=self.device)
        hidden = self.network.model(
            input_ids=ids.to(self.device),
            attention_mask=future.triu(1)[None, None],
            position_ids=positions,
            past_key_values=cache,
            shared=cache,
        ).last_hidden_state
        return cache, lengths, hidden[torch.arange(len(tokens)), lengths - 1]

    def _extend(
        self, cache: SharedPrefixCache, ids: Tensor, starts: Tensor, keep_all: bool = False
    ) -> Tensor:
        """Run T more tokens per row: ids (rows, T), rows starting at positions `starts`."""
        T = ids.shape[1]
        steps = torch.arange(cache.own_length, cache.own_length + T, device=self.device)
        hidden = self.network.model(
            input_ids=ids,
            # A four-dimensional mask is taken as it is; `attend` makes its own.
            attention_mask=torch.zeros(1, 1, 1, 1, device=self.device),
            position_ids=starts[:, None] + steps,
            past_key_values=cache,
            shared=cache,
        ).last_hidden_state
        cache.own_length += T
        return hidden if keep_all else hidden[:, -1]

    def _token_log_probs(self, states: Tensor, ids: Tensor, temperature: float) -> Tensor:
        """(rows, T) log-probabilities of `ids` after `states` (rows, T, width), in fp64."""
        flat, wanted = states.flatten(0, 1), ids.flatten()
        out = torch.empty(len(flat), dtype=torch.float64, device=self.device)
        # In place and in parts: a vocabulary of logits per position soon outgrows the caches.
        for start in range(0, len(flat), 512):
            part = slice(start, start + 512)
            logits = self.network.lm_head(flat[part]).float().div_(temperature)
            logits -= logits.amax(dim=1, keepdim=True)
            chosen = logits.gather(1, wanted[part, None])[:, 0]
            out[part] = (chosen - logits.exp_().sum(dim=1).log()).double()
        return out.view(ids.shape)

    def _decode(
        self, tokens: list[list[int]], rows: list[_Row], temperature: float, guide: Guide | None
    ) -> None:
        """Write all rows to their end; rows of one prompt stand together throughout."""
        P = len(tokens)
        cache, lengths, last = self._prefill(tokens, capacity=len(rows[0].uniforms))
        cache.open(len(rows) // P)
        starts = lengths.repeat_interleave(len(rows) // P)
        hidden = last.repeat_interleave(len(rows) // P, 0)
        live = rows
        while True:
            logits = self.network.lm_head(hidden).float() / temperature
            ids, log_probs = _choose(logits, live)
            for row, token, log_prob in zip(live, ids.tolist(), log_probs.tolist(), strict=True):
                if not row.done:
                    row.take(token, log_prob, self.end_token, guide)
            running = [row for row in live if not row.done]
            if not running:
                return
            kept = _compact(live, P)
            if kept is not None:
                prompts, index = (t.to(self.device) for t in kept)
                cache.keep(prompts, index)
                live = [live[i] for i in index.tolist()]
                P, starts, ids = len(prompts), starts[index], ids[index]
            hidden = self._extend(cache, ids[:, None], starts)


@dataclass(eq=False)
class _Row:
    """One reply being written: `forced` waits to be written, `uniforms` drives the choices."""

    prompt: int
    index: int
    uniforms: NDArray[np.float64]
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    was_forced: list[bool] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)
    ended: bool = False
    done: bool = False

    def take(self, token: int, log_prob: float, end_token: int, guide: Guide | None) -> None:
        forced = bool(self.queue)
        if forced:
            self.queue.pop(0)
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        self.was_forced.append(forced)
        self.ended = not forced and token == end_token
        self.done = self.ended or len(self.tokens) == len(self.uniforms)
        if guide is None or forced or self.done:
            return
        order = guide.step(self.prompt, self.index, self.tokens)
        if isinstance(order, str):
            if order != END:
                raise ValueError(f"a guide returns tokens or END, not {order!r}")
            self.done = True
        else:
            self.queue = list(order)

    def sample(self) -> Sample:
        return Sample(
            tokens=np.array(self.tokens, dtype=np.int64),
            log_probs=np.array(self.log_probs),
            forced=np.array(self.was_forced, dtype=bool),
            ended=self.ended,
        )


def _choose(logits: Tensor, rows: list[_Row]) -> tuple[Tensor, Tensor]:
    """Draw (or force) the next token of each row; returns ids and log-probabilities (rows,).

    Inverse-CDF sampling with one uniform number a row, in two levels (blocks, then within the
    block), since a cumulative sum over the whole vocabulary is slow.
    """
    width = 192
    count, vocabulary = logits.shape
    peak = logits.amax(dim=1, keepdim=True)
    mass = torch.exp(logits - peak)
    if spare := -vocabulary % width:
        mass = torch.nn.functional.pad(mass, (0, spare))
    mass = mass.view(count, -1, width)
    blocks = mass.sum(dim=2).double().cumsum(dim=1)
    total = blocks[:, -1]
    u = [0.0 if row.done else row.uniforms[len(row.tokens)] for row in rows]
    target = torch.tensor(u, dtype=torch.float64, device=logits.device) * total
    block = (blocks <= target[:, None]).sum(dim=1).clamp_(max=blocks.shape[1] - 1)
    every = torch.arange(count, device=logits.device)
    within = mass[every, block].double()
    below = torch.where(block > 0, blocks[every, (block - 1).clamp(min=0)], 0.0)
    inside = within.cumsum(dim=1) + below[:, None]
    offset = (inside <= target[:, None]).sum(dim=1)
    # Rounding may leave the target beyond a block's last token with mass: take that token.
    last = width - 1 - (within > 0).int().flip(1).argmax(dim=1)
    ids = block * width + torch.minimum(offset, last)
    forced = [i for i, row in enumerate(rows) if row.queue]
    if forced:
        ids[forced] = torch.tensor([rows[i].queue[0] for i in forced], device=ids.device)
    log_probs = logits[every, ids] - peak[:, 0] - torch.log(total).float()
    return ids, log_probs


def _compact(rows: list[_Row], prompts: int) -> tuple[Tensor, Tensor] | None:
    """Which prompts and rows to keep, running rows first; None where little would be saved."""
    per = len(rows) // prompts
    running = np.array([not row.done for row in rows]).reshape(prompts, per)
    counts = running.sum(axis=1)
    keep, width = np.flatnonzero(counts), int(counts.max())
    if len(keep) * width > 0.8 * len(rows):
        return None
    order = np.argsort(~running[keep], axis=1, kind="stable")[:, :width]
    return torch.as_tensor(keep), torch.as_tensor((keep[:, None] * per + order).ravel())
