"""Writing replies with an engine that cannot call a guide: go on from what stands, again and again.

A guide may write into a reply behind any token of the LLM, but a server hands out tokens in chunks.
So a chunk is read token by token, as if it were just being written. Where the guide writes, what is
left of the chunk is thrown away, and the next chunk goes on behind what the guide wrote. That is
exact: each token kept was drawn given all tokens before it, and whether it is kept depends on them
alone, never on what was thrown away.

There is no input or output here: `Reply.ask` says what to ask an engine for and `Reply.take` reads
its answer, so servers and embedded engines share every rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mechanisms.errors import BadInput
from mechanisms.llm.base import END, Guide, Sample

STOPS = (".", "!", "?", "\n")
"""Where guides mostly write: what is asked for beyond would often be thrown away."""
CHUNK = 48  # tokens asked for at once where a guide listens: it may end a reply that never stops
STREAM = 2  # after (seed, key, reply): apart from the stream of guides, whose number is 1

T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """What to ask an engine for.

    Attributes:
        tokens: the prompt and all that stands behind it.
        max_tokens: how many more to write at most; 0 to have `tokens[start:]` scored.
        seed: of the random numbers that choose them.
        stops: the chunk may as well end behind one of these strings.
        start: first token to be scored.
    """

    tokens: Sequence[int]
    max_tokens: int = 0
    seed: int = 0
    stops: tuple[str, ...] = ()
    start: int = 0


class Reply:
    """One reply being written.

    Args:
        prompt: number of the prompt.
        index: number of the reply to it.
        chat: token ids of the prompt.
        limit: longest reply, what the guide writes included.
        end_token: id of the end-of-turn token.
        guide: writes into the reply, or None.
        entropy: (seed, key, index), which determine all random numbers.
        chunk: tokens asked for at once where a guide listens; None for as many as there is room.
    """

    def __init__(
        self,
        prompt: int,
        index: int,
        chat: Sequence[int],
        limit: int,
        end_token: int,
        guide: Guide | None,
        entropy: Sequence[int],
        chunk: int | None = CHUNK,
    ) -> None:
        self.prompt, self.index = prompt, index
        self.chat, self.limit, self.end_token = list(chat), limit, end_token
        self.guide, self.entropy = guide, tuple(entropy)
        self.chunk = chunk if guide and chunk else limit
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.forced: list[bool] = []
        self.ended = False
        self.done = False
        self.chunks = 0

    def ask(self) -> Ask | None:
        """What to ask for next; None if the reply is complete."""
        if not self.done:
            left = self.limit - len(self.tokens)
            self.chunks += 1
            return Ask(
                self.chat + self.tokens,
                max_tokens=min(left, self.chunk),
                seed=_seed(*self.entropy, STREAM, self.chunks),
                stops=STOPS if self.guide else (),
            )
        # Once, behind the last forced token: asking at every insertion would run the prompt anew.
        unscored = np.flatnonzero(np.isnan(self.log_probs))
        if not len(unscored):
            return None
        return Ask(self.chat + self.tokens[: int(unscored[-1]) + 1], start=self.scored_from())

    def take(self, tokens: Sequence[int], log_probs: Sequence[float]) -> bool:
        """Read tokens that the LLM wrote; False where those behind them would not count."""
        for token, log_prob in zip(tokens, log_probs, strict=True):
            self._append(token, log_prob, forced=False)
            self.ended = token == self.end_token
            self.done = self.done or self.ended
            if self.done:
                return False
            if self.guide is None:
                continue
            order = self.guide.step(self.prompt, self.index, self.tokens)
            if isinstance(order, str):
                if order != END:
                    raise ValueError(f"a guide returns tokens or END, not {order!r}")
                self.done = True
                return False
            if len(order):
                for written in order:
                    if not self.done:
                        self._append(int(written), np.nan, forced=True)
                return False
        return True

    def take_scores(self, log_probs: Sequence[float]) -> None:
        """Read the scores of `ask().tokens[start:]`: forced tokens lack theirs."""
        for t, log_prob in enumerate(log_probs, start=self.scored_from() - len(self.chat)):
            if self.forced[t]:
                self.log_probs[t] = float(log_prob)

    def scored_from(self) -> int:
        """`ask().start`: where the first token without a log-probability stands."""
        return len(self.chat) + int(np.flatnonzero(np.isnan(self.log_probs))[0])

    def sample(self) -> Sample:
        """The complete reply."""
        return Sample(
            tokens=np.array(self.tokens, dtype=np.int64),
            log_probs=np.array(self.log_probs, dtype=np.float64),
            forced=np.array(self.forced, dtype=bool),
            ended=self.ended,
        )

    def _append(self, token: int, log_prob: float, forced: bool) -> None:
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        self.forced.append(forced)
        self.done = len(self.tokens) >= self.limit


def _seed(*entropy: int) -> int:
    """A seed that servers accept: below 2^63."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Results(Generic[T]):
    """Results by prompt, reported as soon as a prompt has all of its own.

    Args:
        sizes: how many results each prompt has.
        finished: results of an earlier call, by prompt.
        done: called with a prompt's results when they are complete.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        finished: Mapping[int, Sequence[T]],
        done: Callable[[Mapping[int, Sequence[T]]], None] | None,
    ) -> None:
        self.sizes, self.done = sizes, done
        self.finished = {p: list(finished[p]) for p in finished if p < len(sizes)}
        self.parts: dict[int, dict[int, T]] = {}
        for p, size in enumerate(sizes):
            if not size and p not in self.finished:
                self._finish(p, [])

    def missing(self) -> Iterator[tuple[int, int]]:
        """(prompt, index) of all that is still to be made."""
        for p, size in enumerate(self.sizes):
            if p not in self.finished:
                yield from ((p, k) for k in range(size))

    def put(self, prompt: int, index: int, result: T) -> None:
        """Store one result."""
        parts = self.parts.setdefault(prompt, {})
        parts[index] = result
        if len(parts) == self.sizes[prompt]:
            del self.parts[prompt]
            self._finish(prompt, [parts[k] for k in range(len(parts))])

    def all(self) -> list[list[T]]:
        """Results of all prompts, in order."""
        return [self.finished[p] for p in range(len(self.sizes))]

    def _finish(self, prompt: int, results: list[T]) -> None:
        self.finished[prompt] = results
        if self.done:
            self.done({prompt: results})


def replies_to_write(
    results: Results[Sample],
    chat: Callable[[int], Sequence[int]],
    end_token: int,
    *,
    max_new_tokens: int,
    seed: int,
    guide: Guide | None,
    keys: Sequence[int] | None,
    chunk: int | None = CHUNK,
) -> Iterator[Reply]:
    """The replies of a `generate` call, prompt by prompt; `chat` makes the tokens of a prompt."""
    last: tuple[int, Sequence[int]] | None = None
    for p, k in results.missing():
        if last is None or last[0] != p:
            last = p, chat(p)
        key = p if keys is None else keys[p]
        yield Reply(p, k, last[1], max_new_tokens, end_token, guide, (seed, key, k), chunk)


def check_draw(n: int, max_new_tokens: int, temperature: float) -> None:
    """Refuse what no engine can draw."""
    if temperature <= 0 or n < 1 or max_new_tokens < 1:
        raise BadInput("generate needs temperature > 0, n >= 1 and max_new_tokens >= 1")


def check_replies(
    prompts: Sequence[str], replies: Sequence[Sequence[Sequence[int]]]
) -> NDArray[np.int64]:
    """(P,) numbers of replies to score."""
    if len(prompts) != len(replies):
        raise BadInput(f"{len(prompts)} prompts but {len(replies)} sets of replies to score")
    return np.array([len(each) for each in replies], dtype=np.int64)
