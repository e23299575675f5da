"""LLM-Auction's ideal rule: what its trained model should approach (arXiv 2512.10551).

The training objective `J = Σ_i b_i·ITCTR_i − λ·E[s_resp(y)] − β·KL(π‖π_0)` is greatest at

    π*(y) ∝ π_0(y)·exp(R(y)/β),     R(y) = Σ_i b_i·ctr_i(y) − λ·s_resp(y),

which is exact over the candidates of a pool (`mechanisms.gibbs`, with β called tau). A clicked ad
pays its bid, so the expected payment is `b_i·ITCTR_i`. Click rates are continuous in every bid and
non-decreasing in the advertiser's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mechanisms.base import Allocation
from mechanisms.candidates import GibbsMechanism
from mechanisms.checks import non_negative, whole
from mechanisms.kernels.gibbs_numba import DECLARED, PER_CLICK
from mechanisms.llm_auction.reward import response_penalty
from mechanisms.payments import first_price
from mechanisms.pool import Floats, Ints, ReplyPool


@dataclass(frozen=True)
class IdealLLMAuction(GibbsMechanism):
    """The Gibbs allocation of bids and response quality, at first price.

    Attributes:
        tau: the paper's β, weight of `KL(π‖π_0)`, in money per nat.
        user_weight: the paper's λ, price of one unit of response penalty, in money.
        max_ads: ads a reply may show before each further one is penalised.
    """

    name: ClassVar[str] = "llm-auction-ideal"

    user_weight: float = 0.0
    max_ads: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        non_negative("user_weight", self.user_weight)
        whole("max_ads", self.max_ads, least=0)

    def response_penalty(self, pool: ReplyPool) -> Floats:
        """(B, M) `s_resp`: malformed or unknown mentions, plus ads beyond `max_ads`."""
        return response_penalty(pool.exposure, pool.malformed, self.max_ads)

    def base_log_weights(self, pool: ReplyPool) -> Floats:
        """(B, M) `log w_j − λ·s_resp_j/β`."""
        if self.user_weight == 0:
            return pool.log_weights
        return pool.log_weights - self.user_weight * self.response_penalty(pool) / self.tau

    def expected_payments(self, declared: Floats, log_z: Floats, log_z_without: Floats) -> Floats:
        """First price: the declared expected value `b_i·ITCTR_i` itself."""
        return declared

    @property
    def compiled_payments(self) -> int:
        """The compiled name of these payments."""
        return DECLARED

    @property
    def compiled_charges(self) -> int:
        """The compiled name of these charges."""
        return PER_CLICK

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
