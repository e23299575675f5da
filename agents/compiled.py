"""Rounds by compiled code (`agents.kernels`): of any mechanism its sums, of Gibbs mechanisms all.

`add_up` does for the outcome of any mechanism what `agents.tally` specifies in NumPy.
`CompiledRound` plays the whole round of a Gibbs mechanism: allocation and payments as
`mechanisms.kernels`, dice as `Mechanism.run` throws them, charges, sums and checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from agents import kernels
from agents.tally import Tally, Unbalanced
from mechanisms.base import Mechanism, Outcome
from mechanisms.candidates import GibbsMechanism
from mechanisms.gibbs import check_weights, log_sum_exp
from mechanisms.kernels import kernel
from mechanisms.kernels.exposures import Exposures
from mechanisms.kernels.threads import split
from mechanisms.pool import Floats, Ints, ReplyPool

# About how many nanoseconds it takes to serve a request, and to try a bid of one of its ads.
_SERVED, _TRIED = 2000, 20
# Requests that are worth a part of their own, and most parts in all replications: every one has
# sums, and counterfactuals, of its own.
_PART, _PARTS = 500, 24


@dataclass(frozen=True, eq=False)
class Shelf:
    """What a tally reads of a pool: K requests, M replies, n ads.

    Attributes:
        ads: (K, n) advertiser of each candidate ad.
        shown: the ads that each reply shows, with their click probabilities.
        quality: (K, M) user satisfaction.
        log_reference: (K, M) log of the weights, normalised over each request's replies.
        ess: (K,) effective sample size of the weights.
    """

    ads: Ints
    shown: Exposures
    quality: Floats
    log_reference: Floats
    ess: Floats

    @classmethod
    def of(cls, pool: ReplyPool) -> Shelf:
        """Of the origin of a pool, computed once."""
        return pool.derived("shelf", cls._stack)

    @classmethod
    def _stack(cls, pool: ReplyPool) -> Shelf:
        return cls(
            ads=np.ascontiguousarray(pool.ads),
            shown=Exposures.of(pool.exposure.astype(np.float64), pool.ctr),
            quality=np.ascontiguousarray(pool.quality),
            log_reference=pool.log_weights - log_sum_exp(pool.log_weights)[:, None],
            ess=np.ascontiguousarray(pool.effective_sample_size),
        )


def add_up(pool: ReplyPool, requests: Ints, outcome: Outcome, referenced: bool) -> Tally:
    """As `agents.tally.add_up`, and checked as by `agents.tally.check`.

    Args:
        pool: K requests.
        requests: (R, B) indices into it.
        outcome: of these requests, replication first.
        referenced: whether a reference wrote the replies, to measure KL from.

    Raises:
        Unbalanced: as `agents.tally.check`.
    """
    shelf = Shelf.of(pool)
    R, B = requests.shape
    requests = requests if pool.index is None else pool.index[requests]
    _, M, n = pool.shape
    tally = Tally.blank(R, pool.num_advertisers)

    def given(name: str, kind: type, *shape: int) -> NDArray:
        amounts = np.ascontiguousarray(getattr(outcome, name), dtype=kind)
        if amounts.shape != (R * B, *shape):
            raise Unbalanced(f"the outcome's {name} has shape {amounts.shape}")
        return amounts.reshape(R, B, *shape)

    verdict = kernels.book(
        requests, shelf.ads, shelf.shown.start, shelf.shown.reply, shelf.shown.ad,
        shelf.quality, shelf.log_reference, shelf.ess,
        given("probabilities", np.float64, M), given("itctr", np.float64, n),
        given("payments", np.float64, n), given("chosen", np.int64),
        given("clicks", np.bool_, n), given("charges", np.float64, n),
        tally.amounts, tally.means,
    )  # fmt: skip
    kernels.refuse(*verdict)
    if not referenced:
        tally.kl[:] = np.nan
    return tally


class CompiledRound:
    """A Gibbs mechanism on a pool, played in compiled code.

    Replications are shared out to threads; large ones in equal parts, which are added up in their
    order, so that the number of threads changes no byte.
    """

    def __init__(self, mechanism: GibbsMechanism, pool: ReplyPool) -> None:
        self._advertisers = pool.num_advertisers
        self._index = pool.index
        shelf, candidates = Shelf.of(pool), mechanism.candidates(pool)
        shown = shelf.shown
        self._ads = shelf.ads.shape[1]
        # Arguments that are the same in every round, put together once.
        self._constant = (
            mechanism.tau, mechanism.compiled_payments, mechanism.compiled_charges,
            shelf.ads, shown.start, shown.reply, shown.ad, shown.ctr,
            shelf.quality, shelf.log_reference, shelf.ess, candidates.arrays,
        )  # fmt: skip
        self._grids, self._tops = np.empty((0, 0)), np.empty(0)

    @classmethod
    def of(cls, mechanism: Mechanism, pool: ReplyPool) -> CompiledRound | None:
        """None if the mechanism's rules, or the kernel chosen, are not compiled ones.

        Warns, once per pool, of importance weights that leave too little choice.
        """
        known = isinstance(mechanism, GibbsMechanism) and mechanism.compiled_charges is not None
        if not known or kernel() != "numba" or not pool.weighted:
            return None
        check_weights(pool)
        return cls(mechanism, pool)

    def serve(
        self, requests: Ints, bids: Floats, uniforms: Floats, grids: Floats | None = None
    ) -> Tally | None:
        """Play a round; None if requests, bids or grids are not what the mechanism takes.

        Args:
            requests: (R, B) indices into the pool.
            bids: (R, N) by advertiser.
            uniforms: (R * B * (1 + n),) the dice, as `agents.streams.Dice.uniforms`.
            grids: (N, G) bids to try, for the tally's `along`.

        Raises:
            Unbalanced: as `agents.tally.check`.
        """
        R, B = requests.shape
        if bids.shape != (R, self._advertisers):
            return None
        requests, bids, parts = self._shared_out(requests, bids)
        rows = R * parts
        tally, verdicts = Tally.blank(rows, self._advertisers), np.zeros((rows, 2))
        given = (requests, bids, uniforms, *self._constant, tally.amounts, tally.means, verdicts)
        kernel, work = kernels.serve, R * B * _SERVED
        if grids is not None:
            N, G = grids.shape
            if self._advertisers != N or G == 0:
                return None
            if self._grids is not grids:
                self._grids, self._tops = grids, grids.max(axis=1)
            tally.along = np.empty((rows, N, G)), np.empty((rows, N, G))
            kernel, given = kernels.serve_and_try, (*given, grids, self._tops, *tally.along)
            work += R * B * self._ads * G * _TRIED

        def run(first: int, last: int) -> bool:
            return kernel(first, last, *given)

        # a single row needs no sharing out
        if not (run(0, 1) if rows == 1 else split(rows, work, run)):
            verdict, size = verdicts[np.argmax(verdicts[:, 0] != kernels.BALANCED)]
            if verdict == kernels.UNSERVED:
                return None
            kernels.refuse(int(verdict), size)
        return tally if parts == 1 else _joined(tally, R, parts)

    def _shared_out(self, requests: Ints, bids: Floats) -> tuple[Ints, Floats, int]:
        """Requests of the origin and bids by part, and how many parts a replication has."""
        if self._index is not None:
            requests = self._index[requests]
        parts = equal_parts(*requests.shape)
        if parts > 1:
            requests = requests.reshape(len(requests) * parts, -1)
            bids = np.repeat(bids, parts, axis=0)
        return requests, bids, parts


def _joined(tally: Tally, replications: int, parts: int) -> Tally:
    """A tally of the parts of replications as one of replications."""

    def by_part(sums: Floats, axis: int) -> Floats:
        shape = sums.shape
        return sums.reshape(*shape[:axis], replications, parts, *shape[axis + 1 :])

    joined = Tally(by_part(tally.amounts, 1).sum(axis=2), by_part(tally.means, 1).mean(axis=2))
    if tally.along is not None:
        clicks, payments = tally.along
        joined.along = by_part(clicks, 0).sum(axis=1), by_part(payments, 0).sum(axis=1)
    return joined


@cache
def equal_parts(replications: int, requests: int) -> int:
    """In how many parts of equal size the requests of each replication are served."""
    most = min(requests // _PART, _PARTS // replications)
    return next((parts for parts in range(most, 1, -1) if requests % parts == 0), 1)
