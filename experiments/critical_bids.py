"""Bids at which the outcome of a slot auction jumps: where an ad overtakes the best set without it.

With W(S) = Σ_j b_j·ctr_j(S) over feasible sets (`mechanisms.slots`), ad i gets into the reply of a
request at the least bid at which a set that shows it beats the best one that does not,

    t_i = min_{S shows i} [max_{T without i} W(T) − Σ_{j≠i} b_j·ctr_j(S)] / ctr_i(S).

With a single slot, and no reserve that others miss, clicks do not change between these bids, and
payments do not fall: so 0 and the bids just above them hold a best reply, which no even grid does.
"""

from __future__ import annotations

import numpy as np

from mechanisms.base import Mechanism
from mechanisms.pool import Floats, ReplyPool
from mechanisms.slots import VCG, RenderableSets, SlotAuction

ABOVE = 1 + 1e-9  # on equal welfare the earlier reply wins


def critical_bids(mechanism: Mechanism, pool: ReplyPool, bids: Floats) -> Floats:
    """(R, N, K) bids just above those at which each advertiser gets into a reply.

    Args:
        mechanism: any; K is 0 for other rules than slot auctions.
        pool: candidate replies.
        bids: (R, N) profiles of the others' bids.

    Returns:
        Padded with 0 where an advertiser is listed in fewer requests than another.
    """
    R, N = bids.shape
    if not isinstance(mechanism, SlotAuction):
        return np.empty((R, N, 0))
    sets = RenderableSets.of(pool)
    cost = mechanism.reserve if isinstance(mechanism, VCG) else 0.0
    feasible = sets.feasible(mechanism.slots)[:, :, None]
    holds, lacks = feasible & (sets.ctr > 0), feasible & ~sets.shows
    listed = np.bincount(pool.ads.ravel(), minlength=N)
    order = np.argsort(pool.ads, axis=None, kind="stable")
    rank = np.arange(len(order)) - np.repeat(np.cumsum(listed) - listed, listed)
    found = np.zeros((R, N, 1 + listed.max(initial=0)))
    for r, profile in enumerate(bids):
        counted = profile if cost else np.where(profile >= mechanism.reserve, profile, 0.0)
        own = (counted - cost)[pool.ads][:, None, :] * sets.ctr
        welfare = own.sum(axis=2, keepdims=True)
        best = np.where(lacks, welfare, -np.inf).max(axis=1)[:, None, :]
        gap = best - (welfare - own)
        entry = np.divide(gap, sets.ctr, out=np.full(own.shape, np.inf), where=holds).min(axis=1)
        entry = np.where(np.isfinite(entry), np.maximum(entry + cost, 0.0), 0.0)
        found[r, pool.ads.ravel()[order], 1 + rank] = ABOVE * entry.ravel()[order]
    found[:, :, 0] = mechanism.reserve
    return found
