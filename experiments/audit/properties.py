"""Exact checks of what a mechanism does to truthful advertisers, besides their incentives.

    individual rationality    a truthful utility maximizer ends with v·x − p >= 0
    target ROI                a truthful value maximizer ends with v·x − tau_roi·p >= 0
    monotonicity              clicks x(b) do not fall in the bid
    payments                  0 <= p <= b·x at every bid
    settlement                charges have the payments for a mean
    counterfactuals           what learners are told of other bids is what the auction would do

The left side of the first two, the *surplus*, is looked at in total, request by request, and reply
by reply (ex post, with clicks in expectation: what settlement by the reply shown may change).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from agents.learners.base import Population
from experiments.audit.deviations import Deviations, truthful_profile, worth
from mechanisms.base import Mechanism
from mechanisms.candidates import expectation
from mechanisms.periods import PeriodicMechanism, concerning
from mechanisms.pool import Floats, ReplyPool

THRESHOLD = 1e-6
"""Of the value attained (regret), or of a click's value (the rest): what is less is nothing."""


@dataclass(frozen=True)
class Violations:
    """How often truthful advertisers of one objective end below what they ask for, and by how much.

    Attributes:
        advertisers: there are.
        totals: share of them whose total surplus is below 0.
        requests: share of their (request, ad) pairs with an expected surplus below 0.
        replies: probability that the reply drawn leaves one of these pairs below 0.
        worst_total: least total surplus, as a fraction of the value attained; its advertiser.
        worst_advertiser: whose it is; -1 where there is none.
        worst_request: least expected surplus in a request, as a fraction of the value per click.
        worst_reply: the same of replies that are drawn at all.
    """

    advertisers: int
    totals: float
    requests: float
    replies: float
    worst_total: float
    worst_advertiser: int
    worst_request: float
    worst_reply: float

    @property
    def none(self) -> bool:
        """In total nobody, and in no request, ends below 0 in expectation."""
        return self.totals == 0 and self.requests == 0


@dataclass(frozen=True, eq=False)
class Truthful:
    """Every (request, ad) pair when its advertiser is truthful and the others bid as they do.

    Attributes:
        advertiser: (K,) whose pair.
        surplus: (K,) expected, as a fraction of the value per click.
        attained: (K,) value attained, likewise.
        probabilities: (K, M) of the replies.
        by_reply: (K, M) surplus given the reply, with clicks in expectation.
        settled: (K,) mean charge less payment, as a fraction of the value per click.
    """

    advertiser: Floats
    surplus: Floats
    attained: Floats
    probabilities: Floats
    by_reply: Floats
    settled: Floats


