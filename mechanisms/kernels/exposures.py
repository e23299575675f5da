"""What compiled kernels read of a pool: exposures as lists, and weights. Computed once a pool.

Most ads are shown in few replies, so of the (B, M, n) entries of a feature few differ from 0. They
are listed by request: first the *lone* ones, of replies that show one ad, then those of *crowded*
replies. Within either they go by reply, and within it by ad.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mechanisms.pool import Floats, Ints, ReplyPool


@dataclass(frozen=True, eq=False)
class Exposures:
    """Where features or click rates are not 0: E entries of a pool of B requests.

    Attributes:
        start: (B + 1,) entries of request b are `start[b]` to `start[b + 1]`.
        crowded: (B,) those from here on are of replies that show several ads.
        reply: (E,) reply in which the ad is shown.
        ad: (E,) which of the request's candidate ads.
        feature: (E,) what a unit of bid declares the reply to be worth to the ad.
        ctr: (E,) click probability; the same array where that is what bids are on.
        steepest: (B,) the greatest `Σ_i |feature_ji|` of a reply j.
    """

    start: Ints
    crowded: Ints
    reply: NDArray[np.uint32]
    ad: NDArray[np.uint32]
    feature: Floats
    ctr: Floats
    steepest: Floats

    @classmethod
    def of(cls, features: Floats, ctr: Floats) -> Exposures:
        """List the entries of `features` (B, M, n) and `ctr` (B, M, n)."""
        B = len(features)
        request, reply, ad = np.nonzero((features != 0) | (ctr != 0))
        shown = np.zeros(features.shape[:2], dtype=np.int64)
        np.add.at(shown, (request, reply), 1)
        crowds = shown[request, reply] > 1
        order = np.lexsort((crowds, request))
        request, reply, ad = request[order], reply[order], ad[order]
        start = np.searchsorted(request, np.arange(B + 1))
        lone = np.bincount(request[~crowds[order]], minlength=B)
        feature = features[request, reply, ad]
        # unsigned and narrow: compiled code need not look for indices below 0, and reads less
        return cls(
            start=start,
            crowded=start[:-1] + lone,
            reply=reply.astype(np.uint32),
            ad=ad.astype(np.uint32),
            feature=feature,
            ctr=feature if features is ctr else ctr[request, reply, ad],
            steepest=np.abs(features).sum(axis=2).max(axis=1, initial=0.0),
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


class Arrays(NamedTuple):
    """What compiled kernels take of `Candidates`, under the names it has there.

    They are handed the plain tuple, which takes a microsecond less, and name it themselves.
    """

    start: Ints
    crowded: Ints
    reply: NDArray[np.uint32]
    ad: NDArray[np.uint32]
    feature: Floats
    ctr: Floats
    steepest: Floats
    log_w: Floats
    w: Floats
    log_peak: Floats
    plain: Floats
    lone: Floats


@dataclass(frozen=True, eq=False)
class Candidates:
    """Exposures and weights of a pool, as one Gibbs mechanism sees them.

    Attributes:
        exposures: what bids are on.
        weights: of replies before any bid.
        plain: (B,) what the replies without exposures weigh together.
        lone: (B, n) what the replies that show this ad alone weigh together.
    """

    exposures: Exposures
    weights: Weights
    plain: Floats
    lone: Floats

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
        (B, M), n = log_weights.shape, features.shape[2]
        request = np.repeat(np.arange(B), np.diff(exposures.start))
        shows = np.zeros((B, M), dtype=bool)
        shows[request, exposures.reply] = True
        alone = np.arange(len(request)) < exposures.crowded[request]
        request, reply, ad = request[alone], exposures.reply[alone], exposures.ad[alone]
        lone = np.zeros((B, n))
        np.add.at(lone, (request, ad), weights.scaled[request, reply])
        plain = np.where(shows, 0.0, weights.scaled).sum(axis=1)
        return cls(exposures, weights, plain, lone)

    @cached_property
    def arrays(self) -> tuple[NDArray, ...]:
        """What compiled kernels take: `Arrays`, as a plain tuple."""
        shown, weights = self.exposures, self.weights
        named = Arrays(
            shown.start, shown.crowded, shown.reply, shown.ad, shown.feature, shown.ctr,
            shown.steepest, weights.log, weights.scaled, weights.log_peak, self.plain, self.lone,
        )  # fmt: skip
        return tuple(named)
