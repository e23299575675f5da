"""The Gibbs allocation, its normalisers and its deviations, compiled for sparse exposures.

Per request, reply j weighs `e_j = w_j·Π_i E_ij` with `E_ij = exp(b_i·f_ij/tau)`, one exponential an
exposure. Prefix and suffix products give `e_j` without ad i; its normaliser is added up,

    M·Z(r_−i) = Σ_{j does not show i} e_j + Σ_{j shows i} e_j/E_ij   (as a product without E_ij),

so no report of ad i reaches it, not even by rounding. Against a bid g of ad i, only the second sum
changes, `Σ_{j shows i} (e_j/E_ij)·exp(g·f_ij/tau)`: an exponential per exposure and bid.

Products are taken while no reply's score moves by more than `_SAFE` nats, which neither overflows
nor loses a weight that counts: weights below exp(−700) are worth less than exp(−400) of the sum.
Beyond (a small tau), the same sums are taken in log space, from their greatest term. Which way
`Z(r_−i)` is computed is again no matter of ad i's bid.

All functions work on rows `first` to `last` of a batch, write to these rows only, and return
whether every score was finite. Row q is request `index[q]` of the pool.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# Nats by which bids may move a score, and once more a bid that is tried, before sums of products
# give way to log space.
_SAFE = 150.0

# exp by range reduction, x = k·ln 2 + r, and Taylor's polynomial on |r| <= ln(2)/2, whose error is
# below 1e-17. Adding and subtracting `_ROUND` rounds to the nearest integer, and leaves that
# integer in the low bits of the sum.
_ROUND = 6755399441055744.0
_PER_LN2 = 1 / math.log(2)
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_C = tuple(1 / math.factorial(k) for k in range(14))
# log: the series of artanh, and the bits of sqrt(1/2), below which a mantissa is doubled
_A = tuple(1 / (2 * k + 1) for k in range(10))
_SQRT_HALF = 0x3FE6A09E667F3BCD

DECLARED, ROCHET, ROCHET_WITHOUT_OFFSET = range(3)
"""Payment rules known here; `mechanisms.payments` says what they are."""

EXPECTED, REALISED, PER_CLICK = range(3)
"""What is charged once dice are thrown: the expected payment; what the reply shown is worth less
the expected utility; the bid for every click."""

compiled = njit(cache=True, nogil=True, error_model="numpy")
# Multiplications may be fused with additions: faster, no less exact, and the same at every call.
_fused = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})


@compiled
def allocate(
    first, last, index, start, reply, ad, feature, ctr, log_w, w, log_peak, plain, bids, tau,
    probabilities, itctr, declared, total, log_z, total_without, log_z_without,
):  # fmt: skip
    """Allocation and normalisers of rows `first` to `last` under `bids` (B, n).

    Normalisers are left as sums and what their logarithms lack, `log_z = log(total) + log_z`: NumPy
    takes many logarithms at once.
    """
    M, n = w.shape[1], bids.shape[1]
    x, growth, others, alone, rest, own, _, _, _ = _scratch(M, n, 0)
    steps = np.empty(n)
    for q in range(first, last):
        b = index[q]
        at, end = start[b], start[b + 1]
        shift = log_peak[b] - math.log(M)
        for i in range(n):
            steps[i] = bids[q, i] / tau
        e = probabilities[q]
        weight, reach = _weigh(
            at, end, reply, ad, feature, steps, w[b], plain[b], x, growth, others, e, alone, rest,
            own,
        )  # fmt: skip
        if not reach < np.inf:
            return False
        total[q], log_z[q] = weight, shift
        for i in range(n):
            total_without[q, i], log_z_without[q, i] = rest[i] + own[i], shift
        if reach > _SAFE:
            for i in range(n):
                if _reach_without(i, at, end, reply, ad, x) > _SAFE:
                    _scores(i, at, end, reply, ad, x, log_w[b], e)
                    total_without[q, i], log_z_without[q, i] = 1.0, _log_sum(e) + shift
            _scores(-1, at, end, reply, ad, x, log_w[b], e)
            log_weight, weight = _log_sum(e), 0.0
            for j in range(M):
                e[j] = math.exp(e[j] - log_weight)
                weight += e[j]
            total[q], log_z[q] = 1.0, log_weight + shift
        for j in range(M):
            e[j] /= weight
        for i in range(n):
            itctr[q, i], declared[q, i] = 0.0, 0.0
        for k in range(at, end):
            itctr[q, ad[k]] += e[reply[k]] * ctr[k]
            declared[q, ad[k]] += e[reply[k]] * feature[k]
        for i in range(n):
            declared[q, i] *= bids[q, i]
    return True


@compiled
def deviate(
    first, last, index, start, reply, ad, feature, ctr, log_w, w, log_peak, plain, bids, tau, grid,
    highest, itctr, declared, log_z, log_z_without,
):  # fmt: skip
    """Outcomes (B, n, G) of the bids `grid` (B, n, G), the others' `bids` (B, n) as they are.

    `highest` (B, n) is the highest bid of each grid.
    """
    M, n, G = w.shape[1], bids.shape[1], grid.shape[2]
    scratch, steps = _scratch(M, n, G), np.empty(n)
    for q in range(first, last):
        b = index[q]
        for i in range(n):
            steps[i] = bids[q, i] / tau
        if not _deviate(
            start[b], start[b + 1], reply, ad, feature, ctr, log_w[b], w[b], log_peak[b], plain[b],
            steps, tau, grid[q], highest[q], scratch, itctr[q], declared[q], log_z[q],
            log_z_without[q],
        ):  # fmt: skip
            return False
    return True


@compiled
def deviate_sums(
    first, last, index, start, reply, ad, feature, ctr, log_w, w, log_peak, plain, ads, bids, tau,
    grids, tops, rule, clicks, payments,
):  # fmt: skip
    """Sums over requests of clicks and payments, (R, N, G), of `grids` (N, G).

    Rows are replications: `index` is (R, B), `bids` (R, N), `ads` (pool, n) the pool's, and `tops`
    (N,) the highest bid of each grid.
    """
    M, n, G = w.shape[1], ads.shape[1], grids.shape[1]
    scratch, steps, without = _scratch(M, n, G), np.empty(n), np.empty(n)
    grid, itctr, declared = np.empty((n, G)), np.empty((n, G)), np.empty((n, G))
    log_z, highest = np.empty((n, G)), np.empty(n)
    for r in range(first, last):
        clicks[r], payments[r] = 0.0, 0.0
        for q in range(index.shape[1]):
            b = index[r, q]
            for i in range(n):
                steps[i] = bids[r, ads[b, i]] / tau
                grid[i], highest[i] = grids[ads[b, i]], tops[ads[b, i]]
            if not _deviate(
                start[b], start[b + 1], reply, ad, feature, ctr, log_w[b], w[b], log_peak[b],
                plain[b], steps, tau, grid, highest, scratch, itctr, declared, log_z, without,
            ):  # fmt: skip
                return False
            for i in range(n):
                a = ads[b, i]
                for g in range(G):
                    clicks[r, a, g] += itctr[i, g]
                    paid = declared[i, g]
                    if rule == ROCHET:
                        paid = max(paid - tau * (log_z[i, g] - without[i]), 0.0)
                    elif rule == ROCHET_WITHOUT_OFFSET:
                        paid -= tau * log_z[i, g]
                    payments[r, a, g] += paid
    return True


@compiled
def _deviate(
    at, end, reply, ad, feature, ctr, log_w, w, log_peak, plain, steps, tau, grid, highest, scratch,
    itctr, declared, log_z, log_z_without,
):  # fmt: skip
    """One request's deviations; arrays without their axis of requests."""
    M, n, G = len(w), grid.shape[0], grid.shape[1]
    x, growth, others, alone, rest, own, e, scores, power = scratch
    shift = log_peak - math.log(M)
    _, reach = _weigh(
        at, end, reply, ad, feature, steps, w, plain, x, growth, others, e, alone, rest, own
    )
    if not reach < np.inf:
        return False
    for i in range(n):
        shown, steepest = False, 0.0
        for k in range(at, end):
            if ad[k] == i:
                shown, steepest = True, max(steepest, abs(feature[k]))
        farthest = steepest * highest[i] / tau
        if not farthest < np.inf:
            return False
        tame = reach <= _SAFE or _reach_without(i, at, end, reply, ad, x) <= _SAFE
        if tame:
            log_without = math.log(rest[i] + own[i])
        if not tame or farthest > _SAFE:
            _scores(i, at, end, reply, ad, x, log_w, scores)
            if not tame:
                log_without = _log_sum(scores)
        log_z_without[i] = log_without + shift
        itctr[i], declared[i] = 0.0, 0.0
        if not shown:
            log_z[i] = log_z_without[i]
            continue
        if tame and farthest <= _SAFE:
            log_z[i] = rest[i]
            for k in range(at, end):
                if ad[k] == i:
                    _add_products(
                        others[k - at], feature[k] / tau, feature[k], ctr[k], grid[i], power,
                        log_z[i], declared[i], itctr[i],
                    )  # fmt: skip
            _divide(log_z[i], declared[i], itctr[i])
            _log(log_z[i], power)
        else:
            _sum_logs(
                i, at, end, reply, ad, feature, ctr, scores, growth, tau, grid[i],
                log_z[i], declared[i], itctr[i],
            )  # fmt: skip
        for g in range(G):
            log_z[i, g] += shift
            declared[i, g] *= grid[i, g]
    return True


