"""vLLM inside our own process: the engine for large models and large recordings.

Replies are watched while they are written, token by token; where a guide writes, the request is
dropped and a new one goes on behind it, its prompt still in vLLM's cache.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from mechanisms.errors import BadInput
from mechanisms.llm import adapters
from mechanisms.llm.base import NONE_FINISHED, Guide, Sample, Samples, Scores
from mechanisms.llm.chat import ChatTokenizer
from mechanisms.llm.continuation import (
    Ask,
    Reply,
    Results,
    check_draw,
    check_replies,
    replies_to_write,
)
from mechanisms.llm.weights import locate

LOG = logging.getLogger(__name__)
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
QUIET = {
    # In one process: what a request draws does not depend on when others arrive, and no worker
    # outlives us.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
GIB = 2**30
LONGEST = 8192  # prompt and reply, on a CPU


class VLLMEngine(ChatTokenizer):
    """Samples and scores with vLLM; `make vllm` installs it.

    Args:
        model: a name that `mechanisms.llm.weights.locate` understands.
        dtype: `bf16` or `fp32`, of weights and cache; probabilities are always computed in fp32.
        rows: replies under way at once.
        cache_gib: size of the cache for prompts and replies, on a CPU; a GPU's is vLLM's choice.
        adapter: folder of a LoRA adapter to serve the model with; not one with `bid_embedding`.
        options: passed on to vLLM (`tensor_parallel_size`, `max_model_len`, ...).
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        dtype: str = "bf16",
        *,
        rows: int = 128,
        cache_gib: float = 1.0,
        adapter: Path | None = None,
        **options: Any,
    ) -> None:
        if dtype not in DTYPES:
            raise BadInput(f"dtype {dtype!r} of the LLM is unknown; choose from {sorted(DTYPES)}")
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ImportError as error:
            raise BadInput(
                f"vLLM cannot be used from this Python environment ({error}); run `make vllm` and "
                "use .venv-vllm/bin/admarket, or on a GPU: pip install 'admarket[vllm]'"
            ) from None
        super().__init__(model)
        self.model = model
        self.dtype = dtype
        self.adapter = adapters.identity(adapter) if adapter else None
        self._lora = None
        if adapter:
            from vllm.lora.request import LoRARequest

            if adapters.bid_embedding(adapter) is not None:
                raise BadInput(
                    f"vLLM cannot serve the bid embedding of adapter {adapter}; choose engine "
                    "transformers, or train with other codes of bids"
                )
            self._lora = LoRARequest("adapter", 1, str(adapter))
            room = max(8, 1 << (adapters.rank(adapter) - 1).bit_length())  # a power of two
            options = {"enable_lora": True, "max_lora_rank": room} | options
        if current_platform.is_cpu():
            options = self._cpu_options(cache_gib) | options
        with _without_odd_modules():
            self._llm = LLM(
                model=locate(model),
                dtype=DTYPES[dtype],
                max_num_seqs=rows,
                generation_config="vllm",  # the model's own would truncate
                use_tqdm_on_load=False,
                worker_extension_cls="mechanisms.llm.vllm_worker.Tempered",
                **options,
            )
        self._engine = self._llm.llm_engine
        self._rows = rows
        self._block = self._engine.vllm_config.cache_config.block_size
        self._ids = map(str, itertools.count())
        self._temperature = 1.0

    def _cpu_options(self, cache_gib: float) -> dict[str, Any]:
        """What vLLM needs on a CPU, where one flaw must be steered clear of.

        It stops with "CPU Generator does not use offset" where a seeded request's prompt is run in
        two parts; so none may be, and all prompts must fit one batch.
        """
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(locate(self.model))
        longest = min(getattr(config, "max_position_embeddings", LONGEST), LONGEST)
        return {
            "kv_cache_memory_bytes": int(cache_gib * GIB),
            "block_size": 32,  # small, since only whole blocks are cached; kernels want 32s
            "max_model_len": longest,
            "max_num_batched_tokens": LONGEST,
            "enable_chunked_prefill": False,
            "enforce_eager": True,  # compiling takes a minute or more, and gains nothing here
        }

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
        """See `mechanisms.llm.base.Engine.generate`."""
        check_draw(n, max_new_tokens, temperature)
        self._temper(temperature)
        results: Results[Sample] = Results([n] * len(prompts), finished, done)
        work = replies_to_write(
            results,
            lambda p: self.chat_tokens(prompts[p]),
            self.end_token,
            max_new_tokens=max_new_tokens,
            seed=seed,
            guide=guide,
            keys=keys,
            chunk=None,
        )
        salts = [uuid4().hex for _ in prompts]
        live: dict[str, Reply] = {}
        try:
            while True:
                while len(live) < self._rows and (reply := next(work, None)):
                    live[self._submit(reply.ask())] = reply
                if not live:
                    return results.all()
                for output in self._engine.step():
                    reply = live[output.request_id]
                    salt: str | None = salts[reply.prompt]
                    if reply.done:
                        scores = _prompt_scores(output, reply.scored_from())
                        if scores is None:
                            salt = None
                        else:
                            reply.take_scores(scores)
                    elif self._take(reply, output):
                        continue
                    del live[output.request_id]
                    if ask := reply.ask():
                        live[self._submit(ask, None if ask.max_tokens else salt)] = reply
                    else:
                        results.put(reply.prompt, reply.index, reply.sample())
        finally:
            self._engine.abort_request(list(live))

    def _take(self, reply: Reply, output: Any) -> bool:
        """Read new tokens; returns whether the request goes on."""
        (new,) = output.outputs
        log_probs = [row[t].logprob for t, row in zip(new.token_ids, new.logprobs, strict=True)]
        goes_on = reply.take(list(new.token_ids), log_probs) and not output.finished
        if not goes_on and not output.finished:
            self._engine.abort_request([output.request_id])
        return goes_on

    def score(
        self,
        prompts: Sequence[str],
        replies: Sequence[Sequence[Sequence[int]]],
        *,
        temperature: float,
        finished: Mapping[int, Scores] = NONE_FINISHED,
        done: Callable[[Mapping[int, Scores]], None] | None = None,
    ) -> list[list[NDArray[np.float64]]]:
        """See `mechanisms.llm.base.Engine.score`.

        vLLM would run the prompt anew for each reply. So the first reply to a prompt goes ahead,
        and the others find its prompt in the cache, under a name that no other text has.
        """
        self._temper(temperature)
        results: Results[NDArray[np.float64]] = Results(
            check_replies(prompts, replies), finished, done
        )
        work = self._scoring(results, prompts, replies)
        live: dict[str, _Scored] = {}
        behind: dict[int, list[_Scored]] = {}  # those that wait for the first, by prompt
        ready: deque[_Scored] = deque()
        try:
            while True:
                while len(live) < self._rows and (
                    each := ready.popleft() if ready else next(work, None)
                ):
                    if each.salt and not each.first and each.prompt in behind:
                        behind[each.prompt].append(each)
                        continue
                    if each.first:
                        behind[each.prompt] = []
                    live[self._submit(each.ask, each.salt)] = each
                if not live:
                    return results.all()
                for output in self._engine.step():
                    if not output.finished:
                        continue
                    each = live.pop(output.request_id)
                    ready.extend(behind.pop(each.prompt, ()) if each.first else ())
                    scores = _prompt_scores(output, each.ask.start)
                    if scores is not None:
                        results.put(each.prompt, each.index, scores)
                    elif each.salt:  # begins like another reply, which is cached too
                        ready.append(replace(each, salt=None, first=False))
                    else:
                        raise RuntimeError("vLLM did not score a reply")
        finally:
            self._engine.abort_request(list(live))

    def _scoring(
        self,
        results: Results[NDArray[np.float64]],
        prompts: Sequence[str],
        replies: Sequence[Sequence[Sequence[int]]],
    ) -> Iterator[_Scored]:
        """What to ask for; empty replies need no asking."""
        last, chat, salt = -1, [], None
        for p, k in results.missing():
            reply = [int(token) for token in replies[p][k]]
            if not reply:
                results.put(p, k, np.zeros(0))
                continue
            first = p != last
            if first:
                last, chat = p, self.chat_tokens(prompts[p])
                # A prompt of whole blocks would be cached to its end, and its last row is needed.
                salt = uuid4().hex if len(chat) % self._block else None
            ask = Ask(chat + reply, start=len(chat))
            yield _Scored(p, k, ask, salt, first and salt is not None)

    def _submit(self, ask: Ask, salt: str | None = None) -> str:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=max(ask.max_tokens, 1),
            temperature=1.0,
            seed=ask.seed,
            stop_token_ids=[self.end_token],
            ignore_eos=True,  # models may have others, which end nothing here
            logprobs=0 if ask.max_tokens else None,
            prompt_logprobs=None if ask.max_tokens else 0,
            skip_reading_prefix_cache=not (ask.max_tokens or salt),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA if ask.max_tokens else RequestOutputKind.FINAL_ONLY,
        )
        prompt: dict[str, Any] = {"prompt_token_ids": list(ask.tokens)}
        if salt:
            prompt["cache_salt"] = salt
        name = next(self._ids)
        self._engine.add_request(name, prompt, params, lora_request=self._lora)
        return name

    def _temper(self, temperature: float) -> None:
        """Make the served LLM the one at `temperature`, and see that it is."""
        if temperature <= 0:
            raise BadInput(f"temperature {temperature} is not above 0")
        if temperature == self._temperature:
            return
        before = self._spread()
        heads = self._llm.collective_rpc("temper", args=(temperature,))
        after = self._spread()
        if not all(heads) or abs(after * temperature / (before * self._temperature) - 1) > 0.05:
            raise BadInput(
                f"vLLM {'' if all(heads) else 'finds no logits and '}does not serve {self.model} "
                f"at temperature {temperature:g}; sample at {self._temperature:g}"
            )
        self._temperature = temperature

    def _spread(self) -> float:
        """How far apart likely tokens are, in nats: inversely proportional to the temperature."""
        from vllm import SamplingParams

        prompt = {"prompt_token_ids": self.chat_tokens("")}
        params = SamplingParams(max_tokens=1, logprobs=5, detokenize=False, seed=0)
        (output,) = self._llm.generate([prompt], params, use_tqdm=False, lora_request=self._lora)
        (row,) = output.outputs[0].logprobs
        ranked = sorted((each.logprob for each in row.values()), reverse=True)
        return ranked[0] - ranked[4]


