"""Gibbs allocations by the compiled kernel: what `mechanisms.gibbs` computes, without its arrays.

Requests are given as indices into an origin pool, so that nothing is gathered. Shapes: requests B,
replies M, ads n, grid bids G; replications R and advertisers N where sums are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mechanisms.base import Allocation
from mechanisms.gibbs import Deviations, Gibbs, overflow
from mechanisms.kernels import gibbs_numba
from mechanisms.kernels.exposures import Candidates
from mechanisms.kernels.threads import split
from mechanisms.pool import Floats, Ints


@dataclass(frozen=True, eq=False)
class Allocated(Gibbs):
    """A Gibbs allocation and what it brings each advertiser.

    Attributes:
        itctr: (B, n) `E_π[ctr_i]`.
        declared: (B, n) declared value `E_π[r_i]`.
    """

    itctr: Floats
    declared: Floats


def allocate(candidates: Candidates, index: Ints, bids: Floats, tau: float) -> Allocated:
    """The allocation of requests `index` (B,) under `bids` (B, n).

    Raises:
        BadInput: bids too large for tau.
    """
    (B, n), M = bids.shape, candidates.weights.log.shape[1]
    out = Allocated(
        probabilities=np.empty((B, M)),
        itctr=np.empty((B, n)),
        declared=np.empty((B, n)),
        log_z=np.empty(B),
        log_z_without=np.empty((B, n)),
    )
    given = (plain(index), candidates.arrays, plain(bids), float(tau))
    results = (out.probabilities, out.itctr, out.declared, out.log_z, out.log_z_without)

    def run(first: int, last: int) -> bool:
        return gibbs_numba.allocate(first, last, *given, *results)

    if not split(B, B * (10 * M + 20 * n), run):
        raise overflow(tau)
    return out


def auctions(
    candidates: Candidates, index: Ints, bids: Floats, tau: float, rule: int
) -> Allocation:
    """The expected outcome of requests `index` (B,) under `bids` (B, n), by a compiled rule.

    Args:
        candidates: of the origin pool.
        index: (B,) requests.
        bids: (B, n) the bids played.
        tau: temperature.
        rule: how payments follow (`gibbs_numba.DECLARED` and so on).

    Raises:
        BadInput: bids too large for tau.
    """
    (B, n), M = bids.shape, candidates.weights.log.shape[1]
    out = Allocation(np.empty((B, M)), np.empty((B, n)), np.empty((B, n)))
    given = (plain(index), candidates.arrays, plain(bids), float(tau), rule)
    results = (out.probabilities, out.itctr, out.payments)

    def run(first: int, last: int) -> bool:
        return gibbs_numba.auction(first, last, *given, *results)

    if not split(B, B * (10 * M + 20 * n), run):
        raise overflow(tau)
    return out


def deviations(
    candidates: Candidates, index: Ints, bids: Floats, alternatives: Floats, tau: float
) -> Deviations:
    """What each ad brings about with each of its `alternatives` (B, n, G); see `allocate`."""
    B, n, G = alternatives.shape
    out = Deviations(
        itctr=np.empty((B, n, G)),
        declared=np.empty((B, n, G)),
        log_z=np.empty((B, n, G)),
        log_z_without=np.empty((B, n)),
    )
    highest = alternatives.max(axis=2, initial=0.0)
    given = (plain(index), candidates.arrays, plain(bids), float(tau), plain(alternatives))
    results = (highest, out.itctr, out.declared, out.log_z, out.log_z_without)

    def run(first: int, last: int) -> bool:
        return gibbs_numba.deviate(first, last, *given, *results)

    if not split(B, B * G * (5 * _exposures_a_request(candidates) + 10 * n), run):
        raise overflow(tau)
    return out


def deviation_sums(
    candidates: Candidates,
    ads: Ints,
    index: Ints,
    bids: Floats,
    grids: Floats,
    tau: float,
    rule: int,
) -> tuple[Floats, Floats]:
    """Clicks and payments (R, N, G) of every bid of a grid, summed over requests.

    Args:
        candidates: of the origin pool.
        ads: (pool, n) its ads.
        index: (R, B) requests.
        bids: (R, N) the bids played.
        grids: (N, G) bids to try.
        tau: temperature.
        rule: how payments follow (`gibbs_numba.DECLARED` and so on).
    """
    (R, B), (N, G), n = index.shape, grids.shape, ads.shape[1]
    clicks, payments = np.empty((R, N, G)), np.empty((R, N, G))
    given = (plain(index), candidates.arrays, plain(ads), plain(bids), float(tau))
    results = (plain(grids), grids.max(axis=1, initial=0.0), rule, clicks, payments)

    def run(first: int, last: int) -> bool:
        return gibbs_numba.deviate_sums(first, last, *given, *results)

    if not split(R, R * B * G * (5 * _exposures_a_request(candidates) + 10 * n), run):
        raise overflow(tau)
    return clicks, payments


def plain(array: NDArray) -> NDArray:
    """The array contiguous and writeable, as compiled code is compiled for; a copy if need be."""
    return np.require(array, requirements=("C", "W"))


def _exposures_a_request(candidates: Candidates) -> float:
    return len(candidates.exposures.reply) / len(candidates.weights.log)
