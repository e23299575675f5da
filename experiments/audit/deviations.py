"""What a deviation brings, request by request: the auction itself, held again for every bid.

Advertiser i bids `m` times its truthful bid, v or `v / tau_roi`, for every multiple m of a grid;
the others' bids stay. All deviations meet the same requests and expected outcomes have no dice, so
differences between them are exact. Outcomes come from `Mechanism.allocate` alone, which is what
`run` settles, and clicks from the allocation's probabilities: neither a kernel for counterfactuals
nor an ITCTR as stated can hide a gain.

With V(m) and P(m) value attained and payment, summed over requests,

    utility maximizer    gain(m) = V(m) − P(m) − [V(1) − P(1)]
    value maximizer      gain(m) = V(m) − V(1)     where V(m) >= tau_roi·P(m)

and regret is the greatest gain over m, at least 0. A value maximizer whose truthful bid misses its
target plays no feasible strategy: what it owes, `tau_roi·P(1) − V(1)`, counts beside its gain (as
in `experiments.game`). *Conditional* deviations choose m anew for each request; a value maximizer's
must meet its target in total, which is a knapsack: its greatest gain is bounded from below by the
feasible choice that a Lagrange multiplier leads to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.learners.base import Population, meets
from mechanisms.base import Mechanism
from mechanisms.candidates import GibbsMechanism, expectation
from mechanisms.periods import concerning
from mechanisms.pool import Floats, Ints, ReplyPool

MULTIPLES = np.unique(
    np.concatenate(
        [
            [0.0],
            np.geomspace(1 / 32, 0.5, 15)[:-1],
            np.linspace(0.5, 2.0, 31),
            np.geomspace(2.0, 10.0, 16)[1:],
        ]
    ).round(4)
)
"""(61,) multiples of the truthful bid: evenly from a half to twice, and logarithmically beyond."""
ZOOM, RESOLUTION = 13, 1e-4
"""Points of each finer grid around the best multiple so far, and where refining ends."""
ROUNDING = 1e-14
"""Of a click's value per request: a gain below it is no gain."""
_COPIES = 20_000  # requests allocated in one call, to bound memory


@dataclass(frozen=True, eq=False)
class Deviations:
    """One advertiser's outcomes by multiple of its truthful bid, in the k requests it competes in.

    Attributes:
        index: of the advertiser.
        requests: (k,) indices in the pool.
        multiples: (G,) ascending; 1 is among them.
        value: (k, G) value attained, money.
        stake: (k,) value attained under truth; where a bid is not on clicks, of either sign, the
            mean absolute value. What regret is a fraction of.
        payment: (k, G) expected payment, money.
        bids: (G,) the bids tried.
        value_per_click: v.
        target_roi: None for a utility maximizer.
    """

    index: int
    requests: Ints
    multiples: Floats
    value: Floats
    stake: Floats
    payment: Floats
    bids: Floats
    value_per_click: float
    target_roi: float | None

    @property
    def truth(self) -> int:
        """Where the multiple 1 is."""
        return int(np.searchsorted(self.multiples, 1.0))

    @property
    def surplus(self) -> Floats:
        """(k, G) value less payment, or less `tau_roi` times the payment for a value maximizer."""
        return self.value - (1.0 if self.target_roi is None else self.target_roi) * self.payment

    def gains(self, value: Floats, payment: Floats) -> Floats:
        """(..., G) gains over truth, from sums of value and payment; -inf where ROI is missed."""
        if self.target_roi is None:
            utility = value - payment
            return utility - utility[..., [self.truth]]
        met = meets(value, payment, self.target_roi)
        return np.where(met, value - value[..., [self.truth]], -np.inf)

    @property
    def gain_by_request(self) -> Floats:
        """(k, G) what each request adds to the gain: utility over truth's, or value."""
        amount = self.value if self.target_roi is not None else self.value - self.payment
        return amount - amount[:, [self.truth]]

    @property
    def total(self) -> Floats:
        """(G,) gains over truth, summed over requests."""
        return self.gains(self.value.sum(axis=0), self.payment.sum(axis=0))

    @property
    def best(self) -> int:
        """Which multiple gains most in total; the truthful one where none gains."""
        total = self.total
        gained = total.max() > ROUNDING * self.value_per_click * len(self.requests)
        return int(total.argmax()) if gained else self.truth

    @property
    def owed(self) -> Floats:
        """(k,) what truth owes to a target ROI that it misses in total; 0 where it meets it."""
        if not np.isneginf(self.total[self.truth]):
            return np.zeros(len(self.requests))
        return -self.surplus[:, self.truth]

    @property
    def improvement(self) -> Floats:
        """(k,) the gain of the best multiple, and what truth owes: regret, in money."""
        return self.gain_by_request[:, self.best] + self.owed

    @property
    def conditional(self) -> Floats:
        """(k,) the same from a multiple chosen for each request alone."""
        if self.target_roi is None:
            return self.gain_by_request.max(axis=1)
        picked = _knapsack(self.value, self.surplus)
        gained = np.zeros(len(self.requests))
        if picked is not None:
            attained = np.take_along_axis(self.value, picked[:, None], axis=1)[:, 0]
            if attained.sum() > self.value[:, self.truth].sum():
                gained = attained - self.value[:, self.truth]
        return gained + self.owed

    def merged(self, other: Deviations) -> Deviations:
        """With the multiples of `other` that are new, in order."""
        new = ~np.isin(other.multiples, self.multiples)
        order = np.argsort(np.append(self.multiples, other.multiples[new]), kind="stable")

        def joined(mine: Floats, theirs: Floats) -> Floats:
            return np.concatenate([mine, theirs[..., new]], axis=-1)[..., order]

        return Deviations(
            self.index,
            self.requests,
            joined(self.multiples, other.multiples),
            joined(self.value, other.value),
            self.stake,
            joined(self.payment, other.payment),
            joined(self.bids, other.bids),
            self.value_per_click,
            self.target_roi,
        )


