"""How good predicted click probabilities are: ranking, calibration, and agreement with the truth.

- AUC: the chance that a clicked impression is predicted above one that was not (Hanley & McNeil
  1982). Clicks are dice, so even the true probabilities stay well below 1: compare with theirs.
- Expected calibration error: the mean distance between predicted and observed click rate, over bins
  of equally many impressions (Naeini, Cooper & Hauskrecht 2015). Small samples have one even if
  predictions are perfect, by the dice alone: `calibration` gives what that would be.
- Correlation with the probabilities by which simulated users click, which no real platform sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from mechanisms.errors import BadInput
from mechanisms.pool import Floats, Ints


@dataclass(frozen=True, eq=False)
class Calibration:
    """A reliability diagram, by bins of increasing predictions.

    Attributes:
        count: (bins,) impressions.
        predicted: (bins,) their mean prediction.
        observed: (bins,) their click rate.
        error: expected calibration error.
        by_chance: the expected calibration error that predictions without fault would have at this
            many impressions.
    """

    count: Ints
    predicted: Floats
    observed: Floats
    error: float
    by_chance: float


def calibration(predicted: ArrayLike, clicks: ArrayLike, bins: int = 10) -> Calibration:
    """Predictions (rows,) against clicks (rows,), in at most `bins` bins of equally many rows.

    `by_chance` is that of normal noise of each bin's variance, which is exact but for few clicks.

    Raises:
        BadInput: no rows, or arrays of different lengths.
    """
    predicted, clicks = _paired(predicted, clicks)
    order = np.argsort(predicted, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    count = np.array([len(part) for part in parts])
    mean = np.array([predicted[part].mean() for part in parts])
    rate = np.array([clicks[part].mean() for part in parts])
    noise = np.array([(predicted[part] * (1 - predicted[part])).mean() for part in parts]) / count
    share = count / len(order)
    return Calibration(
        count=count,
        predicted=mean,
        observed=rate,
        error=float(share @ np.abs(rate - mean)),
        by_chance=float(share @ np.sqrt(2 * noise / np.pi)),
    )


def auc(scores: ArrayLike, clicks: ArrayLike) -> float:
    """The chance that a clicked row scores above one that is not, ties half; NaN without both."""
    scores, clicks = _paired(scores, clicks)
    positive = int((clicks > 0).sum())
    negative = len(clicks) - positive
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(scores)[clicks > 0].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


def correlation(predicted: ArrayLike, ctr: ArrayLike) -> float:
    """Pearson correlation of predictions with the users' own probabilities; NaN if one is flat.

    Over epochs of training it shows distribution shift: how well the click model knows the replies
    that the Ad-LLM writes by now.
    """
    predicted, ctr = _paired(predicted, ctr)
    if np.ptp(predicted) == 0 or np.ptp(ctr) == 0:
        return float("nan")
    return float(np.corrcoef(predicted, ctr)[0, 1])


def _paired(one: ArrayLike, other: ArrayLike) -> tuple[Floats, Floats]:
    one, other = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if one.shape != other.shape or one.ndim != 1 or not one.size:
        raise BadInput(
            f"predictions {one.shape} and outcomes {other.shape} do not fit; give (rows,) each, "
            "and at least one"
        )
    return one, other
