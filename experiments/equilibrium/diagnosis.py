"""Converged, cycling or drifting: what a trajectory of bids did in the end.

A trajectory is x^1 .. x^T in R^N, bids in multiples of the truthful ones, weighted by the share of
the value that each advertiser attains: those who are hardly ever clicked may bid what they like.
Learners that mix have two coordinates, mean and standard deviation of their strategy: the distance
of two strategies is then at most Wasserstein's of order 2 (Gelbrich 1990). Distances are
`|x − y|² = Σ_i share_i (x_i − y_i)²`. Of the second half of the rounds,

    diameter D      twice the greatest distance from the mean,
    movement        the same over the last quarter of all rounds,
    lag curve       d(l) = root mean square over t of |x^{t+l} − x^t|,
    return          least of d(l) / max_{k<l} d(k), over lags up to half of the window,
    recurrence      share of the rounds t in the first half of the window to which the trajectory
                    comes back, within D/10, after having been D/2 away.

**Converged**: movement at most `MOVEMENT`, and exploitability at most `EXPLOITABILITY`.
**Cycling**: else, if it moves more than that and comes back: periodically (return <= 1/4), or,
since cycles of learners may lengthen as they go on, by recurrence >= 0.9 along a path (d(1) is less
than D/5; noise about a point jumps across it at each step). **Drifting**: else. A trajectory that
is at rest where somebody could still gain is drifting too: its learners have stopped short.

Windows are looked at twice, round by round at their end and thinned over all of it, so that cycles
of two rounds and of hundreds show. Recurrence is what Poincaré's theorem promises of hedge's
continuous-time kin in zero-sum games (Mertikopoulos, Papadimitriou & Piliouras 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from mechanisms.pool import Floats

MOVEMENT = 0.05  # of the truthful bid
EXPLOITABILITY = 0.005  # of the value attained
POINTS = 400  # of a window
RETURN, RECURRENCE, PATH = 0.25, 0.9, 0.2
NEAR, FAR = 0.1, 0.5  # of the diameter

Status = Literal["converged", "cycling", "drifting"]


@dataclass(frozen=True)
class Diagnosis:
    """What a trajectory did in the end, and by what it shows.

    Attributes:
        status: see the module.
        movement: over the last quarter of the rounds, in truthful bids.
        diameter: of the second half of the rounds.
        period: rounds after which it came back, where it is periodic; else None.
        returned: distance at that return, as a fraction of the farthest on the way; the least over
            lags where it is not periodic, None where nothing moves.
        recurrence: share of rounds to which it came back; None where nothing moves.
    """

    status: Status
    movement: float
    diameter: float
    period: int | None = None
    returned: float | None = None
    recurrence: float | None = None

    @property
    def evidence(self) -> str:
        """The numbers behind the status, in a few words."""
        moved = f"strategies move {100 * self.movement:.2g} % of truthful in the last quarter"
        if self.status == "converged" or self.returned is None:
            return moved
        if self.period is not None:
            back = f"back within {100 * self.returned:.0f} % of the way every {self.period} rounds"
        else:
            back = f"comes back to {100 * self.recurrence:.0f} % of where it was"
        return f"{moved}; {back}"


def diagnose(
    trajectory: ArrayLike, exploitability: float = 0.0, shares: ArrayLike | None = None
) -> Diagnosis:
    """Diagnose a trajectory (T, N) or (T, N, m) of bids in multiples of the truthful ones.

    Args:
        trajectory: at least 4 rounds, of m coordinates each (`Play.path`).
        exploitability: of what it ended at.
        shares: (N,) weights >= 0 of the advertisers, default equal; scaled to sum to 1.
    """
    x = np.asarray(trajectory, dtype=np.float64)
    T, N = x.shape[:2]
    weights = np.ones(N) if shares is None else np.asarray(shares, dtype=np.float64)
    weights = weights / weights.sum() if weights.sum() > 0 else np.full(N, 1 / N)
    x = (x.reshape(T, N, -1) * np.sqrt(weights)[:, None]).reshape(T, -1)
    movement, half = _diameter(x[-max(2, T // 4) :]), x[T // 2 :]
    diameter = _diameter(half)
    if movement <= MOVEMENT:
        status = "converged" if exploitability <= EXPLOITABILITY else "drifting"
        return Diagnosis(status, movement, diameter)
    thinned = max(1, -(-len(half) // POINTS))
    windows = {1: half[-POINTS:], thinned: half[::thinned]}
    looks = [_comes_back(window, stride) for stride, window in windows.items()]
    periodic = [look for look in looks if look[1] <= RETURN and look[0] is not None]
    if periodic:
        period, returned, recurrence = min(periodic, key=lambda look: look[0])
        return Diagnosis("cycling", movement, diameter, period, returned, recurrence)
    _, returned, recurrence = max(looks, key=lambda look: look[2])
    status = "cycling" if recurrence >= RECURRENCE else "drifting"
    return Diagnosis(status, movement, diameter, None, returned, recurrence)


def _diameter(x: Floats) -> float:
    return float(2 * np.sqrt(((x - x.mean(axis=0)) ** 2).sum(axis=1).max()))


def _comes_back(x: Floats, stride: int) -> tuple[int | None, float, float]:
    """Rounds and relative distance of the closest return, and the recurrence, of a window (W, N).

    A window that moves less than `MOVEMENT` by itself tells nothing: it never returns.
    """
    W, D = len(x), _diameter(x)
    if D <= MOVEMENT or W < 8:
        return None, np.inf, 0.0
    squares = (x**2).sum(axis=1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0.0))
    lags = np.arange(1, W // 2 + 1)
    curve = np.sqrt([(np.diagonal(apart, lag) ** 2).mean() for lag in lags])
    farthest = np.maximum.accumulate(curve)
    # the way there and back must be a real one
    real = np.flatnonzero(farthest[:-1] >= FAR * D / 2)
    period, returned = None, np.inf
    if len(real):
        ratios = curve[real[0] + 1 :] / farthest[real[0] : -1]
        # the first of about equally close returns is the period, the others its multiples
        close = ratios <= max(1.1 * ratios.min(), ratios.min() + 0.02)
        begin = int(close.argmax())
        end = begin + int(np.append(~close[begin:], True).argmax())
        first = begin + int(ratios[begin:end].argmin())
        period, returned = int(lags[real[0] + 1 + first]) * stride, float(ratios[first])
    along_a_path = curve[0] <= PATH * D
    return period, returned, _recurrence(apart, D) if along_a_path else 0.0


def _recurrence(apart: Floats, diameter: float) -> float:
    """Share of the first half's points to which the path comes back after having been away."""
    W = len(apart)
    came_back = 0
    for t in range(W // 2):
        later = apart[t, t + 1 :]
        away = np.flatnonzero(later >= FAR * diameter)
        came_back += bool(len(away) and (later[away[0] :] <= NEAR * diameter).any())
    return came_back / max(1, W // 2)
