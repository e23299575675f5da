"""Rounds by compiled code (`agents.kernels`): of any mechanism its sums, of Gibbs mechanisms all.

`add_up` does for the outcome of any mechanism what `agents.tally` specifies in NumPy.
`CompiledRound` plays the whole round of a Gibbs mechanism: allocation and payments as
`mechanisms.kernels`, dice as `Mechanism.run` throws them, charges, sums and checks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents import kernels
from agents.tally import Tally, Unbalanced
from mechanisms.base import Mechanism, Outcome
from mechanisms.candidates import GibbsMechanism
from mechanisms.gibbs import check_weights, log_sum_exp
from mechanisms.kernels import kernel
from mechanisms.kernels.exposures import Exposures
from mechanisms.kernels.gibbs_numba import deviate_sums
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
        shown, exposures, weights = shelf.shown, candidates.exposures, candidates.weights
        self._ads = shelf.ads
        self._shelf = (
            shelf.ads, shown.start, shown.reply, shown.ad, shown.ctr,
            shelf.quality, shelf.log_reference, shelf.ess,
        )  # fmt: skip
        self._candidates = (
            exposures.start, exposures.reply, exposures.ad, exposures.feature, exposures.ctr,
            weights.log, weights.scaled, weights.log_peak, candidates.plain,
        )  # fmt: skip
        self._rules = mechanism.tau, mechanism.compiled_payments, mechanism.compiled_charges
        self._grids: tuple[Floats, Floats] | None = None

    @classmethod
    def of(cls, mechanism: Mechanism, pool: ReplyPool) -> CompiledRound | None:
        """None if the mechanism's rules, or the kernel chosen, are not compiled ones.

        Warns, once per pool, of importance weights that leave too little choice.
        """
        known = isinstance(mechanism, GibbsMechanism) and mechanism.compiled_charges is not None
        if not known or kernel() != "numba" or not pool.weighted or not as_declared(mechanism):
            return None
        check_weights(pool)
        return cls(mechanism, pool)

    def serve(self, requests: Ints, bids: Floats, uniforms: Floats) -> Tally | None:
        """Play a round; None if bids or requests are not what the mechanism takes.

        Args:
            requests: (R, B) indices into the pool.
            bids: (R, N) by advertiser.
            uniforms: (R * B * (1 + n),) the dice, as `agents.streams.Dice.uniforms`.

        Raises:
            Unbalanced: as `agents.tally.check`.
        """
        R, B = requests.shape
        requests, bids, parts = self._shared_out(requests, bids)
        tally = Tally.blank(R * parts, self._advertisers)
        verdicts = np.zeros((R * parts, 2))
        given = (requests, bids, uniforms, *self._rules, *self._shelf, *self._candidates)
        results = (tally.amounts, tally.means, verdicts)

        def run(first: int, last: int) -> bool:
            return kernels.serve(first, last, *given, *results)

        if not split(R * parts, R * B * _SERVED, run):
            verdict, size = verdicts[np.argmax(verdicts[:, 0] != kernels.BALANCED)]
            if verdict == kernels.UNSERVED:
                return None
            kernels.refuse(int(verdict), size)
        if parts > 1:
            amounts = tally.amounts.reshape(-1, R, parts, self._advertisers)
            return Tally(amounts.sum(axis=2), tally.means.reshape(-1, R, parts).mean(axis=2))
        return tally

    def counterfactual(
        self, requests: Ints, bids: Floats, grids: Floats
    ) -> tuple[Floats, Floats] | None:
        """As `Mechanism.counterfactual_sums`, for bids just served; None as for `serve`."""
        (R, B), (N, G) = requests.shape, grids.shape
        if self._grids is None or self._grids[0] is not grids:
            if not (grids.min() >= 0 and grids.max() < np.inf):
                return None
            self._grids = grids, grids.max(axis=1)
        requests, bids, parts = self._shared_out(requests, bids)
        found = np.empty((2, R * parts, N, G))
        tau, payment, _ = self._rules
        given = (requests, *self._candidates, self._ads, bids, tau, *self._grids, payment, *found)

        def run(first: int, last: int) -> bool:
            return deviate_sums(first, last, *given)

        if not split(R * parts, R * B * G * self._ads.shape[1] * _TRIED, run):
            return None
        clicks, payments = found.reshape(2, R, parts, N, G).sum(axis=2) if parts > 1 else found
        return clicks, payments

    def _shared_out(self, requests: Ints, bids: Floats) -> tuple[Ints, Floats, int]:
        """Requests of the origin and bids by part, and how many parts a replication has."""
        if self._index is not None:
            requests = self._index[requests]
        parts = equal_parts(*requests.shape)
        if parts > 1:
            requests = requests.reshape(len(requests) * parts, -1)
            bids = np.repeat(bids, parts, axis=0)
        return requests, bids, parts


def as_declared(mechanism: GibbsMechanism) -> bool:
    """Whether a subclass has left alone what its parent's compiled rules stand for."""

    def owner(name: str) -> type:
        return next(kind for kind in type(mechanism).__mro__ if name in vars(kind))

    methods = ("run", "allocate", "charge", "counterfactual", "counterfactual_sums")
    return issubclass(owner("compiled_payments"), owner("expected_payments")) and all(
        issubclass(owner("compiled_charges"), owner(name)) for name in methods
    )


def equal_parts(replications: int, requests: int) -> int:
    """In how many parts of equal size the requests of each replication are served."""
    most = min(requests // _PART, _PARTS // replications)
    return next((parts for parts in range(most, 1, -1) if requests % parts == 0), 1)
