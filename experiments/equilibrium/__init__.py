"""Equilibria: with fixed values what learners come to, with private ones redrawn Bayes-Nash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from experiments.equilibrium.solver import EquilibriumReport, solve, solve_game
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.pool import ReplyPool

if TYPE_CHECKING:
    from experiments.equilibrium.study import find_equilibrium

__all__ = ["EquilibriumReport", "equilibrium", "find_equilibrium", "solve", "solve_game"]


def equilibrium(
    mechanism: Mechanism,
    pool: ReplyPool,
    values: ArrayLike | None = None,
    *,
    prior: Any = None,
    objective: str | Sequence[str] = "utility",
    roi: ArrayLike | None = None,
    learner: str | None = None,
    rng: np.random.Generator | None = None,
    **parameters: Any,
) -> Any:
    """The equilibrium that learners come to, and how far from an exact one it is.

    Args:
        mechanism: any.
        pool: candidate replies of N advertisers.
        values: (N,) values per click that everybody keeps, or
        prior: what private values are redrawn from in each round.
        objective: `utility` or `value`, for all or by advertiser.
        roi: target ROI of value maximizers, one or by advertiser.
        learner: default `hedge` with values, `dual-averaging` with a prior.
        rng: default seeded with 0.
        parameters: further ones of `solve` or of `experiments.bayesian.solve_bayesian`.

    Returns:
        An `EquilibriumReport`, or with a prior a `BayesianReport`.

    Raises:
        BadInput: neither values nor a prior, or both; anything out of range.

    Three bidders for one place at first price, values uniform: the equilibrium bid is 2/3 of them.

    >>> from experiments.bayesian import Uniform
    >>> from mechanisms import make_mechanism
    >>> place = ReplyPool.from_arrays(np.eye(3)[None])
    >>> found = equilibrium(make_mechanism("first-price"), place, prior=Uniform(0, 1))
    >>> found.bid_function(np.array([0.3, 0.6, 0.9]))[0].round(2)
    array([0.2, 0.4, 0.6])
    """
    if (values is None) == (prior is None):
        raise BadInput("equilibrium: give values, or a prior that they are redrawn from")
    if prior is None:
        return solve(mechanism, pool, values, objective, roi, learner or "hedge", rng, **parameters)
    from experiments.bayesian import solve_bayesian

    rng = np.random.default_rng(0) if rng is None else rng
    name = learner or "dual-averaging"
    return solve_bayesian(mechanism, pool, prior, name, objective, roi, rng, **parameters)


def __getattr__(name: str) -> Any:
    """`find_equilibrium`, whose pages and encoders take seconds to import, when it is asked for."""
    if name != "find_equilibrium":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from experiments.equilibrium.study import find_equilibrium

    return find_equilibrium
