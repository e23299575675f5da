"""Worlds with a known truth, on which searches and payments are measured.

A world gives a problem for each seed: an evaluator, the true outcomes of all its configurations,
and bids. In the synthetic one a seed draws everything; in the recorded one the truth is that of one
pool of an LLM's replies, by exact reweighting, and a seed draws bids and the order and random
numbers of evaluations. Intervals over seeds are then over problems, and over bids and evaluations
on that pool.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from experiments.parallel import stream
from market.scenario import Scenario
from mechanisms.iamfm.configuration import design
from mechanisms.iamfm.evaluations import Evaluator, weights_of
from mechanisms.iamfm.mechanism import IAMFM
from mechanisms.iamfm.recorded import RecordedEvaluator
from mechanisms.iamfm.synthetic import SyntheticEvaluator, SyntheticSettings
from mechanisms.pool import Floats, ReplyPool

CAP = 243
"""Configurations that are looked at, at most: all of five advertisers, a design of more."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What a platform is given, and what only we know.

    Attributes:
        evaluator: of its S configurations.
        truth: (S, n + 1) true outcomes.
        bids: (n,) truthful.
        user_weight: μ.
    """

    evaluator: Evaluator
    truth: Floats
    bids: Floats
    user_weight: float

    @property
    def weights(self) -> Floats:
        """(n + 1,) of an outcome in W."""
        return weights_of(self.bids, self.user_weight)

    @property
    def welfare(self) -> Floats:
        """(S,) true W."""
        return self.truth @ self.weights

    @property
    def sponsored_by_nobody(self) -> int:
        """The configuration that mentions no ad."""
        return int(np.flatnonzero((self.evaluator.configurations == 0).all(axis=1))[0])


class World(Protocol):
    """Where problems come from."""

    name: str

    def problem(self, seed: int) -> Problem:
        """The problem of a seed; the same one whenever it is asked for."""


@dataclass(frozen=True)
class Synthetic:
    """Problems of `mechanisms.iamfm.synthetic`, everything drawn anew by each seed.

    Attributes:
        settings: what they are drawn from; advertisers bid their values.
        cap: configurations at most; where there are more, a design of so many is the problem.
    """

    settings: SyntheticSettings = field(default_factory=SyntheticSettings)
    cap: int = CAP
    name: str = "synthetic"

    def problem(self, seed: int) -> Problem:
        """See `World`."""
        settings = self.settings
        rng = stream(seed, "design", settings.advertisers)
        configurations = design(settings.advertisers, settings.strengths, self.cap, rng)
        evaluator = SyntheticEvaluator(settings, seed, configurations, pair_seed=seed)
        return Problem(evaluator, evaluator.truth(), evaluator.values, settings.user_weight)


@dataclass(frozen=True, eq=False)
class Recorded:
    """One pool of an LLM's replies.

    Attributes:
        evaluator: of a design of configurations, over the pool.
        bids: lowest and highest bid; a seed draws them uniformly from between.
        user_weight: μ.
    """

    evaluator: RecordedEvaluator
    bids: tuple[float, float]
    user_weight: float
    name: str = "recorded"

    @classmethod
    def of(cls, scenario: Scenario, pool: ReplyPool, mechanism: IAMFM) -> Recorded:
        """The pool as `mechanism` sees it, if it looks at `CAP` configurations.

        Bids range as the values of the scenario's advertisers do.
        """
        values = [spec.value for spec in scenario.advertisers]
        evaluator = replace(mechanism, cap=CAP).evaluator(pool)
        return cls(evaluator, (min(values), max(values)), mechanism.user_weight)

    def problem(self, seed: int) -> Problem:
        """See `World`."""
        evaluator = self.evaluator.reseeded(seed)
        n = evaluator.configurations.shape[1]
        bids = stream(seed, "bids").uniform(*self.bids, n)
        return Problem(evaluator, evaluator.truth(), bids, self.user_weight)
