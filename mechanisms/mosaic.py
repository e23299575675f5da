"""MOSAIC: a truthful auction whose outcome is an LLM reply (arXiv 2405.05905).

The platform draws M candidate replies and picks one from the Gibbs allocation of the rewards
`r_i(y_j)` that advertisers report, by default `b_i·ctr_ji` (`mechanisms.gibbs`). The paper's own
experiments take `a_i·log(π_i(y)/π_ref(y))` instead, π_i being the LLM prompted on behalf of
advertiser i; the weight a_i is then the bid, per nat. Rochet payments,

    p_i = E_π[r_i] − tau·[log Z(r) − log Z(r_−i)],

leave each advertiser its marginal contribution to regularised welfare. So truth is optimal for any
set of candidates, whatever the others report; and with `r >= 0` nobody truthful ends below 0.
Log-ratios are negative too, and an advertiser may then lose by taking part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechanisms.base import Allocation, Outcome
from mechanisms.candidates import GibbsMechanism, expectation
from mechanisms.checks import one_of
from mechanisms.errors import BadInput
from mechanisms.gibbs import check_weights
from mechanisms.kernels.gibbs_numba import EXPECTED, REALISED, ROCHET, ROCHET_WITHOUT_OFFSET
from mechanisms.payments import rochet
from mechanisms.pool import Floats, Ints, ReplyPool

LOG_RATIOS_MISSING = "set replies.log_ratios to true and record again"


@dataclass(frozen=True)
class Mosaic(GibbsMechanism):
    """The Gibbs allocation with Rochet payments.

    Attributes:
        tau: weight of `KL(π‖π_ref)` in welfare, in money per nat.
        offset: whether utilities are offset by `tau·log Z(r_−i)`. Without, the payments are
            `E_π[r_i] − tau·log Z(r)`: as truthful, but the platform pays more than it is paid.
        settlement: "expected" charges p_i whatever the reply; "realised" charges
            `r_i(y) − tau·[log Z(r) − log Z(r_−i)]` for reply y: the mean is p_i, and the
            advertiser's utility at its report is the same for every y.
        reward: what a bid is per unit of: "clicks" (`r_i = b_i·ctr_i`) or "log-ratio" (of replies
            recorded with `log_ratios`). Truth is optimal for advertisers who value just that.
    """

    name: ClassVar[str] = "mosaic"

    offset: bool = True
    settlement: Literal["expected", "realised"] = "expected"
    reward: Literal["clicks", "log-ratio"] = "clicks"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("offset", self.offset, (True, False))
        one_of("settlement", self.settlement, ("expected", "realised"))
        one_of("reward", self.reward, ("clicks", "log-ratio"))

    def features(self, pool: ReplyPool) -> Floats:
        """(B, M, n) click probabilities, or log-ratios in nats."""
        if self.reward == "clicks":
            return pool.ctr
        return pool.extra("log_ratios", "mosaic with reward log-ratio", LOG_RATIOS_MISSING)

    def expected_payments(self, declared: Floats, log_z: Floats, log_z_without: Floats) -> Floats:
        """Rochet payments; see `mechanisms.payments.rochet`."""
        return rochet(declared, log_z, log_z_without, self.tau, offset=self.offset)

    @property
    def compiled_payments(self) -> int:
        """The compiled name of these payments."""
        return ROCHET if self.offset else ROCHET_WITHOUT_OFFSET

    @property
    def compiled_charges(self) -> int:
        """The compiled name of the settlement."""
        return EXPECTED if self.settlement == "expected" else REALISED

    def allocate_reports(self, pool: ReplyPool, rewards: ArrayLike) -> Allocation:
        """Expected outcome when advertisers report a reward for every reply.

        Args:
            pool: B requests, M replies, n ads.
            rewards: (B, M, n) reported r_i(y_j), in money, of either sign.

        Raises:
            BadInput: rewards of another shape, NaN or infinite.
        """
        return self._allocate(pool, _checked_rewards(pool, rewards))

    def run_reports(self, pool: ReplyPool, rewards: ArrayLike, rng: np.random.Generator) -> Outcome:
        """`allocate_reports`, then draw a reply and clicks and charge, with the dice of `run`."""
        check_weights(pool)
        rewards = _checked_rewards(pool, rewards)
        allocation = self._allocate(pool, rewards)
        outcome = self._settle(pool, np.zeros_like(allocation.itctr), allocation, rng)
        return replace(outcome, charges=self._charge(rewards, allocation, outcome.chosen))

    def charge(
        self,
        pool: ReplyPool,
        bids: Floats,
        allocation: Allocation,
        chosen: Ints,
        clicks: NDArray[np.bool_],
    ) -> Floats:
        """(B, n) charges by the settlement chosen; clicks do not enter."""
        return self._charge(bids[:, None, :] * self.features(pool), allocation, chosen)

    def _charge(self, rewards: Floats, allocation: Allocation, chosen: Ints) -> Floats:
        if self.settlement == "expected":
            return allocation.payments
        # E_π[r_i] − p_i is the utility that the payment rule leaves, tau·[log Z(r) − log Z(r_−i)]
        utility = expectation(allocation.probabilities, rewards) - allocation.payments
        return rewards[np.arange(len(chosen)), chosen] - utility


def _checked_rewards(pool: ReplyPool, rewards: ArrayLike) -> Floats:
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.shape != pool.shape:
        raise BadInput(f"rewards have shape {rewards.shape}; give (B, M, n) = {pool.shape}")
    if not np.isfinite(rewards).all():
        raise BadInput("rewards have NaN or infinite entries; every entry must be finite")
    return rewards
