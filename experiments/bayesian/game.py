"""The Bayesian game that a mechanism and a pool make of private values redrawn each round.

Advertiser i knows its value per click v, drawn from its prior F_i independently of all others, and
bids β_i(v), or draws a bid from a distribution given v. With `x_i(b)` and `p_i(b)` the expected
clicks and payments of a bid against the others' strategies, per request of the pool,

    utility maximizer    max  E[v x_i − p_i]
    value maximizer      max  E[v x_i]   subject to   E[v x_i] >= roi · E[p_i],

the target being one *ex ante*, over all its values, as an advertiser's account sees it. By its
Lagrangian `(1+λ) E[v x] − λ roi E[p]` a value maximizer bids as a utility maximizer of value
`κ v / roi` would, `κ = 1 + 1/λ >= 1` being common to all its values: its *stretch*.

Advertisers that nothing tells apart are one *class* and share a strategy; arrays over classes have
a leading axis C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agents.learners.base import VALUE_REACH
from experiments.bayesian.prior import Uniform
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, Ints, ReplyPool
from mechanisms.slots import GSP, VCG, FirstPrice

OBJECTIVES = ("utility", "value")


@dataclass(frozen=True, eq=False)
class BayesianGame:
    """Who bids, by class, and what for.

    Attributes:
        mechanism: what the bids are for.
        pool: candidate replies of the requests that may come, each as likely as any other.
        priors: (C,) prior of each class.
        value_maximizer: (C,) bool; False is a utility maximizer.
        roi: (C,) target ROI; 1 for utility maximizers.
        top: (C,) highest bid considered.
        member: (n,) class of each advertiser.
        rates: (R, C) click rates of ads shown alone, a row per distinct request and column per
            class, where the auction is one of a single slot (`of`); else None.
        weights: (R,) share of the requests that each row of `rates` stands for.
    """

    mechanism: Mechanism
    pool: ReplyPool
    priors: tuple[Uniform, ...]
    value_maximizer: NDArray[np.bool_]
    roi: Floats
    top: Floats
    member: Ints
    rates: Floats | None
    weights: Floats | None

    @classmethod
    def of(
        cls,
        mechanism: Mechanism,
        pool: ReplyPool,
        prior: Uniform | Sequence[Uniform],
        objective: str | Sequence[str] = "utility",
        roi: ArrayLike | None = None,
        top: ArrayLike | None = None,
    ) -> BayesianGame:
        """The game, with advertisers grouped into classes.

        A single-slot auction of ads that can all be shown alone (`single_slot_rates`) is told by
        its click rates, and advertisers with equal rates, priors and aims are one class. Otherwise
        every advertiser is a class of its own: replies may treat any two of them differently.

        Args:
            mechanism: any.
            pool: N advertisers.
            prior: one for all, or one per advertiser.
            objective: "utility" or "value", one for all or one per advertiser.
            roi: target ROI of value maximizers, a number or (N,); default 1.
            top: highest bid considered, a number or (N,); default the highest truthful bid, and for
                value maximizers `VALUE_REACH` times theirs, or in a single-slot first-price auction
                what it takes to beat the highest truthful score of anybody (`_enough_to_win`).

        Raises:
            BadInput: a list of another length than N, or a bad entry.
        """
        n = pool.num_advertisers
        priors = _one_each("prior", prior, n)
        for one in priors:
            if not isinstance(one, Uniform):
                raise BadInput(
                    f"prior must be Uniform(low, high), or one per advertiser; got {one!r}"
                )
        objectives = _one_each("objective", objective, n)
        for one in objectives:
            if one not in OBJECTIVES:
                raise BadInput(f"objective must be one of {', '.join(OBJECTIVES)}; got {one!r}")
        vm = np.array([one == "value" for one in objectives])
        targets = np.where(vm, _positive("roi", 1.0 if roi is None else roi, n), 1.0)
        truthful = np.array([one.high for one in priors]) / targets
        rates = single_slot_rates(mechanism, pool)
        if top is not None:
            highest = _positive("top", top, n)
        elif isinstance(mechanism, FirstPrice) and rates is not None:
            highest = np.where(vm, _enough_to_win(truthful, rates), truthful)
        else:
            highest = np.where(vm, VALUE_REACH * truthful, truthful)
        kinds: dict[tuple, int] = {}
        member = np.empty(n, dtype=np.int64)
        for i in range(n):
            looks = i if rates is None else rates[:, i].tobytes()
            kind = (priors[i], objectives[i], targets[i], highest[i], looks)
            member[i] = kinds.setdefault(kind, len(kinds))
        first = np.array([np.flatnonzero(member == c)[0] for c in range(len(kinds))])
        weights = None
        if rates is not None:
            rates, counts = np.unique(rates[:, first], axis=0, return_counts=True)
            weights = counts / counts.sum()
        return cls(
            mechanism=mechanism,
            pool=pool,
            priors=tuple(priors[i] for i in first),
            value_maximizer=vm[first],
            roi=targets[first],
            top=highest[first],
            member=member,
            rates=rates,
            weights=weights,
        )

    @property
    def classes(self) -> int:
        """C, number of classes."""
        return len(self.priors)

    @property
    def counts(self) -> Ints:
        """(C,) advertisers in each class."""
        return np.bincount(self.member, minlength=self.classes)

    def values(self, cells: int) -> Floats:
        """(C, cells) mean value of each of so many equally likely cells of each prior."""
        return np.stack([prior.means(cells) for prior in self.priors])

    def worth(self, values: Floats, stretch: Floats) -> Floats:
        """(C, K) what a click is bid for as: `v`, and `κ v / roi` for value maximizers."""
        factor = np.where(self.value_maximizer, stretch / self.roi, 1.0)
        return values * factor[:, None]


def single_slot_rates(mechanism: Mechanism, pool: ReplyPool) -> Floats | None:
    """(B, N) click rates of the ads shown alone, if they are all there is to know; else None.

    They are for a slot auction of one slot without reserve in a pool in which every candidate ad is
    shown alone by some reply: the ad of greatest score `bid · rate` wins, and pays its bid (first
    price) or the second score over its rate (GSP and VCG, which then agree) per click.
    """
    if not isinstance(mechanism, FirstPrice | GSP | VCG):
        return None
    if mechanism.slots != 1 or mechanism.reserve != 0:
        return None
    single = pool.exposure & (pool.exposure.sum(axis=2, keepdims=True) == 1)
    if not single.any(axis=1).all():
        return None
    log_weights = np.where(single, pool.log_weights[:, :, None], -np.inf)
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    alone = (weights * pool.ctr).sum(axis=1) / weights.sum(axis=1)
    rates = np.zeros((len(pool.ads), pool.num_advertisers))
    np.put_along_axis(rates, pool.ads, alone, axis=1)
    return rates


def _enough_to_win(truthful: Floats, rates: Floats) -> Floats:
    """(N,) `max_j truthful_j c_j / c_i` over requests, at most `VALUE_REACH` times any truthful.

    Args:
        truthful: (N,) highest truthful bids.
        rates: (B, N) click rates c of ads shown alone.
    """
    best = (truthful * rates).max(axis=1, keepdims=True)
    needed = np.divide(best, rates, out=np.zeros_like(rates), where=rates > 0).max(axis=0)
    return np.clip(needed, truthful, VALUE_REACH * truthful.max())


def _one_each(name: str, given: object, n: int) -> list:
    alone = isinstance(given, str) or not isinstance(given, Sequence)
    listed = [given] * n if alone else list(given)
    if len(listed) != n:
        raise BadInput(f"{name}: {len(listed)} entries for {n} advertisers; give one, or one each")
    return listed


def _positive(name: str, given: ArrayLike, n: int) -> Floats:
    array = np.asarray(given, dtype=np.float64)
    if array.shape not in ((), (n,)) or not ((array > 0) & (array < np.inf)).all():
        raise BadInput(f"{name} must be positive, a number or one for each of {n}; got {given}")
    return np.broadcast_to(array, (n,))
