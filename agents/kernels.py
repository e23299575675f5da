"""A round in compiled code: requests served, added up and checked, one by one.

What `agents.tally` and `Mechanism.run` say in NumPy, of which only the order of floating-point sums
differs. Nothing is gathered: requests index the arrays of the whole pool, and which ads a reply
shows is kept as a list, since replies show few of them. `agents.compiled` says what the arrays are.
"""

from __future__ import annotations

import math

import numpy as np

from agents import tally
from agents.tally import AMOUNTS, MEANS, TOLERANCE, Unbalanced
from mechanisms.kernels import gibbs_numba
from mechanisms.kernels.caching import compiled_with
from mechanisms.kernels.exposures import Arrays
from mechanisms.kernels.gibbs_numba import (
    EXPECTED,
    PER_CLICK,
    REALISED,
    allocate,
    deviate_sums,
    pay,
)

SHOWN, REQUESTS, CLICKS, CHARGES, EXPOSURE, ITCTR, PAYMENTS = range(len(AMOUNTS))
SATISFACTION, KL, ESS, CHARGED = range(len(MEANS))
BALANCED, IMPROPER, UNSEEN, LOST, UNSERVED, INFINITE = range(6)
"""Verdicts on a round. `UNSERVED`: there are no such bids or requests. From `INFINITE` on: the
amount that is so, by its place in `AMOUNTS`."""

_BLOCK = 64  # requests allocated at a time, so that their outcome stays in a core's cache

_compiled = compiled_with(gibbs_numba, tally)


def refuse(verdict: int, size: float) -> None:
    """Raise what `agents.tally.check` raises for a verdict that is not `BALANCED`."""
    if verdict == IMPROPER:
        raise Unbalanced(f"reply probabilities do not sum to 1 (e.g. {size:g})")
    if verdict == UNSEEN:
        raise Unbalanced("an ad that was not shown is clicked")
    if verdict == LOST:
        raise Unbalanced(f"charges miss the revenue by {size:g}")
    if verdict >= INFINITE:
        raise Unbalanced(f"{AMOUNTS[verdict - INFINITE]} of an advertiser: NaN or infinite")


@_compiled
def serve(
    first, last, requests, bids, uniforms, tau, payment, charge,
    ads, shown_start, shown_reply, shown_ad, shown_ctr, quality, log_reference, ess,
    candidates, amounts, means, verdicts,
):  # fmt: skip
    """Play replications `first` to `last` of a round of a Gibbs mechanism; whether all balance."""
    R, B = requests.shape
    given, n = Arrays(*candidates), ads.shape[1]
    rows = max(1, min((last - first) * B, _BLOCK))
    M = given.w.shape[1]
    index, offered, p = np.empty(rows, np.int64), np.empty((rows, n)), np.empty((rows, M))
    itctr, declared, payments = np.empty((rows, n)), np.empty((rows, n)), np.empty((rows, n))
    log_z, without, clicks = np.empty(rows), np.empty((rows, n)), np.empty(n, np.bool_)
    charges, revenue, booked = np.empty(n), np.zeros(last - first), np.zeros(last - first)
    for at in range(first * B, last * B, rows):
        count = min(rows, last * B - at)
        if not _offer(at, count, requests, bids, ads, index, offered) or not allocate(
            0, count, index, candidates, offered, tau, p, itctr, declared, log_z, without
        ):
            verdicts[first, 0] = UNSERVED
            return False
        pay(payment, tau, declared, log_z, without, payments[:count])
        for q in range(count):
            b, row = index[q], at + q
            r = row // B
            dice = uniforms[R * B + row * n : R * B + (row + 1) * n]
            chosen = _draw(p[q], uniforms[row])
            _click(b, chosen, shown_start, shown_reply, shown_ad, shown_ctr, dice, clicks)
            _charge(
                charge, b, chosen, given.start, given.reply, given.ad, given.feature, offered[q],
                declared[q], payments[q], clicks, charges,
            )  # fmt: skip
            for i in range(n):
                revenue[r - first] += charges[i]
                booked[r - first] += abs(charges[i])
            verdict, size = _book(
                b, ads, shown_start, shown_reply, shown_ad, quality, log_reference, ess,
                p[q], itctr[q], payments[q], chosen, clicks, charges, r, amounts, means,
            )  # fmt: skip
            if verdict != BALANCED:
                verdicts[r, 0], verdicts[r, 1] = verdict, size
                return False
    for r in range(first, last):
        verdict, size = _close(r, B, revenue[r - first], booked[r - first], amounts, means)
        if verdict != BALANCED:
            verdicts[r, 0], verdicts[r, 1] = verdict, size
            return False
    return True


@_compiled
def _offer(at, count, requests, bids, ads, index, offered):
    """Write which requests are served from number `at` on, replication first, and bids on them.

    Returns whether there are such requests and bids.
    """
    B, n = requests.shape[1], ads.shape[1]
    for q in range(count):
        r = (at + q) // B
        b = requests[r, at + q - r * B]
        if not 0 <= b < len(ads):
            return False
        index[q] = b
        if q == 0 or at + q == r * B:
            for bid in bids[r]:
                if not 0 <= bid < np.inf:
                    return False
        for i in range(n):
            offered[q, i] = bids[r, ads[b, i]]
    return True