@compiled
def _scratch(M, n, G):
    """Room for one request at a time: see `_deviate`."""
    exposures, ads, replies = M * n, n, M
    return (
        np.empty(exposures), np.empty(exposures), np.empty(exposures),
        np.empty(ads), np.empty(ads), np.empty(ads), np.empty(replies), np.empty(replies),
        np.empty(G),
    )  # fmt: skip


@compiled
def _weigh(at, end, reply, ad, feature, steps, w, plain, x, growth, others, e, alone, rest, own):
    """Weights of a request's replies under all bids, and what they come to without each ad's.

    Args:
        at, end: its exposures; `x`, `growth` and `others` are by exposure, from `at`.
        steps: (n,) bids over tau.
        w: (M,) weights before any bid.
        plain: what the replies that show no ad weigh together.
        x: exponents, written.
        growth: their exponentials, written.
        others: weight of the reply without the ad's own factor, written.
        e: (M,) weights of replies, written.
        alone: (n,) scratch.
        rest: (n,) weight of the replies that do not show ad i, written.
        own: (n,) weight of those that do, without its bid, written.

    Returns:
        The weight of all replies, and the greatest sum of absolute exponents of a reply: how far
        bids move a score.
    """
    n = len(steps)
    total, reach = plain, 0.0
    for i in range(n):
        if not steps[i] < np.inf:
            return total, np.inf
        alone[i], rest[i], own[i] = 0.0, 0.0, 0.0
    for k in range(at, end):
        x[k - at] = steps[ad[k]] * feature[k]
        growth[k - at] = math.exp(x[k - at])
    for j in range(len(w)):
        e[j] = w[j]
    k = at
    while k < end:
        j, first = reply[k], k
        k += 1
        if k == end or reply[k] != j:
            weight = w[j] * growth[first - at]
            others[first - at] = w[j]
            own[ad[first]] += w[j]
            alone[ad[first]] += weight
            moved = abs(x[first - at])
        else:
            while k < end and reply[k] == j:
                k += 1
            weight, moved = _multiply(first - at, k - at, w[j], x, growth, others)
            before = 0
            for shown in range(first, k):
                own[ad[shown]] += others[shown - at]
                for i in range(before, ad[shown]):
                    rest[i] += weight
                before = ad[shown] + 1
            for i in range(before, n):
                rest[i] += weight
        e[j] = weight
        total += weight
        reach = max(reach, moved)
    # replies that show one ad, to all ads but that one
    below, above = plain, 0.0
    for i in range(n):
        rest[i] += below
        below += alone[i]
    for i in range(n - 1, -1, -1):
        rest[i] += above
        above += alone[i]
    return total, reach


