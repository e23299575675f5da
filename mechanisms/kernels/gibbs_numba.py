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

`gibbs_weights` has the weights; here is what they bring about. What others call works on rows
`first` to `last` of a batch, writes to these rows only, and returns whether every score was finite.
Row q is request `index[q]` of the pool, whose exposures and weights `candidates` has
(`exposures.Arrays`). Rows are computed in blocks, but no row's bytes depend on its block.
"""

from __future__ import annotations

import math

import numpy as np

from mechanisms.kernels import elementary, exposures, gibbs_weights
from mechanisms.kernels.caching import compiled_with
from mechanisms.kernels.exposures import Arrays
from mechanisms.kernels.gibbs_weights import (
    exponents,
    log_sum,
    reach_without,
    room,
    scores_without,
    weigh,
)

# Nats by which bids may move a score, and once more a bid that is tried, before sums of products
# give way to log space.
_SAFE = 150.0
# While a bound on that is no more than this, it is so whatever the rounding.
_SURE = 149.0

DECLARED, ROCHET, ROCHET_WITHOUT_OFFSET = range(3)
"""Payment rules known here; `mechanisms.payments` says what they are."""

EXPECTED, REALISED, PER_CLICK = range(3)
"""What is charged once dice are thrown: the expected payment; what the reply shown is worth less
the expected utility; the bid for every click."""

compiled = compiled_with(elementary, gibbs_weights, exposures)


@compiled
def allocate(
    first, last, index, candidates, bids, tau, probabilities, itctr, declared, log_z, log_z_without
):
    """Allocation and normalisers of rows `first` to `last` under `bids` (B, n)."""
    given = Arrays(*candidates)
    block = room(given, last - first)
    rows = len(block.total)
    for at in range(first, last, rows):
        to = min(at + rows, last)
        if not _allocate(
            index[at:to], given, bids[at:to], tau, block, probabilities[at:to], itctr[at:to],
            declared[at:to], log_z[at:to], log_z_without[at:to],
        ):  # fmt: skip
            return False
    return True


@compiled
def auction(first, last, index, candidates, bids, tau, rule, probabilities, itctr, payments):
    """As `allocate`, to expected payments: what they are made of never leaves the cache."""
    given, n = Arrays(*candidates), bids.shape[1]
    block = room(given, last - first)
    rows = len(block.total)
    declared, log_z, without = np.empty((rows, n)), np.empty(rows), np.empty((rows, n))
    for at in range(first, last, rows):
        to = min(at + rows, last)
        if not _allocate(
            index[at:to], given, bids[at:to], tau, block, probabilities[at:to], itctr[at:to],
            declared[: to - at], log_z[: to - at], without[: to - at],
        ):  # fmt: skip
            return False
        pay(rule, tau, declared, log_z, without, payments[at:to])
    return True


@compiled
def pay(rule, tau, declared, log_z, log_z_without, payments):
    """Expected payments (rows, n) by a rule known here; other arrays may have more rows."""
    rows, n = payments.shape
    for q in range(rows):
        for i in range(n):
            paid = declared[q, i]
            if rule == ROCHET:
                paid = max(paid - tau * (log_z[q] - log_z_without[q, i]), 0.0)
            elif rule == ROCHET_WITHOUT_OFFSET:
                paid -= tau * log_z[q]
            payments[q, i] = paid


@compiled
def _allocate(index, given, bids, tau, block, probabilities, itctr, declared, log_z, log_z_without):
    """`allocate` for one block of requests. What is called is called once a block: calls cost."""
    rows, n = bids.shape
    for q in range(rows):
        for i in range(n):
            block.steps[q, i] = bids[q, i] / tau
    weigh(index, given, block, probabilities)
    _normalise(index, given, block, log_z, log_z_without)
    for q in range(rows):
        if not block.reach[q] <= _SURE and not _allocate_far(
            q, index[q], given, block, probabilities[q], log_z, log_z_without[q]
        ):
            return False
        scale = 1.0 / block.total[q]
        for j in range(probabilities.shape[1]):
            probabilities[q, j] *= scale
    _expect(index, given, probabilities, bids, itctr, declared)
    return True


@compiled
def _normalise(index, given, block, log_z, log_z_without):
    """Logarithms of the sums of weights in `block`, as means over replies."""
    rows, n = log_z_without.shape
    for q in range(rows):
        log_z[q] = block.total[q]
        for i in range(n):
            log_z_without[q, i] = block.rest[q, i] + block.own[q, i]
    elementary.log(log_z, block.power)
    elementary.log(log_z_without.reshape(rows * n), block.power)
    log_M = math.log(given.w.shape[1])
    for q in range(rows):
        shift = given.log_peak[index[q]] - log_M
        log_z[q] += shift
        for i in range(n):
            log_z_without[q, i] += shift


@compiled
def _allocate_far(q, b, given, block, e, log_z, log_z_without):
    """What is to be corrected of row q, request b, if a score does move farther than `_SAFE`.

    That is `e` (M,), whose sum goes to `block.total`, `log_z` (rows,) and `log_z_without` (n,).
    Returns whether all scores are finite.
    """
    listed = slice(given.start[b], given.start[b + 1])
    reply, ad, feature = given.reply[listed], given.ad[listed], given.feature[listed]
    x, log_w = block.power[: len(ad)], given.log_w[b]
    if not exponents(ad, feature, block.steps[q], x):
        return False
    reach = reach_without(-1, reply, ad, x)
    if reach <= _SAFE:
        return True
    if not reach < np.inf:
        return False
    shift = given.log_peak[b] - math.log(len(e))
    for i in range(len(log_z_without)):
        if reach_without(i, reply, ad, x) > _SAFE:
            scores_without(i, reply, ad, x, log_w, e)
            log_z_without[i] = log_sum(e) + shift
    scores_without(-1, reply, ad, x, log_w, e)
    log_weight = log_sum(e)
    log_z[q], block.total[q] = log_weight + shift, 0.0
    for j in range(len(e)):
        e[j] = math.exp(e[j] - log_weight)
        block.total[q] += e[j]
    return True


@compiled
def _expect(index, given, probabilities, bids, itctr, declared):
    """Click rates and declared values (rows, n) under `probabilities` (rows, M)."""
    reply, ad, feature, ctr = given.reply, given.ad, given.feature, given.ctr
    rows, n = bids.shape
    for q in range(rows):
        b, p = index[q], probabilities[q]
        for i in range(n):
            itctr[q, i], declared[q, i] = 0.0, 0.0
        for k in range(given.start[b], given.start[b + 1]):
            itctr[q, ad[k]] += p[reply[k]] * ctr[k]
            declared[q, ad[k]] += p[reply[k]] * feature[k]
        for i in range(n):
            declared[q, i] *= bids[q, i]


@compiled
def deviate(
    first, last, index, candidates, bids, tau, grid, highest, itctr, declared, log_z, log_z_without
):
    """Outcomes (B, n, G) of the bids `grid` (B, n, G), the others' `bids` (B, n) as they are.

    `highest` (B, n) is the highest bid of each grid.
    """
    given = Arrays(*candidates)
    block, scratch = room(given, last - first), np.empty(given.w.shape[1] + grid.shape[2])
    rows = len(block.total)
    for at in range(first, last, rows):
        to = min(at + rows, last)
        for q in range(at, to):
            for i in range(bids.shape[1]):
                block.steps[q - at, i] = bids[q, i] / tau
        weigh(index[at:to], given, block, block.e)
        listed = 0
        for q in range(at, to):
            b = index[q]
            if not _deviate(
                q - at, b, listed, given, block, tau, grid[q], highest[q], scratch, itctr[q],
                declared[q], log_z[q], log_z_without[q],
            ):  # fmt: skip
                return False
            listed += given.start[b + 1] - given.start[b]
    return True


@compiled
def deviate_sums(
    first, last, index, candidates, ads, bids, tau, grids, tops, rule, clicks, payments
):
    """Sums over requests of clicks and payments, (R, N, G), of `grids` (N, G).

    Rows are replications: `index` is (R, B), `bids` (R, N), `ads` (pool, n) the pool's, and `tops`
    (N,) the highest bid of each grid.
    """
    given, n, G = Arrays(*candidates), ads.shape[1], grids.shape[1]
    block, scratch = room(given, index.shape[1]), np.empty(given.w.shape[1] + G)
    grid, itctr, declared = np.empty((n, G)), np.empty((n, G)), np.empty((n, G))
    log_z, highest, without = np.empty((n, G)), np.empty(n), np.empty(n)
    rows = len(block.total)
    for r in range(first, last):
        clicks[r], payments[r] = 0.0, 0.0
        for at in range(0, index.shape[1], rows):
            requests = index[r, at : at + rows]
            for q in range(len(requests)):
                for i in range(n):
                    block.steps[q, i] = bids[r, ads[requests[q], i]] / tau
            weigh(requests, given, block, block.e)
            listed = 0
            for q in range(len(requests)):
                b = requests[q]
                for i in range(n):
                    grid[i], highest[i] = grids[ads[b, i]], tops[ads[b, i]]
                if not _deviate(
                    q, b, listed, given, block, tau, grid, highest, scratch, itctr, declared,
                    log_z, without,
                ):  # fmt: skip
                    return False
                listed += given.start[b + 1] - given.start[b]
                _credit(ads[b], rule, tau, itctr, declared, log_z, without, clicks[r], payments[r])
    return True


@compiled
def _credit(ads, rule, tau, itctr, declared, log_z, log_z_without, clicks, payments):
    """Add a request's clicks and payments (n, G) to those of its `ads` (n,) among (N, G)."""
    n, G = itctr.shape
    for i in range(n):
        a = ads[i]
        for g in range(G):
            clicks[a, g] += itctr[i, g]
            paid = declared[i, g]
            if rule == ROCHET:
                paid = max(paid - tau * (log_z[i, g] - log_z_without[i]), 0.0)
            elif rule == ROCHET_WITHOUT_OFFSET:
                paid -= tau * log_z[i, g]
            payments[a, g] += paid


