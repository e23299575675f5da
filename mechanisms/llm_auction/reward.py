"""The response reward by which an Ad-LLM is trained (LLM-Auction, arXiv 2512.10551).

    R(y) = Σ_i b_i·pctr_i(y)·1{i shown in y} − λ·s_resp(y)

The first term is the revenue that reply y is expected to bring at first price. The second keeps the
reader: `s_resp` counts what is wrong with the reply (`response_penalty`), in units whose price λ is
`user_weight`.

**When cheating does not pay.** Reward can be sought by other means than a good mention. A marker
that names nobody, an altered title or a title said twice exposes nobody, so that it costs λ and
earns nothing. A reply that shows more ads than it may gains at most `b·ctr` by each of them, and
loses λ. So with λ above the highest bid times the highest click probability, no such reply is
worth more than the one without; for bids up to 100 the default covers click probabilities up to 0.4
(`ResponseReward.covers`). What is left is what a *learned* click model may be talked into:
`mechanisms.llm_auction.pctr` reads replies without titles, so saying them again moves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mechanisms.checks import Parametric, non_negative, whole
from mechanisms.errors import BadInput
from mechanisms.pool import Bools, Floats


def response_penalty(
    exposure: Bools,
    malformed: Floats,
    max_ads: int,
    complete: Bools | None = None,
    unfinished: float = 0.0,
) -> Floats:
    """(B, M) `s_resp`, what is wrong with a reply.

    Args:
        exposure: (B, M, n) the ad is shown.
        malformed: (B, M) markers that break the format, name no candidate ad, or one named before.
        max_ads: ads beyond that many count 1 each.
        complete: (B, M) the reply ends where a sentence does; an empty one does not. None: all do.
        unfinished: what a reply counts that is not complete.
    """
    penalty = malformed + np.maximum(exposure.sum(axis=2) - max_ads, 0)
    return penalty if complete is None else penalty + unfinished * ~complete


@dataclass(frozen=True)
class ResponseReward(Parametric):
    """`R(y)`, in the unit of the bids.

    Attributes:
        user_weight: λ, the price of one unit of `s_resp`. Bids are 1..100 in training, as the
            paper's; 40 is what an extra ad or a broken marker costs.
        max_ads: ads a reply may show free of penalty.
        unfinished: units of `s_resp` for a reply that breaks off or is empty. Mild: what reward is
            for is the ad, and short LLMs break off often.
    """

    user_weight: float = 40.0
    max_ads: int = 1
    unfinished: float = 0.1

    def __post_init__(self) -> None:
        non_negative("user_weight", self.user_weight)
        whole("max_ads", self.max_ads, least=0)
        non_negative("unfinished", self.unfinished)

    def __call__(
        self,
        bids: ArrayLike,
        ctr: ArrayLike,
        exposure: ArrayLike,
        malformed: ArrayLike,
        complete: ArrayLike | None = None,
    ) -> Floats:
        """(B, M) reward of replies.

        Args:
            bids: (B, n), or (B, M, n) where each reply was written under bids of its own.
            ctr: (B, M, n) click probabilities: predicted (pCTR), or the users' own (Oracle).
                Where an ad is not shown they do not count.
            exposure: (B, M, n) the ad is shown.
            malformed: (B, M) malformed mentions.
            complete: (B, M) the reply ends where a sentence does; default all do.

        Raises:
            BadInput: shapes that do not fit, a bid that is negative, NaN or infinite, a click
                probability of a shown ad outside [0, 1], or malformed mentions that are no count.
        """
        bids, ctr = _floats("bids", bids), np.asarray(ctr, dtype=np.float64)
        exposure, malformed = np.asarray(exposure, dtype=bool), _floats("malformed", malformed)
        complete = None if complete is None else np.asarray(complete, dtype=bool)
        _check_shapes(bids, ctr, exposure, malformed, complete)
        shown = np.where(exposure, ctr, 0.0)
        if not ((shown >= 0) & (shown <= 1)).all():
            raise BadInput("a shown ad has a click probability outside [0, 1]; give probabilities")
        by_reply = bids if bids.ndim == 3 else bids[:, None, :]
        penalty = response_penalty(exposure, malformed, self.max_ads, complete, self.unfinished)
        return (by_reply * shown).sum(axis=2) - self.user_weight * penalty

    def covers(self, highest_bid: float) -> float:
        """The click probability up to which no malformed or surplus mention pays (1: any)."""
        return min(self.user_weight / highest_bid, 1.0) if highest_bid > 0 else 1.0


def _floats(name: str, given: ArrayLike) -> Floats:
    array = np.asarray(given, dtype=np.float64)
    if array.size and not (array.min() >= 0 and array.max() < np.inf):  # NaN fails both
        raise BadInput(f"{name} hold an entry that is negative, NaN or infinite; they are >= 0")
    return array


def _check_shapes(
    bids: Floats, ctr: Floats, exposure: Bools, malformed: Floats, complete: Bools | None
) -> None:
    if exposure.ndim != 3:
        raise BadInput(f"exposure has shape {exposure.shape}; give (requests, replies, ads)")
    B, M, n = exposure.shape
    allowed = {
        "bids": (bids, ((B, n), (B, M, n))),
        "ctr": (ctr, ((B, M, n),)),
        "malformed": (malformed, ((B, M),)),
    }
    if complete is not None:
        allowed["complete"] = (complete, ((B, M),))
    for name, (array, shapes) in allowed.items():
        if array.shape not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise BadInput(f"{name} has shape {array.shape}; give {wanted}, as exposure has it")
