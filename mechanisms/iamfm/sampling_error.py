"""How far means over pairs are off, and how far they are off together.

Pair p of configuration s at level l deviates from the expected outcome by

    y(s, l, p) − f(s, l) = σ_l(s)·(q_l(p) + e_l(s, p)),

where q is the query's, the same under all configurations (common random numbers), and e the
reply's. Levels share queries and perhaps replies, so both have covariances between levels, B and E,
of which `B_ll + E_ll = 1`. Everybody is evaluated on pairs 0..m−1, so means over m and m' pairs
share min(m, m') of them, and the covariance of their errors is

    σ_l(s)·σ_l'(s')·(B_ll' + 1{s = s'}·E_ll')·min(1/m, 1/m'):

Brownian motion in the time 1/m. Correlated sampling errors in a Gaussian process: Chen, Ankenman &
Nelson 2012; in Bayesian optimisation: Pearce, Poloczek & Branke 2022.

Here σ, B and E are estimated by moments from samples. σ depends on the configuration by the
advertiser's own strength (an ad that is not sponsored has next to no clicks, and no variance).

Shapes: configurations S, advertisers n, outcomes K = n + 1, levels L, own strengths G.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechanisms.iamfm.evaluations import Evaluations
from mechanisms.pool import Bools, Floats, Ints

PRIOR_DEGREES = 2.0
"""Degrees of freedom of what is assumed before there is data, against those of the data."""
LEAST_OWN = 0.02
"""Least share of a deviation's variance that is the reply's own."""


@dataclass(frozen=True, eq=False)
class SamplingError:
    """Second moments of the deviations of single pairs.

    Attributes:
        spread: (K, L, G) standard deviation σ, by the advertiser's own strength; that of user
            satisfaction is the same for all.
        common: (K, L, L) B.
        own: (K, L, L) E.
    """

    spread: Floats
    common: Floats
    own: Floats

    def of(self, strengths: Ints, levels: Ints) -> Floats:
        """(K, N) σ of configurations (N, n) at levels (N,)."""
        own = own_strengths(strengths)
        return self.spread[np.arange(len(own))[:, None], levels, own]


def own_strengths(strengths: Ints) -> Ints:
    """(K, N) strength that each outcome is its advertiser's of; 0 for user satisfaction."""
    return np.vstack([strengths.T, np.zeros(len(strengths), dtype=strengths.dtype)])


def estimate(known: Evaluations, levels: Sequence[int]) -> SamplingError:
    """The sampling error that samples at `levels` show; other levels are left at 0.

    Where no configuration has two pairs at a level, the spread of all samples stands for that of
    pairs, which is no less.
    """
    strengths = known.evaluator.configurations
    n, L = strengths.shape[1], len(known.evaluator.levels)
    deviations = [_deviations(known, level) for level in range(L)]
    spread = np.zeros((n + 1, L, int(strengths.max()) + 1))
    for level in levels:
        spread[:, level] = _spread(known, level, *deviations[level], strengths, spread.shape[2])

    common, own = np.zeros((n + 1, L, L)), np.zeros((n + 1, L, L))
    for one in levels:
        for other in levels:
            here, there = (
                (*deviations[level], _by_row(spread[:, level], strengths[deviations[level][0]]))
                for level in (one, other)
            )
            common[:, one, other], own[:, one, other] = _shared(here, there)
    common = _positive(common)
    at = np.arange(L)
    on = np.isin(at, levels)
    share = np.minimum(common[:, at, at], 1 - LEAST_OWN)
    shrink = np.sqrt(np.divide(share, common[:, at, at], out=np.ones_like(share), where=share > 0))
    common *= shrink[:, :, None] * shrink[:, None, :]
    own -= common * (own != 0)
    own[:, at, at] = np.where(on, 1 - share, 0.0)
    return SamplingError(spread, common, _positive(own))