@compiled
def _deviate(
    q, b, listed, given, block, tau, grid, highest, scratch, itctr, declared, log_z, log_z_without
):
    """Deviations of request b, row q of a `block` in which its exposures begin at `listed`.

    Arrays have no axis of requests; `scratch` is (M + G,).
    """
    (n, G), M = grid.shape, given.w.shape[1]
    mine, lone = slice(given.start[b], given.start[b + 1]), given.crowded[b] - given.start[b]
    reply, ad = given.reply[mine], given.ad[mine]
    feature, ctr = given.feature[mine], given.ctr[mine]
    x, others, held = block.power[: len(ad)], block.others[listed:], block.growth[listed:]
    w, log_w, rest, own = given.w[b], given.log_w[b], block.rest[q], block.own[q]
    scores, power = scratch[:M], scratch[M:]
    shift = given.log_peak[b] - math.log(M)
    for k in range(lone):
        others[k] = w[reply[k]]
    if not exponents(ad, feature, block.steps[q], x):
        return False
    far = not block.reach[q] <= _SURE
    if far and not reach_without(-1, reply, ad, x) < np.inf:
        return False
    for i in range(n):
        shown, steepest = False, 0.0
        for k in range(len(ad)):
            if ad[k] == i:
                shown, steepest = True, max(steepest, abs(feature[k]))
        farthest = steepest * highest[i] / tau
        if not farthest < np.inf:
            return False
        tame = not far or reach_without(i, reply, ad, x) <= _SAFE
        if tame:
            log_without = math.log(rest[i] + own[i])
        if not tame or farthest > _SAFE:
            scores_without(i, reply, ad, x, log_w, scores)
            if not tame:
                log_without = log_sum(scores)
        log_z_without[i] = log_without + shift
        itctr[i], declared[i] = 0.0, 0.0
        if not shown:
            log_z[i] = log_z_without[i]
            continue
        if tame and farthest <= _SAFE:
            log_z[i] = rest[i]
            for k in range(len(ad)):
                if ad[k] == i:
                    elementary.add_products(
                        others[k], feature[k] / tau, feature[k], ctr[k], grid[i], power,
                        log_z[i], declared[i], itctr[i],
                    )  # fmt: skip
            _divide(log_z[i], declared[i], itctr[i])
            elementary.log(log_z[i], power)
        else:
            _sum_logs(
                i, reply, ad, feature, ctr, scores, held, tau, grid[i], log_z[i], declared[i],
                itctr[i],
            )  # fmt: skip
        for g in range(G):
            log_z[i, g] += shift
            declared[i, g] *= grid[i, g]
    return True


@compiled
def _divide(total, declared, itctr):
    for g in range(len(total)):
        inverse = 1.0 / total[g]
        declared[g] *= inverse
        itctr[g] *= inverse


@compiled
def _sum_logs(i, reply, ad, feature, ctr, scores, held, tau, grid, log_total, declared, itctr):
    """What sums of products give, from log-weights `scores` without ad i, which it overwrites."""
    for k in range(len(ad)):
        if ad[k] == i:
            held[k] = scores[reply[k]]
            scores[reply[k]] = -np.inf
    log_rest = log_sum(scores)
    for g in range(len(grid)):
        top = log_rest
        for k in range(len(ad)):
            if ad[k] == i:
                top = max(top, held[k] + grid[g] * (feature[k] / tau))
        total = math.exp(log_rest - top)
        for k in range(len(ad)):
            if ad[k] == i:
                term = math.exp(held[k] + grid[g] * (feature[k] / tau) - top)
                total += term
                declared[g] += term * feature[k]
                itctr[g] += term * ctr[k]
        declared[g] /= total
        itctr[g] /= total
        log_total[g] = math.log(total) + top
