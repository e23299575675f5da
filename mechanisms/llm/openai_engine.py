"""An LLM behind a server that speaks the OpenAI completions interface, such as vLLM's.

The server is asked in token ids, at its own temperature and without any truncation, so its
densities are those of the LLM it serves. Long recordings meet servers that restart, stall and
stumble: each request is repeated with growing pauses (`mechanisms.llm.server`), and results are
handed out prompt by prompt, so that whoever keeps them loses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mechanisms.errors import BadInput
from mechanisms.llm import tempered
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
from mechanisms.llm.server import Answer, Server, read_chunk, read_scores
from mechanisms.llm.weights import locate

T = TypeVar("T")
PLAIN = {
    "n": 1,
    "stream": False,
    "logprobs": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    # What follows is vLLM's. Token ids are asked for in both of its ways.
    "ignore_eos": True,
    "skip_special_tokens": False,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
}
"""Sent with every request: a server's own defaults, which it takes from the model, truncate."""


class OpenAIEngine(ChatTokenizer):
    """Samples and scores with a server that returns log-probabilities of prompt tokens.

    Args:
        server_url: address, with or without the final `/v1`.
        model: a name that `mechanisms.llm.weights.locate` understands; its tokenizer is read here.
        tokenizer: where to read the tokenizer instead, if the model itself is not at hand.
        served_model: what the server calls the model, unless that is clear from `model`.
        served_temperature: at which the LLM is served, unless `model` is a directory that says it
            (`mechanisms.llm.tempered`); no other can be sampled, see `check_temperature`.
        concurrency: requests under way at once.
        timeout: seconds to wait for one answer.
        retries: how often a failed request is repeated.
        pause: seconds before the first repetition; each further one waits about twice as long.
        transport: stands in for the network (tests).
    """

    def __init__(
        self,
        server_url: str,
        model: str,
        *,
        tokenizer: str | None = None,
        served_model: str | None = None,
        served_temperature: float | None = None,
        concurrency: int = 32,
        timeout: float = 600.0,
        retries: int = 8,
        pause: float = 0.5,
        transport: Any = None,
    ) -> None:
        super().__init__(tokenizer or model)
        self.model = model
        self.served_model = served_model
        self.served_temperature = (
            tempered.served_temperature(model) if served_temperature is None else served_temperature
        )
        self.concurrency = concurrency
        self._server_options = {
            "url": server_url,
            "timeout": timeout,
            "retries": retries,
            "pause": pause,
            "connections": concurrency,
            "transport": transport,
        }
        Server(**self._server_options)  # refuses a bad address now, not at the first request

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
        check_temperature(temperature, self.served_temperature, self.model)
        results: Results[Sample] = Results([n] * len(prompts), finished, done)
        work = replies_to_write(
            results,
            lambda p: self.chat_tokens(prompts[p]),
            self.end_token,
            max_new_tokens=max_new_tokens,
            seed=seed,
            guide=guide,
            keys=keys,
        )

        async def write(server: Server, reply: Reply) -> None:
            while ask := reply.ask():
                if ask.max_tokens:
                    answer = await self._continue(server, ask)
                    reply.take(answer.tokens, answer.log_probs)
                else:
                    reply.take_scores(await self._score(server, ask))
            results.put(reply.prompt, reply.index, reply.sample())

        run(self._work_off(work, write))
        return results.all()

    def score(
        self,
        prompts: Sequence[str],
        replies: Sequence[Sequence[Sequence[int]]],
        *,
        temperature: float,
        finished: Mapping[int, Scores] = NONE_FINISHED,
        done: Callable[[Mapping[int, Scores]], None] | None = None,
    ) -> list[list[NDArray[np.float64]]]:
        """See `mechanisms.llm.base.Engine.score`; here each reply runs behind its prompt."""
        check_temperature(temperature, self.served_temperature, self.model)
        results: Results[NDArray[np.float64]] = Results(
            check_replies(prompts, replies), finished, done
        )

        async def score(server: Server, key: tuple[int, int]) -> None:
            p, k = key
            reply = [int(token) for token in replies[p][k]]
            scores = np.zeros(0)
            if reply:
                chat = self.chat_tokens(prompts[p])
                scores = await self._score(server, Ask(chat + reply, start=len(chat)))
            results.put(p, k, scores)

        run(self._work_off(results.missing(), score))
        return results.all()

    async def _work_off(
        self, work: Iterator[T], each: Callable[[Server, T], Coroutine[Any, Any, None]]
    ) -> None:
        """Do `each` piece of `work`, in order, as many at once as requests may be under way."""
        first = next(work, None)
        if first is None:
            return
        async with Server(**self._server_options) as server:
            self.served_model = self.served_model or await self._find_model(server)
            waiting = iter([first])

            async def worker() -> None:
                for source in (waiting, work):
                    for piece in source:
                        await each(server, piece)

            tasks = [asyncio.create_task(worker()) for _ in range(self.concurrency)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _find_model(self, server: Server) -> str:
        """What the server calls our model: its name or path, or a path that ends like ours."""
        served = await server.models()
        for wanted in (self.model, locate(self.model)):
            if wanted in served:
                return wanted
        alike = [name for name in served if PurePath(name).name == PurePath(self.model).name]
        if len(alike) == 1:
            return alike[0]
        raise BadInput(
            f"the server at {server.url} serves {', '.join(served) or 'no model'}, "
            f"not {self.model}; start it with that model, or set served_model to one of its names"
        )

    async def _continue(self, server: Server, ask: Ask) -> Answer:
        body = {
            **PLAIN,
            "model": self.served_model,
            "prompt": list(ask.tokens),
            "max_tokens": ask.max_tokens,
            "seed": ask.seed,
            "stop_token_ids": [self.end_token],
        }
        if ask.stops:
            body |= {"stop": list(ask.stops), "include_stop_str_in_output": True}
        answer = await server.ask(body, lambda given: read_chunk(given, ask.max_tokens))
        if not self._stopped_knowingly(answer, ask):
            raise BadInput(
                f"the server at {server.url} ended a reply without its end-of-turn token "
                f"{self.end_token}; check that it serves {self.model} and returns stop tokens"
            )
        return answer

    def _stopped_knowingly(self, answer: Answer, ask: Ask) -> bool:
        """Whether the tokens say why the LLM stopped: one kept back would bias what follows."""
        last = answer.tokens[-1]
        if not answer.stopped or last in (self.end_token, answer.stop_reason):
            return True
        return any(stop in self.decode(answer.tokens) for stop in ask.stops)

    async def _score(self, server: Server, ask: Ask) -> NDArray[np.float64]:
        body = {
            **PLAIN,
            "model": self.served_model,
            "prompt": list(ask.tokens),
            "max_tokens": 0,
            "echo": True,
        }
        return await server.ask(body, lambda given: read_scores(given, ask))


def check_temperature(temperature: float, served: float, model: str) -> None:
    """Refuse another temperature than the served one: servers score prompts at their own only."""
    if abs(temperature - served) > 1e-9:
        raise BadInput(
            f"the server's LLM is at temperature {served:g}, and gives log-probabilities at no "
            f"other; to sample at {temperature:g}, make a copy of it for that with `python -m "
            f"mechanisms.llm.tempered {model} {temperature:g} DIR`, serve DIR, set the model to DIR"
        )


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, also where an event loop is running (notebooks, dashboards)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()
