"""Requests to a completions server, repeated until they are answered in full."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2
import numpy as np
from numpy.typing import NDArray

from mechanisms.errors import BadInput
from mechanisms.llm.continuation import Ask

LOG = logging.getLogger(__name__)
T = TypeVar("T")
PASSING = (408, 425, 429)  # with 5xx: answers that may be another the next time
LONGEST_PAUSE = 30.0
WARN_EVERY = 5.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")
API_KEY = "ADMARKET_API_KEY"


class Lacking(ValueError):
    """An answer without something that was asked for."""


class ServerGaveOut(BadInput):
    """The server did not answer, however often it was asked; what was recorded is kept."""


@dataclass(frozen=True)
class Answer:
    """A chunk of a reply.

    Attributes:
        tokens: token ids.
        log_probs: their log-probabilities.
        stopped: the LLM (not the limit) ended it.
        stop_reason: the token that did, if the server says so.
    """

    tokens: list[int]
    log_probs: list[float]
    stopped: bool
    stop_reason: int | None


class Server:
    """A completions server, as an asynchronous context.

    Args:
        url: address, with or without the final `/v1`.
        timeout: seconds to wait for one answer.
        retries: how often a failed request is repeated.
        pause: seconds before the first repetition; each further one waits about twice as long.
        connections: open at once.
        transport: stands in for the network (tests).
    """

    def __init__(
        self,
        url: str,
        timeout: float,
        retries: int,
        pause: float,
        connections: int,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        try:
            parsed = httpx2.URL(self.url)
        except httpx2.InvalidURL:
            parsed = httpx2.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise BadInput(f"server {url!r} is not an address like http://127.0.0.1:8000")
        self.retries, self.pause = retries, pause
        self._warned = -math.inf
        key = os.environ.get(API_KEY)
        self._options: dict[str, Any] = {
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": httpx2.Timeout(timeout, connect=min(timeout, 20.0)),
            "limits": httpx2.Limits(max_connections=connections),
            "transport": transport,
            "trust_env": parsed.host not in LOOPBACK,  # a proxy knows nothing of our loopback
        }

    async def __aenter__(self) -> Server:
        self._client = httpx2.AsyncClient(**self._options)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def models(self) -> list[str]:
        """Names of the models served."""

        def names(answer: Any) -> list[str]:
            try:
                return [str(model["id"]) for model in answer["data"]]
            except (KeyError, TypeError):
                raise Lacking("it lists no models") from None

        return await self._insist("GET", "/v1/models", None, names)

    async def ask(self, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        """What `read` makes of the answer to a completions request."""
        return await self._insist("POST", "/v1/completions", body, read)

    async def _insist(
        self, method: str, path: str, body: dict[str, Any] | None, read: Callable[[Any], T]
    ) -> T:
        begun = time.monotonic()
        for attempt in range(self.retries + 1):
            try:
                return await self._once(method, path, body, read)
            except (httpx2.TransportError, httpx2.DecodingError, Lacking, _Passing) as error:
                trouble = str(error) or type(error).__name__
                asked_for = getattr(error, "wait", 0.0)
            if attempt < self.retries:
                pause = min(self.pause * 2**attempt, LONGEST_PAUSE) * random.uniform(0.5, 1.5)
                self._warn(f"{self.url}{path}: {trouble}; attempt {attempt + 2} follows")
                await asyncio.sleep(max(pause, min(asked_for, LONGEST_PAUSE)))
        raise ServerGaveOut(
            f"the server at {self.url} gave no usable answer in {self.retries + 1} attempts over "
            f"{time.monotonic() - begun:.0f} s ({trouble}); check it, then give the same command "
            "again: a recording goes on where it stopped"
        )

    def _warn(self, message: str) -> None:
        """Warn now and then: when a server stumbles, all requests under way do."""
        now = time.monotonic()
        if now - self._warned >= WARN_EVERY:
            self._warned = now
            LOG.warning(message)

    async def _once(
        self, method: str, path: str, body: dict[str, Any] | None, read: Callable[[Any], T]
    ) -> T:
        response = await self._client.request(method, self.url + path, json=body)
        status = response.status_code
        if status in PASSING or status >= 500:
            raise _Passing(f"HTTP {status}: {_message(response)}", response.headers)
        if status >= 300:
            raise BadInput(
                f"the server at {self.url} refused {path} with HTTP {status}: {_message(response)}"
                + (f"; set {API_KEY} to its key" if status in (401, 403) else "")
            )
        try:
            answer = json.loads(response.content)
        except ValueError:
            raise Lacking("the answer is not JSON, or broke off") from None
        return read(answer)


class _Passing(Exception):
    """An HTTP status that may be another the next time."""

    def __init__(self, message: str, headers: httpx2.Headers) -> None:
        super().__init__(message)
        try:
            self.wait = max(0.0, float(headers.get("retry-after", 0)))
        except ValueError:  # a date: our own pauses will do
            self.wait = 0.0


def _message(response: httpx2.Response) -> str:
    """What the server says is wrong, in one line."""
    try:
        answer = json.loads(response.content)
    except ValueError:
        answer = response.text
    for name in ("error", "message", "detail"):
        if isinstance(answer, dict) and name in answer:
            answer = answer[name]
    return " ".join(str(answer).split())[:300] or "no reason given"


def read_chunk(answer: Any, most: int) -> Answer:
    """Read the tokens that the LLM wrote."""
    choice, log_probs = _choice(answer)
    tokens = choice.get("token_ids")
    if tokens is None:
        tokens = _ids(choice["logprobs"])
    if tokens is None:
        raise Lacking("it has no token ids; the server must know return_token_ids, as vLLM does")
    if len(tokens) != len(log_probs) or not 0 < len(tokens) <= most:
        raise Lacking(f"it has {len(tokens)} tokens and {len(log_probs)} log-probabilities")
    reason = choice.get("stop_reason")
    return Answer(
        tokens=[int(token) for token in tokens],
        log_probs=_checked(log_probs),
        stopped=choice.get("finish_reason") == "stop",
        stop_reason=reason if isinstance(reason, int) else None,
    )


def read_scores(answer: Any, ask: Ask) -> NDArray[np.float64]:
    """Read the log-probabilities of `ask.tokens[ask.start:]`."""
    choice, log_probs = _choice(answer)
    if len(log_probs) < len(ask.tokens):
        raise Lacking(
            f"it has {len(log_probs)} log-probabilities for {len(ask.tokens)} prompt tokens; "
            "the server must know echo, as vLLM does"
        )
    tokens = _ids(choice["logprobs"])
    if tokens is not None and tokens[: len(ask.tokens)] != list(ask.tokens):
        raise Lacking("it is about other tokens than the prompt's")
    return np.array(_checked(log_probs[ask.start : len(ask.tokens)]))


def _choice(answer: Any) -> tuple[dict[str, Any], list[Any]]:
    try:
        choice = answer["choices"][0]
        log_probs = choice["logprobs"]["token_logprobs"]
        if isinstance(log_probs, list):
            return choice, log_probs
    except (KeyError, IndexError, TypeError):
        pass
    raise Lacking("it has no log-probabilities")


def _ids(logprobs: dict[str, Any]) -> list[int] | None:
    """Token ids where a server writes tokens as `token_id:17`."""
    try:
        return [int(token.removeprefix("token_id:")) for token in logprobs["tokens"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _checked(log_probs: list[Any]) -> list[float]:
    for value in log_probs:
        if not isinstance(value, int | float) or math.isnan(value):
            raise Lacking(f"a log-probability is {value!r}")
        if value > 1e-3:
            raise BadInput(
                f"the server gave {value:g} for a log-probability, which is never above 0; "
                "start it with --logprobs-mode raw_logprobs"
            )
    return [min(float(value), 0.0) for value in log_probs]
