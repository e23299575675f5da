"""The Gibbs allocation over candidate replies: the rule that MOSAIC and LLM-Auction share.

The maximiser of `E_π[Σ_i r_i] − tau·KL(π‖π_ref)` is `π*(y) ∝ π_ref(y)·exp(Σ_i r_i(y)/tau)` (MOSAIC,
arXiv 2405.05905; LLM-Auction, arXiv 2512.10551, with tau called beta). Over M candidates y_j with
importance weights `w_j = π_ref(y_j)/π_gen(y_j)`:

    π_j   ∝ w_j·exp(Σ_i r_i(y_j)/tau)
    Z(r)  = (1/M) Σ_j w_j·exp(Σ_i r_i(y_j)/tau),     Z(r_−i): the same without advertiser i

and `tau·log Z(r)` is the regularised welfare achieved. Sums of exponentials stay in log space.

Pure functions over float64 arrays: the specification of `mechanisms.kernels`, which mechanisms call
by default and which computes the same from exposures alone. Shapes: requests B, replies M, ads n,
grid bids G.
"""

from __future__ import annotations

import warnings
import weakref
from dataclasses import dataclass

import numpy as np

from mechanisms.checks import positive
from mechanisms.errors import BadInput
from mechanisms.pool import Floats, ReplyPool, effective_sample_size

# Scores per block of the deviation kernel: 256 KB, so that its passes stay in a core's cache.
_BLOCK = 32_768
# exp(600) is far from overflow (exp(709)) even when summed over a very large pool.
_SAFE_EXPONENT = 600.0
_SMALLEST_SAFE_ESS = 2.0


__all__ = [
    "Deviations",
    "Gibbs",
    "LowEffectiveSampleSize",
    "check_weights",
    "deviations",
    "effective_sample_size",
    "gibbs",
    "kl_from_reference",
    "log_mean_exp",
    "log_sum_exp",
    "normalised",
    "overflow",
    "warn_if_low",
]


class LowEffectiveSampleSize(UserWarning):
    """The importance weights of a request leave fewer than two replies' worth of choice."""


@dataclass(frozen=True, eq=False)
class Gibbs:
    """A Gibbs allocation and its normalisers.

    Attributes:
        probabilities: (B, M) probability of each reply.
        log_z: (B,) `log Z(r)`.
        log_z_without: (B, n) `log Z(r_−i)`; holds nothing of advertiser i's report.
    """

    probabilities: Floats
    log_z: Floats
    log_z_without: Floats


@dataclass(frozen=True, eq=False)
class Deviations:
    """What each advertiser brings about with each bid of a grid, the others' bids fixed.

    Attributes:
        itctr: (B, n, G) the deviating advertiser's `E_π[ctr_i]`.
        declared: (B, n, G) its declared value `g·E_π[feature_i]`.
        log_z: (B, n, G) `log Z` at the deviation.
        log_z_without: (B, n) `log Z(r_−i)`, which no deviation of i changes.
    """

    itctr: Floats
    declared: Floats
    log_z: Floats
    log_z_without: Floats


def gibbs(log_weights: Floats, rewards: Floats, tau: float) -> Gibbs:
    """Allocate for reported rewards.

    Args:
        log_weights: (B, M) log importance weights, in nats.
        rewards: (B, M, n) reported reward of advertiser i for reply j, in money.
        tau: weight of the KL term, in money per nat.

    Raises:
        BadInput: tau not positive and finite, or rewards too large for it (`r/tau` overflows).
    """
    positive("tau", tau)
    n = rewards.shape[2]
    everyone_and_without = np.hstack([np.ones((n, 1)), 1.0 - np.eye(n)])
    with np.errstate(over="ignore", invalid="ignore"):
        scores = _log_scores(log_weights, rewards, everyone_and_without, tau)
        log_z = log_mean_exp(scores)
    _refuse_overflow(log_z, tau)
    # normalised once more, since the rounding of large scores would show in the sum
    weights = np.exp(scores[:, 0] - scores[:, 0].max(axis=1, keepdims=True))
    return Gibbs(
        probabilities=weights / weights.sum(axis=1, keepdims=True),
        log_z=log_z[:, 0],
        log_z_without=log_z[:, 1:],
    )


