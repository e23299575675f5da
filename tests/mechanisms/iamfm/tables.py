"""Evaluators whose outcomes are written down, for tests of searches and of their accounts."""

import numpy as np

from mechanisms.iamfm.evaluations import Level


class Table:
    """Outcomes (L, S, P, n + 1) as given; a pair costs its level's tokens times `shares`."""

    def __init__(self, outcomes, tokens=None, shares=None):
        L, S, P, k = outcomes.shape
        tokens = tokens or [1.0 + level for level in range(L)]
        self.configurations = np.arange(S * (k - 1)).reshape(S, k - 1)
        self.levels = [Level(f"level {i}", t, biased=i < L - 1) for i, t in enumerate(tokens)]
        self.shares = np.ones((L, S, P)) if shares is None else shares
        self.table = outcomes

    def sample(self, which, level, start, stop):
        costs = self.shares[level, which, start:stop] * self.levels[level].tokens
        return self.table[level, which, start:stop], costs

    @classmethod
    def random(cls, seed, L=2, S=5, P=40, n=2, tokens=None):
        rng = np.random.default_rng(seed)
        return cls(rng.random((L, S, P, n + 1)), tokens, rng.uniform(0.3, 1.0, (L, S, P)))

    @classmethod
    def constant(cls, means, tokens=None):
        """Every pair of a configuration is (L, S, n + 1) `means`."""
        L, S, k = means.shape
        pairs = 5000
        shares = np.broadcast_to(1.0, (L, S, pairs))
        return cls(np.broadcast_to(means[:, :, None], (L, S, pairs, k)), tokens, shares)


class Permuted:
    """The same problem with advertisers in another order."""

    def __init__(self, evaluator, order):
        self.evaluator, self.order, self.levels = evaluator, order, evaluator.levels
        self.configurations = evaluator.configurations[:, order]

    def sample(self, which, level, start, stop):
        outcomes, tokens = self.evaluator.sample(which, level, start, stop)
        return outcomes[:, :, np.append(self.order, len(self.order))], tokens
