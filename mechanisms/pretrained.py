"""The pre-trained Ad-LLM: bids stand in its prompt, and nothing is trained (DESIGN 3.5).

The baseline of LLM-Auction (arXiv 2512.10551): the LLM reads query, profile and the ads with their
bids, writes the reply, and a clicked ad pays its bid. Its answer to bids is whatever it makes of
the numbers; nothing says that it is monotone.

**Live**, the replies were written under the bids played, weigh the same, and the outcome is exact.
Such a pool knows nothing of other bids: counterfactuals in it are flat.

**Recorded**, each reply was written under a bid profile of its own. What the LLM would write under
other bids is estimated from the replies whose profiles are near (Nadaraya-Watson): with shares
s = b/Σb, which a common factor does not change, reply j weighs

    w_j ∝ exp(−|s(b) − s(b^j)|² / (2·h²)).

So it is an estimate with an error that grows with the bandwidth h (it reads too little response to
bids) and one that grows as h falls (few replies). Where all bids are 0, shares are equal.

Shapes: requests B, replies M, ads n, grid bids G.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechanisms.base import Allocation, Mechanism, Outcome
from mechanisms.candidates import expectation
from mechanisms.checks import Parametric, bid_grid, positive
from mechanisms.errors import BadInput
from mechanisms.gibbs import effective_sample_size, warn_if_low
from mechanisms.payments import first_price
from mechanisms.pool import Floats, Ints, ReplyPool
from mechanisms.token_auction import shares

PROFILES = "bid_profile"
"""Name of the pool's extra array (B, M, n): the bids under which each reply was written."""
# Array elements a block of counterfactual weights may hold: 2 MB of float64.
_BLOCK = 250_000
_WEIGHTS = "kernel weights under these bids"
_MEND = (
    " (see Pretrained.bandwidth): their outcomes rest on a single reply; record more replies, "
    "or take a larger bandwidth"
)


@dataclass(frozen=True)
class Pretrained(Parametric, Mechanism):
    """The reply that the LLM writes to these bids, at first price.

    Attributes:
        bandwidth: h, in shares of the bids' sum; no matter in live mode. The default is about
            Scott's rule, σ·M^(−1/(n+3)), for M = 24 replies, n = 3 to 4 ads and log-uniform
            profiles, whose shares spread by σ = 0.25.
    """

    name: ClassVar[str] = "pretrained"
    generation: ClassVar[str] = "auction"
    tells_of_other_bids: ClassVar[bool] = False

    bandwidth: float = 0.15

    def __post_init__(self) -> None:
        positive("bandwidth", self.bandwidth)

    def allocate(self, pool: ReplyPool, bids: ArrayLike) -> Allocation:
        """Expected outcome of `bids`, (N,) by advertiser or (B, n) by request."""
        by_request = pool.bids_by_request(bids)
        written = shares(_profiles(pool))
        probabilities = self._weights(written, shares(by_request)[:, None])[:, 0]
        itctr = expectation(probabilities, pool.ctr)
        return Allocation(probabilities, itctr, first_price(by_request, itctr))

    def run(self, pool: ReplyPool, bids: ArrayLike, rng: np.random.Generator) -> Outcome:
        """As `Mechanism.run`; warns once per pool object if these bids leave too little choice."""
        outcome = super().run(pool, bids, rng)
        sizes = effective_sample_size(outcome.probabilities)
        warn_if_low(sizes, pool.shape[1], _WEIGHTS, _MEND, pool)
        return outcome

    def charge(
        self,
        pool: ReplyPool,
        bids: Floats,
        allocation: Allocation,
        chosen: Ints,
        clicks: NDArray[np.bool_],
    ) -> Floats:
        """(B, n) bid of every clicked ad."""
        return first_price(bids, clicks)

    def counterfactual(
        self, pool: ReplyPool, bids: ArrayLike, alternatives: Floats
    ) -> tuple[Floats, Floats]:
        """As `Mechanism.counterfactual`; recorded replies only, see the head of this module.

        Warns, once per pool object as `run` does, if a bid to try leaves too little choice.
        """
        by_request = pool.bids_by_request(bids)
        grid = bid_grid(pool, alternatives)
        written = shares(_profiles(pool))
        (B, M, n), G = pool.shape, grid.shape[2]
        own = np.arange(n)
        itctr = np.empty_like(grid)
        block = max(1, _BLOCK // max(1, n * G * M * n))
        for start in range(0, B, block):
            rows = slice(start, min(start + block, B))
            tried = np.repeat(by_request[rows, None, None], n, axis=1).repeat(G, axis=2)
            tried[:, own, :, own] = grid[rows].transpose(1, 0, 2)
            weights = self._weights(written[rows], shares(tried).reshape(len(tried), n * G, n))
            warn_if_low(effective_sample_size(weights), M, _WEIGHTS, _MEND, pool)
            ctr = pool.ctr[rows].transpose(0, 2, 1)[..., None]
            itctr[rows] = (weights.reshape(len(tried), n, G, M) @ ctr)[..., 0]
        return itctr, first_price(grid, itctr)

    def _weights(self, written: Floats, asked: Floats) -> Floats:
        """(B, K, M) kernel weights of replies.

        Args:
            written: (B, M, n) shares under which each reply was written.
            asked: (B, K, n) shares asked about.
        """
        squares = ((asked[:, :, None] - written[:, None]) ** 2).sum(axis=3)
        # From the nearest, and twice by h, so that a bandwidth near 0 leaves the nearest reply.
        further = squares - squares.min(axis=2, keepdims=True)
        with np.errstate(over="ignore"):
            weights = np.exp(-further / self.bandwidth / self.bandwidth / 2)
        return weights / weights.sum(axis=2, keepdims=True)


def _profiles(pool: ReplyPool) -> Floats:
    profiles = pool.extra(
        PROFILES, "the pre-trained Ad-LLM", "record them with replies.generation 'auction'"
    )
    if profiles.shape != pool.shape:
        raise BadInput(f"{PROFILES} has shape {profiles.shape}; give (B, M, n) = {pool.shape}")
    return profiles
