"""Equilibria known on paper, or as roots of their first-order conditions.

Nothing here calls a mechanism or a learner: these are what learners are held against.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, root

from mechanisms.errors import BadInput
from mechanisms.pool import Floats


def symmetric_first_price(values: Floats, bidders: int) -> Floats:
    """(...) `β(v) = (n−1)/n · v`: first price, n utility maximizers, values U[0, 1] (Vickrey)."""
    return (bidders - 1) / bidders * np.asarray(values, dtype=np.float64)


def uniform_pair(worth: Floats, own: float, other: float) -> Floats:
    """(...) equilibrium bids of two bidders with worths U[0, own] and U[0, other].

    `β(a) = (1 − sqrt(1 − k a²)) / (k a)`, `k = 1/own² − 1/other²` (Griesmer, Levitan & Shubik
    1967), written so that nothing cancels.
    """
    a = np.asarray(worth, dtype=np.float64)
    k = own**-2 - other**-2
    return a / (1 + np.sqrt(np.maximum(1 - k * a**2, 0.0)))


def utility_against_value(
    roi: float,
) -> tuple[Callable[[Floats], Floats], Callable[[Floats], Floats], float]:
    """First price, a utility against a value maximizer with an ex ante target, values U[0, 1].

    Given its stretch κ, the value maximizer is a bidder of worth U[0, κ/roi] (`uniform_pair`); its
    bid b wins with probability `2b / (1 + k b²)`, k being the rival's. κ is where the target binds.

    Returns:
        Both bid functions of the value, and κ.

    Raises:
        BadInput: a target that is not positive and finite.
    """
    if not 0 < roi < np.inf:
        raise BadInput(f"roi must be positive and finite; got {roi}")
    nodes, weights = np.polynomial.legendre.leggauss(200)
    v, weights = (nodes + 1) / 2, weights / 2

    def slack(stretch: float) -> float:
        top = stretch / roi
        bid = uniform_pair(v * top, top, 1.0)
        wins = 2 * bid / (1 + (1 - top**-2) * bid**2)
        return float(weights @ (wins * (v - roi * bid)))

    stretch = brentq(slack, 1.0, 1e4, xtol=1e-12)
    top = stretch / roi
    return (
        lambda values: uniform_pair(values, 1.0, top),
        lambda values: uniform_pair(np.asarray(values) * top, top, 1.0),
        float(stretch),
    )


def gibbs_first_price(
    ctr: Floats,
    values: Floats,
    value_maximizer: NDArray[np.bool_],
    roi: Floats,
    tau: float,
) -> Floats:
    """(n,) equilibrium bids under the Gibbs rule at first price, values fixed and known.

    A value maximizer's return is `v/b` whatever it wins, and it wins more the more it bids: its bid
    is `v/roi`. A utility maximizer's is the root of its first-order condition

        Σ_x (v − b)·Var_π(ctr_i)/tau − E_π[ctr_i] = 0,

    since `d E_π[ctr_i] / db_i = Var_π(ctr_i)/tau`; all roots are found at once.

    Args:
        ctr: (B, M, n) click rates of replies of equal weight, all ads being candidates everywhere.
        values: (n,) per click.
        value_maximizer: (n,) bool.
        roi: (n,) targets.
        tau: temperature.

    Raises:
        BadInput: the root finder did not converge.
    """
    bids = np.where(value_maximizer, values / roi, 0.5 * values)
    free = np.flatnonzero(~np.asarray(value_maximizer))

    def conditions(tried: Floats) -> Floats:
        bids[free] = tried
        scores = ctr @ bids / tau
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        mean = (weights[:, :, None] * ctr).sum(axis=1)
        spread = (weights[:, :, None] * ctr**2).sum(axis=1) - mean**2
        return ((values - bids) * spread / tau - mean).sum(axis=0)[free]

    found = root(conditions, bids[free], tol=1e-12)
    if not found.success:
        raise BadInput(f"gibbs_first_price: no root found ({found.message}); try a smaller tau")
    bids[free] = found.x
    return bids
