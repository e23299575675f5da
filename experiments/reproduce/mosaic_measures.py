"""What MOSAIC's experiments measure (arXiv 2405.05905), as functions from pools to frames.

Everything is exact given the candidate replies: no dice are thrown but for which candidates are at
hand. Frames have a row per request (and more columns for what is varied), so that whoever reads
them can bootstrap over requests. Shapes: requests B, replies M, ads n, draws S.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from scipy.stats import rankdata

from experiments.bootstrap import Estimate, mean_of, ratio_of
from mechanisms.candidates import expectation
from mechanisms.gibbs import gibbs, kl_from_reference
from mechanisms.mosaic import Mosaic
from mechanisms.pool import Bools, Floats, Ints, ReplyPool

REMOVED = 0.0  # the bid of an advertiser who is not there


def by_request(frame: pl.DataFrame, *columns: str, by: Sequence[str] = ()) -> pl.DataFrame:
    """Sums of `columns` over the ads of a request: rows that are independent of each other."""
    return frame.group_by(*by, "request", maintain_order=True).agg(pl.col(columns).sum())


def average(frame: pl.DataFrame, column: str) -> Estimate:
    """Mean of a column over rows that are requests."""
    return mean_of(frame[column].to_numpy())


def ratio(frame: pl.DataFrame, over: str, under: str, seed: int = 0) -> Estimate:
    """Σ over / Σ under, rows being requests."""
    return ratio_of(frame[over].to_numpy(), frame[under].to_numpy(), seed)


def against_optimum(frame: pl.DataFrame, column: str, best: str, seed: int = 0) -> Estimate:
    """An amount as a share of the optimum's for clicks; less the optimum's for log-ratios.

    The optimum's is positive for rewards that are, and else may be 0, of which there are no shares.
    """
    if frame["reward"][0] == "clicks":
        return ratio(frame, column, best, seed)
    return mean_of((frame[column] - frame[best]).to_numpy())


def subsets(pool: ReplyPool, size: int, draws: int, rng: np.random.Generator) -> ReplyPool:
    """Requests with `size` of their M candidates, drawn without replacement: B·S requests.

    A subset is like a recording of that size: of each condition it holds its share, rounded up or
    down at random, and every candidate is as likely as any other. (Candidates are lined up by
    condition, in random order within one, and picked at equal distances from a random start.)
    Request-major: the S draws of a request follow each other.
    """
    B, M, _ = pool.shape
    lined_up = np.argsort(_conditions(pool)[:, None, :] + rng.random((B, draws, M)), axis=2)
    at = ((rng.random((B, draws, 1)) + np.arange(size)) * (M / size)).astype(int)
    picked = np.take_along_axis(lined_up, np.minimum(at, M - 1), axis=2).reshape(B * draws, size)
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


def _conditions(pool: ReplyPool) -> Ints:
    """(B, M) which condition a reply was written under, numbered; all 0 where nothing is known."""
    B, M, _ = pool.shape
    if pool.replies is None or "condition" not in pool.replies.columns:
        return np.zeros((B, M), dtype=np.int64)
    _, numbers = np.unique(pool.replies["condition"].to_numpy(), return_inverse=True)
    return numbers.reshape(B, M)


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
        sizes: numbers of candidates M to try, beside a pool's own; those beyond it are left out.
        rng: of the candidates at hand.
        draws: S, sets of candidates per request and size.

    Returns:
        A row per way, M and request, means over the S draws: `value` of the advertisers, beside
        `optimum`, that under π*; `distance`, the total variation between the allocation and π* over
        which ads are shown, beside `unbid`, that between the reference (nobody bids) and π*, and
        `elsewhere`, the mean of that between the allocation and the π* of the other requests;
        `welfare`, `tau·log Z`, whose mean over candidates is a lower bound on the regularised
        welfare of replies so drawn (Jensen; it grows with M for any candidates), beside `most`,
        that of π*, and their absolute `gap`, set by set of candidates; `likelihood`, the mean of
        `log π*(y)` over replies shown, less its mean under π* (the paper's measure; nats);
        `satisfaction`; and `ess`.
    """
    best = _Optimum(truth, weights, mechanism)
    nobody = gibbs(truth.log_weights, np.zeros(truth.shape), mechanism.tau).probabilities
    unbid = total_variation(shown_sets(truth.exposure, nobody), best.shown)
    rows = []
    for way, pool in pools.items():
        B, M, _ = pool.shape
        for size in sorted({size for size in sizes if size < M} | {M}):
            S = draws if size < M else 1
            some = subsets(pool, size, S, rng)
            here = _Optimum(some, weights, mechanism)
            shown = shown_sets(some.exposure, here.probabilities)
            measures = {
                "value": here.value,
                "distance": total_variation(shown, np.repeat(best.shown, S, axis=0)),
                "elsewhere": np.mean(
                    [
                        total_variation(shown, np.repeat(np.roll(best.shown, k, axis=0), S, axis=0))
                        for k in range(1, B)
                    ],
                    axis=0,
                ),
                "welfare": here.welfare,
                "gap": np.abs(here.welfare - np.repeat(best.welfare, S)),
                "likelihood": here.likelihood - np.repeat(best.likelihood, S),
                "satisfaction": (here.probabilities * some.quality).sum(axis=1),
                "ess": some.effective_sample_size,
            }
            means = {name: x.reshape(B, S).mean(axis=1) for name, x in measures.items()}
            means |= {"optimum": best.value, "most": best.welfare, "unbid": unbid}
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


def total_variation(p: Floats, q: Floats) -> Floats:
    """(B,) distances of distributions (B, K)."""
    return 0.5 * np.abs(p - q).sum(axis=1)


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


def rank_correlations(frame: pl.DataFrame) -> Floats:
    """(B,) Spearman's correlation of utility with contribution within each request.

    0 where one of the two is the same for all ads (but for rounding): then it follows nothing.
    """
    found = []
    for _, part in frame.group_by("request", maintain_order=True):
        ranks = [_ranks(part[name].to_numpy()) for name in ("contribution", "utility")]
        x, y = (each - each.mean() for each in ranks)
        size = np.sqrt((x @ x) * (y @ y))
        found.append(x @ y / size if size > 0 else 0.0)
    return np.array(found)


def _ranks(x: Floats) -> Floats:
    step = 1e-9 * max(np.abs(x).max(), 1e-300)
    return rankdata(np.round((x - x.min()) / step)) if np.ptp(x) > step else np.zeros(len(x))


def temperatures(pool: ReplyPool, values: Floats, taus: Sequence[float]) -> pl.DataFrame:
    """What tau does: a row per tau and request, with offset.

    Columns: `satisfaction`, `value`, `revenue`, `ads` shown, `kl` from the reference (nats).
    """
    rows = []
    for tau in taus:
        found = Mosaic(tau).allocate(pool, values)
        value = (values[pool.ads] * found.itctr).sum(axis=1)
        rows.append(
            pl.DataFrame(
                {
                    "tau": tau,
                    "request": np.arange(pool.shape[0]),
                    "satisfaction": (found.probabilities * pool.quality).sum(axis=1),
                    "value": value,
                    "revenue": found.payments.sum(axis=1),
                    "ads": (found.probabilities * pool.exposure.sum(axis=2)).sum(axis=1),
                    "kl": kl_from_reference(pool.log_weights, found.probabilities),
                }
            )
        )
    return pl.concat(rows)


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
