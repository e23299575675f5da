"""The response surface: what a trained Ad-LLM would write under other bids, from what it wrote.

A recording holds M replies y_j to each request, reply j written under a bid profile b_j of its own.
What is shown, and so who is clicked, under any bids b is a distribution over these replies. It is
taken to be an exponential tilt of a base that the bids do not enter,

    p_b(y) = p_0(y)·exp(f(y, b)) / Z(b),      f(y, b) = Σ_i 1{ad i shown in y}·s(c_i(b)),

a density-ratio model (Qin 1998): bids act on a reply through the ads that it shows, by one function
s of each ad's covariates c_i, which name no ad and know no place in the list. So the surface is
equivariant under permutations of ads, and since covariates are of relative bids (as the LLM reads
them), money has no unit.

**s** is a small network, fitted on pairs of replies to one request. Given the two replies and the
two profiles, but not which belongs to which, the odds that they belong as recorded are free of p_0
and of Z, of which there are too many to estimate (Liang & Qin 2000, pairwise pseudolikelihood):

    log-odds(j, k) = f(y_j, b_j) + f(y_k, b_k) − f(y_j, b_k) − f(y_k, b_j).

**The base** then is, by request, the nonparametric maximum of the likelihood given s (Vardi 1985):

    p_0(y_j) = w_j = 1 / Σ_k exp(f(y_j, b_k)) / Z_k,      Z_k = Σ_j w_j·exp(f(y_j, b_k)),

and the surface is `π(j | b) ∝ w_j·exp(f(y_j, b))`. Its average over the recorded profiles is 1/M
for every reply: whatever s is, the recorded frequencies stand, and s decides how bids move them.

**Few replies.** Replies are reweighed within a request, so with few of them outcomes are biased
towards what was recorded, even with the true s: with four ads that are shown in proportion to their
bids, mean ITCTRs at bids 1 to 4 were 5 to 22 % off with M = 8, 2 % with 24, 3 % (chance) with 48;
and low bids beside one a hundred times as high brought 90, 25 and 10 % too much.

Serving is NumPy; fitting, and what is known of the error, is `mechanisms.llm_auction.fitting`.

Shapes: requests B, replies M, ads n, bid profiles per request K, covariates D, hidden units H.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechanisms.gibbs import log_sum_exp, normalised
from mechanisms.pool import Bools, Floats, Ints, ReplyPool
from mechanisms.pretrained import profiles_of

LEAST = 0.01  # of the highest bid: what the LLM reads of any bid that is lower
COVARIATES = ("lead", "share", "log share", "others' bids", "relevance", "others' relevance")
_SPREAD = -np.log(LEAST)
_ROUNDS, _CLOSE = 5000, 1e-10  # of Vardi's fixed point


@dataclass(frozen=True, eq=False)
class Written:
    """What the surface reads of a recording.

    Attributes:
        exposure: (B, M, n) the ad is shown in the reply.
        ctr: (B, M, n) click probability given the reply.
        profiles: (B, M, n) bids under which each reply was written.
    """

    exposure: Bools
    ctr: Floats
    profiles: Floats

    @classmethod
    def of(cls, pool: ReplyPool) -> Written:
        """Those of a pool.

        Raises:
            BadInput: the pool does not say under which bids its replies were written.
        """
        return cls(pool.exposure, pool.ctr, profiles_of(pool))

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        digest = hashlib.sha256()
        for array in (self.exposure, self.ctr, self.profiles):
            digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @property
    def relevance(self) -> Floats:
        """(B, n) log of an ad's mean click probability where it is shown, standardised.

        0, the mean, for an ad that no reply shows.
        """
        shown = self.exposure.sum(axis=1)
        clicks = np.where(self.exposure, self.ctr, 0.0).sum(axis=1)
        known = (shown > 0) & (clicks > 0)
        logs = np.log(np.divide(clicks, shown, out=np.ones(clicks.shape), where=known))
        if not known.any():
            return np.zeros(shown.shape)
        spread = logs[known].std()
        return np.where(known, (logs - logs[known].mean()) / (spread or 1.0), 0.0)

    def part(self, replies: Ints) -> Written:
        """Those replies of each request, (B, m) indices."""
        index = replies[:, :, None]
        arrays = (self.exposure, self.ctr, self.profiles)
        return Written(*(np.take_along_axis(array, index, axis=1) for array in arrays))


@dataclass(frozen=True, eq=False)
class Response:
    """s, a network with one hidden layer: `s(c) = Σ_h outer_h·g(inner_h·c + bias_h)`.

    g is x/(1 + |x|), smooth and cheap. With H = 0 bids are not responded to.

    Attributes:
        inner: (H, D).
        bias: (H,).
        outer: (H,).
    """

    inner: Floats
    bias: Floats
    outer: Floats

    @classmethod
    def none(cls) -> Response:
        """No response to bids."""
        return cls(np.zeros((0, len(COVARIATES))), np.zeros(0), np.zeros(0))

    def __call__(self, covariates: Floats) -> Floats:
        """(...) s of `covariates` (..., D)."""
        if not len(self.outer):
            return np.zeros(covariates.shape[:-1])
        x = covariates @ self.inner.T
        x += self.bias
        scale = np.abs(x)
        scale += 1
        x /= scale
        return x @ self.outer


def covariates(bids: Floats, relevance: Floats) -> Floats:
    """(B, K, n, D) what s knows of each ad under bids (B, K, n); see `COVARIATES`.

    All are about from -1 to 1: the lead over the highest other bid (logarithmic), the share of the
    bids' sum and its logarithm, the mean log-bid of the others, and relevances (B, n). Where all
    bids are 0 they are equal.
    """
    n = bids.shape[-1]
    top = bids.max(axis=-1, keepdims=True, initial=0.0)
    relative = np.divide(bids, top, out=np.ones_like(bids), where=top > 0)
    np.maximum(relative, LEAST, out=relative)
    logs = np.log(relative) / _SPREAD
    total = relative.sum(axis=-1, keepdims=True, initial=0.0 if n else 1.0)
    out = np.empty((*bids.shape, len(COVARIATES)))
    out[..., 0] = logs - _highest_other(logs)
    out[..., 1] = relative / total
    out[..., 2] = logs - np.log(total) / _SPREAD
    out[..., 3] = _mean_of_others(logs, n)
    out[..., 4] = relevance[:, None]
    out[..., 5] = _mean_of_others(relevance, n)[:, None]
    return out


def _highest_other(logs: Floats) -> Floats:
    """(..., n) greatest entry but one's own; of a single ad, the least bid there is."""
    if logs.shape[-1] < 2:
        return np.full(logs.shape, -1.0)
    ordered = np.partition(logs, -2, axis=-1)
    first, second = ordered[..., -1:], ordered[..., -2:-1]
    return np.where(logs == first, second, first)


