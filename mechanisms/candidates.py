"""Mechanisms that draw the reply from a Gibbs allocation over candidate replies.

Subclasses say what sets them apart, and just that: what a reply weighs before any bid
(`base_log_weights`), what a bid is on (`features`), and what advertisers pay for the outcome
(`expected_payments`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mechanisms.base import Allocation, Mechanism, Outcome
from mechanisms.checks import Parametric, bid_grid, claims_weights, positive
from mechanisms.gibbs import check_weights, deviations, gibbs
from mechanisms.pool import Floats, ReplyPool


@dataclass(frozen=True)
class GibbsMechanism(Parametric, Mechanism):
    """`π_j ∝ exp(base_j + Σ_i b_i·f_ji / tau)`, with a payment rule to be named.

    Attributes:
        tau: temperature, the weight of `KL(π‖π_ref)` in welfare, in money per nat.
    """

    tau: float

    def __post_init__(self) -> None:
        positive("tau", self.tau)

    def base_log_weights(self, pool: ReplyPool) -> Floats:
        """(B, M) log-weight of each reply when nobody bids: its importance weight."""
        return pool.log_weights

    def features(self, pool: ReplyPool) -> Floats:
        """(B, M, n) what a unit of bid declares a reply to be worth, `r_i = b_i·f_i`: a click."""
        return pool.ctr

    @abstractmethod
    def expected_payments(self, declared: Floats, log_z: Floats, log_z_without: Floats) -> Floats:
        """Expected payments from outcomes of any common shape (B, n, ...).

        Args:
            declared: declared expected value `E_π[r_i]`; `b_i·itctr_i` for bids per click.
            log_z: log-normaliser of the allocation (axis n may have length 1).
            log_z_without: the same without advertiser i (axis G may have length 1).
        """

    def allocate(self, pool: ReplyPool, bids: ArrayLike) -> Allocation:
        """Expected outcome of `bids`, (N,) by advertiser or (B, n) by request."""
        by_request = pool.bids_by_request(bids)
        return self._allocate(pool, by_request[:, None, :] * self.features(pool))

    def counterfactual(
        self, pool: ReplyPool, bids: ArrayLike, alternatives: Floats
    ) -> tuple[Floats, Floats]:
        """As `Mechanism.counterfactual`, by the kernel that shares the others' bids."""
        claims_weights(self.name, pool)
        by_request = pool.bids_by_request(bids)
        grid = bid_grid(pool, alternatives)
        features = self.features(pool)
        ctr = None if features is pool.ctr else pool.ctr
        base = self.base_log_weights(pool)
        tried = deviations(base, by_request, features, grid, self.tau, ctr)
        payments = self.expected_payments(
            tried.declared, tried.log_z, tried.log_z_without[:, :, None]
        )
        return tried.itctr, payments

    def run(self, pool: ReplyPool, bids: ArrayLike, rng: np.random.Generator) -> Outcome:
        """As `Mechanism.run`; warns once per pool if its weights leave too little choice."""
        check_weights(pool)
        return super().run(pool, bids, rng)

    def _allocate(self, pool: ReplyPool, rewards: Floats) -> Allocation:
        """Expected outcome of `rewards` (B, M, n), advertiser i's declared value of reply j."""
        claims_weights(self.name, pool)
        found = gibbs(self.base_log_weights(pool), rewards, self.tau)
        declared = expectation(found.probabilities, rewards)
        return Allocation(
            probabilities=found.probabilities,
            itctr=expectation(found.probabilities, pool.ctr),
            payments=self.expected_payments(declared, found.log_z[:, None], found.log_z_without),
        )


def expectation(probabilities: Floats, amounts: Floats) -> Floats:
    """(B, n) mean of `amounts` (B, M, n) under `probabilities` (B, M)."""
    return (probabilities[:, None, :] @ amounts)[:, 0]
