"""Learners by name."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from agents.learners.base import Learner, Population
from agents.learners.best_response import BestResponse, FictitiousPlay
from agents.learners.dual_averaging import DualAveraging
from agents.learners.exp3 import Exp3
from agents.learners.gradient import Gradient
from agents.learners.hedge import Hedge
from agents.learners.pacing import Pacing
from agents.learners.reinforce import Reinforce
from agents.learners.shading import Shading
from agents.learners.truthful import Truthful
from mechanisms.errors import BadInput, instead

LEARNERS: dict[str, type[Learner]] = {
    learner.name: learner
    for learner in (
        Truthful,
        Shading,
        Hedge,
        Exp3,
        Pacing,
        BestResponse,
        FictitiousPlay,
        DualAveraging,
        Gradient,
        Reinforce,
    )
}


def make_learner(
    name: str,
    population: Population,
    replications: int,
    rng: np.random.Generator,
    /,
    **parameters: Any,
) -> Learner:
    """Build the learner called `name` for all advertisers of `population`.

    Args:
        name: a key of `LEARNERS`.
        population: the N advertisers that share it.
        replications: R.
        rng: the learner's own generator.
        parameters: the learner's keyword parameters.

    Raises:
        BadInput: an unknown name or parameter (the message lists the valid ones), or a bad value.

    A utility maximizer with value 2, no target and no budget:

    >>> people = Population(*np.array([[2.0], [False], [1.0], [np.inf]]))
    >>> make_learner("shading", people, 1, np.random.default_rng(0), factor=0.5).bids()
    array([[1.]])
    """
    check_learner(name, parameters)
    if replications < 1:
        raise BadInput(f"replications must be at least 1; got {replications}")
    return LEARNERS[name](population, replications, rng, **parameters)


def check_learner(name: str, parameters: dict[str, Any]) -> None:
    """Refuse an unknown learner, an unknown parameter or a bad value, before anything is run."""
    if name not in LEARNERS:
        raise BadInput(f"unknown learner {name!r:.60}; {instead(name, sorted(LEARNERS))}")
    known = {
        p.name: p.default
        for p in inspect.signature(LEARNERS[name]).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for parameter in parameters:
        if parameter not in known:
            mend = instead(parameter, known, "it has")
            raise BadInput(f"learner {name} has no parameter {parameter!r:.60}; {mend}")
    one = np.ones(1)
    anyone = Population(values=one, value_maximizer=one > 0, target_roi=one, budget=one)
    try:
        LEARNERS[name](anyone, 1, np.random.default_rng(0), **parameters)
    except BadInput:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        defaults = {parameter: known[parameter] for parameter in parameters}
        raise BadInput(
            f"learner {name} cannot take {parameters!r:.200} ({error}); give the like of {defaults}"
        ) from None
