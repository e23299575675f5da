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

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechanisms.base import Allocation, Mechanism, Outcome, blocks
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
_WEIGHTS = "estimated weights under these bids"
_MEND = (
    " (see mechanisms.pretrained): their outcomes rest on a single reply; record more replies, "
    "or take a larger bandwidth, if it has one"
)


class BidReader(Parametric, Mechanism):
    """An LLM that reads the bids and writes the reply, at first price.

    Subclasses say how recorded replies weigh under bids that they were not written under.
    """

    generation: ClassVar[str] = "auction"
    tells_of_other_bids: ClassVar[bool] = False
    ad_llm: str | None = None
    """The trained LLM that writes; None: the scenario's, as it is."""

    @property
    def writing(self) -> Mapping[str, Any]:
        """Replies by an LLM that reads the bids: the scenario's as it is, or a trained Ad-LLM."""
        return {"generation": self.generation, "ad_llm": self.ad_llm}

    @abstractmethod
    def weights(self, pool: ReplyPool, bids: Floats) -> Floats:
        """(B, K, M) probability of each reply under each of K bid profiles a request.

        Args:
            pool: B requests, M replies, n ads.
            bids: (B, K, n).
        """

    def allocate(self, pool: ReplyPool, bids: ArrayLike) -> Allocation:
        """Expected outcome of `bids`, (N,) by advertiser or (B, n) by request."""
        by_request = pool.bids_by_request(bids)
        probabilities = self.weights(pool, by_request[:, None])[:, 0]
        itctr = expectation(probabilities, pool.ctr)
        return Allocation(probabilities, itctr, first_price(by_request, itctr))

    def run(self, pool: ReplyPool, bids: ArrayLike, rng: np.random.Generator) -> Outcome:
        """As `Mechanism.run`; warns once per pool object if these bids leave too little choice."""
        outcome = super().run(pool, bids, rng)
        self._warn(pool, outcome.probabilities)
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
        (B, M, n), G = pool.shape, grid.shape[2]
        own = np.arange(n)
        itctr = np.empty_like(grid)
        for rows in blocks(B, n * G * M * n, _BLOCK):
            tried = np.repeat(by_request[rows, None, None], n, axis=1).repeat(G, axis=2)
            tried[:, own, :, own] = grid[rows].transpose(1, 0, 2)
            batch = pool.take(rows)
            weights = self.weights(batch, tried.reshape(len(rows), n * G, n))
            self._warn(pool, weights)
            ctr = batch.ctr.transpose(0, 2, 1)[..., None]
            itctr[rows] = (weights.reshape(len(rows), n, G, M) @ ctr)[..., 0]
        return itctr, first_price(grid, itctr)

    def _warn(self, pool: ReplyPool, weights: Floats) -> None:
        sizes = effective_sample_size(weights)
        warn_if_low(sizes, weights.shape[-1], _WEIGHTS, _MEND, pool)


@dataclass(frozen=True)
class Pretrained(BidReader):
    """The reply that the LLM writes to these bids, at first price.

    Attributes:
        bandwidth: h, in shares of the bids' sum; no matter in live mode. The default is about
            Scott's rule, σ·M^(−1/(n+3)), for M = 24 replies, n = 3 to 4 ads and log-uniform
            profiles, whose shares spread by σ = 0.25.
    """

    name: ClassVar[str] = "pretrained"

    bandwidth: float = 0.15

    def __post_init__(self) -> None:
        positive("bandwidth", self.bandwidth)

    def weights(self, pool: ReplyPool, bids: Floats) -> Floats:
        """(B, K, M) kernel weights of the replies under bids (B, K, n)."""
        return kernel_weights(shares(profiles_of(pool)), shares(bids), self.bandwidth)

    def estimates(self, pool: ReplyPool) -> Mapping[str, Any]:
        """By a kernel; its error is not measured."""
        return {"estimate": "kernel", "bandwidth": self.bandwidth}


def kernel_weights(written: Floats, asked: Floats, bandwidth: float) -> Floats:
    """(B, K, M) weights of replies by how near their profiles are.

    Args:
        written: (B, M, n) shares under which each reply was written.
        asked: (B, K, n) shares asked about.
        bandwidth: h.
    """
    squares = ((asked[:, :, None] - written[:, None]) ** 2).sum(axis=3)
    # From the nearest, and twice by h, so that a bandwidth near 0 leaves the nearest reply.
    further = squares - squares.min(axis=2, keepdims=True)
    with np.errstate(over="ignore"):
        weights = np.exp(-further / bandwidth / bandwidth / 2)
    return weights / weights.sum(axis=2, keepdims=True)


def profiles_of(pool: ReplyPool) -> Floats:
    """(B, M, n) bids under which each reply was written.

    Raises:
        BadInput: the pool does not say.
    """
    profiles = pool.extra(
        PROFILES, "an LLM that reads the bids", "record them with replies.generation 'auction'"
    )
    if profiles.shape != pool.shape:
        raise BadInput(f"{PROFILES} has shape {profiles.shape}; give (B, M, n) = {pool.shape}")
    return profiles
