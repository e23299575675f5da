"""LLM-Auction (arXiv 2512.10551): a trained Ad-LLM reads the bids and writes the reply.

One generation serves a request: the LLM reads query, profile and the ads with their bids, and what
it writes is the outcome. A clicked ad pays its bid. The LLM was trained towards `E[R(y)] − β·KL`
(`mechanisms.llm_auction.ideal` is what it should approach), so click rates should rise in bids; how
far they do is measured, not assumed.

**Live**, replies are written under the bids played, weigh the same, and the outcome is exact.

**Recorded**, each reply was written under a bid profile of its own, and what the LLM would write
under other bids is estimated from them: by its *response surface*, a small network fitted to the
same recording (`mechanisms.llm_auction.surface`), or by the *kernel* over bid profiles that serves
the LLM which has not been trained (`mechanisms.pretrained`). The pool's manifest holds the error of
both on held-out replies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mechanisms.checks import one_of, positive
from mechanisms.errors import BadInput
from mechanisms.llm_auction.surface import response_of, surface_of
from mechanisms.pool import Floats, ReplyPool
from mechanisms.pretrained import BidReader, kernel_weights, profiles_of
from mechanisms.token_auction import shares


@dataclass(frozen=True)
class LLMAuction(BidReader):
    """The reply that a trained Ad-LLM writes to these bids, at first price.

    Attributes:
        ad_llm: name of a bundled Ad-LLM, or a folder that `admarket train` wrote.
        estimate: what recorded replies tell of other bids: `surface`, or `kernel`.
        bandwidth: of the kernel, see `mechanisms.pretrained.Pretrained`.
    """

    name: ClassVar[str] = "llm-auction"

    ad_llm: str = "smollm2-135m"
    estimate: str = "surface"
    bandwidth: float = 0.15

    def __post_init__(self) -> None:
        if not isinstance(self.ad_llm, str) or not self.ad_llm:
            raise BadInput(
                f"ad_llm is {self.ad_llm!r}; give the name of a bundled Ad-LLM, or a folder"
            )
        one_of("estimate", self.estimate, ("surface", "kernel"))
        positive("bandwidth", self.bandwidth)

    def weights(self, pool: ReplyPool, bids: Floats) -> Floats:
        """(B, K, M) probability of each reply under bids (B, K, n), as estimated."""
        if self.estimate == "surface":
            return surface_of(pool).weights(pool.rows, bids)
        return kernel_weights(shares(profiles_of(pool)), shares(bids), self.bandwidth)

    def estimates(self, pool: ReplyPool) -> Mapping[str, Any]:
        """By surface or kernel, and what either says of replies held out from its fit."""
        return {"estimate": self.estimate, "held_out": response_of(pool)["held_out"]}
