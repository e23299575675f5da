"""VCG by enumeration: which configuration, and who pays what, given outcomes of each.

With outcomes X(s) = (ctr_1, ..., ctr_n, u), v_i(s) = b_i·ctr_i(s) and W(s) = Σ_i v_i(s) + μ·u(s),
and W_{−i} = W − v_i, the platform plays s* = argmax W and charges Clarke's pivot

    p_i = W_{−i}(s*_{−i}) − W_{−i}(s*),      s*_{−i} = argmax W_{−i},   clamped to [0, v_i(s*)].

All maxima are over one set of candidates that does not depend on i, so without estimation error
the clamps bind nobody: s* is among the candidates of problem i, hence p_i >= 0, and
W(s*) >= W(s*_{−i}) >= W_{−i}(s*_{−i}), hence p_i <= v_i(s*). Advertiser i keeps
v_i(s*) − p_i = W(s*) − W_{−i}(s*_{−i}) >= 0, its marginal contribution to welfare, and reporting
its value is optimal whatever the others report.

The outcomes are the truth here (`exact_vcg`), or what a search believes of it
(`mechanisms.iamfm.counterfactual`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mechanisms.errors import BadInput
from mechanisms.iamfm.evaluations import weights_of
from mechanisms.payments import clarke_pivot
from mechanisms.pool import Bools, Floats, Ints

_ROUNDING = 1e-12  # of the amounts at stake: a payment moved by less was not clamped


@dataclass(frozen=True, eq=False)
class Settlement:
    """What is played in a period, and what is paid for it.

    Money is per request, in the unit of the bids.

    Attributes:
        bids: (n,) reported values per click.
        chosen: s*, the configuration played.
        counterfactual: (n,) s*_{−i}, the one that would be best without advertiser i.
        outcomes: (S, n + 1) that all of it was computed from; NaN where nothing is known.
        candidates: (k,) what may be played at other bids; s* is the best of them at these.
        others_best: (n,) W_{−i}(s*_{−i}). Of given outcomes and candidates advertiser i's bid is no
            part of it; which they are may hang on all bids (see `counterfactual`).
        values: (n,) v_i(s*).
        payments: (n,) expected payments p_i, in 0..v_i(s*).
        clamped: (n,) whether p_i would have been below 0 or above v_i(s*).
        welfare: W(s*).
        tokens: spent so far on the period, by purpose.
    """

    bids: Floats
    chosen: int
    counterfactual: Ints
    outcomes: Floats
    candidates: Ints
    others_best: Floats
    values: Floats
    payments: Floats
    clamped: Bools
    welfare: float
    tokens: dict[str, float]

    @property
    def prices(self) -> Floats:
        """(n,) what a click costs, `p_i / ctr_i(s*)`, never above the bid; 0 without clicks."""
        itctr = self.outcomes[self.chosen, :-1]
        prices = np.divide(self.payments, itctr, out=np.zeros_like(itctr), where=itctr > 0)
        return np.minimum(prices, self.bids)  # only rounding goes above

    def charges(self, truth: Floats) -> Floats:
        """(n,) mean charges where clicks are paid for and come as `truth` (S, n + 1) says."""
        return self.prices * truth[self.chosen, :-1]


class Along(NamedTuple):
    """What a plan would have been at other bids, (n, G) each: advertiser i at its grid bid g."""

    chosen: Ints
    itctr: Floats
    payments: Floats


def exact_vcg(
    outcomes: Floats, bids: ArrayLike, user_weight: float, chosen: int | None = None
) -> Settlement:
    """VCG where the outcomes are known.

    Args:
        outcomes: (S, n + 1) expected (ctr_1, ..., ctr_n, u) of every configuration.
        bids: (n,) per click.
        user_weight: μ, money per unit of u.
        chosen: a configuration to price instead of the best.

    Raises:
        BadInput: outcomes that are not finite, click rates or bids below 0, or of other shapes.

    Nobody is sponsored, or the first, or the second of two advertisers:

    >>> outcomes = np.array([[0.0, 0.0, 0.9], [0.5, 0.0, 0.8], [0.0, 0.5, 0.8]])
    >>> plan = exact_vcg(outcomes, bids=[2.0, 1.0], user_weight=1.0)
    >>> plan.chosen, plan.payments
    (1, array([0.5, 0. ]))
    """
    outcomes = np.asarray(outcomes, dtype=np.float64)
    if outcomes.ndim != 2 or outcomes.size == 0 or not np.isfinite(outcomes).all():
        raise BadInput("exact VCG needs finite outcomes (S, n + 1) of every configuration")
    if (outcomes[:, :-1] < 0).any():
        raise BadInput("outcomes hold a click rate below 0; give (ctr_1, ..., ctr_n, u)")
    bids = checked_bids(bids, outcomes.shape[1] - 1)
    everything = np.arange(len(outcomes))
    return priced(outcomes, everything, bids, user_weight, {}, chosen=chosen)


def externalities(truth: Floats, bids: Floats, user_weight: float, chosen: int) -> Floats:
    """(n,) what `chosen` truly costs all but i: `max_s W_{−i}(s) − W_{−i}(chosen)`."""
    others = others_welfare(truth, bids, user_weight)
    return clarke_pivot(others.max(axis=1), others[:, chosen])


def outcomes_along(settlement: Settlement, user_weight: float, grids: Floats) -> Along:
    """What each advertiser could have had at other bids, the others' bids being as they are.

    Choice and payment are made anew on the outcomes and candidates of the settlement, and what all
    but i could have without i is kept as `others_best`. At the bid that was played it is what was
    settled. It is the platform's own estimate, by which truth is best: with another bid the search
    would have looked at other configurations and the candidates would be others, so that an own bid
    moves its own price (`incentives`). Nothing of that is here.

    Args:
        settlement: at the bids played.
        user_weight: μ, as there.
        grids: (n, G) bids of each advertiser.
    """
    grids = np.asarray(grids, dtype=np.float64)
    bids, candidates = settlement.bids, settlement.candidates
    among = settlement.outcomes[candidates]
    others = others_welfare(among, bids, user_weight)
    own = among[:, :-1].T
    welfare = others[:, None, :] + grids[:, :, None] * own[:, None, :]
    best = candidates[welfare.argmax(axis=2)]
    # where several are best, the one that was played
    best[grids == bids[:, None]] = settlement.chosen
    at = settlement.outcomes[best]  # (n, G, n + 1)
    itctr = np.take_along_axis(at, np.arange(len(bids))[:, None, None], axis=2)[:, :, 0]
    weights = np.array([weights_of(bids, user_weight, without=i) for i in range(len(bids))])
    others_chosen = (at * weights[:, None, :]).sum(axis=2)
    payments, _ = _clamped(settlement.others_best[:, None], others_chosen, grids * itctr)
    return Along(best, itctr, payments)


def checked_bids(bids: ArrayLike, n: int) -> Floats:
    """Bids as (n,) floats; BadInput unless they are n finite numbers of at least 0."""
    bids = np.asarray(bids, dtype=np.float64)
    if bids.shape != (n,) or not np.isfinite(bids).all() or (bids < 0).any():
        raise BadInput(f"bids must be {n} finite numbers >= 0, one for each advertiser; got {bids}")
    return bids


def others_welfare(outcomes: Floats, bids: Floats, user_weight: float) -> Floats:
    """(n, S) W_{−i}(s) of outcomes (S, n + 1)."""
    rows = (weights_of(bids, user_weight, without=i) for i in range(len(bids)))
    return np.stack([(outcomes * weights).sum(axis=1) for weights in rows])


def priced(
    outcomes: Floats,
    candidates: Ints,
    bids: Floats,
    user_weight: float,
    tokens: dict[str, float],
    *,
    chosen: int | None = None,
    elsewhere: tuple[Ints, Floats] | None = None,
) -> Settlement:
    """The settlement by enumeration of `candidates`.

    Args:
        outcomes: (S, n + 1), finite and with click rates >= 0 at the candidates.
        candidates: (k,) configurations.
        bids: (n,) per click.
        user_weight: μ.
        tokens: spent so far, by purpose.
        chosen: a configuration to price instead of the best candidate.
        elsewhere: `counterfactual` (n,) and `others_best` (n,) where other searches found them.
    """
    among = outcomes[candidates]
    parts = among * weights_of(bids, user_weight)
    if chosen is None:
        chosen = int(candidates[parts.sum(axis=1).argmax()])
    if elsewhere is None:
        others = others_welfare(among, bids, user_weight)
        elsewhere = candidates[others.argmax(axis=1)], others.max(axis=1)
    counterfactual, others_best = elsewhere
    others_chosen = others_welfare(outcomes[[chosen]], bids, user_weight)[:, 0]
    values = bids * outcomes[chosen, :-1]
    payments, clamped = _clamped(others_best, others_chosen, values)
    return Settlement(
        bids=bids,
        chosen=chosen,
        counterfactual=counterfactual,
        outcomes=outcomes,
        candidates=candidates,
        others_best=others_best,
        values=values,
        payments=payments,
        clamped=clamped,
        welfare=float(outcomes[chosen] @ weights_of(bids, user_weight)),
        tokens=dict(tokens),
    )


def _clamped(best: Floats, at_choice: Floats, values: Floats) -> tuple[Floats, Bools]:
    """Payments `best − at_choice` in 0..values, and where that moved them by more than rounding."""
    payments = np.clip(best - at_choice, 0.0, values)
    moved = np.abs(payments - (best - at_choice))
    scale = np.maximum(np.maximum(np.abs(best), np.abs(at_choice)), values)
    return payments, moved > _ROUNDING * scale