@compiled
def _multiply(first, last, weight, x, growth, others):
    """`_weigh` for a reply of several exposures: products up to each, and from each on."""
    moved = 0.0
    for k in range(first, last):
        moved += abs(x[k])
        others[k] = weight
        weight *= growth[k]
    after = 1.0
    for k in range(last - 1, first - 1, -1):
        others[k] *= after
        after *= growth[k]
    return weight, moved


@compiled
def _reach_without(i, at, end, reply, ad, x):
    """How far all bids but that of ad i move a score, at most."""
    reach, moved = 0.0, 0.0
    for k in range(at, end):
        if k == at or reply[k] != reply[k - 1]:
            moved = 0.0
        if ad[k] != i:
            moved += abs(x[k - at])
            reach = max(reach, moved)
    return reach


@compiled
def _scores(i, at, end, reply, ad, x, log_w, scores):
    """Log-weights of replies under all bids but that of ad i."""
    scores[:] = log_w
    for k in range(at, end):
        if ad[k] != i:
            scores[reply[k]] += x[k - at]


@compiled
def _log_sum(scores):
    """`log Σ exp(scores)`, from the greatest."""
    top = scores.max()
    if top == -np.inf:
        return top
    total = 0.0
    for score in scores:
        total += math.exp(score - top)
    return math.log(total) + top


