"""Configurations: how strongly each advertiser is sponsored, and what that does to a reply.

A configuration s holds a strength s_i in 0, 1, ..., K for each advertiser: 0 is not sponsored, 1
may be mentioned, 2 is recommended. Two ways lead from strengths to text:

- `guided`: the LLM reads no ads, and mentions are inserted by a multinomial logit choice among the
  ads not yet mentioned and none of them (McFadden 1974),

      P(mention i) = o(s_i) / (1 + Σ_{k not yet mentioned} o(s_k)),     0 = o(0) < o(1) < o(2) < ...

  at every decision (`mechanisms.insertion`). The odds o are relative to mentioning nothing. Free
  tokens are the reference LLM's, so replies can be weighed anew for any other configuration.
- `prompted`: the prompt names the ads by strength, and mentions are titles in the LLM's own words.
  How it is steered by that is the LLM's affair: it can be measured, but nothing is promised.

Guided strengths are monotone. At any decision a stronger ad is mentioned more, and each rival, and
nothing at all, less. And given when decisions are offered and how many mentions there may be, the
probability that a reply shows ad i rises with s_i and falls with each rival's strength. For leave
ad k out: what is chosen at the decisions that do not go to k has the same law whether k is there or
not, and k's mention does no more than take a decision, and one of the mentions, from the rest; the
stronger k is, the sooner. (Were the rate the same whichever ads are left, a strong rival would
leave its odds behind for the others.) What is inserted may change when decisions are offered, since
the LLM has read it; that is measured, not promised.

Shapes: configurations S, advertisers n (of a whole market N), candidate ads of a request n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from mechanisms.checks import one_of, whole
from mechanisms.errors import BadInput
from mechanisms.policies import InsertionPolicy
from mechanisms.pool import Floats, Ints
from mechanisms.recording.conditions import Condition, strength_kind

WAYS = ("guided", "prompted")


@dataclass(frozen=True, eq=False)
class LogitPolicy(InsertionPolicy):
    """Inserts by a logit choice: `shares` are odds against nothing, of the ads that are left.

    `rates` holds the rate before anything is mentioned, and is not used otherwise.
    """

    def rate(self, decision: Ints | int, share: Floats | float) -> Floats | float:
        """Probability to insert where odds of `share` in all are left, at any decision."""
        return share / (1 + share)


@dataclass(frozen=True)
class Steering:
    """What strengths mean in guided insertion.

    Attributes:
        odds: o(1), ..., o(K): odds, at a decision, of mentioning an ad of that strength against
            mentioning nothing; increasing.
    """

    odds: Sequence[float] = (0.1, 0.4)

    def __post_init__(self) -> None:
        try:
            odds = tuple(float(each) for each in self.odds)
        except (TypeError, ValueError):
            raise BadInput(
                f"steering odds are {self.odds!r}; give numbers like [0.1, 0.4]"
            ) from None
        rising = all(low < high for low, high in zip((0.0, *odds), odds, strict=False))
        if not odds or not rising or not math.isfinite(odds[-1]):
            raise BadInput(
                f"steering odds are {list(odds)}; give positive finite numbers that increase, one "
                "for each strength from 1 on"
            )
        object.__setattr__(self, "odds", odds)

    @property
    def strongest(self) -> int:
        """K."""
        return len(self.odds)

    @cached_property
    def by_strength(self) -> Floats:
        """(K + 1,) odds of strengths 0..K."""
        return np.array((0.0, *self.odds))

    def policy(self, strengths: ArrayLike) -> LogitPolicy:
        """Guided insertion by the strengths (n,) of a request's candidate ads."""
        strengths = check_strengths(strengths, self.strongest)
        odds = self.by_strength[strengths]
        rate = np.array([odds.sum() / (1 + odds.sum())])
        return LogitPolicy(strength_kind(strengths), rate, odds)

    def condition(self, strengths: ArrayLike, way: str = "guided") -> Condition:
        """One reply by the strengths (n,) of a request's candidate ads.

        Args:
            strengths: by candidate ad.
            way: `guided`, or `prompted`, where nothing is inserted but by the LLM itself.

        Raises:
            BadInput: another way, or strengths that are not 0..K.
        """
        one_of("way of steering", way, WAYS)
        if way == "guided":
            return Condition("reference", self.policy(strengths), 1)
        strengths = check_strengths(strengths, self.strongest)
        kind = strength_kind(strengths)
        nothing = np.zeros(len(strengths))
        return Condition(kind, InsertionPolicy(kind, np.zeros(1), nothing, own_words=True), 1)


