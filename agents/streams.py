"""What chance decides in a round: which requests arrive, which reply is shown, who clicks.

(And on what a platform that plans for a period evaluates its plans.)

Streams belong to a seed, a purpose and a round. Nothing that mechanisms or learners do moves them,
so runs at the same seed meet the same requests and the same dice, round by round (common random
numbers). A generator costs more to set up than a whole auction; so one serves a block of rounds,
whose length depends on the size of a round only, and each round has its own place in it.
"""

from __future__ import annotations

import numpy as np

from mechanisms.pool import Floats, Ints

ARRIVALS, DICE, LEARNING, PLANNING = range(4)
_BLOCK = 2**16  # numbers drawn at a time: 512 KB


def stream(seed: int, purpose: int, number: int) -> np.random.Generator:
    """The generator of a purpose and a block of rounds (or a learner, or a period)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, number)))


class Arrivals:
    """Requests drawn uniformly with replacement: R replications, B requests each a round.

    Args:
        seed: of the run.
        available: requests there are to draw from.
        shape: (R, B).
    """

    def __init__(self, seed: int, available: int, shape: tuple[int, int]) -> None:
        self._seed = seed
        self._available = available
        self._shape = shape
        self._rounds = max(1, _BLOCK // (shape[0] * shape[1]))
        self._block = -1
        self._drawn = np.empty((0, *shape), dtype=np.int64)

    def of(self, round: int) -> Ints:
        """(R, B) indices of the requests of a round."""
        block, row = divmod(round, self._rounds)
        if block != self._block:
            rng = stream(self._seed, ARRIVALS, block)
            self._drawn = rng.integers(self._available, size=(self._rounds, *self._shape))
            self._block = block
        return self._drawn[row].copy()


class Dice:
    """Uniform numbers in [0, 1): one a request for its reply, then one a request and ad for clicks.

    A mechanism's `run` draws just these, in this order: from `generator` they are the numbers that
    `uniforms` holds. One that throws more dice reads on into the next round's.

    Args:
        seed: of the run.
        requests: R * B, served together in a round.
        ads: n, of each request.
    """

    def __init__(self, seed: int, requests: int, ads: int) -> None:
        self._seed = seed
        self._size = requests * (1 + ads)
        self._rounds = max(1, _BLOCK // self._size)
        self._block, self._opened = -1, -1
        self._drawn = np.empty((0, self._size))
        self._rng = np.random.Generator(np.random.PCG64(0))
        self._start = self._rng.bit_generator.state

    def uniforms(self, round: int) -> Floats:
        """(R * B * (1 + n),) numbers of a round; read-only."""
        block, row = divmod(round, self._rounds)
        if block != self._block:
            self._drawn = stream(self._seed, DICE, block).random((self._rounds, self._size))
            self._drawn.flags.writeable = False
            self._block = block
        return self._drawn[row]

    def generator(self, round: int) -> np.random.Generator:
        """A generator that stands at the first number of a round; the next call moves it."""
        block, row = divmod(round, self._rounds)
        if block != self._opened:
            self._rng = stream(self._seed, DICE, block)
            self._start = self._rng.bit_generator.state
            self._opened = block
        self._rng.bit_generator.state = self._start
        # PCG64 spends one step on a number
        self._rng.bit_generator.advance(row * self._size)
        return self._rng
