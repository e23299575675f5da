"""Interim outcomes: what a bid brings against the others' strategies.

Strategies enter as bid distributions with piecewise linear distribution functions H_j, so that
bids never tie. For a grid strategy that is what spreads the bid of every grid cell evenly over the
cell; the chance of winning against k rivals in one's own cell is then 1/(k+1), the usual even split
of ties, and the grid game *is* the mechanism's own game, restricted to strategies that are uniform
on cells. Outcomes are means over a cell of the bid tried, likewise.

`SingleSlot` is exact. With click rate c_i alone in the reply, ad i wins if its score `b·c_i` is
the greatest:

    G_i(b) = Π_{j≠i} H_j(b·c_i/c_j),   x_i = c_i·G_i(b),
    p_i = b·x_i  (first price),   p_i = c_i·[b·G_i(b) − ∫_0^b G_i(z) dz]  (second price).

Means over cells are Gauss-Legendre sums, exact where the H_j have their kinks at the cells' edges.
`Sampled` is for any mechanism and pool: means over sampled requests and Latin-hypercube bids of the
others, the same for all bids tried, through `Mechanism.counterfactual_sums`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from experiments.bayesian.game import BayesianGame
from mechanisms.candidates import GibbsMechanism
from mechanisms.pool import Floats, Ints
from mechanisms.slots import FirstPrice

_SPREAD = 1e-9
"""Slope given to constant bid functions, as a fraction of the highest bid."""
_BLOCK = 1024
"""Sampled requests held in memory at a time."""


@dataclass(frozen=True, eq=False)
class BidDistributions:
    """Distribution of each class's bid, piecewise linear.

    Attributes:
        knots: (C, m) bids, non-decreasing.
        cumulative: (C, m) probability of bidding at most that, from 0 to 1.
    """

    knots: Floats
    cumulative: Floats

    @classmethod
    def on_cells(cls, edges: Floats, probabilities: Floats) -> BidDistributions:
        """Bids uniform within the cells between `edges` (C, L+1), `probabilities` (C, L) each."""
        cumulative = np.zeros_like(edges)
        np.cumsum(probabilities, axis=1, out=cumulative[:, 1:])
        cumulative /= cumulative[:, -1:]
        return cls(edges, cumulative)

    @classmethod
    def of_functions(cls, bids: Floats) -> BidDistributions:
        """Of bid functions, non-decreasing, at m evenly spaced quantiles of the value (C, m)."""
        return cls(bids, np.broadcast_to(np.linspace(0, 1, bids.shape[1]), bids.shape))


class Interim(Protocol):
    """Computes interim outcomes.

    Attributes:
        smooth: whether outcomes are continuous in the bid at any bids of the others, as under Gibbs
            allocations, and not in distribution only.
    """

    smooth: bool

    def cells(self, edges: Floats, others: BidDistributions) -> tuple[Floats, Floats]:
        """(C, L) expected clicks and (C, L) payments per request of one advertiser of each class.

        Args:
            edges: (C, L+1) of the cells of bids to try, from 0 up.
            others: bid distributions of all classes.
        """

    def functions(
        self, bids: Floats, edges: Floats
    ) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        """Clicks and payments of bid functions against each other, and of all bids against them.

        Args:
            bids: (C, m + 1) bid functions at evenly spaced quantiles of the value.
            edges: (C, L+1) of the cells of other bids to try.

        Returns:
            Outcomes (C, m) of the functions, means over the m cells of values, and (C, L) of the
            bids tried.
        """


class SingleSlot:
    """Exact outcomes of a single-slot auction of independent bidders."""

    smooth = False

    def __init__(self, game: BayesianGame) -> None:
        self.rates, self.weights = game.rates, game.weights
        self.pay_bid = isinstance(game.mechanism, FirstPrice)
        self.rivals = game.counts - np.eye(game.classes, dtype=np.int64)
        # products of the H_j times a bid have degree n in a cell; m nodes are exact to 2m - 1
        nodes, weights = np.polynomial.legendre.leggauss(len(game.member) // 2 + 1)
        self.at, self.share = (nodes + 1) / 2, weights / 2

    def cells(self, edges: Floats, others: BidDistributions) -> tuple[Floats, Floats]:
        """See `Interim.cells`."""
        clicks, payments = np.zeros((2, len(edges), edges.shape[1] - 1))
        for rates, weight in zip(self.rates, self.weights, strict=True):
            for c in np.flatnonzero(rates):
                width = np.diff(edges[c])
                bids = edges[c, :-1, None] + width[:, None] * self.at
                wins = self._wins(c, bids, rates, others)
                mean = wins @ self.share
                paid = (bids * wins) @ self.share
                if not self.pay_bid:
                    before = np.cumsum(mean * width) - mean * width
                    paid -= before + width * (wins @ (self.share * (1 - self.at)))
                clicks[c] += weight * rates[c] * mean
                payments[c] += weight * rates[c] * paid
        return clicks, payments

    def functions(
        self, bids: Floats, edges: Floats
    ) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        """See `Interim.functions`; bids shared by many values are split as ties are."""
        slightly = _SPREAD * edges[:, -1:] * np.linspace(0, 1, bids.shape[1])
        others = BidDistributions.of_functions(bids + slightly)
        # the bid of a cell of values is uniform between those of its ends
        own = self.cells(np.insert(others.knots, 0, 0.0, axis=1), others)
        shared = tuple(_share(bids, amounts[:, 1:]) for amounts in own)
        return shared, self.cells(edges, others)

    def _wins(self, c: int, bids: Floats, rates: Floats, others: BidDistributions) -> Floats:
        """Probability that `bids` of an advertiser of class c have the greatest score."""
        wins = np.ones_like(bids)
        for d in np.flatnonzero((self.rivals[c] > 0) & (rates > 0)):
            needed = bids * (rates[c] / rates[d])
            beaten = np.interp(needed, others.knots[d], others.cumulative[d])
            wins *= beaten ** self.rivals[c, d]
        return wins


def _share(bids: Floats, amounts: Floats) -> Floats:
    """`amounts` (C, m) of the cells of values, averaged over cells that share one bid."""
    averaged = np.empty_like(amounts)
    for c in range(len(bids)):
        flat = np.diff(bids[c]) == 0
        run = np.cumsum(~(flat & np.append(False, flat[:-1]))) - 1
        averaged[c] = (np.bincount(run, amounts[c]) / np.bincount(run))[run]
    return averaged


class Sampled:
    """Outcomes of any mechanism, means over sampled bids of the others.

    Args:
        game: every advertiser is a class of its own.
        samples: requests drawn for every call, with bids of all advertisers; stratified by request
            and by every advertiser's bid.
        rng: draws afresh in every call,
        fresh: or, if False, once for all calls, so that what they return differs by bids alone.
    """

    def __init__(
        self, game: BayesianGame, samples: int, rng: np.random.Generator, *, fresh: bool = True
    ) -> None:
        self.game, self.samples, self.rng = game, samples, rng
        self.drawn = None if fresh else self._draw()
        self.smooth = isinstance(game.mechanism, GibbsMechanism)

    def cells(self, edges: Floats, others: BidDistributions) -> tuple[Floats, Floats]:
        """See `Interim.cells`; bids tried are the cells' centres."""
        pool, S = self.game.pool, self.samples
        centres = (edges[:, 1:] + edges[:, :-1])[self.game.member] / 2
        request, quantiles = self._draw() if self.drawn is None else self.drawn
        bids = np.empty_like(quantiles)
        for i, c in enumerate(self.game.member):
            bids[:, i] = np.interp(quantiles[:, i], others.cumulative[c], others.knots[c])
        clicks, payments = np.zeros((2, *centres.shape))
        for start in range(0, S, _BLOCK):
            rows = slice(start, start + _BLOCK)
            sums = self.game.mechanism.counterfactual_sums(
                pool, request[rows, None], bids[rows], centres
            )
            clicks += sums[0].sum(axis=0) / S
            payments += sums[1].sum(axis=0) / S
        one_of_each = np.unique(self.game.member, return_index=True)[1]
        return clicks[one_of_each], payments[one_of_each]

    def functions(
        self, bids: Floats, edges: Floats
    ) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        """See `Interim.functions`; interpolates between cells, whose samples are the same."""
        tried = self.cells(edges, BidDistributions.of_functions(bids))
        centres = (edges[:, 1:] + edges[:, :-1]) / 2
        middles = (bids[:, 1:] + bids[:, :-1]) / 2
        rows = range(len(bids))
        own = [np.stack([np.interp(middles[c], centres[c], of[c]) for c in rows]) for of in tried]
        return (own[0], own[1]), tried

    def _draw(self) -> tuple[Ints, Floats]:
        """(S,) requests of the pool, and (S, N) quantiles of bids: each column in S strata.

        Requests are spread evenly over a fresh shuffle of the pool from a random offset: each is as
        likely as any other to be drawn, in every draw.
        """
        S, shape = self.samples, (self.samples, len(self.game.member))
        B = len(self.game.pool.ads)
        evenly = (self.rng.permutation(S) + self.rng.random()) * (B / S)
        # rounding may take the last to B itself
        request = self.rng.permutation(B)[np.minimum(evenly.astype(np.int64), B - 1)]
        strata = self.rng.permuted(np.tile(np.arange(S)[:, None], shape[1]), axis=0)
        return request, (strata + self.rng.random(shape)) / S


def interim_of(
    game: BayesianGame, samples: int, rng: np.random.Generator, *, fresh: bool = True
) -> Interim:
    """The exact computation where there is one, else one by `samples`; see `Sampled`."""
    return SingleSlot(game) if game.rates is not None else Sampled(game, samples, rng, fresh=fresh)
