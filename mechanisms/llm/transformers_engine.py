"""The embedded engine: any full-attention decoder of transformers, on CPU or one GPU.

Generation is one lean loop over a batch of (prompt, reply) rows with a shared prompt cache
(`mechanisms.llm.prefix`); rows that are done leave the batch. Each row is driven by its own random
stream, so what it says does not depend on which rows it shares a batch with, up to the rounding of
the batch's matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mechanisms.errors import BadInput
from mechanisms.llm import adapters
from mechanisms.llm.base import NONE_FINISHED, Guide, Sample, Samples, Scores
from mechanisms.llm.chat import ChatTokenizer
from mechanisms.llm.continuation import check_draw, check_replies
from mechanisms.llm.decoding import Row, choose, compact
from mechanisms.llm.prefix import NAME as SHARED_PREFIX
from mechanisms.llm.prefix import SharedPrefixCache
from mechanisms.llm.weights import loading, locate
from mechanisms.llm_auction.prompt import SYMBOLS

SCORED_TOKENS = 3072  # scored at once: more would not fit the caches of a CPU core
SCORED_WIDTH = 24  # counted as so many rows, a prompt leaves room for eight in a batch
PAD = 0  # any id will do: padding is masked, or comes after all that is read
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class TransformersEngine(ChatTokenizer):
    """Samples and scores with a transformers model.

    Args:
        model: a name that `mechanisms.llm.weights.locate` understands.
        dtype: `bf16` or `fp32`, of weights and cache; probabilities are always computed in fp32.
        device: `cpu`, `cuda`, or None for CUDA where there is one.
        batch_rows: replies decoded at once.
        adapter: folder of a LoRA adapter to serve the model with (`mechanisms.llm.adapters`).
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        dtype: str = "bf16",
        device: str | None = None,
        batch_rows: int = 192,
        adapter: Path | None = None,
    ) -> None:
        from transformers import AutoModelForCausalLM

        if dtype not in DTYPES:
            raise BadInput(f"dtype {dtype!r} of the LLM is unknown; choose from {sorted(DTYPES)}")
        self.model = model
        self.dtype = dtype
        self.batch_rows = batch_rows
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        path = locate(model)
        super().__init__(model)
        # An adapter is added to the weights as stored, and rounded with them.
        with loading(model):
            self.network = AutoModelForCausalLM.from_pretrained(
                path,
                dtype="auto" if adapter else DTYPES[dtype],
                attn_implementation=SHARED_PREFIX,
            )
        if getattr(self.network.config, "sliding_window", None):
            raise BadInput(
                f"model {model} uses sliding-window attention, which this engine does not serve; "
                "serve it with vLLM, or choose a full-attention model"
            )
        self.adapter: str | None = None
        self._stored: dict[str, Tensor] = {}
        self._embedded: RemovableHandle | None = None
        if adapter:
            self._stored = adapters.merge(self.network, adapter)
            self._adapted(adapter)
        self.network.to(self.device).eval()

    @property
    def threads(self) -> int | None:
        """On CPUs, in how many parts sums are added up: what is written may depend on it."""
        return torch.get_num_threads() if self.device == "cpu" else None

    def load_adapter(self, folder: Path) -> None:
        """Serve the model with the adapter in `folder` instead of the one it was opened with.

        Comes to the same weights, to the last bit, as opening an engine with it.

        Raises:
            BadInput: the engine was opened without an adapter, or with one of other modules, or
                this one is none; the engine then serves what it served before.
        """
        if not adapters.modules(folder) <= set(self._stored):
            # their weights were rounded without it
            raise BadInput(
                f"adapter {folder} is of other modules than the one that the engine was opened "
                "with; open another engine"
            )
        adapters.check(self.network, folder)
        for module, weight in self._stored.items():
            self.network.get_submodule(module).weight.data = weight
        adapters.merge(self.network, folder)
        self._adapted(folder)

    def _adapted(self, folder: Path) -> None:
        """Round all weights to the engine's dtype, and embed bids if the adapter does."""
        for weight in self.network.parameters():  # no buffers: rotations are kept in fp32
            weight.data = weight.data.to(self.device, DTYPES[self.dtype])
        self.network.config.dtype = DTYPES[self.dtype]
        self.adapter = adapters.identity(folder)
        if self._embedded is not None:
            self._embedded.remove()
            self._embedded = None
        levels = adapters.bid_embedding(folder)
        if levels is None:
            return
        symbols = [self.encode(symbol) for symbol in SYMBOLS]
        if any(len(tokens) != 1 for tokens in symbols):
            raise BadInput(
                f"adapter {folder} embeds bid symbols that model {self.model} has no token for; "
                "give the LLM that it was trained on, or train with other codes of bids"
            )
        embedding = self.network.get_input_embeddings()
        ids = [token for (token,) in symbols]
        self._embedded = adapters.embed_levels(embedding, ids, levels)

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
        finished: Mapping[int, Samples] = NONE_FINISHED,
        done: Callable[[Mapping[int, Samples]], None] | None = None,
    ) -> list[list[Sample]]:
        """See `mechanisms.llm.base.Engine.generate`.

        Batches are formed of all prompts, finished or not, and are done as a whole: so what is
        written after an interruption is, to the last bit, what would have been.
        """
        check_draw(n, max_new_tokens, temperature)
        keys = range(len(prompts)) if keys is None else keys
        results = [list(finished.get(p, ())) for p in range(len(prompts))]
        for batch, tokens in self._batches(prompts, n, self.batch_rows):
            if all(p in finished for p in batch):
                continue
            for p in batch:
                results[p] = []
            rows = [
                Row(p, k, np.random.default_rng([seed, keys[p], k]).random(max_new_tokens))
                for p in batch
                for k in range(n)
            ]
            self._decode(tokens, rows, temperature, guide)
            for row in rows:
                results[row.prompt].append(row.sample())
            if done:
                done({p: results[p] for p in batch})
        return results

    @torch.inference_mode()
    def score(
        self,
        prompts: Sequence[str],
        replies: Sequence[Sequence[Sequence[int]]],
        *,
        temperature: float,
        finished: Mapping[int, Scores] = NONE_FINISHED,
        done: Callable[[Mapping[int, Scores]], None] | None = None,
    ) -> list[list[NDArray[np.float64]]]:
        """See `mechanisms.llm.base.Engine.score`; all prompts need equally many replies.

        Each prompt runs once; its replies are then scored in groups of like length, together with
        those of other prompts.
        """
        if len(set(check_replies(prompts, replies).tolist())) > 1:
            raise BadInput("prompts have different numbers of replies to score; give each as many")
        n = len(replies[0]) if replies else 0
        scored = [list(finished.get(p, ())) for p in range(len(prompts))]
        for batch, tokens in self._batches(prompts, SCORED_WIDTH, self.batch_rows):
            if all(p in finished for p in batch):
                continue
            ordered = [sorted(range(n), key=lambda k, p=p: len(replies[p][k])) for p in batch]
            got: list[dict[int, NDArray[np.float64]]] = [{} for _ in batch]
            cache, lengths, first = self.prefill(tokens)
            at = 0
            while at < n:
                group = [
                    (r, k, np.asarray(replies[p][k]))
                    for r, p in enumerate(batch)
                    for k in ordered[r][at : at + self._width(replies, batch, ordered, at)]
                ]
                at += len(group) // len(batch)
                values = self._score_group(cache, lengths, first, group, temperature)
                for (r, k, reply), row in zip(group, values, strict=True):
                    got[r][k] = row[: len(reply)]
            for r, p in enumerate(batch):
                scored[p] = [got[r][k] for k in range(n)]
            if done:
                done({p: scored[p] for p in batch})
        return scored

    def _width(
        self,
        replies: Sequence[Sequence[Sequence[int]]],
        batch: list[int],
        ordered: list[list[int]],
        at: int,
    ) -> int:
        """How many replies per prompt, from the `at`-th shortest on, to score at once."""
        lengths = [
            max(len(replies[p][order[j]]) for p, order in zip(batch, ordered, strict=True))
            for j in range(at, len(ordered[0]))
        ]
        width = 1
        while width < len(lengths):
            tokens = len(batch) * (width + 1) * lengths[width]
            uneven = lengths[width] > 1.3 * max(lengths[0], 8)
            if tokens > SCORED_TOKENS or (uneven and tokens > SCORED_TOKENS // 4):
                break
            width += 1
        return width

    def _score_group(
        self,
        cache: SharedPrefixCache,
        lengths: Tensor,
        first: Tensor,
        group: list[tuple[int, int, NDArray[np.int64]]],
        temperature: float,
    ) -> NDArray[np.float64]:
        """(rows, longest) log-probabilities of replies, prompt-major, behind the cached prompts."""
        longest = max(len(reply) for _, _, reply in group)
        if not longest:
            return np.zeros((len(group), 0))
        ids = torch.full((len(group), longest), PAD)
        for row, (_, _, reply) in enumerate(group):
            ids[row, : len(reply)] = torch.as_tensor(reply)
        ids = ids.to(self.device)
        per_prompt = len(group) // len(lengths)
        cache.open(per_prompt, capacity=longest)
        hidden = self.extend(cache, ids, lengths.repeat_interleave(per_prompt), keep_all=True)
        states = torch.cat([first.repeat_interleave(per_prompt, 0)[:, None], hidden[:, :-1]], dim=1)
        return self._token_log_probs(states, ids, temperature).cpu().numpy()

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

    def prefill(self, tokens: list[list[int]]) -> tuple[SharedPrefixCache, Tensor, Tensor]:
        """Run the prompts; returns the cache, lengths (P,) and last hidden states (P, width)."""
        lengths = torch.tensor([len(t) for t in tokens], device=self.device)
        L = int(lengths.max())
        ids = torch.tensor([t + [PAD] * (L - len(t)) for t in tokens])
        positions = torch.arange(L, device=self.device)[None]
        cache = SharedPrefixCache(
            layers=self.network.config.num_hidden_layers,
            prefix_mask=positions < lengths[:, None],
            padded=min(map(len, tokens)) < L,
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

    def extend(
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
        # A vocabulary of logits per position soon outgrows the caches: the product is made in parts
        # that use the cores well, and summed in parts that stay in a cache.
        for start in range(0, len(flat), 512):
            logits = self.network.lm_head(flat[start : start + 512])
            for at in range(0, len(logits), 32):
                rows = slice(start + at, start + min(at + 32, len(logits)))
                part = logits[at : at + 32].float().div_(temperature)
                part -= part.amax(dim=1, keepdim=True)
                chosen = part.gather(1, wanted[rows, None])[:, 0]
                out[rows] = (chosen - part.exp_().sum(dim=1).log()).double()
        return out.view(ids.shape)

    def _decode(
        self, tokens: list[list[int]], rows: list[Row], temperature: float, guide: Guide | None
    ) -> None:
        """Write all rows to their end; rows of one prompt stand together throughout."""
        P = len(tokens)
        cache, lengths, last = self.prefill(tokens)
        cache.open(len(rows) // P, capacity=len(rows[0].uniforms))
        starts = lengths.repeat_interleave(len(rows) // P)
        hidden = last.repeat_interleave(len(rows) // P, 0)
        live = rows
        while True:
            logits = self.network.lm_head(hidden).float() / temperature
            ids, log_probs = choose(logits, live)
            for row, token, log_prob in zip(live, ids.tolist(), log_probs.tolist(), strict=True):
                if not row.done:
                    row.take(token, log_prob, self.end_token, guide)
            running = [row for row in live if not row.done]
            if not running:
                return
            kept = compact(live, P)
            if kept is not None:
                prompts, index = (t.to(self.device) for t in kept)
                cache.keep(prompts, index)
                live = [live[i] for i in index.tolist()]
                P, starts, ids = len(prompts), starts[index], ids[index]
            hidden = self.extend(cache, ids[:, None], starts)
