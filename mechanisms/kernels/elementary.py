"""Exponentials and logarithms of whole arrays, in loops that compile to vector instructions.

`exp` by range reduction, `x = k·ln 2 + r` and Taylor's polynomial on `|r| <= ln(2)/2`, whose error
is below 1e-17. `log` by `x = m·2^k` with m within a factor √2 of 1, and `log m = 2·artanh(s)`,
`s = (m − 1)/(m + 1)`, by its series. Both are good to an ulp or two, and give the same bytes
wherever in an array a number stands.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# Adding and subtracting `ROUND` rounds to the nearest integer, and leaves that integer in the low
# bits of the sum.
ROUND = 6755399441055744.0
PER_LN2 = 1 / math.log(2)
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_C = tuple(1 / math.factorial(k) for k in range(14))
# the series of artanh, and the bits of sqrt(1/2), below which a mantissa is doubled
_A = tuple(1 / (2 * k + 1) for k in range(10))
_SQRT_HALF = 0x3FE6A09E667F3BCD

# Multiplications may be fused with additions: faster, no less exact, and the same at every call.
_fused = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})


@njit(inline="always")
def taylor(r):
    """`exp(r)` for `|r| <= ln(2)/2`, as part of the expression it stands in."""
    p = ((((_C[13] * r + _C[12]) * r + _C[11]) * r + _C[10]) * r + _C[9]) * r + _C[8]
    p = ((((p * r + _C[7]) * r + _C[6]) * r + _C[5]) * r + _C[4]) * r + _C[3]
    return ((p * r + _C[2]) * r + 1.0) * r + 1.0


@_fused
def exp(values, power):
    """Exponentials of `values`, in place; beyond ±700 they may be anything.

    `power` is room for as many numbers: its bits become those of 2^k.
    """
    bits = power.view(np.int64)
    for g in range(len(values)):
        power[g] = values[g] * PER_LN2 + ROUND
    for g in range(len(values)):
        bits[g] = (bits[g] + 1023) << 52
    for g in range(len(values)):
        k = (values[g] * PER_LN2 + ROUND) - ROUND
        r = (values[g] - k * LN2_HIGH) - k * LN2_LOW
        values[g] = taylor(r) * power[g]


@_fused
def add_products(weight, slope, feature, ctr, grid, power, total, declared, itctr):
    """Add `weight·exp(grid·slope)`, and its products with the feature and the click rate; as `exp`.

    One loop for all, so that no term goes through memory.
    """
    bits = power.view(np.int64)
    per_ln2 = slope * PER_LN2
    for g in range(len(grid)):
        power[g] = grid[g] * per_ln2 + ROUND
    for g in range(len(grid)):
        bits[g] = (bits[g] + 1023) << 52
    for g in range(len(grid)):
        k = (grid[g] * per_ln2 + ROUND) - ROUND
        r = (grid[g] * slope - k * LN2_HIGH) - k * LN2_LOW
        term = weight * taylor(r) * power[g]
        total[g] += term
        declared[g] += term * feature
        itctr[g] += term * ctr


@_fused
def log(values, power):
    """Logarithms of `values`, in place; of others than positive normal numbers, anything.

    `power` is room for as many numbers.
    """
    bits = values.view(np.int64)
    for g in range(len(values)):
        k = (bits[g] - _SQRT_HALF) >> 52
        power[g] = k
        bits[g] -= k << 52
    for g in range(len(values)):
        s = (values[g] - 1.0) / (values[g] + 1.0)
        z = s * s
        p = (((_A[9] * z + _A[8]) * z + _A[7]) * z + _A[6]) * z + _A[5]
        p = ((((p * z + _A[4]) * z + _A[3]) * z + _A[2]) * z + _A[1]) * z
        values[g] = power[g] * LN2_HIGH + (power[g] * LN2_LOW + (2.0 * s + 2.0 * s * p))
