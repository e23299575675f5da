"""How sure a greatest gain is, over requests like those of the pool.

On the requests of a pool regret is exact. Over others it is an estimate, and the greatest of many
estimates is too great on average, since noise is maximised as well. So an interval has two sides:

    lower end   every request is met with the deviation that is best on all *other* requests; what
                that gains is what an advertiser would gain on requests it has not seen, at most
                its true regret on average; the lower end of its interval is the interval's
    upper end   the upper end of the interval of the best deviation's gain where it was chosen

both of ratios `Σ gain / Σ value attained`, by bootstrap-t (`experiments.bootstrap.ratio_of`). As
resamples of a handful of requests tell little of ends, the lower one is at most the t-interval's,
and the upper one at most that of a 99.5 % t-interval. The greatest regret of several advertisers
lies between their greatest lower and greatest upper ends.

Measured on 100 samples of 28 requests (8 advertisers; the whole of a synthetic pool of 3,000
requests as the truth): the lower end was too high for the greatest regret in 7 samples under
llm-auction-ideal, 10 under first-price slots, 1 for value maximizers under mosaic, and the upper
end never too low. Single advertisers' upper ends were too low in 11, 23 and 2 %. Percentiles of
resampled maxima held the greatest regret in 20, 7 and 55 % of 40 samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from experiments.audit.deviations import Deviations
from experiments.bootstrap import Estimate, ratio_of
from mechanisms.pool import Floats

ROUNDING = 1e-14
"""Of a click's value per request: a gain below it is no gain."""


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
    total = found.total
    best = int(total.argmax())
    attained = float(found.stake.sum())
    if attained <= 0:  # then of what the deviation attains
        attained = float(np.abs(found.value[:, best]).sum())
    if total[best] <= ROUNDING * found.value_per_click * k:
        return 0.0, 0.0, _highest(found), 0.0
    theta = float(total[best]) / attained
    if k < 2 or found.stake.sum() <= 0:
        return theta, 0.0, np.inf, 0.0
    gains, stake = found.gain_by_request, found.stake
    elsewhere = gains[np.arange(k), _best_on_others(found)]
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # of resamples in which truth attains nothing
        seen, unseen = (ratio_of(top, stake, seed) for top in (gains[:, best], elsewhere))
    reach = stdtrit(k - 1, 0.9975) * _error(gains[:, best], stake)
    low = min(unseen.low, unseen.mean - stdtrit(k - 1, 0.975) * _error(elsewhere, stake), theta)
    return theta, max(low, 0.0), max(min(seen.high, theta + reach), theta), unseen.mean


def _best_on_others(found: Deviations) -> Floats:
    """(k,) for each request, which multiple is best on all others."""
    value = found.value.sum(axis=0) - found.value
    return found.gains(value, found.payment.sum(axis=0) - found.payment).argmax(axis=1)


def _highest(found: Deviations) -> float:
    """The upper end where nothing gains in total: of the deviation that could at most gain."""
    k = len(found.requests)
    if found.conditional.max() <= ROUNDING * found.value_per_click or found.target_roi is not None:
        return 0.0
    if k < 2 or found.stake.sum() <= 0:
        return np.inf
    reach = stdtrit(k - 1, 0.975) * found.gain_by_request.std(axis=0, ddof=1) * np.sqrt(k)
    return float((found.total + reach).max() / found.stake.sum())


def _error(top: Floats, bottom: Floats) -> float:
    """Standard error of Σ top / Σ bottom, (k,) each, by linearisation."""
    k = len(top)
    rest = top - top.sum() / bottom.sum() * bottom
    return float(np.sqrt((rest**2).sum() * k / (k - 1)) / bottom.sum())
