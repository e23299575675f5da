"""Bid functions, and what they lose in the continuous game.

A bid function is kept at `POINTS` evenly spaced quantiles of the value, end points included, and is
linear between them; it is non-decreasing, so the bid distribution of a uniform prior is piecewise
linear with knots at its bids, and outcomes against it are as exact as those against cells.
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import make_lsq_spline

from experiments.bayesian.game import BayesianGame
from experiments.bayesian.interim import BidDistributions, Interim
from experiments.bayesian.response import Losses, losses
from mechanisms.pool import Floats

POINTS = 513
_PIECES = (1, 2, 3, 4)
_NO_WEIGHT = 1e-9
_TURNS, _BISECTIONS = 3, 40


def purified(distributions: BidDistributions) -> Floats:
    """(C, POINTS) the non-decreasing bid functions with the same bid distributions.

    `β = H⁻¹∘F` leaves all rivals' outcomes as they are, and its owner no worse off: `v·x(b)` has
    increasing differences, so of all couplings of values and bids the monotone one pays most.
    """
    # bids of no weight to speak of are not the highest
    at = np.linspace(0, 1, POINTS).clip(_NO_WEIGHT, 1 - _NO_WEIGHT)
    pairs = zip(distributions.cumulative, distributions.knots, strict=True)
    return np.stack([np.interp(at, cumulative, knots) for cumulative, knots in pairs])


def smoothed(bids: Floats, pieces: int) -> Floats:
    """(C, POINTS) least-squares cubic splines through `bids` (C, K) at the middles of K quantiles.

    What is smoothed away are the steps of a strategy on bid cells: rivals respond to the *density*
    of bids, in which steps show as spikes.
    """
    K = bids.shape[1]
    inner = np.linspace(0, 1, pieces + 1)[1:-1]
    knots = np.concatenate([np.zeros(4), inner, np.ones(4)])
    at = np.linspace(0, 1, POINTS)
    fitted = [make_lsq_spline((np.arange(K) + 0.5) / K, row, knots)(at) for row in bids]
    return np.maximum.accumulate(np.maximum(fitted, 0.0), axis=1)


def candidates(distributions: BidDistributions, mean_bids: Floats) -> list[Floats]:
    """Bid functions (C, POINTS) that may stand for a strategy on cells."""
    return [purified(distributions), *(smoothed(mean_bids, pieces) for pieces in _PIECES)]


def function_losses(
    game: BayesianGame, interim: Interim, bids: Floats, cells: int
) -> tuple[Floats, Losses]:
    """What bid functions lose against all bids and strategies in the continuous game.

    Value maximizers' functions are first scaled to meet their targets, just so.

    Args:
        game: who bids for what.
        interim: computes outcomes.
        bids: (C, POINTS) bid functions.
        cells: so many evenly spaced bids are tried, up to the highest considered.

    Returns:
        The bid functions, as scaled, and their losses.
    """
    edges = game.top[:, None] * np.linspace(0, 1, cells + 1)
    values = game.values(bids.shape[1] - 1)
    for _ in range(_TURNS if game.value_maximizer.any() else 0):
        bids = _scaled(game, interim, values, bids, edges)
    return bids, losses(game, values, *interim.functions(bids, edges))


def _scaled(
    game: BayesianGame, interim: Interim, values: Floats, bids: Floats, edges: Floats
) -> Floats:
    """Value maximizers' bids times the greatest factor that meets their targets.

    Against the others' bids as they are; factors are within 1/2 and 2, bids within what is tried.
    """
    _, (clicks, payments) = interim.functions(bids, edges)
    centres = (edges[:, 1:] + edges[:, :-1]) / 2
    middles = (bids[:, 1:] + bids[:, :-1]) / 2
    factor = np.ones(game.classes)
    for c in np.flatnonzero(game.value_maximizer):
        low, high = 0.5, min(2.0, game.top[c] / bids[c].max()) if bids[c].max() > 0 else 1.0
        for _ in range(_BISECTIONS):
            factor[c] = (low + high) / 2
            won, paid = (
                np.interp(factor[c] * middles[c], centres[c], of[c]) for of in (clicks, payments)
            )
            met = (values[c] * won).mean() >= game.roi[c] * paid.mean()
            low, high = (factor[c], high) if met else (low, factor[c])
        factor[c] = low
    return bids * factor[:, None]
