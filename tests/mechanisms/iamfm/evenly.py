"""The simplest search there is, for tests of what comes after a search."""

import numpy as np

from mechanisms.iamfm.evaluations import Evaluations, TokenBudget
from mechanisms.iamfm.sampling import BySampleMeans, trusted


class Evenly(BySampleMeans):
    """As many unbiased pairs for each configuration as there are tokens for.

    It plays none that has less than half as many pairs as another one.
    """

    name = "evenly"

    def search(self, known, weights, tokens, purpose, rng, among=None):
        which = np.arange(len(known.evaluator.configurations)) if among is None else among
        pairs = known.affordable_pairs(which, known.full, tokens)
        known.extend(which, known.full, pairs, purpose, tokens)

    def choose(self, known, weights):
        among = trusted(known, 0.5)
        return int(among[np.argmax(self.belief(known).mean[among] @ weights)])


def searched(evaluator, pairs, limit=1e7):
    """Samples of so many unbiased pairs of every configuration."""
    known = Evaluations(evaluator, TokenBudget(limit))
    everything = np.arange(len(evaluator.configurations))
    assert known.extend(everything, known.full, pairs, "allocation")
    return known
