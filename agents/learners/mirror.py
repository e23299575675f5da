"""From summed payoffs to a mixture: the maximisers of `η ⟨w, U⟩ − h(w)`, compiled.

`mixture.RegularisedLeader` has the regularisers h. The entropic one gives exponential weights, the
Euclidean one a projection; both leave `U` a constant to lose, and lose its maximum first, so that
no sum overflows.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from mechanisms.kernels import elementary
from mechanisms.kernels.caching import renewed_with
from mechanisms.kernels.elementary import LN2_HIGH, LN2_LOW, PER_LN2, ROUND, taylor
from mechanisms.pool import Floats

NEGLIGIBLE = -100.0  # exponent below which a weight counts as 0

# Fused products as in `elementary`: the same at every call.
_fused = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
# Extremes in any order, so that they compile to vector instructions. Sums stay in theirs
# ("reassoc"): they would be other sums where the function is inlined, and so have other last bits
# when compiled afresh than when loaded from disk.
reordered = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "nnan"})


@renewed_with(elementary)
@reordered
def exponential(payoffs: Floats, eta: float, prior: Floats, weights: Floats) -> None:
    """Weights (G,) ∝ prior · exp(η payoffs), in place."""
    top = payoffs[0]
    for g in range(len(payoffs)):
        top = max(top, payoffs[g])
    _powers(payoffs, eta, top, weights)
    total = 0.0
    for g in range(len(weights)):
        weights[g] *= prior[g]
        total += weights[g]
    scale = 1 / total
    for g in range(len(weights)):
        weights[g] *= scale


@njit(cache=True, nogil=True)
def projected(payoffs: Floats, eta: float, prior: Floats, weights: Floats) -> None:
    """Weights (G,) nearest to prior + η payoffs on the simplex, in place: max(point − θ, 0)."""
    point = prior + eta * (payoffs - payoffs.max())
    total, theta = 0.0, 0.0
    ordered = np.sort(point)[::-1]
    for k in range(len(ordered)):
        total += ordered[k]
        if ordered[k] * (k + 1) <= total - 1:
            break
        theta = (total - 1) / (k + 1)
    for g in range(len(point)):
        weights[g] = max(point[g] - theta, 0.0)


@renewed_with(elementary)
@_fused
def _powers(payoffs: Floats, eta: float, top: float, weights: Floats) -> None:
    """`exp(η (payoffs − top))` into `weights`, by the polynomial of `elementary`.

    Bids that trail hopelessly weigh 0, which spares all that comes after slow denormal numbers.
    """
    bits = weights.view(np.int64)
    for g in range(len(weights)):
        weights[g] = max(eta * (payoffs[g] - top), NEGLIGIBLE) * PER_LN2 + ROUND
    for g in range(len(weights)):
        bits[g] = (bits[g] + 1023) << 52
    for g in range(len(weights)):
        x = eta * (payoffs[g] - top)
        k = (x * PER_LN2 + ROUND) - ROUND
        r = (x - k * LN2_HIGH) - k * LN2_LOW
        weights[g] = taylor(r) * weights[g] if x > NEGLIGIBLE else 0.0
