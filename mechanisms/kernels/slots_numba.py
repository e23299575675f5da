"""Slot auctions over renderable sets, compiled: winners, and what every bid of a grid would bring.

Against a bid g of ad i, sets that do not show it keep their welfare, so the best of them is found
once; each bid then meets only the sets that show i. Welfare is always added up in the order of the
ads, with i's own bid in its place, so that equal sets are equal here where they are equal in the
auction itself, and the one whose first reply comes first wins.

A set is better than another if it shows fewer ads below the reserve, then if its welfare is
greater, then if it comes first (`mechanisms.slots`).
"""

from __future__ import annotations

import numpy as np

from mechanisms.kernels.gibbs_numba import compiled

FIRST_PRICE, GSP, VCG = range(3)
"""Payment rules known here; `mechanisms.payments` says what they are."""


@compiled
def deviate(
    first, last, rule, reserve, index, most, start, entry, reply, ad, rate, alone, bids, grid,
    winner, itctr, payments,
):  # fmt: skip
    """Outcomes of rows `first` to `last`: of `bids` (B, n) and, by ad, of the bids `grid`.

    Writes `winner` (B,), the reply that stands for the set that wins under `bids`, and `itctr` and
    `payments` (B, n, G). Row q is request `index[q]`, whose sets, at `most` so many, begin at
    `start` of it; the ads of a set begin at `entry` of it.
    """
    scratch = _scratch(bids.shape[1], most)
    for q in range(first, last):
        b = index[q]
        won = _deviate(
            rule, reserve, start[b], start[b + 1], entry, ad, rate, alone[b], bids[q], grid[q],
            scratch, itctr[q], payments[q],
        )  # fmt: skip
        winner[q] = reply[won]
    return True


@compiled
def deviate_sums(
    first, last, rule, reserve, index, most, start, entry, reply, ad, rate, alone, ads, bids, grids,
    clicks, payments,
):  # fmt: skip
    """Sums over requests (R, N, G), as `gibbs_numba.deviate_sums`."""
    n, G = ads.shape[1], grids.shape[1]
    scratch, mine = _scratch(n, most), np.empty(n)
    grid, itctr, paid = np.empty((n, G)), np.empty((n, G)), np.empty((n, G))
    for r in range(first, last):
        clicks[r], payments[r] = 0.0, 0.0
        for q in range(index.shape[1]):
            b = index[r, q]
            for i in range(n):
                mine[i], grid[i] = bids[r, ads[b, i]], grids[ads[b, i]]
            _deviate(
                rule, reserve, start[b], start[b + 1], entry, ad, rate, alone[b], mine, grid,
                scratch, itctr, paid,
            )  # fmt: skip
            for i in range(n):
                for g in range(G):
                    clicks[r, ads[b, i], g] += itctr[i, g]
                    payments[r, ads[b, i], g] += paid[i, g]
    return True


@compiled
def _scratch(n, sets):
    return (
        np.empty(n), np.empty(n), np.empty(sets), np.empty(sets), np.empty(sets), np.empty(sets),
        np.empty(sets, np.int64), np.empty(sets, np.int64), np.empty(sets),
    )  # fmt: skip


