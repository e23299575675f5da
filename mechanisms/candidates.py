"""Mechanisms that draw the reply from a Gibbs allocation over candidate replies.

Subclasses say what sets them apart, and just that: what a reply weighs before any bid
(`base_log_weights`), what a bid is on (`features`), and what advertisers pay for the outcome
(`expected_payments`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import ArrayLike

from mechanisms import gibbs
from mechanisms.base import Allocation, Mechanism, Outcome, sum_over
from mechanisms.checks import Parametric, bid_grid, claims_weights, positive
from mechanisms.kernels import as_declared, kernel, sparse
from mechanisms.kernels.exposures import Candidates
from mechanisms.pool import Floats, Ints, ReplyPool


@dataclass(frozen=True)
class GibbsMechanism(Parametric, Mechanism):
    """`π_j ∝ exp(base_j + Σ_i b_i·f_ji / tau)`, with a payment rule to be named.

    Attributes:
        tau: temperature, the weight of `KL(π‖π_ref)` in welfare, in money per nat.
    """

    tau: float

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        summed = ("expected_payments", "allocate", "counterfactual")
        played = (*summed, "counterfactual_sums", "charge", "run", "_settle")
        if not as_declared(cls, "compiled_payments", summed):
            cls.compiled_payments = None
        if cls.compiled_payments is None or not as_declared(cls, "compiled_charges", played):
            cls.compiled_charges = None

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

    @property
    def compiled_payments(self) -> int | None:
        """Which payment rule of `kernels.gibbs_numba` `expected_payments` is; None: none of them.

        Then `allocate` and `counterfactual_sums` make payments as they go; `counterfactual` calls
        `expected_payments` all the same.
        """
        return None

    @property
    def compiled_charges(self) -> int | None:
        """Which of the charges named in `kernels.gibbs_numba` `charge` makes; None: none of them.

        With `compiled_payments`, all that compiled rounds (`agents.compiled`) need to know.
        """
        return None

    def allocate(self, pool: ReplyPool, bids: ArrayLike) -> Allocation:
        """Expected outcome of `bids`, (N,) by advertiser or (B, n) by request."""
        by_request = pool.bids_by_request(bids)
        if kernel() != "numba":
            return self._allocate(pool, by_request[:, None, :] * self.features(pool))
        claims_weights(self.name, pool)
        given = self.candidates(pool), pool.rows, by_request, self.tau
        rule = self.compiled_payments
        if rule is not None:
            return sparse.auctions(*given, rule)
        found = sparse.allocate(*given)
        return Allocation(
            probabilities=found.probabilities,
            itctr=found.itctr,
            payments=self.expected_payments(
                found.declared, found.log_z[:, None], found.log_z_without
            ),
        )

    def counterfactual(
        self, pool: ReplyPool, bids: ArrayLike, alternatives: Floats
    ) -> tuple[Floats, Floats]:
        """As `Mechanism.counterfactual`, by the kernel that shares the others' bids."""
        if not as_declared(type(self), "counterfactual", ("allocate",)):
            return super().counterfactual(pool, bids, alternatives)
        claims_weights(self.name, pool)
        by_request = pool.bids_by_request(bids)
        grid = bid_grid(pool, alternatives)
        if kernel() == "numba":
            where = self.candidates(pool), pool.rows
            tried = sparse.deviations(*where, by_request, grid, self.tau)
        else:
            features = self.features(pool)
            ctr = None if features is pool.ctr else pool.ctr
            base = self.base_log_weights(pool)
            tried = _dense().deviations(base, by_request, features, grid, self.tau, ctr)
        payments = self.expected_payments(
            tried.declared, tried.log_z, tried.log_z_without[:, :, None]
        )
        return tried.itctr, payments

    def counterfactual_sums(
        self, pool: ReplyPool, index: Ints, bids: Floats, grids: Floats
    ) -> tuple[Floats, Floats]:
        """As `Mechanism.counterfactual_sums`, without arrays by request."""
        rule = self.compiled_payments
        if kernel() != "numba" or rule is None:
            return super().counterfactual_sums(pool, index, bids, grids)
        claims_weights(self.name, pool)
        pool, index = sum_over(pool, index, bids, grids)
        where = self.candidates(pool), pool.ads, index
        return sparse.deviation_sums(*where, bids, grids, self.tau, rule)

    def run(self, pool: ReplyPool, bids: ArrayLike, rng: np.random.Generator) -> Outcome:
        """As `Mechanism.run`; warns once per pool if its weights leave too little choice."""
        gibbs.check_weights(pool)
        return super().run(pool, bids, rng)

    def candidates(self, pool: ReplyPool) -> Candidates:
        """What compiled kernels read of the pool's origin."""
        return pool.derived(
            self, lambda p: Candidates.of(p, self.features(p), self.base_log_weights(p))
        )

    def _allocate(self, pool: ReplyPool, rewards: Floats) -> Allocation:
        """Expected outcome of `rewards` (B, M, n), advertiser i's declared value of reply j."""
        claims_weights(self.name, pool)
        found = _dense().gibbs(self.base_log_weights(pool), rewards, self.tau)
        declared = expectation(found.probabilities, rewards)
        return Allocation(
            probabilities=found.probabilities,
            itctr=expectation(found.probabilities, pool.ctr),
            payments=self.expected_payments(declared, found.log_z[:, None], found.log_z_without),
        )


def _dense() -> ModuleType:
    """The module whose `gibbs` and `deviations` serve dense rewards."""
    if kernel() != "torch":
        return gibbs
    from mechanisms.kernels import gibbs_torch  # torch takes seconds to import

    return gibbs_torch


def expectation(probabilities: Floats, amounts: Floats) -> Floats:
    """(B, n) mean of `amounts` (B, M, n) under `probabilities` (B, M)."""
    return (probabilities[:, None, :] @ amounts)[:, 0]