def _mean_of_others(amounts: Floats, n: int) -> Floats:
    if n < 2:
        return np.zeros(amounts.shape)
    return (amounts.sum(axis=-1, keepdims=True) - amounts) / (n - 1)


@dataclass(frozen=True, eq=False)
class Surface:
    """`π(j | b)` over the recorded replies of B requests.

    Attributes:
        response: s.
        relevance: (B, n) covariates of ads that bids do not change.
        log_base: (B, M) log w_j.
        exposure: (B, n, M) 1 where an ad is shown.
    """

    response: Response
    relevance: Floats
    log_base: Floats
    exposure: Floats

    @classmethod
    def over(cls, written: Written, response: Response) -> Surface:
        """The surface of these replies under a given response."""
        relevance = written.relevance
        exposure = np.ascontiguousarray(written.exposure.transpose(0, 2, 1), dtype=np.float64)
        tilts = response(covariates(written.profiles, relevance)) @ exposure
        return cls(response, relevance, base_weights(tilts.transpose(0, 2, 1)), exposure)

    def weights(self, rows: Ints, bids: Floats) -> Floats:
        """(k, K, M) probability of each reply of requests `rows` (k,) under `bids` (k, K, n)."""
        scores = self.response(covariates(bids, self.relevance[rows])) @ self.exposure[rows]
        scores += self.log_base[rows][:, None]
        return normalised(scores)


def base_weights(tilts: Floats) -> Floats:
    """(B, M) log w_j from `tilts` (B, M, M), the f(y_j, b_k) of reply j and profile k.

    Vardi's fixed point; the probabilities that it leads to do not depend on its scale, which is
    such that they sum to 1. Requests are done with one by one; it warns of those that are not when
    the rounds are over.
    """
    found = np.empty(tilts.shape[:2])
    left = np.arange(len(tilts))
    by_profile = np.ascontiguousarray(tilts.transpose(0, 2, 1))
    log_z = np.zeros((len(tilts), tilts.shape[2]))
    for _ in range(_ROUNDS):
        log_w = -log_sum_exp(tilts - log_z[:, None])
        log_w -= log_sum_exp(log_w)[:, None]
        before, log_z = log_z, log_sum_exp(by_profile + log_w[:, None])
        found[left] = log_w
        open_ = np.abs(log_z - before).max(axis=1, initial=0.0) >= _CLOSE
        if not open_.all():
            left, log_z, tilts, by_profile = (
                each[open_] for each in (left, log_z, tilts, by_profile)
            )
        if not len(left):
            return found
    warnings.warn(
        f"the response surface of {len(left)} of {len(found)} requests is not exact: its base "
        f"weights have not converged in {_ROUNDS} rounds",
        RuntimeWarning,
        stacklevel=2,
    )
    return found


MANIFEST = "response_surface"
"""Where a pool's manifest keeps the response that was fitted to it, and its held-out error."""
VERSION = 1
"""Raise when the same recording would be fitted differently."""


def surface_of(pool: ReplyPool) -> Surface:
    """The surface of the requests of a pool's origin, computed once."""
    return pool.derived("response surface", _surface)


def response_of(pool: ReplyPool) -> Mapping[str, Any]:
    """The response fitted to a pool and its `held_out` error, as a manifest keeps them.

    Read from the pool's manifest if it is there, else fitted, once a pool object.
    """
    return pool.derived("response", _response)


def _response(pool: ReplyPool) -> Mapping[str, Any]:
    written, said = Written.of(pool), pool.manifest.get(MANIFEST, {})
    if said.get("version") == VERSION and said.get("of") == written.digest:
        return said
    from mechanisms.llm_auction.fitting import fit  # torch takes seconds to import

    response, found = fit(written)
    arrays = {name: getattr(response, name).tolist() for name in _ARRAYS}
    return {"version": VERSION, "of": written.digest, **arrays, "held_out": found}


def _surface(pool: ReplyPool) -> Surface:
    said = response_of(pool)
    inner, bias, outer = (np.array(said[name], dtype=np.float64) for name in _ARRAYS)
    response = Response(inner, bias, outer) if len(outer) else Response.none()
    return Surface.over(Written.of(pool), response)


_ARRAYS = ("inner", "bias", "outer")