@_compiled
def serve_and_try(
    first, last, requests, bids, uniforms, tau, payment, charge,
    ads, shown_start, shown_reply, shown_ad, shown_ctr, quality, log_reference, ess,
    candidates, amounts, means, verdicts,
    grids, tops, grid_clicks, grid_payments,
):  # fmt: skip
    """`serve`, then `deviate_sums` along `grids`: one call, since calls cost microseconds.

    `serve` has seen to requests and bids; `grids` (N, G) must lie in 0 to `tops` (N,), which makes
    sure that they are bids, and have not been raised since somebody looked.
    """
    for i in range(len(grids)):
        beyond = 0
        for g in range(grids.shape[1]):
            beyond += not 0 <= grids[i, g] <= tops[i]
        if beyond or not tops[i] < np.inf:
            verdicts[first, 0] = UNSERVED
            return False
    if not serve(
        first, last, requests, bids, uniforms, tau, payment, charge,
        ads, shown_start, shown_reply, shown_ad, shown_ctr, quality, log_reference, ess,
        candidates, amounts, means, verdicts,
    ):  # fmt: skip
        return False
    if not deviate_sums(
        first, last, requests, candidates, ads, bids, tau, grids, tops, payment, grid_clicks,
        grid_payments,
    ):  # fmt: skip
        verdicts[first, 0] = UNSERVED
        return False
    return True


@_compiled
def book(
    requests, ads, start, reply, ad, quality, log_reference, ess,
    probabilities, itctr, payments, chosen, clicks, charges, amounts, means,
):  # fmt: skip
    """Add up an outcome, its arrays (R, B, ...); returns a verdict and a number to go with it."""
    R, B = requests.shape
    for r in range(R):
        revenue, booked = 0.0, 0.0
        for q in range(B):
            verdict, size = _book(
                requests[r, q], ads, start, reply, ad, quality, log_reference, ess,
                probabilities[r, q], itctr[r, q], payments[r, q], chosen[r, q], clicks[r, q],
                charges[r, q], r, amounts, means,
            )  # fmt: skip
            if verdict != BALANCED:
                return verdict, size
            for charged in charges[r, q]:
                revenue += charged
                booked += abs(charged)
        verdict, size = _close(r, B, revenue, booked, amounts, means)
        if verdict != BALANCED:
            return verdict, size
    return BALANCED, 0.0


@_compiled
def _book(
    k, ads, start, reply, ad, quality, log_reference, ess,
    probabilities, itctr, payments, chosen, clicks, charges, r, amounts, means,
):  # fmt: skip
    """Add the outcome of request k to those of replication r."""
    total, satisfaction, kl, least = 0.0, 0.0, 0.0, 0.0
    for j in range(len(probabilities)):
        p = probabilities[j]
        total += p
        least = min(least, p)
        satisfaction += p * quality[k, j]
        if p > 0:
            kl += p * (math.log(p) - log_reference[k, j])
    if not abs(total - 1) <= TOLERANCE or least < 0:
        return IMPROPER, total
    means[SATISFACTION, r] += satisfaction
    # a divergence is >= 0; only rounding goes below
    means[KL, r] += max(kl, 0.0)
    means[ESS, r] += ess[k]
    unseen = 0
    for i in range(len(clicks)):
        a = ads[k, i]
        amounts[REQUESTS, r, a] += 1
        amounts[CLICKS, r, a] += clicks[i]
        amounts[CHARGES, r, a] += charges[i]
        amounts[ITCTR, r, a] += itctr[i]
        amounts[PAYMENTS, r, a] += payments[i]
        unseen += clicks[i]
    for e in range(start[k], start[k + 1]):
        i = ad[e]
        amounts[EXPOSURE, r, ads[k, i]] += probabilities[reply[e]]
        if reply[e] == chosen:
            amounts[SHOWN, r, ads[k, i]] += 1
            unseen -= clicks[i]
    if unseen:
        return UNSEEN, 0.0
    return BALANCED, 0.0


@_compiled
def _close(r, B, revenue, booked, amounts, means):
    """Turn sums into means and check what replication r booked against what was charged."""
    means[CHARGED, r] = revenue
    for k in range(means.shape[0]):
        means[k, r] /= B
    for k in range(amounts.shape[0]):
        for a in range(amounts.shape[2]):
            if not abs(amounts[k, r, a]) < np.inf:
                return INFINITE + k, 0.0
    gap = abs(amounts[CHARGES, r].sum() - revenue)
    if gap > TOLERANCE * (1 + booked):
        return LOST, gap
    return BALANCED, 0.0


@_compiled
def _click(b, chosen, start, reply, ad, ctr, dice, clicks):
    """Which ads (n,) of the reply chosen for request b are clicked."""
    clicks[:] = False
    for k in range(start[b], start[b + 1]):
        if reply[k] == chosen:
            clicks[ad[k]] = dice[ad[k]] < ctr[k]


@_compiled
def _charge(
    charge, b, chosen, start, reply, ad, feature, offered, declared, payments, clicks, charges
):
    """What each ad (n,) of request b is charged."""
    if charge == EXPECTED:
        for i in range(len(charges)):
            charges[i] = payments[i]
    elif charge == PER_CLICK:
        for i in range(len(charges)):
            charges[i] = offered[i] if clicks[i] else 0.0
    elif charge == REALISED:
        for i in range(len(charges)):
            charges[i] = payments[i] - declared[i]
        for k in range(start[b], start[b + 1]):
            if reply[k] == chosen:
                charges[ad[k]] += offered[ad[k]] * feature[k]


@_compiled
def _draw(probabilities, u):
    """The reply that `mechanisms.base.draw_reply` draws by the number u."""
    total = 0.0
    for p in probabilities:
        total += p
    level, cumulative = u * total, 0.0
    for j in range(len(probabilities) - 1):
        cumulative += probabilities[j]
        if cumulative > level:
            return j
    return len(probabilities) - 1
