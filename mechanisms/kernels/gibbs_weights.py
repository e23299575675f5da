"""What the replies of requests weigh under bids, and without each ad's; see `gibbs_numba`.

Requests are taken in blocks, so that the exponentials of many stand in one array, and all that is
made of them stays in a core's cache. Where exponents are too large, the same is found in log space.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mechanisms.kernels import elementary
from mechanisms.kernels.caching import compiled_with
from mechanisms.pool import Floats

# Most requests of a block, and most exposures there may be in it: three arrays of 64 KB.
_ROWS, _ROOM = 64, 8192

compiled = compiled_with(elementary)


class Block(NamedTuple):
    """What is computed of a block of requests; exposures stand one request after the other.

    Attributes:
        steps: (rows, n) bids over tau.
        reach: (rows,) scores move by no more than this.
        growth: exponential of each exposure's step times feature.
        others: weight of the exposure's reply without its own growth; of crowded replies.
        power: scratch, by exposure.
        e: (rows, M) weights of replies under all bids.
        total: (rows,) their sums.
        rest: (rows, n) weight of the replies that do not show ad i.
        own: (rows, n) weight of those that do, without its bid.
    """

    steps: Floats
    reach: Floats
    growth: Floats
    others: Floats
    power: Floats
    e: Floats
    total: Floats
    rest: Floats
    own: Floats


@compiled
def room(given, rows):
    """An empty `Block` of so many rows, or of as many as fit the cache."""
    M, n = given.w.shape[1], given.lone.shape[1]
    rows = max(1, min(rows, _ROWS, _ROOM // max(1, M * n)))
    # scratch for logarithms, too, of which there are as many as bids
    exposures = rows * max(M, 1) * max(n, 1)
    return Block(
        np.empty((rows, n)), np.empty(rows),
        np.empty(exposures), np.empty(exposures), np.empty(exposures),
        np.empty((rows, M)), np.empty(rows), np.empty((rows, n)), np.empty((rows, n)),
    )  # fmt: skip


@compiled
def weigh(index, given, block, e):
    """Weigh the replies of requests `index`, whose steps stand in `block`: all else there follows.

    Args:
        index: (rows,) requests.
        given: `exposures.Arrays`.
        block: of at least so many rows.
        e: (rows, M) where to put the weights of replies; `block.e` will do.
    """
    # each of these is called once a block, since calls with so many arrays cost
    _grow(index, given, block)
    _weigh_lone(index, given, block, e)
    _weigh_crowded(index, given, block, e)


@compiled
def _grow(index, given, block):
    """Exponentials of the exposures' steps times features."""
    growth, count = block.growth, 0
    for q in range(len(index)):
        b = index[q]
        for k in range(given.start[b], given.start[b + 1]):
            growth[count] = block.steps[q, given.ad[k]] * given.feature[k]
            count += 1
    elementary.exp(growth[:count], block.power)


@compiled
def _weigh_lone(index, given, block, e):
    """`weigh` as if no reply showed several ads."""
    growth, rest, own, n = block.growth, block.rest, block.own, block.steps.shape[1]
    alone = np.empty(n)
    begin = 0
    for q in range(len(index)):
        b = index[q]
        lone = slice(given.start[b], given.crowded[b])
        reply, ad, w = given.reply[lone], given.ad[lone], given.w[b]
        weights, grown = e[q], growth[begin:]
        for j in range(len(w)):
            weights[j] = w[j]
        highest = 0.0
        for i in range(n):
            alone[i], own[q, i] = 0.0, given.lone[b, i]
            highest = max(highest, block.steps[q, i])
        block.reach[q] = highest * given.steepest[b]
        for k in range(len(ad)):
            weight = w[reply[k]] * grown[k]
            weights[reply[k]] = weight
            alone[ad[k]] += weight
        # what a reply weighs goes to all ads but the one it shows
        below, above = given.plain[b], 0.0
        for i in range(n):
            rest[q, i] = below
            below += alone[i]
        for i in range(n - 1, -1, -1):
            rest[q, i] += above
            above += alone[i]
        block.total[q] = below
        begin += given.start[b + 1] - given.start[b]


@compiled
def _weigh_crowded(index, given, block, e):
    """Correct `weigh` for the replies that show several ads."""
    reply, ad, growth, others = given.reply, given.ad, block.growth, block.others
    n = block.steps.shape[1]
    unshown = np.empty(n)
    begin = 0
    for q in range(len(index)):
        b = index[q]
        k, end = given.crowded[b], given.start[b + 1]
        at = begin + k - given.start[b]
        while k < end:
            j, first = reply[k], k
            while k < end and reply[k] == j:
                k += 1
            to = at + k - first
            weight = _multiply(given.w[b, j], growth[at:to], others[at:to])
            e[q, j] = weight
            block.total[q] += weight
            for i in range(n):
                unshown[i] = weight
            for shown in range(first, k):
                block.own[q, ad[shown]] += others[at + shown - first]
                unshown[ad[shown]] = 0.0
            for i in range(n):
                block.rest[q, i] += unshown[i]
            at = to
        begin = at


@compiled
def _multiply(weight, growth, others):
    """Multiply by the `growth` of a reply's exposures; by all but its own for each of `others`.

    Products up to each, and from each on: nothing is divided by.
    """
    for k in range(len(growth)):
        others[k] = weight
        weight *= growth[k]
    after = 1.0
    for k in range(len(growth) - 1, -1, -1):
        others[k] *= after
        after *= growth[k]
    return weight


@compiled
def exponents(ad, feature, steps, x):
    """Write steps times features to `x`, (exposures,) of a request; whether no step is infinite."""
    for step in steps:
        if not step < np.inf:
            return False
    for k in range(len(x)):
        x[k] = steps[ad[k]] * feature[k]
    return True


@compiled
def reach_without(i, reply, ad, x):
    """How far all bids but that of ad i (-1: all bids) move a score, at most."""
    reach, moved = 0.0, 0.0
    for k in range(len(x)):
        if k == 0 or reply[k] != reply[k - 1]:
            moved = 0.0
        if ad[k] != i:
            moved += abs(x[k])
            reach = max(reach, moved)
    return reach


@compiled
def scores_without(i, reply, ad, x, log_w, scores):
    """Log-weights `scores` (M,) of replies under all bids but that of ad i (-1: all bids)."""
    scores[:] = log_w
    for k in range(len(x)):
        if ad[k] != i:
            scores[reply[k]] += x[k]


@compiled
def log_sum(scores):
    """`log Σ exp(scores)`, from the greatest."""
    top = scores.max()
    if top == -np.inf:
        return top
    total = 0.0
    for score in scores:
        total += math.exp(score - top)
    return math.log(total) + top