def deviations(
    mechanism: Mechanism,
    pool: ReplyPool,
    people: Population,
    bids: Floats,
    index: int,
    multiples: Floats,
) -> Deviations:
    """Outcomes of advertiser `index` on a grid of multiples, and on finer ones around the best.

    Args:
        mechanism: any; only `allocate` is called.
        pool: candidate replies.
        people: private types of all N advertisers.
        bids: (N,) what the others bid.
        index: who deviates.
        multiples: (G,) of its truthful bid, ascending, with 1 among them.
    """
    found = _outcomes(mechanism, pool, people, bids, index, multiples)
    if not len(found.requests):
        return found
    while True:
        gains = found.total
        best = int(gains.argmax())
        low, high = (
            found.multiples[max(best - 1, 0)],
            found.multiples[min(best + 1, len(gains) - 1)],
        )
        finer = np.linspace(low, high, ZOOM)
        if finer[1] - finer[0] < RESOLUTION:
            return found
        found = found.merged(_outcomes(mechanism, pool, people, bids, index, finer))


def truthful_profile(people: Population, bids: Floats, index: int) -> Floats:
    """(N,) the others' `bids`, and the truthful bid of advertiser `index`."""
    profile = bids.copy()
    profile[index] = people.truthful_bids[index]
    return profile


def worth(mechanism: Mechanism, pool: ReplyPool) -> Floats:
    """(B, M, n) what advertisers value a unit of, in each reply: what their bids are on.

    Click probabilities; for mosaic with reward "log-ratio" the log-ratios.
    """
    return mechanism.features(pool) if isinstance(mechanism, GibbsMechanism) else pool.ctr


def _outcomes(
    mechanism: Mechanism,
    pool: ReplyPool,
    people: Population,
    bids: Floats,
    index: int,
    multiples: Floats,
) -> Deviations:
    mine = pool.ads == index
    requests = np.flatnonzero(mine.any(axis=1))
    column = mine[requests].argmax(axis=1)
    k, G = len(requests), len(multiples)
    v, tried = float(people.values[index]), multiples * people.truthful_bids[index]
    vm = bool(people.value_maximizer[index])
    value, stake, payment = np.zeros((k, G)), np.zeros((k, G)), np.zeros((k, G))
    served = concerning(mechanism, pool, index)
    each = max(1, _COPIES // max(len(served), 1))
    for start in range(0, G if k else 0, each):
        part = slice(start, min(start + each, G))
        count = part.stop - part.start
        copies = pool.take(np.tile(served, count))
        # of the requests served, those it competes in
        at = np.searchsorted(served, requests)
        rows = (at + len(served) * np.arange(count)[:, None]).ravel()
        own = np.tile(column, count)
        profile = bids[copies.ads]
        profile[rows, own] = np.repeat(tried[part], k)
        found = mechanism.allocate(copies, profile)
        probabilities = found.probabilities[rows]
        units = worth(mechanism, copies)[rows, :, own][:, :, None]
        for into, amounts in (
            (value, v * expectation(probabilities, units)[:, 0]),
            (stake, v * expectation(probabilities, np.abs(units))[:, 0]),
            (payment, found.payments[rows, own]),
        ):
            into[:, part] = amounts.reshape(count, k).T
    return Deviations(
        index=index,
        requests=requests,
        multiples=multiples,
        value=value,
        stake=stake[:, int(np.searchsorted(multiples, 1.0).clip(max=G - 1))],
        payment=payment,
        bids=tried,
        value_per_click=v,
        target_roi=float(people.target_roi[index]) if vm else None,
    )


def _knapsack(value: Floats, surplus: Floats) -> Ints | None:
    """(k,) choices of great total value with total surplus >= 0; None if none was found.

    Maximises `Σ value + λ·surplus` request by request, for the least λ whose choice is feasible.
    """

    def choice(multiplier: float) -> Ints:
        return (value + multiplier * surplus).argmax(axis=1)

    def feasible(picked: Ints) -> bool:
        kept = np.take_along_axis(surplus, picked[:, None], axis=1).sum()
        return kept >= -1e-9 * np.abs(surplus).sum()

    low, high = 0.0, 1.0
    if feasible(choice(low)):
        return choice(low)
    while not feasible(choice(high)):
        high *= 4
        if high > 1e9:
            return None
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if feasible(choice(middle)) else (middle, high)
    return choice(high)