def deviations(
    log_weights: Floats,
    bids: Floats,
    features: Floats,
    alternatives: Floats,
    tau: float,
    ctr: Floats | None = None,
) -> Deviations:
    """Outcomes of bids never made, which every learner with full feedback learns from.

    With bid g, advertiser i's log-scores are the line `L_−i,j + (g/tau)·f_ji`, where
    `L_−i,j = log w_j + Σ_{k≠i} b_k·f_jk/tau` is computed once for all its bids.

    Args:
        log_weights: (B, M) log importance weights, in nats.
        bids: (B, n) bids played, per unit of the feature.
        features: (B, M, n) what is bid on, `r_i = b_i·f_i`: click probabilities, or log-ratios.
        alternatives: (B, n, G) bids to try for ad i of request b; non-negative.
        tau: weight of the KL term, in money per nat.
        ctr: (B, M, n) click probabilities, where they are not the features.

    Raises:
        BadInput: tau not positive and finite, or bids too large for it (`b/tau` overflows).
    """
    positive("tau", tau)
    B, M, n = features.shape
    G = alternatives.shape[2]
    with np.errstate(over="ignore", invalid="ignore"):
        others = _log_scores(log_weights, bids[:, None, :] * features, 1.0 - np.eye(n), tau)
        slopes = features.transpose(0, 2, 1).reshape(B * n, M)
        steps = alternatives.reshape(B * n, G) / tau
        intercepts = others.reshape(B * n, M)
        peak = intercepts.max(axis=1, keepdims=True)
        largest = np.abs(slopes).max(initial=0) * steps.max(initial=0)
    _refuse_overflow(peak, tau)
    _refuse_overflow(largest, tau)
    log_z_without = log_mean_exp(others)

    # One small matrix product makes all the lines, another sums them with weights 1 and ctr:
    # half the passes over memory that broadcasting needs.
    lines = np.stack([intercepts - peak, slopes], axis=2)
    grid = np.stack([np.ones_like(steps), steps], axis=1)
    counted = [np.ones_like(slopes), slopes]
    if ctr is not None:
        counted.append(ctr.transpose(0, 2, 1).reshape(B * n, M))
    moments = np.stack(counted, axis=1)
    # Every line has an intercept <= 0, and one has 0: while no slope takes a line out of range,
    # the sums lie in [exp(-600), M·exp(600)] and need no further shift.
    tame = largest < _SAFE_EXPONENT
    mean, clicks = np.empty((B * n, G)), np.empty((B * n, G))
    log_z = np.empty((B * n, G))
    block = min(B * n, max(1, _BLOCK // max(1, M * G)))
    # one buffer for all blocks: asking the system for fresh memory each time costs as much as exp
    buffer = np.empty((block, M, G))
    for start in range(0, B * n, max(1, block)):
        rows = slice(start, min(start + block, B * n))
        scores = np.matmul(lines[rows], grid[rows], out=buffer[: rows.stop - start])
        if not tame:
            top = scores.max(axis=1, keepdims=True)
            scores -= top
        np.exp(scores, out=scores)
        sums = moments[rows] @ scores
        np.divide(sums[:, 1], sums[:, 0], out=mean[rows])
        if ctr is not None:
            np.divide(sums[:, 2], sums[:, 0], out=clicks[rows])
        np.log(sums[:, 0], out=log_z[rows])
        if not tame:
            log_z[rows] += top[:, 0]
    log_z += peak - np.log(M)
    return Deviations(
        itctr=(mean if ctr is None else clicks).reshape(B, n, G),
        declared=alternatives * mean.reshape(B, n, G),
        log_z=log_z.reshape(B, n, G),
        log_z_without=log_z_without,
    )


def kl_from_reference(log_weights: Floats, probabilities: Floats) -> Floats:
    """(B,) KL divergence, in nats, of an allocation from the reference over the candidates.

    `Σ_j π_j·log(π_j / w̄_j)`, where `w̄_j = w_j / Σ_k w_k` are the self-normalised weights of the
    (B, M) `log_weights`; a reply of probability 0 adds nothing.
    """
    reference = log_weights - log_sum_exp(log_weights)[:, None]
    likely = probabilities > 0
    log_p = np.log(np.where(likely, probabilities, 1.0))
    # a divergence is >= 0; only rounding goes below
    return np.maximum(np.where(likely, probabilities * (log_p - reference), 0.0).sum(axis=1), 0.0)


def normalised(log_weights: Floats, axis: int = -1) -> Floats:
    """Weights that sum to 1 along an axis, or are all 0 where every log-weight is -inf."""
    peak = log_weights.max(axis=axis, keepdims=True)
    weights = np.exp(log_weights - np.where(np.isfinite(peak), peak, 0.0))
    total = weights.sum(axis=axis, keepdims=True)
    return weights / np.where(total > 0, total, 1.0)


def log_sum_exp(values: Floats) -> Floats:
    """`log Σ exp(values)` over the last axis, by subtracting the maximum."""
    peak = values.max(axis=-1, keepdims=True)
    return np.log(np.exp(values - peak).sum(axis=-1)) + peak[..., 0]


def log_mean_exp(values: Floats) -> Floats:
    """`log (1/M) Σ exp(values)` over the last axis, of length M."""
    return log_sum_exp(values) - np.log(values.shape[-1])


def check_weights(pool: ReplyPool) -> None:
    """Warn, once per pool object, if a request's effective sample size is below 2.

    Kept out of `allocate` and `counterfactual`, which are called all the time. `run` calls it; so
    should whoever trades on a pool by way of `take`, once, on the whole pool.
    """
    if pool in _checked or pool.origin in _checked:
        return
    _checked.add(pool)
    warn_if_low(
        pool.effective_sample_size,
        pool.shape[1],
        "importance weights",
        " (see pool.effective_sample_size): their auctions rest on a single reply; record more "
        "replies, or from conditions closer to the reference",
        pool,
    )


def warn_if_low(
    sizes: Floats, replies: int, weights: str, mend: str, pool: ReplyPool | None = None
) -> None:
    """Warn if an effective sample size is below 2 where there are two replies to choose from.

    Args:
        sizes: (...) what `effective_sample_size` gives.
        replies: M.
        weights: what the weights are, as the warning puts it.
        mend: what to do about it.
        pool: warn of these `weights` only once for this pool object.
    """
    if sizes.min(initial=np.inf) >= min(_SMALLEST_SAFE_ESS, replies) - 1e-9:
        return
    if pool is not None:
        said = _warned.setdefault(pool, set())
        if weights in said:
            return
        said.add(weights)
    # no numbers in the text: Python shows equal warnings from one place once only
    warnings.warn(
        f"some requests have {weights} with an effective sample size below 2{mend}",
        LowEffectiveSampleSize,
        stacklevel=4,
    )


_checked: weakref.WeakSet[ReplyPool] = weakref.WeakSet()
_warned: weakref.WeakKeyDictionary[ReplyPool, set[str]] = weakref.WeakKeyDictionary()


def _log_scores(log_weights: Floats, rewards: Floats, groups: Floats, tau: float) -> Floats:
    """(B, g, M) `log w_j + Σ_{i in group} r_i(y_j)/tau` for g groups, given as 0/1 columns (n, g).

    Groups without i are added up, not got by subtracting i from the total, so that no report of i
    reaches its own payment through rounding.
    """
    B, M, n = rewards.shape
    total = (rewards.reshape(B * M, n) @ groups).reshape(B, M, groups.shape[1])
    return total.transpose(0, 2, 1) / tau + log_weights[:, None, :]


def overflow(tau: float) -> BadInput:
    """What to raise where rewards are too large for tau."""
    return BadInput(f"rewards / tau overflow at tau = {tau:g}; use a larger tau or smaller bids")


def _refuse_overflow(scores: Floats | float, tau: float) -> None:
    if not np.isfinite(scores).all():
        raise overflow(tau)
