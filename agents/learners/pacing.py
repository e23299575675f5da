"""Pacing: dual mirror descent on ROI and budget, one multiplier per constraint.

A value maximizer that maximises `Σ v x − λ (τ p − v x) − μ (p − budget)` under a truthful payment
rule bids `v (1 + λ) / (λ τ + μ)`; without a budget that is `κ v / τ` with `κ = 1 + 1/λ`. Under
first price ROI binds at `κ = 1`, where no finite λ leads. So the learner keeps κ itself:

    κ ← κ exp(η_t · (v x − τ p) / mean value),        in [0.01, max_multiple]
    m ← m exp(η_t · (budget − p) / budget),           in [0.01, max_multiple or 1]

with `η_t = step / sqrt(t)`, multiplicative (entropic) steps that need no unit of money. The bid is
`min(κ, m)` times truthful: the tighter constraint rules (min-pacing). κ starts at `start`; from 1,
where no rule that charges at most the bid can break the target, it approaches from the safe side. A
utility maximizer has no ROI constraint and bids `v / (1 + μ) = min(1, m) v`: optimal under truthful
payment rules; under first price it does not shade, which is hedge's business.

Literature: Balseiro & Gur 2019 (adaptive pacing); Balseiro, Lu & Mirrokni 2023 (dual mirror
descent); Golrezaei et al. 2021 (ROI constraints); Feng, Padmanabhan & Wang 2023 (ROI and budget,
multiplicative steps); Lucier et al. 2024 (min-pacing).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from agents.learners.base import SIGNALS, VALUE_REACH, Feedback, Learner, Population
from mechanisms.checks import one_of, positive
from mechanisms.errors import BadInput
from mechanisms.pool import Bools, Floats

LOWEST = 0.01


class Pacing(Learner):
    """Multiplicative pacing of bids to meet a target ROI and a budget per round.

    Args:
        step: η of the schedule `η / sqrt(t)`, > 0. The default 0.5 changes a bid by a factor 1.6 at
            most when slack is total in round 1.
        max_multiple: cap of a value maximizer's multiplier, >= 1; a bidder that sits there with ROI
            to spare is reported by `capped`.
        start: a value maximizer's multiplier κ of the first round, in [0.01, max_multiple].
        signal: `expected` steers by expected clicks and payments of the bid played; `realised` by
            clicks and charges, which is all that a real advertiser sees, and is noisier.

    State:
        roi_multiplier (R, N) κ; budget_multiplier (R, N) m; mean_value (R, N) mean value of a
        round; slack (R, N) last normalised ROI slack; rounds () rounds learned from.

    Raises:
        BadInput: a parameter out of range.
    """

    name = "pacing"
    feedback = "bandit"

    def __init__(
        self,
        population: Population,
        replications: int,
        rng: np.random.Generator,
        *,
        step: float = 0.5,
        max_multiple: float = VALUE_REACH,
        start: float = 1.0,
        signal: str = "expected",
    ) -> None:
        super().__init__(population, replications, rng)
        positive("step", step)
        positive("max_multiple", max_multiple)
        if max_multiple < 1:
            raise BadInput(f"max_multiple is {max_multiple}; give at least 1")
        positive("start", start)
        if not LOWEST <= start <= max_multiple:
            raise BadInput(
                f"start is {start}; give {LOWEST} to {max_multiple:g}, which is max_multiple"
            )
        one_of("signal", signal, SIGNALS)
        self.step, self.signal = float(step), signal
        self.cap = np.where(population.value_maximizer, float(max_multiple), 1.0)
        shape = (replications, len(population.values))
        self.state = {
            "roi_multiplier": np.where(population.value_maximizer, float(start), 1.0)
            * np.ones(shape),
            "budget_multiplier": np.where(np.isfinite(population.budget), 1.0, self.cap)
            * np.ones(shape),
            "mean_value": np.zeros(shape),
            "slack": np.zeros(shape),
            "rounds": np.zeros((), dtype=np.int64),
        }

    @property
    def multiplier(self) -> Floats:
        """(R, N) bid in multiples of the truthful bid."""
        return np.minimum(self.state["roi_multiplier"], self.state["budget_multiplier"])

    @property
    def capped(self) -> Bools:
        """(R, N) value maximizers at `max_multiple` whose ROI still exceeds the target."""
        at_cap = self.population.value_maximizer & (self.multiplier >= self.cap)
        return at_cap & (self.state["slack"] > 0)

    def start_at(self, multiples: Floats) -> None:
        """A value maximizer's κ; a utility maximizer's m, at most 1, which tends to truthful."""
        multiples = np.clip(self._checked_start(multiples), LOWEST, self.cap)
        vm = self.population.value_maximizer
        self.state["roi_multiplier"] = np.where(vm, multiples, 1.0)
        if not vm.all():
            self.state["budget_multiplier"][:, ~vm] = multiples[:, ~vm]

    def bids(self) -> Floats:
        """(R, N) paced bids."""
        return self.multiplier * self.population.truthful_bids

    def learn(self, feedback: Feedback) -> None:
        """Move κ by the round's ROI slack and m by its budget slack."""
        state, people = self.state, self.population
        clicks, paid = feedback.outcome(self.signal)
        _move(
            clicks,
            paid,
            people.values,
            people.value_maximizer,
            people.target_roi,
            people.budget,
            self.cap,
            self._next_round(),
            self.step,
            state["roi_multiplier"],
            state["budget_multiplier"],
            state["mean_value"],
            state["slack"],
        )


@njit(cache=True, nogil=True)
def _move(
    clicks: Floats,
    payments: Floats,
    values: Floats,
    value_maximizer: Bools,
    target_roi: Floats,
    budget: Floats,
    cap: Floats,
    t: int,
    step: float,
    roi_multiplier: Floats,
    budget_multiplier: Floats,
    mean_value: Floats,
    slack: Floats,
) -> None:
    """One round of `Pacing.learn`, in place: arguments as in its state."""
    rate = step / np.sqrt(t)
    R, N = clicks.shape
    for r in range(R):
        for i in range(N):
            value, paid = values[i] * clicks[r, i], payments[r, i]
            mean_value[r, i] += (value - mean_value[r, i]) / t
            if value_maximizer[i]:
                mean = mean_value[r, i]
                slack[r, i] = (value - target_roi[i] * paid) / mean if mean > 0 else 0.0
                roi_multiplier[r, i] = _moved(roi_multiplier[r, i], rate * slack[r, i], cap[i])
            # An infinite budget has slack 1 and stays at the cap.
            thrift = 1 - paid / budget[i]
            budget_multiplier[r, i] = _moved(budget_multiplier[r, i], rate * thrift, cap[i])


@njit(cache=True, nogil=True)
def _moved(multiplier: float, exponent: float, cap: float) -> float:
    # The bounds make any exponent beyond ±50 the same; exp of a larger one would overflow.
    moved = multiplier * np.exp(min(max(exponent, -50.0), 50.0))
    return min(max(moved, LOWEST), cap)