@dataclass(frozen=True)
class _Scored:
    """A reply to be scored, `first` of those whose prompt is cached under the name `salt`."""

    prompt: int
    index: int
    ask: Ask
    salt: str | None
    first: bool


def _prompt_scores(output: Any, start: int) -> NDArray[np.float64] | None:
    """(T,) log-probabilities of the tokens of a request from `start` on, if vLLM made them all.

    It makes none where it found the token before in its cache: there its answer holds whatever
    stood in memory.
    """
    tokens, rows = output.prompt_token_ids, output.prompt_logprobs
    if output.num_cached_tokens >= start or len(rows) != len(tokens):
        return None
    try:
        return np.array([rows[t][tokens[t]].logprob for t in range(start, len(tokens))])
    except KeyError:
        return None


@contextlib.contextmanager
def _without_odd_modules() -> Iterator[None]:
    """Hide modules that vLLM trips over while it starts.

    It looks through all that is imported for kernels to replace, and takes every `__dict__` for a
    dictionary; llvmlite, which numba imports, has objects whose `__dict__` is none.
    """

    def odd(value: Any) -> bool:
        return hasattr(value, "__dict__") and not isinstance(vars(value), Mapping)

    hidden = {
        name: module
        for name, module in list(sys.modules.items())
        if any(odd(value) for value in list(getattr(module, "__dict__", {}).values()))
    }
    for name in hidden:
        del sys.modules[name]
    try:
        yield
    finally:
        sys.modules.update(hidden)