@_fused
def _add_products(weight, slope, feature, ctr, grid, power, total, declared, itctr):
    """Add `weight·exp(grid·slope)`, and its products with the feature and the click rate.

    In loops that compile to vector instructions: the second turns the integers k left in `power` by
    the first into 2^k, in place.
    """
    bits = power.view(np.int64)
    per_ln2 = slope * _PER_LN2
    for g in range(len(grid)):
        power[g] = grid[g] * per_ln2 + _ROUND
    for g in range(len(grid)):
        bits[g] = (bits[g] + 1023) << 52
    for g in range(len(grid)):
        k = (grid[g] * per_ln2 + _ROUND) - _ROUND
        r = (grid[g] * slope - k * _LN2_HIGH) - k * _LN2_LOW
        p = ((((_C[13] * r + _C[12]) * r + _C[11]) * r + _C[10]) * r + _C[9]) * r + _C[8]
        p = ((((p * r + _C[7]) * r + _C[6]) * r + _C[5]) * r + _C[4]) * r + _C[3]
        p = ((p * r + _C[2]) * r + 1.0) * r + 1.0
        term = weight * p * power[g]
        total[g] += term
        declared[g] += term * feature
        itctr[g] += term * ctr


@compiled
def _divide(total, declared, itctr):
    for g in range(len(total)):
        inverse = 1.0 / total[g]
        declared[g] *= inverse
        itctr[g] *= inverse


@_fused
def _log(values, power):
    """Logarithms of positive normal `values`, in place and in vector instructions.

    `x = m·2^k` with m within a factor √2 of 1, and `log m = 2·artanh(s)`, `s = (m − 1)/(m + 1)`.
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
        values[g] = power[g] * _LN2_HIGH + (power[g] * _LN2_LOW + (2.0 * s + 2.0 * s * p))


@compiled
def _sum_logs(
    i, at, end, reply, ad, feature, ctr, scores, held, tau, grid, log_total, declared, itctr
):  # fmt: skip
    """What sums of products give, from log-weights `scores` without ad i, which it overwrites."""
    for k in range(at, end):
        if ad[k] == i:
            held[k - at] = scores[reply[k]]
            scores[reply[k]] = -np.inf
    log_rest = _log_sum(scores)
    for g in range(len(grid)):
        top = log_rest
        for k in range(at, end):
            if ad[k] == i:
                top = max(top, held[k - at] + grid[g] * (feature[k] / tau))
        total = math.exp(log_rest - top)
        for k in range(at, end):
            if ad[k] == i:
                term = math.exp(held[k - at] + grid[g] * (feature[k] / tau) - top)
                total += term
                declared[g] += term * feature[k]
                itctr[g] += term * ctr[k]
        declared[g] /= total
        itctr[g] /= total
        log_total[g] = math.log(total) + top
