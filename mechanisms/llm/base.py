"""The one small interface behind which every LLM engine stands: `generate` and `score`.

Densities are of the untruncated next-token distribution at the sampling temperature: there is no
top-k and no top-p anywhere, since both would change the density that importance weights divide by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

END = "end"
"""What a `Guide` returns to end a reply where it stands."""
NONE_FINISHED: Mapping[int, Any] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Sample:
    """One generated reply, token by token.

    Attributes:
        tokens: (T,) token ids, with the end-of-turn token if the LLM wrote one.
        log_probs: (T,) log-probability of each token given all before it, in nats.
        forced: (T,) True where a `Guide` wrote the token, not the LLM.
        ended: the LLM wrote its end-of-turn token.
    """

    tokens: NDArray[np.int64]
    log_probs: NDArray[np.float64]
    forced: NDArray[np.bool_]
    ended: bool


class Mixed(NamedTuple):
    """A reply that several prompts' LLMs wrote together (`mechanisms.llm.mixture`).

    Attributes:
        sample: the reply; `log_probs` are under the mixture.
        under: (n, T) log-probability of each token under each prompt, in nats.
    """

    sample: Sample
    under: NDArray[np.float64]


Samples = Sequence[Sample]
Scores = Sequence[NDArray[np.float64]]


class Guide(Protocol):
    """Writes into replies while they are generated (guided insertion, DESIGN 3.0)."""

    def step(self, prompt: int, sample: int, tokens: Sequence[int]) -> Sequence[int] | str:
        """Called after every token the LLM wrote itself, except the end-of-turn token.

        Returns:
            Tokens to write next (an empty sequence for none), or `END` to end the reply here.
        """


class Engine(Protocol):
    """An LLM that samples and scores; nothing else is asked of it."""

    model: str

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""

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
        """Draw `n` replies to each of P user messages: a list of P lists of n samples.

        Reply k to prompt p is driven by the random stream (seed, keys[p], k), `keys` being 0..P-1
        unless given; which prompts share a batch does not enter.

        Work that was interrupted goes on where it was: `finished` holds results of an earlier call
        with the same arguments, by prompt, which are returned as they are (the guide is not shown
        them again); `done` is called with results as they come, by prompt.
        """

    def score(
        self,
        prompts: Sequence[str],
        replies: Sequence[Sequence[Sequence[int]]],
        *,
        temperature: float,
        finished: Mapping[int, Scores] = NONE_FINISHED,
        done: Callable[[Mapping[int, Scores]], None] | None = None,
    ) -> list[list[NDArray[np.float64]]]:
        """Token log-probabilities of `replies[p]` (token ids) under prompt p; prompts run once.

        `finished` and `done` as in `generate`.
        """
