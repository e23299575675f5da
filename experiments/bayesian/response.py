"""Best responses to interim outcomes, and what a strategy loses against them.

A bid is a point (x, p) of expected clicks and payment; its worth to value a is `a·x − p`. So only
the lower convex hull of all bids' points matters, its slopes `dp/dx` being the values at which the
best bid changes: L bids and K values take O(L + K) steps.

A value maximizer's best response is a linear programme with one constraint: it may mix bids and
subsidise low returns on some values by high ones on others. By duality, for *every* λ >= 0

    max E[v x]  s.t.  E[v x] >= roi·E[p]    <=    E[max_b (1+λ) v x_b − λ roi p_b],

so its least value over λ is a certified bound on what any strategy attains, and there is no gap.
A strategy that misses its target attains nothing feasible: what it owes counts beside its gain, as
in games of fixed bids (`experiments.game`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from agents.learners.base import meets
from experiments.bayesian.game import BayesianGame
from mechanisms.pool import Floats, Ints

MOST_STRETCH = 1e4
"""Stretch at which a value maximizer counts as unconstrained."""
LEAST_PROFIT = 0.02
"""Least scale of a value's payoffs, as a fraction of what its best bid wins."""
_BISECTIONS = 40


@dataclass(frozen=True, eq=False)
class Losses:
    """What each class gets and could get, per advertiser and request of the pool.

    Attributes:
        attained: (C,) utility, or value of a value maximizer, of its strategy.
        attainable: (C,) of the best response to the others among the bids tried: for value
            maximizers an upper bound, over all strategies on them that meet the target.
        owed: (C,) `max(0, roi·E[p] − E[v x])`, by which value maximizers miss their targets; 0 for
            others.
    """

    attained: Floats
    attainable: Floats
    owed: Floats

    @property
    def gain(self) -> Floats:
        """(C,) what a best response would add, and what is owed, in money per request."""
        return np.maximum(self.attainable - self.attained, 0.0) + self.owed

    @property
    def relative(self) -> Floats:
        """(C,) relative utility loss `gain / attainable`; 0 where nothing is attainable or owed."""
        return _fraction(self.gain, self.attainable)

    @property
    def violation(self) -> Floats:
        """(C,) `owed / E[v x]`: by how much value maximizers miss their targets."""
        return _fraction(self.owed, self.attained)


def losses(
    game: BayesianGame,
    values: Floats,
    outcome: tuple[Floats, Floats],
    tried: tuple[Floats, Floats],
) -> Losses:
    """Losses of strategies against all bids tried.

    Args:
        game: the classes' aims.
        values: (C, K) equally likely values.
        outcome: expected clicks and payments (C, K) of the strategies at those values.
        tried: clicks and payments (C, L) of the bids that may be played instead.
    """
    won, paid = (values * outcome[0]).mean(axis=1), outcome[1].mean(axis=1)
    attained = np.where(game.value_maximizer, won, won - paid)
    attainable = np.empty(game.classes)
    for c in range(game.classes):
        # staying out is always possible
        clicks, payments = (np.append(0.0, amounts[c]) for amounts in tried)
        if game.value_maximizer[c]:
            attainable[c] = most_value(values[c], clicks, payments, game.roi[c])
        else:
            attainable[c] = best_payoffs(values[c], clicks, payments).mean()
    short = game.value_maximizer & ~meets(won, paid, game.roi)
    return Losses(attained, attainable, np.where(short, game.roi * paid - won, 0.0))


def greatest_that(
    holds: Callable[[Floats], NDArray[np.bool_]], low: Floats, high: Floats
) -> Floats:
    """(C,) greatest numbers between `low` > 0 and `high` for which `holds`, by bisection.

    Args:
        holds: of each class by itself; where it does, it does for smaller numbers too.
        low: (C,) returned where it holds for nothing between.
        high: (C,) returned, to rounding, where it holds for everything.
    """
    for _ in range(_BISECTIONS):
        middle = np.sqrt(low * high)
        does = holds(middle)
        low, high = np.where(does, middle, low), np.where(does, high, middle)
    return low


def best_payoffs(worth: Floats, clicks: Floats, payments: Floats) -> Floats:
    """(K,) greatest `a·x − p` over bids (L,) for every worth a of a click (K,)."""
    hull = _lower_hull(clicks, payments)
    return _payoffs_on(hull, worth, clicks, payments)


def most_value(values: Floats, clicks: Floats, payments: Floats, roi: float) -> float:
    """Greatest `E[v x]` with `E[v x] >= roi·E[p]` over all strategies: the least dual bound.

    Args:
        values: (K,) equally likely.
        clicks: (L,) of every bid, one of them free.
        payments: (L,) likewise.
        roi: the target.
    """
    hull = _lower_hull(clicks, payments)

    def bound(dual: float) -> float:
        """`E[max_b (1+λ) v x − λ roi p]`, written as `λ roi·E[max_b a x − p]`."""
        if dual == 0:
            return float(values.mean() * clicks.max())
        worth = values * (1 + dual) / (dual * roi)
        return dual * roi * float(_payoffs_on(hull, worth, clicks, payments).mean())

    found = minimize_scalar(
        lambda log: bound(np.exp(log)), bounds=(-12.0, 8.0), method="bounded",
        options={"xatol": 1e-7},
    )  # fmt: skip
    return min(float(found.fun), bound(0.0))


def _fraction(part: Floats, whole: Floats) -> Floats:
    """`part / whole`; where there is no whole, 0 for no part and infinity for some."""
    positive = whole > 0
    return np.where(
        positive, part / np.where(positive, whole, 1.0), np.where(part > 0, np.inf, 0.0)
    )


def _payoffs_on(hull: Ints, worth: Floats, clicks: Floats, payments: Floats) -> Floats:
    x, p = clicks[hull], payments[hull]
    best = np.searchsorted(np.diff(p) / np.diff(x), worth)
    return worth * x[best] - p[best]


def _lower_hull(clicks: Floats, payments: Floats) -> Ints:
    """Bids on the lower convex hull of the points (x, p), by rising x (monotone chain)."""
    order = np.lexsort((payments, clicks))
    xs, ps = clicks[order].tolist(), payments[order].tolist()
    hull: list[int] = []
    for k in range(len(xs)):
        if hull and xs[k] == xs[hull[-1]]:
            continue  # the cheaper of equal clicks came first
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (ps[b] - ps[a]) * (xs[k] - xs[b]) < (ps[k] - ps[b]) * (xs[b] - xs[a]):
                break
            hull.pop()
        hull.append(k)
    return order[np.array(hull)]
