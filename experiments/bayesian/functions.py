"""Bid functions, and what they lose in the continuous game.

A bid function is kept at `POINTS` evenly spaced quantiles of the value, end points included, and is
linear between them; it is non-decreasing, so the bid distribution of a uniform prior is piecewise
linear with knots at its bids, and outcomes against it are as exact as those against cells.

A strategy on bid cells is made a function in one way, which its grid sets and no measurement:
`smoothed`, the least-squares cubic spline of its mean bids, a piece for every `CELLS_A_PIECE` bid
cells. Rivals respond to the *density* of bids, and there a strategy on cells has steps and spikes
that are the grid's and not the learner's. Two things follow. A strategy loses more when nothing is
smoothed away, so that is measured as well (`purified`). And cubics pass a spline unchanged: where
the equilibrium is one, `(n−1)v/n` say, smoothing favours it, and what the learner found is judged
by its loss on its own grid, where nothing is smoothed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_lsq_spline

from agents.learners.base import meets
from experiments.bayesian.game import BayesianGame
from experiments.bayesian.interim import BidDistributions, Interim
from experiments.bayesian.response import Losses, greatest_that, losses
from mechanisms.pool import Floats

POINTS = 513
CELLS_A_PIECE = 32
"""Bid cells for each piece of the spline that stands for a strategy on them."""
LEAST_VALUES = 4
"""Value cells that a cubic needs."""
_NO_WEIGHT = 1e-9


def purified(distributions: BidDistributions) -> Floats:
    """(C, POINTS) the non-decreasing bid functions with the same bid distributions.

    `β = H⁻¹∘F` leaves all rivals' outcomes as they are, and its owner no worse off: `v·x(b)` has
    increasing differences, so of all couplings of values and bids the monotone one pays most.
    """
    # bids of no weight to speak of are not the highest
    at = np.linspace(0, 1, POINTS).clip(_NO_WEIGHT, 1 - _NO_WEIGHT)
    pairs = zip(distributions.cumulative, distributions.knots, strict=True)
    return np.stack([np.interp(at, cumulative, knots) for cumulative, knots in pairs])


def smoothed(mean_bids: Floats, bid_cells: int) -> Floats:
    """(C, POINTS) bid functions that stand for strategies on cells: least-squares cubic splines.

    Args:
        mean_bids: (C, K) at the middles of K >= `LEAST_VALUES` quantiles.
        bid_cells: L, which sets the number of pieces; there are at least four values for each.
    """
    K = mean_bids.shape[1]
    pieces = max(1, min(bid_cells // CELLS_A_PIECE, K // 4))
    inner = np.linspace(0, 1, pieces + 1)[1:-1]
    knots = np.concatenate([np.zeros(4), inner, np.ones(4)])
    at = np.linspace(0, 1, POINTS)
    fitted = [make_lsq_spline((np.arange(K) + 0.5) / K, row, knots)(at) for row in mean_bids]
    return np.maximum.accumulate(np.maximum(fitted, 0.0), axis=1)


def function_losses(
    game: BayesianGame, interim: Interim, bids: Floats, cells: int
) -> tuple[Losses, Floats]:
    """What bid functions lose against all bids and strategies in the continuous game.

    Args:
        game: who bids for what.
        interim: computes outcomes.
        bids: (C, POINTS) bid functions, measured as they are: a value maximizer that misses its
            target owes it.
        cells: so many evenly spaced bids are tried, up to the highest considered.

    Returns:
        The losses, and (C,) by which factor value maximizers' bids would meet their targets just
        so (`_target_factors`).
    """
    edges = game.top[:, None] * np.linspace(0, 1, cells + 1)
    values = game.values(bids.shape[1] - 1)
    own, tried = interim.functions(bids, edges)
    return losses(game, values, own, tried), _target_factors(game, values, bids, edges, tried)


def _target_factors(
    game: BayesianGame, values: Floats, bids: Floats, edges: Floats, tried: tuple[Floats, Floats]
) -> Floats:
    """(C,) greatest factors of value maximizers' bids that meet their targets; 1 for others.

    Against the others' bids as they are; between 1/2, which stands for less too, and 2, and such
    that bids stay within those considered.
    """
    centres = (edges[:, 1:] + edges[:, :-1]) / 2
    middles = (bids[:, 1:] + bids[:, :-1]) / 2
    highest = bids[:, -1]
    bidding = game.value_maximizer & (highest > 0)
    most = np.minimum(2.0, game.top / np.where(highest > 0, highest, 1.0))

    def feasible(factor: Floats) -> NDArray[np.bool_]:
        scaled = factor[:, None] * middles
        won, paid = (
            np.stack([np.interp(scaled[c], centres[c], of[c]) for c in range(game.classes)])
            for of in tried
        )
        return meets((values * won).mean(axis=1), paid.mean(axis=1), game.roi)

    found = greatest_that(feasible, np.full(game.classes, 0.5), most)
    return np.where(bidding, found, 1.0)
