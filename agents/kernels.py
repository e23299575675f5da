"""A round in compiled code: requests served, added up and checked, one by one.

What `agents.tally` and `Mechanism.run` say in NumPy, of which only the order of floating-point sums
differs. Nothing is gathered: requests index the arrays of the whole pool, and which ads a reply
shows is kept as a list, since replies show few of them. `agents.compiled` says what the arrays are.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from agents.tally import AMOUNTS, MEANS, TOLERANCE, Unbalanced
from mechanisms.kernels import gibbs_numba
from mechanisms.kernels.caching import renewed_with
from mechanisms.kernels.gibbs_numba import (
    EXPECTED,
    PER_CLICK,
    REALISED,
    ROCHET,
    ROCHET_WITHOUT_OFFSET,
    allocate,
)

SHOWN, REQUESTS, CLICKS, CHARGES, EXPOSURE, ITCTR, PAYMENTS = range(len(AMOUNTS))
SATISFACTION, KL, ESS = range(len(MEANS))
BALANCED, IMPROPER, UNSEEN, LOST, UNSERVED, INFINITE = range(6)
"""Verdicts on a round. `UNSERVED`: there are no such bids or requests. From `INFINITE` on: the
amount that is so, by its place in `AMOUNTS`."""

_BLOCK = 64  # requests allocated at a time, so that their outcome stays in a core's cache

_compiled = njit(cache=True, nogil=True, error_model="numpy")


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


@renewed_with(gibbs_numba)
@_compiled
def serve(
    first, last, requests, bids, uniforms, tau, payment, charge,
    ads, shown_start, shown_reply, shown_ad, shown_ctr, quality, log_reference, ess,
    start, reply, ad, feature, ctr, log_w, w, log_peak, plain, amounts, means, verdicts,
):  # fmt: skip
    """Play replications `first` to `last` of a round of a Gibbs mechanism; whether all balance."""
    R, B = requests.shape
    M, n, rows = w.shape[1], ads.shape[1], min(B, _BLOCK)
    offered, p, chosen = np.empty((rows, n)), np.empty((rows, M)), np.empty(rows, np.int64)
    itctr, declared, payments = np.empty((rows, n)), np.empty((rows, n)), np.empty((rows, n))
    total, log_z, clicks = np.empty(rows), np.empty(rows), np.empty((rows, n), np.bool_)
    without, log_without = np.empty((rows, n)), np.empty((rows, n))
    charges = payments if charge == EXPECTED else np.empty((rows, n))
    for r in range(first, last):
        verdict, size, revenue, booked = BALANCED, 0.0, 0.0, 0.0
        for bid in bids[r]:
            if not 0 <= bid < np.inf:
                verdict = UNSERVED
        for at in range(0, B, rows):
            if verdict != BALANCED:
                break
            index = requests[r, at : min(at + rows, B)]
            for q in range(len(index)):
                if not 0 <= index[q] < len(ads):
                    verdict = UNSERVED
                    break
                for i in range(n):
                    offered[q, i] = bids[r, ads[index[q], i]]
            if verdict != BALANCED:
                break
            if not allocate(
                0, len(index), index, start, reply, ad, feature, ctr, log_w, w, log_peak, plain,
                offered, tau, p, itctr, declared, total, log_z, without, log_without,
            ):  # fmt: skip
                verdict = UNSERVED
                break
            for q in range(len(index)):
                log_total = log_z[q] + math.log(total[q])
                _pay(declared[q], log_total, without[q], log_without[q], tau, payment, payments[q])
                b, row = index[q], r * B + at + q
                dice = uniforms[R * B + row * n : R * B + (row + 1) * n]
                chosen[q] = _draw(p[q], uniforms[row])
                _click(b, chosen[q], shown_start, shown_reply, shown_ad, shown_ctr, dice, clicks[q])
                _charge(
                    charge, b, chosen[q], start, reply, ad, feature, offered[q], declared[q],
                    payments[q], clicks[q], charges[q],
                )  # fmt: skip
                for i in range(n):
                    revenue += charges[q, i]
                    booked += abs(charges[q, i])
            verdict, size = _book(
                index, ads, shown_start, shown_reply, shown_ad, quality, log_reference, ess,
                p, itctr, payments, chosen, clicks, charges, r, amounts, means,
            )  # fmt: skip
        if verdict == BALANCED:
            verdict, size = _close(r, B, revenue, booked, amounts, means)
        if verdict != BALANCED:
            verdicts[r, 0], verdicts[r, 1] = verdict, size
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
        verdict, size = _book(
            requests[r], ads, start, reply, ad, quality, log_reference, ess, probabilities[r],
            itctr[r], payments[r], chosen[r], clicks[r], charges[r], r, amounts, means,
        )  # fmt: skip
        if verdict == BALANCED:
            revenue, booked = 0.0, 0.0
            for charged in charges[r].flat:
                revenue += charged
                booked += abs(charged)
            verdict, size = _close(r, B, revenue, booked, amounts, means)
        if verdict != BALANCED:
            return verdict, size
    return BALANCED, 0.0


@_compiled
def _book(
    requests, ads, start, reply, ad, quality, log_reference, ess,
    probabilities, itctr, payments, chosen, clicks, charges, r, amounts, means,
):  # fmt: skip
    """Add the outcome of `requests` (B,), its arrays (B, ...), to those of replication r."""
    M, n = quality.shape[1], ads.shape[1]
    for q in range(len(requests)):
        k = requests[q]
        total, satisfaction, kl, least = 0.0, 0.0, 0.0, 0.0
        for j in range(M):
            p = probabilities[q, j]
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
        for i in range(n):
            a = ads[k, i]
            amounts[REQUESTS, r, a] += 1
            amounts[CLICKS, r, a] += clicks[q, i]
            amounts[CHARGES, r, a] += charges[q, i]
            amounts[ITCTR, r, a] += itctr[q, i]
            amounts[PAYMENTS, r, a] += payments[q, i]
            unseen += clicks[q, i]
        for e in range(start[k], start[k + 1]):
            i = ad[e]
            amounts[EXPOSURE, r, ads[k, i]] += probabilities[q, reply[e]]
            if reply[e] == chosen[q]:
                amounts[SHOWN, r, ads[k, i]] += 1
                unseen -= clicks[q, i]
        if unseen:
            return UNSEEN, 0.0
    return BALANCED, 0.0


@_compiled
def _close(r, B, revenue, booked, amounts, means):
    """Turn sums into means and check what replication r booked against what was charged."""
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
def _pay(declared, log_z, without, log_without, tau, payment, payments):
    """Expected payments (n,) by the payment rule; `log Z(r_-i) = log(without) + log_without`."""
    for i in range(len(declared)):
        payments[i] = declared[i]
        if payment == ROCHET:
            gain = log_z - (math.log(without[i]) + log_without[i])
            payments[i] = max(declared[i] - tau * gain, 0.0)
        elif payment == ROCHET_WITHOUT_OFFSET:
            payments[i] = declared[i] - tau * log_z


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
    """What each ad (n,) of request b is charged; `charges` are the `payments` if EXPECTED."""
    if charge == PER_CLICK:
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
