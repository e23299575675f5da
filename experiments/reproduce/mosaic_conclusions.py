"""What the study says, in sentences with intervals, and where that differs from the paper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.stats import spearmanr

from experiments.bootstrap import RESAMPLES, interval
from experiments.reproduce.mosaic import Study
from experiments.reproduce.mosaic_figures import SUMS, WELFARE, ratio_of_sums, welfare

SMALL = 8
"""M at which ways of writing are compared: where candidates are few, how they are written tells."""


@dataclass(frozen=True)
class Conclusion:
    """One question of the paper's, and the answer found here.

    Attributes:
        question: which of (a) to (e).
        paper: what the paper says.
        found: what was found, with 95 % intervals.
        verdict: `agrees`, `differs`, or `open` where the interval does not tell.
    """

    question: str
    paper: str
    found: str
    verdict: str


def conclusions(study: Study) -> list[Conclusion]:
    """All of them, in the order of the questions."""
    return [
        *_convergence(study),
        *_offset(study),
        _temperature(study),
        _honesty(study),
        _cost(study),
    ]


def _convergence(study: Study) -> Iterator[Conclusion]:
    for (reward,), frame in study.convergence.group_by("reward", maintain_order=True):
        for way in ("reference", "guided", "mixture", "context"):
            part = frame.filter(pl.col("way") == way)
            few, many = (part.filter(pl.col("M") == m) for m in (SMALL, part["M"].max()))
            shift = interval(_paired(few, many, "welfare"), _rng())
            yield Conclusion(
                f"(a) convergence, rewards {reward}",
                "The allocation approaches the optimal reply distribution as M grows.",
                f"{way}: regularised welfare ({WELFARE[reward]}) {_show(welfare(few))} at "
                f"M = {SMALL} and {_show(welfare(many))} at M = {part['M'].max()}; total "
                f"variation over ads shown {_show(ratio_of_sums(few, 'distance', None))} and "
                f"{_show(ratio_of_sums(many, 'distance', None))}; effective sample size "
                f"{many['ess'].mean():.1f} of {part['M'].max()}.",
                _sign(shift, wanted=+1),
            )
        for way in ("context", "mixture", "guided"):
            at = frame.filter(pl.col("M") == SMALL)
            ours, theirs = (at.filter(pl.col("way") == name) for name in (way, "reference"))
            worth, distance, likely = (
                interval(_paired(theirs, ours, column), _rng())
                for column in ("welfare", "distance", "likelihood")
            )
            yield Conclusion(
                f"(a) how candidates are written, rewards {reward}",
                "Candidates that know the advertisers come closer to the optimum at equal M.",
                f"{way} less reference at M = {SMALL}: regularised welfare {_show(worth, '+')} "
                f"money, total variation {_show(distance, '+')}, log-probability under the optimum "
                f"{_show(likely, '+')} nats.",
                _sign(worth, wanted=+1),
            )


def _offset(study: Study) -> Iterator[Conclusion]:
    clicks = study.offsets.filter(pl.col("reward") == "clicks")
    sums = {
        which: clicks.filter(pl.col("offset") == which)
        .group_by("request", maintain_order=True)
        .agg(SUMS)
        for which in (True, False)
    }
    with_, without = (ratio_of_sums(sums[which], "payment", None) for which in (True, False))
    share = ratio_of_sums(sums[True], "payment", "value")
    yield Conclusion(
        "(b) revenue",
        "With the offset the platform earns, and advertisers gain by taking part.",
        f"revenue {_show(with_)} money per request with offset ({_show(share)} of the advertisers' "
        f"value), {_show(without)} without.",
        "agrees" if with_[1] > 0 else "open",
    )
    for reward in ("clicks", "log-ratio"):
        part = study.offsets.filter(pl.col("reward") == reward)
        ranks = {
            which: _rank_correlation(part.filter(pl.col("offset") == which))
            for which in (True, False)
        }
        yield Conclusion(
            "(b) utility and contribution",
            "With the offset, an advertiser's utility follows its contribution to welfare.",
            f"rewards {reward}: Spearman correlation {_show(ranks[True])} with offset, "
            f"{_show(ranks[False])} without.",
            "agrees" if ranks[True][1] > 0.5 else "differs" if ranks[True][2] < 0.5 else "open",
        )


def _temperature(study: Study) -> Conclusion:
    frame = study.temperatures
    low, high = (frame.filter(pl.col("tau") == frame["tau"].sort()[at]) for at in (0, -1))
    shift = interval(_paired(low, high, "satisfaction"), _rng())
    value = interval(_paired(low, high, "value"), _rng())
    return Conclusion(
        "(c) users and tau",
        "A larger tau keeps replies near the reference LLM's, at a price to advertisers.",
        f"from tau {low['tau'][0]:g} to {high['tau'][0]:g}: satisfaction {_show(shift, '+')}, "
        f"advertisers' value {_show(value, '+')} money per request.",
        _sign(shift, wanted=+1),
    )


def _honesty(study: Study) -> Conclusion:
    frame, truthful = study.misreports, study.offsets.filter(pl.col("offset"))
    scale = frame["value"].max()
    most = {
        kind: part["gain"].max() / scale
        for (kind,), part in frame.group_by("kind", maintain_order=True)
    }
    least = truthful.filter(pl.col("reward") == "clicks")["utility"].min()
    worst = max(most.values())
    half, double, noise = (
        ratio_of_sums(
            frame.filter((pl.col("kind") == kind) & (pl.col("size") == size)).with_columns(
                loss=-pl.col("gain")
            ),
            "loss",
            "value",
        )
        for kind, size in (("scalar", 0.5), ("scalar", 2.0), ("noise", 1.0))
    )
    return Conclusion(
        "(d) incentives",
        "Truthful reporting is a dominant strategy; nobody loses by taking part.",
        f"over {frame.height:,} misreports, scalar and vector, the largest gain is {worst:.1e} of "
        f"the largest value (rounding); half the value loses {_show(half)} of it, twice the value "
        f"{_show(double)}, vector noise of one sd {_show(noise)}. Least truthful utility "
        f"{least:.1e}.",
        "agrees" if worst < 1e-9 and least > -1e-9 else "differs",
    )


def _cost(study: Study) -> Conclusion:
    at = study.tokens.filter((pl.col("M") == 20) & (pl.col("n") == 4))
    cost = dict(at.select("way", "tokens").iter_rows())
    one = study.tokens.filter((pl.col("M") == 1) & (pl.col("n") == 4) & (pl.col("way") == "guided"))
    plain = float(one["tokens"][0])
    return Conclusion(
        "(e) cost",
        "The overhead over a single reply is moderate.",
        f"20 candidates and 4 ads take {cost['guided']:,.0f} tokens by guided insertion, "
        f"{cost['mixture']:,.0f} as a mixture, {cost['log-ratio']:,.0f} with log-ratio rewards: "
        f"{cost['guided'] / plain:.1f}, {cost['mixture'] / plain:.1f} and "
        f"{cost['log-ratio'] / plain:.1f} times a single reply ({plain:,.0f}).",
        "agrees" if cost["guided"] / plain < 20 else "differs",
    )


def _rank_correlation(frame: pl.DataFrame) -> tuple[float, float, float]:
    """Spearman's, over ads of requests, with a bootstrap over requests."""
    parts = [part for _, part in frame.group_by("request", maintain_order=True)]
    x = np.stack([part["contribution"].to_numpy() for part in parts])
    y = np.stack([part["utility"].to_numpy() for part in parts])
    rng = _rng()
    drawn = rng.integers(len(x), size=(RESAMPLES // 8, len(x)))
    again = [spearmanr(x[rows].ravel(), y[rows].ravel()).statistic for rows in drawn]
    low, high = np.quantile(again, [0.025, 0.975])
    return float(spearmanr(x.ravel(), y.ravel()).statistic), float(low), float(high)


def _paired(before: pl.DataFrame, after: pl.DataFrame, column: str) -> np.ndarray:
    return after.sort("request")[column].to_numpy() - before.sort("request")[column].to_numpy()


def _sign(found: tuple[float, float, float], wanted: int) -> str:
    _, low, high = found
    if low <= 0 <= high:
        return "open"
    return "agrees" if np.sign(low) == wanted else "differs"


def _show(found: tuple[float, float, float], sign: str = "") -> str:
    mean, low, high = found
    return f"{mean:{sign}.3g} [{low:{sign}.3g}, {high:{sign}.3g}]"


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)