def truthful(mechanism: Mechanism, pool: ReplyPool, people: Population, bids: Floats) -> Truthful:
    """Hold the auctions in which advertisers are truthful, the others bidding `bids` (N,)."""
    same = np.array_equal(bids, people.truthful_bids)
    parts = []
    for i in [None] if same else range(len(bids)):
        requests = np.arange(len(pool.ads)) if i is None else concerning(mechanism, pool, i)
        if len(requests):
            profile = bids if i is None else truthful_profile(people, bids, i)
            found = _pairs(mechanism, pool.take(requests), people, profile)
            keep = slice(None) if i is None else found.advertiser == i
            parts.append([getattr(found, name)[keep] for name in found.__dataclass_fields__])
    return Truthful(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _pairs(mechanism: Mechanism, pool: ReplyPool, people: Population, profile: Floats) -> Truthful:
    B, M, n = pool.shape
    bids = pool.bids_by_request(profile)
    found = mechanism.allocate(pool, bids)
    ads = pool.ads
    target = np.where(people.value_maximizer, people.target_roi, 1.0)[ads]
    price = people.values[ads]
    units = worth(mechanism, pool)
    clicked, unclicked = np.ones((B, n), dtype=bool), np.zeros((B, n), dtype=bool)
    charges = np.empty((B, M, n))
    for j in range(M):
        reply = np.full(B, j)
        if_clicked, if_not = (
            mechanism.charge(pool, bids, found, reply, clicks) for clicks in (clicked, unclicked)
        )
        # an ad's charge depends on its own click, if on any
        charges[:, j] = if_not + pool.ctr[:, j] * (if_clicked - if_not)
    attained = expectation(found.probabilities, units)
    surplus = attained - target * found.payments / price
    by_reply = units - target[:, None] * charges / price[:, None]
    settled = (expectation(found.probabilities, charges) - found.payments) / price
    return Truthful(
        advertiser=ads.ravel(),
        surplus=surplus.ravel(),
        attained=attained.ravel(),
        probabilities=np.repeat(found.probabilities, n, axis=0),
        by_reply=by_reply.transpose(0, 2, 1).reshape(B * n, M),
        settled=settled.ravel(),
    )


def violations(found: Truthful, among: Sequence[int]) -> Violations | None:
    """Of the advertisers `among`; None where none of them competes."""
    mine = np.isin(found.advertiser, among)
    if not mine.any():
        return None
    who, surplus, attained = (x[mine] for x in (found.advertiser, found.surplus, found.attained))
    there = np.unique(who)
    total = np.bincount(who, surplus)[there]
    value = np.abs(np.bincount(who, attained)[there])
    count = np.bincount(who)[there]
    lost = total < -THRESHOLD * count
    fraction = np.divide(total, value, out=np.where(lost, -np.inf, 0.0), where=value > 0)
    drawn, by_reply = found.probabilities[mine], found.by_reply[mine]
    below = by_reply < -THRESHOLD
    worst = int(fraction.argmin())
    return Violations(
        advertisers=len(there),
        totals=float(lost.mean()),
        requests=float((surplus < -THRESHOLD).mean()),
        replies=float((drawn * below).sum(axis=1).mean()),
        worst_total=float(fraction[worst]),
        worst_advertiser=int(there[worst]),
        worst_request=float(surplus.min()),
        worst_reply=float(np.where(drawn > 1e-12, by_reply, np.inf).min()),
    )


@dataclass(frozen=True)
class Shape:
    """How clicks and payments run along the bid, over all advertisers, requests and multiples.

    Attributes:
        fall: greatest fall of expected clicks in one request as the bid rises, in clicks.
        fall_share: share of (request, ad) pairs with such a fall.
        total_fall: the same of an advertiser's clicks over all requests, as a fraction of them.
        above: greatest payment above bid × clicks, as a fraction of the value per click.
        below: least payment below 0, likewise; 0 where none is.
    """

    fall: float
    fall_share: float
    total_fall: float
    above: float
    below: float


def shape(found: Sequence[Deviations]) -> Shape:
    """Of all deviations tried."""
    falls, total_falls, above, below = [np.zeros(1)], [0.0], [0.0], [0.0]
    for each in found:
        if not len(each.requests):
            continue
        units = each.value / each.value_per_click
        falls.append(_greatest_fall(units))
        total = units.sum(axis=0)
        size = np.abs(total).max()
        total_falls.append(float(_greatest_fall(total[None])[0] / size) if size > 0 else 0.0)
        above.append(
            float(
                (
                    each.payment / each.value_per_click - each.bids / each.value_per_click * units
                ).max()
            )
        )
        below.append(float((each.payment / each.value_per_click).min()))
    pairs = np.concatenate(falls[1:] or falls)
    return Shape(
        fall=float(pairs.max()),
        fall_share=float((pairs > THRESHOLD).mean()),
        total_fall=max(total_falls),
        above=max(above),
        below=min(below),
    )


def counterfactual_error(
    mechanism: Mechanism, pool: ReplyPool, people: Population, bids: Floats, multiples: Floats
) -> float:
    """Greatest difference of `counterfactual` from the auctions, as a fraction of a click's value.

    Of `counterfactual_sums` too, which is what learners are told; there per request.

    Args:
        mechanism: whose; for every advertiser's own click rate and payment.
        pool: candidate replies.
        people: private types.
        bids: (N,) the profile played.
        multiples: (G,) of the truthful bids, tried by each advertiser.
    """
    grid = people.truthful_bids[:, None] * multiples
    price = people.values[:, None]
    periodic = isinstance(mechanism, PeriodicMechanism)
    hold = mechanism.replanned if periodic else partial(Mechanism.counterfactual, mechanism)
    held = hold(pool, bids, grid[pool.ads])
    told = mechanism.counterfactual(pool, bids, grid[pool.ads])
    everything = np.arange(len(pool.ads))[None]
    sums = mechanism.counterfactual_sums(pool, everything, bids[None], grid)
    requests = np.maximum(np.bincount(pool.ads.ravel(), minlength=len(price)), 1)[:, None]
    worst = 0.0
    for unit, one, other, total in zip((1.0, price), held, told, sums, strict=True):
        by_request = unit if isinstance(unit, float) else unit[pool.ads]
        single = np.abs(one - other) / by_request
        summed = np.abs(pool.by_advertiser(one) - total[0]) / requests / unit
        worst = max(worst, float(single.max(initial=0.0)), float(summed.max(initial=0.0)))
    return worst


def _greatest_fall(curves: Floats) -> Floats:
    """(k,) greatest fall from an earlier to a later point of curves (k, G)."""
    return (np.maximum.accumulate(curves, axis=1) - curves).max(axis=1)
