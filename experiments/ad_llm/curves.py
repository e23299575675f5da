"""How an Ad-LLM answers to one ad's bid: monotonicity and continuity (LLM-Auction, theorem 4.3).

One ad's bid is moved over levels b_1 < ... < b_L while the others' bids, the request and the random
streams stay. Two measurements of each level, averaged over draws:

- **clicks**: the moved ad's expected clicks in replies written at that level;
- **choice shares**: at the point where a reply mentions an ad, the probability that the LLM would
  write ad i's mention there, as a share of those of all n candidate ads,

      share_i(b) = p(mention_i | prompt(b), text) / Σ_k p(mention_k | prompt(b), text).

  No sampling enters but the text before, which is the same at all levels; what it leaves out is
  that bids may also move that text, and whether an ad is mentioned at all.

Of the mean over requests f(b_k): Spearman's rank correlation with the bid; the violation of
monotonicity, `max_k |f(b_k) − g(b_k)|` against the closest non-decreasing g (pool adjacent
violators) and the sum of all falls; the largest jump between neighbours. Intervals resample
requests, which are independent of each other; levels of a request are not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.stats import rankdata

from experiments.ad_llm.trials import HIGHEST, LOWEST, check_requests, under
from experiments.ad_llm.writers import RECIPE, Writer
from experiments.bootstrap import RESAMPLES, Estimate, Intervals, intervals
from mechanisms.errors import BadInput
from mechanisms.llm.streams import derived_seed
from mechanisms.llm.weights import cache_dir
from mechanisms.mentions import parse, render
from mechanisms.pool import Floats, Ints, ReplyPool
from mechanisms.recording import Request

LEVELS = (1.0, *(float(level) for level in range(10, 101, 10)))
"""Of the paper's figure."""
FINE = (1.0, *(float(level) for level in range(5, 101, 5)))
"""Levels between which continuity is looked at."""
MIDDLE = 50.0
"""The others' bids where they are fixed."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """One ad's bid moved over levels, everything else the same.

    Attributes:
        requests: R requests with n candidate ads each.
        moved: (R,) which ad's bid is moved.
        levels: (L,) rising.
        bids: (R, D, L, n) all bids.
        seed: of the replies.
    """

    requests: Sequence[Request]
    moved: Ints
    levels: Floats
    bids: Floats
    seed: int

    @classmethod
    def of(
        cls,
        requests: Sequence[Request],
        seed: int,
        draws: int = 1,
        levels: Sequence[float] = LEVELS,
        others: float | None = None,
    ) -> Sweep:
        """Ads take turns to be moved, over the places in the list too.

        Args:
            requests: R of them.
            seed: of the others' bids and the replies.
            draws: D profiles of the others' bids for each request.
            levels: of the ad's bid.
            others: the others' bid; None to draw each from [1, 100] anew in every draw.
        """
        n, levels = check_requests(requests), np.asarray(levels, dtype=np.float64)
        if len(levels) < 2 or not (np.diff(levels) > 0).all():
            raise BadInput("levels of the moved bid must rise, and be at least two")
        R, own = len(requests), derived_seed(seed, "sweep bids")
        moved = np.arange(R) % n
        streams = [np.random.default_rng([own, r]) for r in range(R)]
        drawn = np.stack([rng.uniform(LOWEST, HIGHEST, (draws, n)) for rng in streams])
        bids = np.repeat((drawn if others is None else np.full_like(drawn, others))[:, :, None],
                         len(levels), axis=2)  # fmt: skip
        bids[np.arange(R), :, :, moved] = levels
        return cls(requests, moved, levels, bids, derived_seed(seed, "sweep replies"))

    @property
    def asked(self) -> list[Request]:
        """R * D * L requests with their bids."""
        R, D, L, n = self.bids.shape
        return under(self.requests, self.bids.reshape(R, D * L, n))

    @property
    def keys(self) -> Ints:
        """(R * D * L,) random streams: one for all levels of a draw."""
        R, D, L, _ = self.bids.shape
        return np.repeat(np.arange(R * D), L)


@dataclass(frozen=True, eq=False)
class Curve:
    """The answer to a bid, by request.

    Attributes:
        levels: (L,)
        answers: (R, L) mean over draws; requests without any measurement left out.
        what: `clicks` or `share`.
    """

    levels: Floats
    answers: Floats
    what: str

    def __post_init__(self) -> None:
        if len(self.answers) < 2:
            raise BadInput(
                f"a curve of {self.what} over bids needs at least two requests in which it can be "
                f"measured; there are {len(self.answers)}: try more requests or draws"
            )

    @property
    def mean(self) -> Floats:
        """(L,) over requests."""
        return self.answers.mean(axis=0)

    def band(self, seed: int = 0) -> Intervals:
        """Of the mean at each level, over requests."""
        return intervals(self.answers, np.random.default_rng([seed, 11]))

    def spearman(self, seed: int = 0) -> Estimate:
        """Rank correlation of the mean with the bid; 0 where nothing moves."""
        found = _rank_correlations(self.mean[None], self.levels)[0]
        again = _rank_correlations(self._resampled(seed), self.levels)
        return Estimate(float(found), *map(float, np.quantile(again, [0.025, 0.975])))

    @property
    def rise(self) -> float:
        """From the lowest to the highest level of the closest non-decreasing curve."""
        fitted = _isotonic(self.mean)
        return float(fitted[-1] - fitted[0])

    @property
    def violation(self) -> float:
        """Largest distance to the closest non-decreasing curve."""
        return float(np.abs(self.mean - _isotonic(self.mean)).max())

    @property
    def falls(self) -> float:
        """Sum of all falls between neighbours."""
        return float(np.maximum(-np.diff(self.mean), 0).sum())

    @property
    def jump(self) -> float:
        """Largest step between neighbours, up or down."""
        return float(np.abs(np.diff(self.mean)).max())

    def gain(self, seed: int = 0) -> Estimate:
        """From the lowest level to the highest, with its interval over requests."""
        change = self.answers[:, [-1]] - self.answers[:, [0]]
        found = intervals(change, np.random.default_rng([seed, 12]))
        return Estimate(float(found.mean[0]), float(found.low[0]), float(found.high[0]))

    def _resampled(self, seed: int) -> Floats:
        """(RESAMPLES, L) means of resampled requests."""
        R = len(self.answers)
        rng = np.random.default_rng([seed, 13])
        return rng.multinomial(R, np.full(R, 1 / R), size=RESAMPLES) @ self.answers / R


def clicks(pool: ReplyPool, sweep: Sweep) -> Curve:
    """Expected clicks on the moved ad in the replies to `sweep.asked`."""
    R, D, L, n = sweep.bids.shape
    by_level = pool.ctr[:, 0].reshape(R, D, L, n)
    own = by_level[np.arange(R), :, :, sweep.moved]
    return Curve(sweep.levels, own.mean(axis=1), "clicks")


def shares(writer: Writer, sweep: Sweep, before: Sequence[Sequence[str | None]]) -> Curve:
    """Choice shares of the moved ad where a mention begins; kept for writers that do not change.

    Args:
        writer: its own engine scores.
        sweep: R requests, D draws.
        before: (R, D) text up to the mention; None where there is none.

    Raises:
        BadInput: fewer than two requests have such a text.
    """
    R, D, L, n = sweep.bids.shape
    at = [(r, d) for r in range(R) for d in range(D) if before[r][d] is not None]
    prompts, texts = [], []
    for r, d in at:
        request = sweep.requests[r]
        said = [f"{before[r][d]}{render(ad)}" for ad in request.ads]
        for profile in sweep.bids[r, d].tolist():
            prompts.append(writer.prompt(replace(request, bids=tuple(profile))))
            texts.append(said)
    totals = _log_probs(writer, prompts, texts).reshape(-1, L, n)
    # What all n texts begin with cancels.
    totals = totals - totals.max(axis=2, keepdims=True)
    chosen = np.exp(totals) / np.exp(totals).sum(axis=2, keepdims=True)
    found = np.full((R, D, L), np.nan)
    for (r, d), row in zip(at, chosen, strict=True):
        found[r, d] = row[:, sweep.moved[r]]
    told = ~np.isnan(found[:, :, 0]).all(axis=1)
    return Curve(sweep.levels, np.nanmean(found[told], axis=1), "share")


def _log_probs(writer: Writer, prompts: Sequence[str], texts: Sequence[Sequence[str]]) -> Floats:
    """(P, n) log-probability of each text under its prompt, in nats."""
    told = [RECIPE, writer.identity, writer.ad_llm.temperature, prompts, texts]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    file = cache_dir() / "shares" / f"{digest[:16]}.npy"
    if writer.identity and file.exists():
        return np.load(file)
    engine = writer.open()
    tokens = [[engine.encode(text) for text in row] for row in texts]
    scored = engine.score(prompts, tokens, temperature=writer.ad_llm.temperature)
    sums = np.array([[each.sum() for each in row] for row in scored])
    if writer.identity:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(f".{os.getpid()}.npy")
        np.save(fresh, sums)
        fresh.replace(file)
    return sums


def texts_before(pool: ReplyPool, sweep: Sweep) -> list[list[str | None]]:
    """(R, D) the text before the first mention, of one of the L replies to each draw.

    Of those that mention an ad, the one at the level nearest the middle.
    """
    R, D, L, _ = sweep.bids.shape
    order = np.argsort(np.abs(np.arange(L) - (L - 1) / 2), kind="stable")
    texts = np.array(pool.replies["text"].to_list(), dtype=object).reshape(R, D, L)
    return [
        [first_before(texts[r, d, order], request) for d in range(D)]
        for r, request in enumerate(sweep.requests)
    ]


def first_before(texts: Sequence[str], request: Request) -> str | None:
    """What stands before the mention in the first of `texts` that has one; None if none has."""
    for text in texts:
        found = parse(text, request.ads)
        if found.ads:
            return text[: found.spans[0][0]]
    return None


def _isotonic(curve: Floats) -> Floats:
    return np.asarray(isotonic_regression(curve).x)


def _rank_correlations(curves: Floats, levels: Floats) -> Floats:
    """(K,) Spearman's correlation of each of `curves` (K, L) with the levels."""
    # A mean of equal numbers differs from them by round-off, which would be ranked.
    largest = np.abs(curves).max(axis=1, keepdims=True)
    curves = np.round(curves / np.where(largest > 0, largest, 1.0), 9)
    ranks, order = rankdata(curves, axis=1), rankdata(levels)
    ranks, order = ranks - ranks.mean(axis=1, keepdims=True), order - order.mean()
    scale = np.sqrt((ranks**2).sum(axis=1) * (order**2).sum())
    return np.divide(ranks @ order, scale, out=np.zeros(len(ranks)), where=scale > 0)
