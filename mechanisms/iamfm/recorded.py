"""Evaluations on a recorded pool: real text, and the truth of every configuration.

What a configuration s would write is what is in the pool, weighed anew (`reweighing`). Under these
weights P_s the mean of the measured outcomes is **the truth** of this pool, for all configurations
at once and without an LLM. It is the truth of the pool: of the market that it was recorded from it
is an estimate, as good as its effective sample sizes (`RecordedEvaluator.support`) and its number
of requests.

A sample draws replies from P_s by inverse CDF, from a request and a uniform number that depend on
nothing but the number of the pair: the same under every configuration and level.

**Levels.** `full` is the reply as it was recorded; `short` is its beginning (`short`), and is there
where the pool was given it by `with_short`.

**Tokens** are those written, by the LLM or into its reply, as the pool's table counts them; how
many a short reply has is read off its share of the characters. A prompt is not counted: it is the
same at both levels, and read once for all replies to it.

Shapes: requests B, replies M, candidate ads n, advertisers N, configurations S, pairs P, strongest
strength K, sub-configurations C = (K + 1)^n.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mechanisms.errors import BadInput
from mechanisms.iamfm.configuration import Steering, check_configurations
from mechanisms.iamfm.evaluations import Level
from mechanisms.iamfm.reweighing import insertions, weighed
from mechanisms.iamfm.short import SHORT
from mechanisms.llm.streams import derived_seed
from mechanisms.pool import Floats, Ints, ReplyPool, effective_sample_size

_BLOCK = 1024  # pairs drawn at once
_BITS = 32  # of a uniform number, so that a row number may be added to it without rounding


class Pairs(NamedTuple):
    """A table of numbered pairs that has no end: which request, and a uniform number.

    Attributes:
        seed: of the table.
        requests: B; each pair's is drawn from all alike.
    """

    seed: int
    requests: int

    def take(self, start: int, stop: int) -> tuple[Ints, Floats]:
        """(P,) requests and (P,) uniform numbers in [0, 1) of pairs start..stop−1."""
        first = start // _BLOCK
        blocks = [self._block(number) for number in range(first, -(-stop // _BLOCK))]
        requests, uniforms = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        rows = slice(start - first * _BLOCK, stop - first * _BLOCK)
        return requests[rows], uniforms[rows]

    def _block(self, number: int) -> tuple[Ints, Floats]:
        # a seed of its own: pairs are apart from replies that are driven by the same seed
        rng = np.random.default_rng([derived_seed(int(self.seed), "pairs"), number])
        requests = rng.integers(self.requests, size=_BLOCK)
        return requests, rng.integers(1 << _BITS, size=_BLOCK) / (1 << _BITS)


class RecordedEvaluator:
    """An `Evaluator` on a pool of guided insertion; see the head of this module.

    Args:
        pool: recorded with generation `guided` and no inline rate.
        configurations: (S, N) strengths to search among.
        steering: what strengths mean.
        levels: names, cheapest first; default all that the pool has.
        seed: of the pairs.

    Attributes:
        configurations: (S, N).
        levels: see `mechanisms.iamfm.evaluations.Evaluator`; `tokens` is the most in the pool.
        steering: as given.

    Raises:
        BadInput: another kind of pool, configurations of another shape, or a level that it lacks.
    """

    def __init__(
        self,
        pool: ReplyPool,
        configurations: ArrayLike,
        steering: Steering | None = None,
        *,
        levels: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        self.steering = steering or Steering()
        N = pool.num_advertisers
        self.configurations = check_configurations(configurations, self.steering.strongest, N)
        self._ads = pool.ads
        self._weighed = weighed(pool, self.steering)
        self._digits = (self.steering.strongest + 1) ** np.arange(pool.shape[2])[::-1]
        self._codes = self._encode(self.configurations)
        measured = _measured(pool, levels)
        self.levels = [
            Level(name, float(found.tokens.max()), biased=name != "full")
            for name, found in measured.items()
        ]
        self._outcomes = [found.outcomes for found in measured.values()]
        self._tokens = [found.tokens for found in measured.values()]
        self._pairs = Pairs(seed, len(pool.ads))

    def reseeded(self, seed: int) -> RecordedEvaluator:
        """The same evaluator with other pairs."""
        other = copy.copy(self)
        other._pairs = self._pairs._replace(seed=seed)
        return other

    def sample(self, which: Ints, level: int, start: int, stop: int) -> tuple[Floats, Floats]:
        """See `mechanisms.iamfm.evaluations.Evaluator.sample`."""
        requests, uniforms = self._pairs.take(start, stop)
        codes = self._codes[which][:, requests]
        M = self._weighed.probabilities.shape[2]
        rows = requests * self._weighed.probabilities.shape[1] + codes
        replies = np.searchsorted(self._weighed.cumulated, rows + uniforms, side="right") - rows * M
        found = self._outcomes[level][requests, replies]
        outcomes = np.zeros((*replies.shape, self.configurations.shape[1] + 1))
        # advertisers of a request are distinct, so each writes to a place of its own
        np.put_along_axis(outcomes, self._ads[requests][None], found[..., :-1], axis=2)
        outcomes[..., -1] = found[..., -1]
        return outcomes, self._tokens[level][requests, replies]

    def truth(self, level: int | None = None) -> Floats:
        """(S, N + 1) expected outcome of every configuration at a level, default the unbiased."""
        level = len(self.levels) - 1 if level is None else level
        means = self._weighed.probabilities @ self._outcomes[level]  # (B, C, n + 1)
        B, N = len(means), self.configurations.shape[1]
        found = means[np.arange(B), self._codes]  # (S, B, n + 1)
        total = np.zeros((N + 1, len(found)))
        for c in range(self._ads.shape[1]):
            np.add.at(total, self._ads[:, c], found[:, :, c].T)
        total[N] = found[:, :, -1].sum(axis=1)
        return total.T / B

    def probabilities(self, strengths: ArrayLike) -> Floats:
        """(B, M) probability of each reply under `strengths` (N,), searched among or not."""
        K, N = self.steering.strongest, self.configurations.shape[1]
        code = self._encode(check_configurations(np.asarray(strengths)[None], K, N))[0]
        return self._weighed.probabilities[np.arange(len(code)), code]

    def support(self) -> dict[str, float]:
        """How many replies' worth of choice the weights leave: `1 / Σ_y P_s(y)²`, from 1 to M.

        Returns:
            `effective_sample_size_min` and `_median` over requests and the configurations searched
            among, and `_of_all_strongest`, the mean over requests where every ad has strength K.
        """
        sizes = effective_sample_size(self._weighed.probabilities)  # (B, C)
        searched = sizes[np.arange(len(sizes)), self._codes]
        return {
            "effective_sample_size_min": float(searched.min()),
            "effective_sample_size_median": float(np.median(searched)),
            "effective_sample_size_of_all_strongest": float(sizes[:, -1].mean()),
        }

    def _encode(self, configurations: Ints) -> Ints:
        """(S, B) number of the sub-configuration of each request's candidate ads."""
        return configurations[:, self._ads] @ self._digits


class _Measured(NamedTuple):
    """A level: outcomes (B, M, n + 1) by candidate ad, satisfaction last, and tokens (B, M)."""

    outcomes: Floats
    tokens: Floats


def _measured(pool: ReplyPool, levels: Sequence[str] | None) -> dict[str, _Measured]:
    """Outcomes and tokens by level, in the order of `levels`."""
    found = {}
    if set(SHORT) <= set(pool.extras):
        ctr, quality, tokens = (pool.extras[name] for name in SHORT)
        found["short"] = _Measured(np.dstack([ctr, quality]), tokens)
    found["full"] = _Measured(np.dstack([pool.ctr, pool.quality]), insertions(pool).tokens)
    for name in levels or ():
        if name not in found:
            raise BadInput(
                f"this pool has no level {name!r}; choose from {', '.join(found)}, or add short "
                "replies (mechanisms.iamfm.short.with_short)"
            )
    if levels is not None and (not levels or levels[-1] != "full"):
        raise BadInput(f"levels are {list(levels)}; name the cheapest first, and 'full' last")
    return {name: found[name] for name in levels or found}
