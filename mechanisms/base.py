"""What every mechanism is: bids in, a reply and payments out, all as arrays.

Shapes, everywhere: requests B, candidate replies M, candidate ads n, advertisers N, grid bids G.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechanisms.errors import BadInput
from mechanisms.pool import Floats, Ints, ReplyPool


@dataclass(frozen=True, eq=False)
class Allocation:
    """A mechanism's expected outcome, before any dice: what theory speaks about.

    Attributes:
        probabilities: (B, M) probability that each candidate reply is shown.
        itctr: (B, n) impression-to-click-through rate: shown and clicked, under `probabilities`.
        payments: (B, n) expected payments, in the unit of the bids.
    """

    probabilities: Floats
    itctr: Floats
    payments: Floats


@dataclass(frozen=True, eq=False)
class Outcome(Allocation):
    """An `Allocation` with its dice thrown.

    Attributes:
        chosen: (B,) index of the reply shown.
        clicks: (B, n) 1 where the user clicked the ad.
        charges: (B, n) what each advertiser is charged for this reply and these clicks.
    """

    chosen: Ints
    clicks: NDArray[np.bool_]
    charges: Floats


class Mechanism(ABC):
    """Maps a pool of candidate replies and bids to a reply and payments.

    Mechanisms hold parameters and no state: the same pool, bids and generator give the same
    outcome. Subclasses implement `allocate` and `charge`; `run` is the same for all.
    """

    name: ClassVar[str]
    generation: ClassVar[str | None] = None
    """How replies must have been written for it (`mechanisms.recording`); None: any way."""
    tells_of_other_bids: ClassVar[bool] = True
    """Whether replies written live, under the bids played, tell what other bids would bring."""

    short_replies: ClassVar[bool] = False
    """Whether it also wants replies as they would be if cut short (`mechanisms.iamfm.short`)."""

    @property
    def writing(self) -> Mapping[str, Any]:
        """What it asks of a recording of its own, by the names of a scenario's `replies`."""
        return {} if self.generation is None else {"generation": self.generation}

    @property
    def exact(self) -> Mechanism:
        """The same rules where nothing is left to estimates that cost tokens: mostly itself."""
        return self

    def estimates(self, pool: ReplyPool) -> Mapping[str, Any]:
        """How outcomes of bids are estimated from the pool, and how well; {} where none are."""
        return {}

    @abstractmethod
    def allocate(self, pool: ReplyPool, bids: ArrayLike) -> Allocation:
        """Expected outcome of `bids`, (N,) by advertiser or (B, n) by request."""

    @abstractmethod
    def charge(
        self,
        pool: ReplyPool,
        bids: Floats,
        allocation: Allocation,
        chosen: Ints,
        clicks: NDArray[np.bool_],
    ) -> Floats:
        """(B, n) realised charges for the reply shown and the clicks on it; mean = payments."""

    def run(self, pool: ReplyPool, bids: ArrayLike, rng: np.random.Generator) -> Outcome:
        """Allocate, draw a reply and clicks per request, and charge.

        Raises:
            BadInput: bids of a wrong shape, negative, NaN or infinite.
        """
        by_request = pool.bids_by_request(bids)
        return self._settle(pool, by_request, self.allocate(pool, by_request), rng)

    def counterfactual(
        self, pool: ReplyPool, bids: ArrayLike, alternatives: Floats
    ) -> tuple[Floats, Floats]:
        """Expected outcome of each advertiser for each alternative bid, others' bids fixed.

        Args:
            pool: B requests, M replies, n ads.
            bids: (N,) or (B, n) the bids played.
            alternatives: (B, n, G) bids to try for ad i of request b.

        Returns:
            `itctr` (B, n, G) and `payments` (B, n, G) of the deviating advertiser.
        """
        by_request = pool.bids_by_request(bids)
        B, n, G = alternatives.shape
        tried = np.broadcast_to(by_request[:, None, None, :], (B, n, G, n)).copy()
        own = np.arange(n)
        tried[:, own, :, own] = alternatives.transpose(1, 0, 2)
        copies = pool.take(np.repeat(np.arange(B), n * G))
        outcome = self.allocate(copies, tried.reshape(B * n * G, n))
        pick = np.tile(np.repeat(own, G), B)
        rows = np.arange(B * n * G)
        return (
            outcome.itctr[rows, pick].reshape(B, n, G),
            outcome.payments[rows, pick].reshape(B, n, G),
        )

    def counterfactual_sums(
        self, pool: ReplyPool, index: Ints, bids: Floats, grids: Floats
    ) -> tuple[Floats, Floats]:
        """`counterfactual` summed over the requests of each replication: what learners learn from.

        Args:
            pool: where requests and replies are.
            index: (R, B) requests of the pool, by replication.
            bids: (R, N) the bids played, by replication and advertiser.
            grids: (N, G) bids to try for each advertiser.

        Returns:
            Expected clicks and payments, both (R, N, G); 0 for who is no candidate.

        Raises:
            BadInput: bids or grids of a wrong shape, negative, NaN or infinite.
        """
        pool, index = sum_over(pool, index, bids, grids)
        (R, B), (N, G) = index.shape, grids.shape
        batch = pool.take(index.ravel())
        replication = np.repeat(np.arange(R), B)[:, None]
        found = self.counterfactual(batch, bids[replication, batch.ads], grids[batch.ads])
        bins = (replication * N + batch.ads)[:, :, None] * G + np.arange(G)
        clicks, payments = (
            np.bincount(bins.ravel(), weights=each.ravel(), minlength=R * N * G).reshape(R, N, G)
            for each in found
        )
        return clicks, payments

    def _settle(
        self, pool: ReplyPool, bids: Floats, allocation: Allocation, rng: np.random.Generator
    ) -> Outcome:
        def charge(chosen: Ints, clicks: NDArray[np.bool_]) -> Floats:
            return self.charge(pool, bids, allocation, chosen, clicks)

        return realised(pool, allocation, charge, rng)


