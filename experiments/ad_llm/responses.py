"""What advertisers would bid, facing an Ad-LLM's answer to bids at first price.

With `x(b)` the moved ad's expected clicks at bid b, others fixed, interpolated between levels,

    utility maximizer    max_b (v − b)·x(b)                      b in [0, v]
    value maximizer      max_b v·x(b)   s.t.  v·x(b) >= tau_roi·b·x(b)    i.e. b <= v/tau_roi

LLM-Auction's theory has the value maximizer at `v/tau_roi`, where x rises up to there, and the
utility maximizer below v. Where values tie, the lowest bid is taken: a curve that does not rise
gives no reason to bid at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from experiments.ad_llm.curves import Curve
from experiments.bootstrap import RESAMPLES
from mechanisms.pool import Floats

VALUES = (25.0, 50.0, 75.0, 100.0)
TARGETS = (1.0, 1.25)
_POINTS = 401
_TIE = 1e-9  # of the greatest value


def responses(
    curve: Curve,
    values: Sequence[float] = VALUES,
    targets: Sequence[float] = TARGETS,
    seed: int = 0,
) -> pl.DataFrame:
    """Best bids against the mean curve over requests, with percentile intervals over requests.

    Returns:
        A row per objective (`utility`, `value`), value per click and target ROI (null for utility
        maximizers): `bid`, and `ratio`, `ratio_low`, `ratio_high`: bid/v, or bid·target/v.
    """
    R = len(curve.answers)
    rng = np.random.default_rng([seed, 14])
    counts = rng.multinomial(R, np.full(R, 1 / R), size=RESAMPLES // 4)
    means = np.vstack([curve.mean, counts @ curve.answers / R])
    rows = []
    for value in values:
        cases = [("utility", None, value)]
        cases += [("value", target, value / target) for target in targets]
        for objective, target, most in cases:
            best = _best(curve.levels, means, value, most, objective == "utility") / most
            low, high = np.quantile(best[1:], [0.025, 0.975])
            rows.append((objective, value, target, best[0] * most, best[0], low, high))
    names = ("objective", "value", "target_roi", "bid", "ratio", "ratio_low", "ratio_high")
    return pl.DataFrame(rows, schema=list(names), orient="row")


def _best(levels: Floats, means: Floats, value: float, most: float, utility: bool) -> Floats:
    """(K,) best bids in [0, most] against curves `means` (K, L)."""
    tried = np.linspace(0.0, most, _POINTS)
    clicks = np.stack([np.interp(tried, levels, curve) for curve in means])
    worth = clicks * (value - tried) if utility else clicks
    least = worth.max(axis=1, keepdims=True)
    return tried[(worth >= least - _TIE * np.abs(least)).argmax(axis=1)]
