"""What the study of IAMFM says of payments: tokens of ACO against those of running again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import polars as pl

from experiments.bootstrap import Estimate, mean_of
from experiments.iamfm.curves import ErrorCurve, show, table, token_ratios
from experiments.iamfm.payments import NAIVE
from experiments.reproduce.iamfm import FEW, SYNTHETIC, Study
from experiments.reproduce.page import Conclusion, judge
from mechanisms.pool import Floats

HALF = 0.5
"""Of the extra tokens of running again: what ACO may need at most for the same error."""
YARDSTICKS = {
    "error": "exact VCG",
    "range_error": "the choice's externality",
}
"""What payments are compared with: exact VCG payments of the best configuration, or the externality
of the one that is played, whether or not it includes what the allocation missed; see
`experiments.iamfm.payments`."""
SIGNED = {
    "error": ("bias", "exact VCG payments", "exact"),
    "range_error": ("fixed_bias", "the true externality, with what the allocation missed", "due"),
}
"""By yardstick: mean payments less something, what that is, and the column of its mean."""
WAYS = {
    "aco": "ACO",
    "naive": "running again",
    "naive-common": "running again, common pairs",
    "none": "no extra tokens",
}
CLAIM = (
    "Active Counterfactual Optimization reuses data of the optimisation for efficient payments "
    f"(ours: the error of running again with at most {HALF:.0%} of its extra tokens)."
)


class Saving(NamedTuple):
    """ACO beside the better way of running again, at one allowance.

    Attributes:
        way: which of `NAIVE` has the lower mean error there. Chosen by the same seeds, it looks
            better than it is: the saving is understated.
        tokens: (k,) that it spent, by seed.
        error: (k,) of its payments.
        bought: error without extra tokens less its own, paired.
        ratio: extra tokens of ACO at this error, as a share of its own.
    """

    way: str
    tokens: Floats
    error: Floats
    bought: Estimate
    ratio: Estimate

    @property
    def tells(self) -> bool:
        """Whether running again is clearly better than no tokens: else there is nothing to save."""
        return self.bought.low > 0


def curve(study: Study, world: str, n: int, *ways: str, error: str = "error") -> ErrorCurve:
    """Payment error against extra tokens of a way; several are joined, in the order given."""
    frame = study.payments.filter((pl.col("world") == world) & (pl.col("n") == n))
    parts = []
    for way in ways:
        ours = frame.filter(pl.col("way") == way)
        parts.append([table(ours, column, "allowance")[1] for column in ("extra", error)])
    tokens, errors = (np.concatenate(each, axis=1) for each in zip(*parts, strict=True))
    return ErrorCurve(tokens, errors)


def savings(study: Study, world: str, n: int, error: str = "error") -> list[Saving]:
    """(X) at each allowance of running again.

    ACO without any extra tokens is what payments are from the data of the allocation.
    """
    ours = curve(study, world, n, "none", "aco", error=error)
    naive = [curve(study, world, n, way, error=error) for way in NAIVE]
    points = range(naive[0].errors.shape[1])
    better = [int(np.argmin([each.errors[:, x].mean() for each in naive])) for x in points]
    tokens, errors = (
        np.stack([part[k][:, x] for x, k in enumerate(better)], axis=1)
        for part in ([each.tokens for each in naive], [each.errors for each in naive])
    )
    nothing = ours.errors[:, 0]
    return [
        Saving(
            NAIVE[better[x]],
            tokens[:, x],
            errors[:, x],
            mean_of(nothing - errors[:, x], looks=len(points)),
            ratio,
        )
        for x, ratio in enumerate(token_ratios(ours, ErrorCurve(tokens, errors), study.seed))
    ]


def problems(study: Study) -> list[tuple[str, int]]:
    """(world, n) at which payment errors are shown in full."""
    others = study.payments.filter(pl.col("world") != SYNTHETIC).select("world", "n").unique()
    return [(SYNTHETIC, FEW), *others.sort("world", "n").rows()]


def counterfactuals(study: Study) -> Iterator[Conclusion]:
    """Tokens at equal error, by world and yardstick, and their growth with n."""
    for world, n in problems(study):
        for error in YARDSTICKS:
            yield _at_equal_error(study, world, n, error)
    yield _growth(study)


def _at_equal_error(study: Study, world: str, n: int, error: str) -> Conclusion:
    """Tokens of ACO for the errors of running again; judged where these are worth having."""
    none, aco = (curve(study, world, n, way, error=error) for way in ("none", "aco"))
    found = savings(study, world, n, error)
    seeds = len(none.errors)
    again = "; ".join(
        f"{each.tokens.mean():,.0f} tokens ({_pairs(each.way)}): {show(mean_of(each.error))}, "
        f"{show(each.bought, '+')} below no extra tokens, token ratio {show(each.ratio)}"
        for each in found
    )
    active = "; ".join(
        f"{tokens:,.0f} tokens: {show(mean_of(each))}"
        for tokens, each in zip(aco.tokens.mean(axis=0), aco.errors.T, strict=True)
    )
    telling = [each.ratio for each in found if each.tells]
    nothing = (
        ""
        if len(telling) == len(found)
        else f" Not judged where running again is not clearly better than no extra tokens, so that "
        f"there is nothing to save: {len(found) - len(telling)} of {len(found)} budgets."
    )
    return Conclusion(
        f"(c) payments against {YARDSTICKS[error]}, {world}, n = {n}",
        CLAIM,
        f"mean error of a payment: {show(mean_of(none.errors[:, 0]))} without extra tokens. By "
        f"running again, the better of two ways at each budget, {again}. By ACO, {active}."
        f"{nothing} {_signed(study, world, n, error)} {seeds} problems, allocation by "
        f"{study.sizes.allocation:,.0f} tokens.",
        judge(seeds, *(-ratio.less(HALF) for ratio in telling)) if telling else "open",
    )


def _pairs(way: str) -> str:
    return "common pairs" if way == "naive-common" else "pairs of their own"


def _signed(study: Study, world: str, n: int, error: str) -> str:
    """Which way payments err, without extra tokens and at the most."""
    column, what, level = SIGNED[error]
    frame = study.payments.filter((pl.col("world") == world) & (pl.col("n") == n))
    most = (
        f"{label} {show(mean_of(curve(study, world, n, way, error=column).errors[:, -1]), '+')}"
        for way, label in WAYS.items()
    )
    return (
        f"Mean payment less {what} ({frame[level].mean():.3g} on average), at the most tokens: "
        f"{', '.join(most)}."
    )


def _growth(study: Study) -> Conclusion:
    """How the token ratio goes with n, where payments are all that errs."""
    error = "range_error"
    numbers = sorted(study.sizes.advertisers)
    last = {n: savings(study, SYNTHETIC, n, error)[-1] for n in numbers}
    ends = last[numbers[0]], last[numbers[-1]]
    # independent problems: the ends of the two intervals bound the difference, and more
    (m0, low0, high0), (m1, low1, high1) = (each.ratio for each in ends)
    silent = [f"{n}" for n, each in last.items() if not each.tells]
    seeds = min(len(each.error) for each in ends)
    fall = Estimate(m0 - m1, low0 - high1, high0 - low1) if m0 < np.inf or m1 < np.inf else None
    return Conclusion(
        "(c) payments, more advertisers",
        "Ours: running again takes n searches, so the saving grows with n.",
        f"token ratio against {YARDSTICKS[error]}, at the error of running n searches again as "
        "large as the allocation's: "
        + "; ".join(f"n = {n}: {show(each.ratio)}" for n, each in last.items())
        + "; of the smallest and the largest n, the difference is judged. "
        + (
            f"Running again is not clearly better than no extra tokens at n = {', '.join(silent)}."
            if silent
            else "Running again is clearly better than no extra tokens at every n."
        ),
        judge(seeds, fall) if fall and all(each.tells for each in ends) else "open",
    )
