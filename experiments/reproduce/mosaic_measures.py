"""What MOSAIC's experiments measure (arXiv 2405.05905), as functions from pools to frames.

Everything is exact given the candidate replies: no dice are thrown but for which candidates are at
hand. Frames have a row per request (and more columns for what is varied), so that whoever reads
them can bootstrap over requests. Shapes: requests B, replies M, ads n, draws S.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from mechanisms.candidates import expectation
from mechanisms.gibbs import gibbs
from mechanisms.mosaic import Mosaic
from mechanisms.pool import Bools, Floats, ReplyPool

REMOVED = 0.0  # the bid of an advertiser who is not there
FACTORS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
SHAKES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def subsets(pool: ReplyPool, size: int, draws: int, rng: np.random.Generator) -> ReplyPool:
    """Requests with `size` of their M candidates, drawn without replacement: B·S requests.

    Request-major: the S draws of a request follow each other.
    """
    B, M, _ = pool.shape
    picked = np.argsort(rng.random((B, draws, M)), axis=2)[:, :, :size].reshape(B * draws, size)
    b = np.repeat(np.arange(B), draws)[:, None]
    return ReplyPool.from_arrays(
        pool.ctr[b, picked],
        pool.log_ref[b, picked],
        pool.log_gen[b, picked],
        pool.quality[b, picked],
        pool.ads[b[:, 0]],
        exposure=pool.exposure[b, picked],
        malformed=pool.malformed[b, picked],
        num_advertisers=pool.num_advertisers,
        extras={name: array[b, picked] for name, array in pool.extras.items()},
    )


def convergence(
    pools: dict[str, ReplyPool],
    truth: ReplyPool,
    weights: Floats,
    mechanism: Mosaic,
    sizes: Sequence[int],
    rng: np.random.Generator,
    draws: int = 96,
) -> pl.DataFrame:
    """How the allocation over M candidates approaches the optimal reply distribution π*.

    Args:
        pools: candidates by way of writing, all with the same requests and the same reference.
        truth: a large recording of the same requests, which stands for the whole reply space.
        weights: (N,) value per unit of the reward; all bid truthfully.
        mechanism: with its tau and its form of reward.
        sizes: numbers of candidates M to try; those beyond a pool are left out.
        rng: of the candidates at hand.
        draws: S, sets of candidates per request and size.

    Returns:
        A row per way, M and request, means over the S draws: `value` of the advertisers, beside
        `optimum`, that under π*; `distance`, the total variation between the allocation and π* over
        which ads are shown; `welfare`, what the candidates achieve of regularised welfare,
        `tau·log Z`, beside `most`, that of π*; `likelihood`, the mean of `log π*(y)` over replies
        shown, less its mean under π* (the paper's measure; nats); `satisfaction`; and `ess`.
    """
    best = _Optimum(truth, weights, mechanism)
    rows = []
    for way, pool in pools.items():
        B, M, _ = pool.shape
        for size in (size for size in sizes if size <= M):
            S = draws if size < M else 1
            some = subsets(pool, size, S, rng)
            here = _Optimum(some, weights, mechanism)
            shown = shown_sets(some.exposure, here.probabilities)
            measures = {
                "value": here.value,
                "distance": 0.5 * np.abs(shown - np.repeat(best.shown, S, axis=0)).sum(axis=1),
                "welfare": here.welfare,
                "likelihood": here.likelihood - np.repeat(best.likelihood, S),
                "satisfaction": (here.probabilities * some.quality).sum(axis=1),
                "ess": some.effective_sample_size,
            }
            means = {name: x.reshape(B, S).mean(axis=1) for name, x in measures.items()}
            means |= {"optimum": best.value, "most": best.welfare}
            rows.append(pl.DataFrame({"way": way, "M": size, "request": np.arange(B), **means}))
    return pl.concat(rows)


class _Optimum:
    """The best that can be done with the candidates of a pool: what it shows and is worth."""

    def __init__(self, pool: ReplyPool, weights: Floats, mechanism: Mosaic) -> None:
        rewards = weights[pool.ads][:, None, :] * mechanism.features(pool)
        found = gibbs(pool.log_weights, rewards, mechanism.tau)
        worth = rewards.sum(axis=2)
        log_optimal = pool.log_ref + worth / mechanism.tau
        self.probabilities = found.probabilities
        self.welfare = mechanism.tau * found.log_z
        self.value = (found.probabilities * worth).sum(axis=1)
        self.likelihood = (found.probabilities * log_optimal).sum(axis=1)
        self.shown = shown_sets(pool.exposure, found.probabilities)


def shown_sets(exposure: Bools, probabilities: Floats) -> Floats:
    """(B, 2^n) probability that exactly a set of ads is shown; sets numbered as bits."""
    B, _, n = exposure.shape
    which = (exposure << np.arange(n)).sum(axis=2) if n else np.zeros(exposure.shape[:2], int)
    bins = which + (np.arange(B) << n)[:, None]
    total = np.bincount(bins.ravel(), weights=probabilities.ravel(), minlength=B << n)
    return total.reshape(B, 1 << n)


def offsets(pool: ReplyPool, values: Floats, tau: float, reward: str) -> pl.DataFrame:
    """Payments and utilities with and without the offset, and contributions to welfare.

    The contribution of an advertiser to welfare is measured apart from the payment rule: the change
    in everybody's value under the allocation when it takes part, its own value included.

    Args:
        pool: candidate replies.
        values: (N,) value per unit of the reward; all report truthfully.
        tau: of MOSAIC.
        reward: "clicks" or "log-ratio".

    Returns:
        A row per offset, request and ad: `payment`, `value`, `utility`, `contribution`.
    """
    rows = []
    B, _, n = pool.shape
    by_request = values[pool.ads]
    for offset in (True, False):
        mechanism = Mosaic(tau, offset=offset, reward=reward)
        rewards = by_request[:, None, :] * mechanism.features(pool)
        found = mechanism.allocate_reports(pool, rewards)
        value = expectation(found.probabilities, rewards)
        welfare = value.sum(axis=1)
        contribution = np.empty((B, n))
        for i in range(n):
            without = rewards.copy()
            without[:, :, i] = REMOVED
            other = mechanism.allocate_reports(pool, without)
            contribution[:, i] = welfare - expectation(other.probabilities, without).sum(axis=1)
        rows.append(
            pl.DataFrame(
                {
                    "offset": offset,
                    "request": np.repeat(np.arange(B), n),
                    "ad": pool.ads.ravel(),
                    "payment": found.payments.ravel(),
                    "value": value.ravel(),
                    "utility": (value - found.payments).ravel(),
                    "contribution": contribution.ravel(),
                }
            )
        )
    return pl.concat(rows)


def temperatures(pool: ReplyPool, values: Floats, taus: Sequence[float]) -> pl.DataFrame:
    """What tau does: a row per tau and request, with offset.

    Columns: `satisfaction`, `value`, `revenue`, `ads` shown, `kl` from the reference (nats).
    """
    rows = []
    for tau in taus:
        found = Mosaic(tau).allocate(pool, values)
        value = (values[pool.ads] * found.itctr).sum(axis=1)
        rewards = values[pool.ads][:, None, :] * pool.ctr
        log_z = gibbs(pool.log_weights, rewards, tau).log_z
        rows.append(
            pl.DataFrame(
                {
                    "tau": tau,
                    "request": np.arange(pool.shape[0]),
                    "satisfaction": (found.probabilities * pool.quality).sum(axis=1),
                    "value": value,
                    "revenue": found.payments.sum(axis=1),
                    "ads": (found.probabilities * pool.exposure.sum(axis=2)).sum(axis=1),
                    "kl": value / tau - log_z,
                }
            )
        )
    return pl.concat(rows)


def misreports(pool: ReplyPool, values: Floats, tau: float, rng: np.random.Generator):
    """Gain from misreporting, every advertiser by itself, the others truthful.

    Scalar: a bid of `size` times the value. Vector: `size` times the scale of the rewards of noise
    on top of the truth, reply by reply; the negated truth; credit for every reply that shows the
    ad, and blame for those that show a rival; and the best of a climb by random steps.

    Returns:
        A row per kind, size, request and ad: `gain` in utility over truth, and the ad's `value`
        under truth, both in money per request.
    """
    mechanism = Mosaic(tau)
    truth = values[pool.ads][:, None, :] * pool.ctr
    found = mechanism.allocate_reports(pool, truth)
    honest = expectation(found.probabilities, truth) - found.payments
    value = expectation(found.probabilities, truth)
    n = pool.shape[2]
    scale = truth.std(axis=1, keepdims=True) + 1e-9

    def gains(reported: Floats) -> Floats:
        """(B, n) gains when each advertiser alone reports its column of `reported` (B, M, n)."""
        out = np.empty_like(honest)
        for i in range(n):
            mixed = truth.copy()
            mixed[:, :, i] = reported[:, :, i]
            other = mechanism.allocate_reports(pool, mixed)
            own = expectation(other.probabilities, truth) - other.payments
            out[:, i] = (own - honest)[:, i]
        return out

    tried: list[tuple[str, float, Floats]] = [
        ("scalar", factor, gains(factor * truth)) for factor in FACTORS if factor != 1
    ]
    for size in SHAKES:
        tried.append(("noise", size, gains(truth + size * scale * rng.normal(size=truth.shape))))
    rival = (pool.exposure.sum(axis=2, keepdims=True) - pool.exposure) > 0
    tried.append(("negated", 1.0, gains(-truth)))
    for size in (0.1, 1.0):
        credit = truth + size * scale * (pool.exposure.astype(float) - rival)
        tried.append(("credit and blame", size, gains(credit)))
    best, reported = np.zeros_like(honest), truth.copy()
    for step in range(30):
        size = 0.5 * 0.85**step
        candidate = reported + size * scale * rng.normal(size=truth.shape)
        gain = gains(candidate)
        better = gain > best
        best = np.where(better, gain, best)
        reported = np.where(better[:, None, :], candidate, reported)
    tried.append(("climb", 1.0, best))
    B = pool.shape[0]
    return pl.concat(
        pl.DataFrame(
            {
                "kind": kind,
                "size": size,
                "request": np.repeat(np.arange(B), n),
                "ad": pool.ads.ravel(),
                "gain": gain.ravel(),
                "value": value.ravel(),
            }
        )
        for kind, size, gain in tried
    )


def tokens_per_auction(
    prompts: dict[str, Floats], reply: float, sizes: Sequence[int], ads: Sequence[int]
) -> pl.DataFrame:
    """LLM tokens of one auction by way of writing, M and n; a prompt is run once for M replies.

    Args:
        prompts: mean tokens of the prompts: `reference`, `advertiser`, and `context` by number of
            ads (entry n for n ads).
        reply: mean tokens of a reply.
        sizes: M.
        ads: n.

    Returns:
        A row per way, M and n: `tokens` generated, scored, and read as prompts together. Ways:
        `guided` (or reference; nothing is scored), `mixture` (half written under each prompt, all
        scored under the other), and `log-ratio` (guided, and scored for every advertiser).
    """
    rows = []
    for n in ads:
        context, advertiser = float(prompts["context"][n]), float(prompts["advertiser"][0])
        for M in sizes:
            guided = float(prompts["reference"][0]) + M * reply
            both = guided + context
            rows += [
                ("guided", M, n, guided),
                ("mixture", M, n, both + float(prompts["reference"][0]) + context + M * reply),
                ("log-ratio", M, n, guided + n * (advertiser + M * reply)),
            ]
    return pl.DataFrame(rows, schema=["way", "M", "n", "tokens"], orient="row")