def check_strengths(strengths: ArrayLike, strongest: int) -> Ints:
    """`strengths` (..., n) as integers.

    Raises:
        BadInput: they are not whole numbers in 0..`strongest`.
    """
    found = np.asarray(strengths)
    if found.size and not np.issubdtype(found.dtype, np.integer):
        raise BadInput(f"strengths are {found.dtype}; give whole numbers from 0 to {strongest}")
    if found.size and not (found.min() >= 0 and found.max() <= strongest):
        raise BadInput(
            f"strengths range from {found.min()} to {found.max()}; give whole numbers from 0 to "
            f"{strongest}, the number of steering odds"
        )
    return found.astype(np.int64)


def check_configurations(configurations: ArrayLike, strongest: int, advertisers: int) -> Ints:
    """`configurations` as (S, advertisers) integers.

    Raises:
        BadInput: another shape, none at all, or strengths that are not in 0..`strongest`.
    """
    found = check_strengths(configurations, strongest)
    if found.ndim != 2 or found.shape[1] != advertisers or not len(found):
        raise BadInput(
            f"configurations have shape {found.shape}; give (configurations, {advertisers} "
            "advertisers), at least one configuration"
        )
    return found


def full_grid(n: int, strengths: int, cap: int = 4096) -> Ints:
    """((strengths + 1)^n, n) every configuration of n advertisers, the first advertiser slowest.

    Args:
        n: advertisers.
        strengths: K, the strongest strength.
        cap: most configurations.

    Raises:
        BadInput: there are more than `cap`.
    """
    _check_sizes(n, strengths, cap)
    size = (strengths + 1) ** n
    if size > cap:
        raise BadInput(
            f"the full grid of {n} advertisers at strengths 0 to {strengths} has {size} "
            f"configurations, above the cap of {cap}; raise the cap, or take a sampled design"
        )
    return np.indices((strengths + 1,) * n).reshape(n, size).T.astype(np.int64)


def design(n: int, strengths: int, cap: int, rng: np.random.Generator) -> Ints:
    """(S, n) distinct configurations to search among, S <= `cap`: the full grid if it fits.

    Else, in this order: nobody; each advertiser alone at each strength; everybody at each strength;
    and random ones up to the cap. These are drawn by how many are sponsored first, then who, then
    how strongly: strengths drawn at once would nearly all have two thirds of the advertisers in.

    Args:
        n: advertisers.
        strengths: K, the strongest strength.
        cap: most configurations.
        rng: draws the random ones.

    Raises:
        BadInput: the cap has no room for those that are always in.
    """
    _check_sizes(n, strengths, cap)
    if (strengths + 1) ** n <= cap:
        return full_grid(n, strengths, cap)
    levels = np.arange(1, strengths + 1)
    alone = np.kron(np.eye(n, dtype=np.int64), levels[:, None])
    together = np.repeat(levels[:, None], n, axis=1)
    always = np.vstack([np.zeros((1, n), dtype=np.int64), alone, together])
    # a dictionary keeps the order in which configurations were first drawn
    found = dict.fromkeys(map(bytes, always))
    if len(found) > cap:
        raise BadInput(
            f"a cap of {cap} configurations is too small for {n} advertisers at strengths 0 to "
            f"{strengths}; give at least {len(found)}: nobody, each alone, and all together"
        )
    while len(found) < cap:
        found |= dict.fromkeys(map(bytes, _draw(cap, n, strengths, rng)))
    return np.array([np.frombuffer(row, dtype=np.int64) for row in list(found)[:cap]])


def index_of(configurations: Ints, strengths: ArrayLike) -> int:
    """Where `strengths` (n,) stands among `configurations` (S, n).

    Raises:
        BadInput: it does not.
    """
    wanted = np.asarray(strengths)
    found = np.flatnonzero((configurations == wanted).all(axis=1))
    if not len(found):
        raise BadInput(f"configuration {wanted.tolist()} is not among those searched; add it")
    return int(found[0])


def _draw(count: int, n: int, strengths: int, rng: np.random.Generator) -> Ints:
    """(count, n) configurations with 2 to n advertisers sponsored, each number as often."""
    sponsored = rng.integers(min(2, n), n + 1, size=(count, 1))
    rank = rng.random((count, n)).argsort(axis=1).argsort(axis=1)
    return np.where(rank < sponsored, rng.integers(1, strengths + 1, size=(count, n)), 0)


def _check_sizes(n: int, strengths: int, cap: int) -> None:
    for name, value in (("advertisers", n), ("strengths", strengths), ("cap", cap)):
        whole(name, value, 1)
