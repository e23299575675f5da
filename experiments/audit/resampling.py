"""How sure a greatest gain is, over requests like those of the pool.

On the requests of a pool regret is exact. Over others it is an estimate, and the greatest of many
estimates is too great on average, since noise is maximised as well. So an interval has two sides:

    lower end   every request is met with the deviation that is best on all *other* requests; what
                that gains is what an advertiser would gain on requests it has not seen, at most
                its true regret on average; the lower end of its interval is the interval's
    upper end   the greatest upper end of all multiples that gain in some request, and that may be
                feasible: a value maximizer's is left out only where it misses the target surely

both of ratios `Σ gain / Σ value attained` by t-intervals, with as many degrees of freedom as there
are requests in which truth attains anything, less one; for the best deviation they are widened to
bootstrap-t (`experiments.bootstrap.ratio_of`), and its upper end to a 99.5 % t-interval. Where
truth attains something in one request at most, nothing is known, and the upper end is infinite.
What gains in no request of the pool is taken to gain nowhere. The greatest regret of several
advertisers lies between their greatest lower and greatest upper ends.

How often ends were on the wrong side of the truth, in 100 samples of 28 requests (8 advertisers;
1,500 requests of a synthetic pool as the truth; 2.5 % is what an end should miss):

                                 one advertiser      the greatest of 8
                                 low      high       low      high
    llm-auction-ideal, UM        1.1 %    2.8 %       4 %     0 %
    first-price, UM              2.0 %    0.5 %      10 %     0 %
    mosaic, VM, target 1.3       0.1 %    1.1 %       1 %     0 %
    vcg, VM, target 1            0 %      2.0 %       0 %     0 %
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from experiments.audit.deviations import ROUNDING, Deviations
from experiments.bootstrap import Estimate, ratio_of
from mechanisms.pool import Floats, Ints

COVERAGE = (
    "Measured on samples of 28 requests, an end of one advertiser's interval missed the truth in "
    "up to 3 % of samples; for the greatest of several, the lower end did in up to 10 %."
)
"""In words, for pages."""
SURE, SURER = 0.975, 0.9975
"""Quantiles of Student's t at the ends, and at the upper ends that a handful of requests has."""


@dataclass(frozen=True, eq=False)
class Regrets:
    """Regret of N advertisers, as fractions of the value attained under truth.

    Attributes:
        regret: (N,) on the pool itself.
        low: (N,) lower end of its 95 % interval over requests.
        high: (N,) upper end; infinite where regret rests on a single request.
        unseen: (N,) gain on each request of the deviation that is best on all others, likewise.
    """

    regret: Floats
    low: Floats
    high: Floats
    unseen: Floats

    @classmethod
    def of(cls, found: Sequence[Deviations], seed: int) -> Regrets:
        """Of each advertiser; `seed` of the resamples."""
        rows = [_regret(each, seed) for each in found]
        return cls(*(np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)))

    def interval(self, index: int) -> Estimate:
        """Of one advertiser's regret."""
        return self.greatest([index])

    def greatest(self, among: Sequence[int]) -> Estimate:
        """The greatest regret of the advertisers `among`; 0 of nobody's."""
        among = np.asarray(among, dtype=np.int64)
        return Estimate(
            *(float(x[among].max(initial=0.0)) for x in (self.regret, self.low, self.high))
        )


def _regret(found: Deviations, seed: int) -> tuple[float, float, float, float]:
    """Regret, ends of its interval, and the gain on unseen requests."""
    k = len(found.requests)
    if not k:
        return 0.0, 0.0, 0.0, 0.0
    gains, stake = found.improvement, found.stake
    total, attained = float(gains.sum()), float(stake.sum())
    theta = total / (attained if attained > 0 else _without_truth(found))
    if total <= ROUNDING * found.value_per_click * k:
        return 0.0, 0.0, _highest(found), 0.0
    told = int(np.count_nonzero(stake))
    if told < 2:
        return theta, 0.0, np.inf, 0.0
    elsewhere = found.gain_by_request[np.arange(k), _best_on_others(found)] + found.owed
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # of resamples in which truth attains nothing
        seen, unseen = (ratio_of(top, stake, seed) for top in (gains, elsewhere))
    high = max(seen.high, theta + stdtrit(told - 1, SURER) * float(_error(gains, stake)))
    low = min(unseen.low, unseen.mean - stdtrit(told - 1, SURE) * float(_error(elsewhere, stake)))
    return theta, max(min(low, theta), 0.0), max(high, _highest(found), theta), unseen.mean


def _without_truth(found: Deviations) -> float:
    """What regret is a fraction of where truth attains nothing: what the deviation does, or v."""
    attained = float(np.abs(found.value[:, found.best]).sum())
    return attained if attained > 0 else found.value_per_click * len(found.requests)


def _best_on_others(found: Deviations) -> Ints:
    """(k,) for each request, which multiple is best on all others; truth where none gains."""
    value = found.value.sum(axis=0) - found.value
    gains = found.gains(value, found.payment.sum(axis=0) - found.payment)
    return np.where(gains.max(axis=1) > 0, gains.argmax(axis=1), found.truth)


def _highest(found: Deviations) -> float:
    """Of all multiples that may be feasible and may gain, the greatest upper end."""
    k, told = len(found.requests), int(np.count_nonzero(found.stake))
    if told < 2:
        return np.inf
    gains = found.gain_by_request + found.owed[:, None]
    possible = (gains > ROUNDING * found.value_per_click).any(axis=0)
    reach = stdtrit(told - 1, SURE)
    if found.target_roi is not None:
        kept = found.surplus
        spread = reach * kept.std(axis=0, ddof=1) * np.sqrt(k)
        met = ~np.isneginf(found.total)
        possible &= met | ((kept > 0).any(axis=0) & (kept.sum(axis=0) + spread >= 0))
    ends = gains.sum(axis=0) / found.stake.sum() + reach * _error(gains, found.stake)
    return float(ends[possible].max(initial=0.0))


def _error(top: Floats, bottom: Floats) -> Floats:
    """Standard errors of Σ top / Σ bottom, (k,) or (k, G) and (k,), by linearisation."""
    k = len(top)
    rest = top.T - np.multiply.outer(top.sum(axis=0) / bottom.sum(), bottom)
    return np.sqrt((rest**2).sum(axis=-1) * k / (k - 1)) / bottom.sum()