def realised(
    pool: ReplyPool,
    allocation: Allocation,
    charge: Callable[[Ints, NDArray[np.bool_]], Floats],
    rng: np.random.Generator,
) -> Outcome:
    """Throw the dice of an allocation: one for each request's reply, then one a request and ad.

    Args:
        pool: the requests.
        allocation: of them.
        charge: (B, n) charges for replies chosen (B,) and clicks (B, n).
        rng: the dice.
    """
    chosen = draw_reply(allocation.probabilities, rng)
    shown = pool.origin.ctr[pool.rows, chosen]
    clicks = rng.random(shown.shape) < shown
    return Outcome(
        probabilities=allocation.probabilities,
        itctr=allocation.itctr,
        payments=allocation.payments,
        chosen=chosen,
        clicks=clicks,
        charges=charge(chosen, clicks),
    )


def blocks(requests: int, held: int, most: int) -> Iterator[Ints]:
    """Indices 0..requests in blocks that bound memory.

    Args:
        requests: how many.
        held: array elements that work on one of them holds.
        most: array elements a block may hold; a block has at least one request.
    """
    step = max(1, most // max(1, held))
    for start in range(0, requests, step):
        yield np.arange(start, min(start + step, requests))


def sum_over(pool: ReplyPool, index: Ints, bids: Floats, grids: Floats) -> tuple[ReplyPool, Ints]:
    """The origin of `pool` and where the requests `index` (R, B) are in it, all input checked.

    Raises:
        BadInput: `bids` are not (R, N) or `grids` not (N, G), or either is no array of bids.
    """
    N, R = pool.num_advertisers, len(index)
    if index.ndim != 2 or bids.shape != (R, N) or grids.ndim != 2 or len(grids) != N:
        raise BadInput(
            f"requests {index.shape}, bids {bids.shape} and grids {grids.shape} do not fit; "
            f"give (R, B), (R, {N}) and ({N}, G)"
        )
    for name, given in (("bids", bids), ("grids", grids)):
        if given.size and not (given.min() >= 0 and given.max() < np.inf):
            raise BadInput(f"{name} hold a bid that is negative, NaN or infinite; bids are >= 0")
    if index.size and not (index.min() >= 0 and index.max() < len(pool.ads)):
        raise IndexError(f"requests are 0..{len(pool.ads) - 1}; got one beyond")
    return pool.origin, index if pool.index is None else pool.index[index]


def draw_reply(probabilities: Floats, rng: np.random.Generator) -> Ints:
    """(B,) replies drawn from `probabilities` (B, M), by one uniform number a request."""
    cumulative = np.cumsum(probabilities, axis=1)
    u = rng.random((len(probabilities), 1)) * cumulative[:, -1:]
    return np.minimum((cumulative <= u).sum(axis=1), probabilities.shape[1] - 1)