def _deviations(known: Evaluations, level: int) -> tuple[Ints, Floats, Ints]:
    """Configurations of two pairs and more; (s, P, K) deviations from their means; pairs (s,)."""
    counts = known.counts[level]
    which = np.flatnonzero(counts > 1)
    K = known.evaluator.configurations.shape[1] + 1
    deviations = np.zeros((len(which), int(counts.max(initial=0)), K))
    for pairs in np.unique(counts[which]):
        mine = counts[which] == pairs
        outcomes = known.outcomes(level, which[mine], int(pairs))
        deviations[mine, :pairs] = outcomes - outcomes.mean(axis=1, keepdims=True)
    return which, deviations, counts[which]


def _spread(
    known: Evaluations,
    level: int,
    which: Ints,
    deviations: Floats,
    pairs: Ints,
    strengths: Ints,
    G: int,
) -> Floats:
    """(K, G) standard deviations, drawn to that of all strengths where there is little data."""
    K = strengths.shape[1] + 1
    if not len(which):
        sampled = np.flatnonzero(known.counts[level])
        if len(sampled) < 2:
            return np.zeros((K, G))
        return np.repeat(known.outcomes(level, sampled, 1)[:, 0].std(axis=0)[:, None], G, axis=1)
    squares = np.einsum("spk,spk->ks", deviations, deviations)
    overall = squares.sum(axis=1) / (pairs - 1).sum()
    member = own_strengths(strengths[which])[:, :, None] == np.arange(G)  # (K, s, G)
    degrees = np.einsum("s,ksg->kg", pairs - 1.0, member)
    total = np.einsum("ks,ksg->kg", squares, member)
    variance = (total + PRIOR_DEGREES * overall[:, None]) / (degrees + PRIOR_DEGREES)
    return np.sqrt(variance)


def _by_row(spread: Floats, strengths: Ints) -> Floats:
    """(K, s) of (K, G), for configurations (s, n)."""
    return spread[np.arange(len(spread))[:, None], own_strengths(strengths)]


def _shared(
    here: tuple[Ints, Floats, Ints, Floats], there: tuple[Ints, Floats, Ints, Floats]
) -> tuple[Floats, Floats]:
    """(K,) correlations of deviations at two levels: of two configurations, and of one.

    With residuals r from means over m and m' pairs, `Σ_p r_p·r'_p` over the pairs that both have
    is of mean `(min(m, m') − 1)·σ·σ'·correlation`. The ratio of sums weighs configurations by
    their variance, so those that have none say nothing.
    """
    (which, mine, pairs, sigma), (which_there, theirs, pairs_there, sigma_there) = here, there
    P = min(mine.shape[1], theirs.shape[1])
    K = mine.shape[2]
    if P < 2:
        return np.zeros(K), np.zeros(K)
    products = np.einsum("spk,tpk->kst", mine[:, :P], theirs[:, :P], optimize=True)
    degrees = np.minimum.outer(pairs, pairs_there) - 1.0
    scale = sigma[:, :, None] * sigma_there[:, None, :] * degrees
    same = np.equal.outer(which, which_there)
    queries = float(min(pairs.max(), pairs_there.max()) - 1)
    # few queries tell little of what they share, however many configurations are asked
    common = _ratio(products, scale, ~same) * queries / (queries + PRIOR_DEGREES)
    itself = degrees[same].sum()
    return common, _ratio(products, scale, same) * itself / (itself + PRIOR_DEGREES)


def _ratio(products: Floats, scale: Floats, where: Bools) -> Floats:
    """(K,) ratio of the sums over `where`; 0 where there is nothing to divide by."""
    over, under = products[:, where].sum(axis=1), scale[:, where].sum(axis=1)
    return np.divide(over, under, out=np.zeros_like(over), where=under > 0)


def _positive(matrices: Floats) -> Floats:
    """Symmetric matrices (K, L, L) without their negative eigenvalues."""
    values, vectors = np.linalg.eigh((matrices + matrices.swapaxes(1, 2)) / 2)
    return np.einsum("kij,kj,klj->kil", vectors, np.maximum(values, 0.0), vectors)
