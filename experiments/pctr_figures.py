"""Figures of pCTR models: can their probabilities be trusted, and how they got there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from experiments.plots import DASHES, FAINT, INK, WIDTH, style
from mechanisms.llm_auction.calibration import Calibration, calibration
from mechanisms.llm_auction.compliance import share
from mechanisms.pool import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PREDICTED, TRUTH = "#0072b2", "#d55e00"
RELIABILITY_CAPTION = (
    "Reliability of predicted click probabilities on requests held out, in bins of equally many "
    "impressions. Bars: 95 % of the observed click rate (Wilson). Below: how many impressions were "
    "predicted where. The calibration error is the mean distance from the diagonal; beside it what "
    "predictions without fault would show at this many impressions."
)
LEARNING_CAPTION = (
    "The click model on requests held out, epoch by epoch. Left: the chance that a clicked "
    "impression is predicted above one that was not; dashed, that of the users' own probabilities, "
    "above which only luck leads. Right: correlation of predictions with these probabilities."
)


def reliability(predicted: ArrayLike, clicks: ArrayLike, bins: int = 10) -> Figure:
    """Observed click rate against prediction, and a histogram of the predictions.

    Args:
        predicted: (rows,) probabilities.
        clicks: (rows,) 0 or 1.
        bins: of equally many rows.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    predicted = np.asarray(predicted, dtype=np.float64)
    found = calibration(predicted, clicks, bins)
    clicked = np.rint(found.observed * found.count).astype(int)
    shares = [share(int(k), int(of)) for k, of in zip(clicked, found.count, strict=True)]
    low, high = (np.array([getattr(each, end) for each in shares]) for end in ("low", "high"))
    reach = 1.05 * float(max(high.max(), predicted.max()))
    with style():
        figure = Figure(figsize=(WIDTH, 5.0), layout="constrained")
        above, below = figure.subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1], "hspace": 0.04}
        )
        above.plot([0, reach], [0, reach], color=FAINT, linestyle=DASHES, linewidth=1.2)
        bars = np.maximum([found.observed - low, high - found.observed], 0)
        above.errorbar(
            found.predicted, found.observed, yerr=bars, fmt="o", color=PREDICTED, markersize=5.5,
            elinewidth=1.4,
        )  # fmt: skip
        above.set(ylabel="observed click rate", ylim=(0, reach), xlim=(0, reach))
        above.set_title("Reliability of predicted clicks", pad=22)
        above.annotate(
            _said(found), (0, 1), xycoords="axes fraction", xytext=(0, 6),
            textcoords="offset points", fontsize=9.5, color="#555555", va="bottom",
        )  # fmt: skip
        sns.histplot(x=predicted, bins=30, ax=below, color=PREDICTED, edgecolor="white")
        below.set(xlabel="predicted click probability", ylabel="impressions")
    return figure


def learning(history: Sequence[Mapping[str, Any]], unit: str = "epoch") -> Figure:
    """AUC and correlation with the users' own probabilities, epoch by epoch.

    Args:
        history: rows with `auc`, `auc_of_truth` and `correlation`, such as `PCTR.history`, or the
            last of each fit over the epochs of IRPO; None where a figure cannot be told.
        unit: what a row is.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    at = np.arange(1, len(history) + 1)
    with style():
        figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
        left, right = figure.subplots(1, 2)
        own = _column(history, "auc")
        truth = _column(history, "auc_of_truth")
        _drawn(left, at, own, PREDICTED, "predictions")
        left.plot(at, truth, color=TRUTH, linestyle=DASHES, label="the users' own probabilities")
        left.axhline(0.5, color=FAINT, linewidth=1)
        left.annotate(
            "chance", (1, 0.5), xycoords=("axes fraction", "data"), color=FAINT, fontsize=9,
            xytext=(-2, 3), textcoords="offset points", ha="right",
        )  # fmt: skip
        left.set(ylabel="AUC", title="Who will click")
        left.legend(loc="lower right", bbox_to_anchor=(1, 0.1))
        _drawn(right, at, _column(history, "correlation"), PREDICTED, "predictions")
        right.axhline(0, color=INK, linewidth=0.8)
        right.set(
            ylabel="correlation with click probabilities",
            title="How near the truth",
            ylim=(None, 1),
        )
        for ax in (left, right):
            ax.set(xlabel=unit)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _said(found: Calibration) -> str:
    return (
        f"calibration error {found.error:.3f} ({found.by_chance:.3f} by chance), "
        f"{found.count.sum():,} impressions"
    )


def _column(history: Sequence[Mapping[str, Any]], name: str) -> Floats:
    return np.array([np.nan if row[name] is None else row[name] for row in history], dtype=float)


def _drawn(ax: Axes, at: Floats, values: Floats, colour: str, label: str) -> None:
    ax.plot(at, values, color=colour, marker="o", markersize=4.5, label=label)