@compiled
def _deviate(
    rule, reserve, at, end, entry, ad, rate, alone, bids, grid, scratch, itctr, payments
):  # fmt: skip
    """One request's outcomes; returns the set that wins under `bids`."""
    worth, below, welfare, excess, others, others_excess, showing, place, loser = scratch
    n, G = grid.shape
    for i in range(n):
        worth[i], below[i] = _counted(rule, reserve, bids[i])
    for s in range(at, end):
        welfare[s - at], excess[s - at] = 0.0, 0.0
        for k in range(entry[s], entry[s + 1]):
            welfare[s - at] += worth[ad[k]] * rate[k]
            excess[s - at] += below[ad[k]]
    for i in range(n):
        # the best set without ad i, and the sets that show it
        rival, count, others_best = -1, 0, -np.inf
        for s in range(at, end):
            k = entry[s]
            while k < entry[s + 1] and ad[k] != i:
                k += 1
            if k == entry[s + 1]:
                others_best = max(others_best, welfare[s - at])
                if rival < 0 or _better(
                    excess[s - at], welfare[s - at], excess[rival - at], welfare[rival - at]
                ):
                    rival = s
            else:
                showing[count], place[count] = s, k
                others[count], others_excess[count] = _but_one(entry, s, k, ad, rate, worth, below)
                if rule == VCG:
                    others[count] -= reserve * rate[k]
                    others_best = max(others_best, others[count])
                elif rule == GSP:
                    loser[count] = _best_loser(entry, s, ad, worth, alone)
                count += 1
        for g in range(G):
            mine, too_low = _counted(rule, reserve, grid[i, g])
            best, best_excess, best_welfare = -1, np.inf, -np.inf
            for c in range(count):
                s, total = showing[c], 0.0
                for k in range(entry[s], entry[s + 1]):
                    total += (mine if ad[k] == i else worth[ad[k]]) * rate[k]
                if best < 0 or _better(
                    others_excess[c] + too_low, total, best_excess, best_welfare
                ):
                    best, best_excess, best_welfare = c, others_excess[c] + too_low, total
            itctr[i, g], payments[i, g] = 0.0, 0.0
            if best < 0:
                continue
            if rival >= 0:
                x, w = excess[rival - at], welfare[rival - at]
                if _better(x, w, best_excess, best_welfare) or (
                    x == best_excess and w == best_welfare and rival < showing[best]
                ):
                    continue
            s, clicked = showing[best], rate[place[best]]
            itctr[i, g] = clicked
            if rule == VCG:
                pivot = max(others_best - others[best], 0.0)
                payments[i, g] = min(pivot, grid[i, g] * clicked)
            elif rule == GSP:
                payments[i, g] = clicked * _gsp_price(
                    i, mine, reserve, entry, s, ad, worth, alone, loser[best]
                )
            else:
                payments[i, g] = mine * clicked
    won = at
    for s in range(at + 1, end):
        if _better(excess[s - at], welfare[s - at], excess[won - at], welfare[won - at]):
            won = s
    return won


@compiled
def _counted(rule, reserve, bid):
    """What a bid counts as in welfare, and 1 if it is below the reserve (no matter under VCG)."""
    if rule == VCG:
        return bid - reserve, 0.0
    if bid < reserve:
        return 0.0, 1.0
    return bid, 0.0


@compiled
def _better(excess, welfare, than_excess, than_welfare):
    """Whether a set is strictly better than another."""
    return excess < than_excess or (excess == than_excess and welfare > than_welfare)


@compiled
def _but_one(entry, s, own, ad, rate, worth, below):
    """Welfare and ads below the reserve of set s, but for its exposure `own`."""
    total, excess = 0.0, 0.0
    for k in range(entry[s], entry[s + 1]):
        if k != own:
            total += worth[ad[k]] * rate[k]
            excess += below[ad[k]]
    return total, excess


@compiled
def _best_loser(entry, s, ad, worth, alone):
    """The best score of an ad that set s does not show, at least 0."""
    best, k = 0.0, entry[s]
    for i in range(len(worth)):
        if k < entry[s + 1] and ad[k] == i:
            k += 1
        else:
            best = max(best, worth[i] * alone[i])
    return best


@compiled
def _gsp_price(i, bid, reserve, entry, s, ad, worth, alone, best_loser):
    """Ad i's price per click as one of set s; see `mechanisms.payments.gsp`."""
    score, following = bid * alone[i], -1.0
    for k in range(entry[s], entry[s + 1]):
        other = worth[ad[k]] * alone[ad[k]]
        if ad[k] != i and (other < score or (other == score and ad[k] > i)):
            following = max(following, other)
    if following < 0:
        following = best_loser
    capped = bid if following > 0 else 0.0
    price = following / alone[i] if following < score else capped
    return min(max(price, reserve), bid)
