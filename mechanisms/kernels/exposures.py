"""What compiled kernels read of a pool: exposures as lists, and weights. Computed once a pool.

Most ads are shown in few replies, so of the (B, M, n) entries of a feature few differ from 0. They
are listed by request, within it by reply, within it by ad: `start` marks where a request begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mechanisms.pool import Floats, Ints, ReplyPool


@dataclass(frozen=True, eq=False)
class Exposures:
    """Where features or click rates are not 0: E entries of a pool of B requests.

    Attributes:
        start: (B + 1,) entries of request b are `start[b]` to `start[b + 1]`.
        reply: (E,) reply in which the ad is shown.
        ad: (E,) which of the request's candidate ads.
        feature: (E,) what a unit of bid declares the reply to be worth to the ad.
        ctr: (E,) click probability.
    """

    start: Ints
    reply: Ints
    ad: Ints
    feature: Floats
    ctr: Floats

    @classmethod
    def of(cls, features: Floats, ctr: Floats) -> Exposures:
        """List the entries of `features` (B, M, n) and `ctr` (B, M, n)."""
        request, reply, ad = np.nonzero((features != 0) | (ctr != 0))
        return cls(
            start=np.searchsorted(request, np.arange(len(features) + 1)),
            reply=reply,
            ad=ad,
            feature=features[request, reply, ad],
            ctr=ctr[request, reply, ad],
        )


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of replies before any bid, scaled so that the greatest of a request is 1.

    Attributes:
        log_peak: (B,) logarithm of the greatest.
        log: (B, M) log-weights less `log_peak`.
        scaled: (B, M) their exponentials.
    """

    log_peak: Floats
    log: Floats
    scaled: Floats

    @classmethod
    def of(cls, log_weights: Floats) -> Weights:
        """Scale `log_weights` (B, M)."""
        log_peak = log_weights.max(axis=1)
        log = log_weights - log_peak[:, None]
        return cls(log_peak=log_peak, log=log, scaled=np.exp(log))


@dataclass(frozen=True, eq=False)
class Candidates:
    """Exposures and weights of a pool, as one Gibbs mechanism sees them.

    Attributes:
        exposures: what bids are on.
        weights: of replies before any bid.
        plain: (B,) what the replies without exposures weigh together.
    """

    exposures: Exposures
    weights: Weights
    plain: Floats

    @classmethod
    def of(cls, pool: ReplyPool, features: Floats, log_weights: Floats) -> Candidates:
        """Those of `pool`; mechanisms that have an array in common share what is made of it.

        Args:
            pool: an origin (`ReplyPool.origin`).
            features: (B, M, n) what is bid on.
            log_weights: (B, M) before any bid.
        """

        # the arrays are kept beside, so that no other can have their identity
        def exposed(p: ReplyPool) -> tuple[Floats, Exposures]:
            return features, Exposures.of(features, p.ctr)

        def weighed(_: ReplyPool) -> tuple[Floats, Weights]:
            return log_weights, Weights.of(log_weights)

        _, exposures = pool.derived(("exposures", id(features)), exposed)
        _, weights = pool.derived(("weights", id(log_weights)), weighed)
        B, M = log_weights.shape
        shows = np.zeros((B, M), dtype=bool)
        request = np.repeat(np.arange(B), np.diff(exposures.start))
        shows[request, exposures.reply] = True
        return cls(exposures, weights, np.where(shows, 0.0, weights.scaled).sum(axis=1))
