"""Payment rules, each a pure function over arrays with its equation.

Money is in the unit of the bids; `x` is an ad's click rate (ITCTR). The last axis is the ads n;
leading axes broadcast: requests B, and further ones where a rule prices counterfactuals.
"""

from __future__ import annotations

from math import comb

import numpy as np

from mechanisms.pool import Bools, Floats, Ints


def first_price(bids: Floats, itctr: Floats) -> Floats:
    """Expected first-price payments `p_i = b_i·x_i`: a clicked ad pays its bid.

    Args:
        bids: (..., n) per click.
        itctr: (..., n) click rate x_i.

    >>> first_price(np.array([2.0, 1.0]), np.array([0.3, 0.1]))
    array([0.6, 0.1])
    """
    return bids * itctr


def price_per_click(payments: Floats, itctr: Floats) -> Floats:
    """(B, n) what a click costs, `payments / itctr`; 0 where no click is expected.

    One price for all replies, so that charges per click have the expected payments for a mean.
    """
    return np.divide(payments, itctr, out=np.zeros_like(payments), where=itctr > 0)


def rochet(
    declared: Floats, log_z: Floats, log_z_without: Floats, tau: float, *, offset: bool = True
) -> Floats:
    """Expected payments that make truth optimal under a Gibbs allocation (MOSAIC, 2405.05905).

    With the offset   `p_i = E_π[r_i] − tau·[log Z(r) − log Z(r_−i)]`, which leaves advertiser i its
    marginal contribution to regularised welfare; it equals `tau·KL(π(r)‖π(r_−i)) >= 0`.
    Without           `p_i = E_π[r_i] − tau·log Z(r)`: the same incentives, another constant.

    Args:
        declared: (...) declared expected reward `E_π[r_i]`.
        log_z: (...) `log Z(r)`, broadcast against `declared`.
        log_z_without: (...) `log Z(r_−i)`.
        tau: weight of the KL term, in money per nat.
        offset: whether advertisers get `tau·log Z(r_−i)` taken off their utility.

    Of two replies one is worth 1 to the only bidder, which utility ln((e + 1) / 2) is left to:

    >>> z = np.log((np.e + 1) / 2)
    >>> rochet(np.array([np.e / (np.e + 1)]), np.array([z]), np.array([0.0]), tau=1.0).round(4)
    array([0.1109])
    """
    if not offset:
        return declared - tau * log_z
    # a KL divergence; only rounding goes below 0
    return np.maximum(declared - tau * (log_z - log_z_without), 0.0)


def clarke_pivot(others_best: Floats, others_chosen: Floats) -> Floats:
    """The externality `p_i = W_−i(S*_−i) − W_−i(S*)` that advertiser i imposes (Clarke).

    Args:
        others_best: (..., n) greatest welfare of all but i, over every outcome.
        others_chosen: (..., n) welfare of all but i at the outcome chosen.
    """
    # >= 0, since the outcome chosen is among those maximised over; only rounding goes below
    return np.maximum(others_best - others_chosen, 0.0)


def vcg(welfare: Floats, own: Floats, chosen: Ints) -> Floats:
    """VCG payments with Clarke's pivot over a finite set of S outcomes.

    `p_i = max_s [W(s) − v_i(s)] − [W(s*) − v_i(s*)]`. Costs of the platform, such as a reserve, are
    a part of W and of nobody's v_i. With v_i >= 0 no truthful advertiser ends below 0.

    Args:
        welfare: (..., S) W of every outcome, -inf for one that is not feasible.
        own: (..., S, n) declared value v_i of every outcome.
        chosen: (...) index of the outcome s* of greatest welfare.

    Two bidders for one place, worth 5 and 3 to them:

    >>> vcg(np.array([5.0, 3.0]), np.array([[5.0, 0.0], [0.0, 3.0]]), np.array(0))
    array([3., 0.])
    """
    others = welfare[..., None] - own
    at_choice = np.take_along_axis(others, chosen[..., None, None], axis=-2)[..., 0, :]
    return clarke_pivot(others.max(axis=-2), at_choice)


def gsp(bids: Floats, stand_alone: Floats, winners: Bools, reserve: float = 0.0) -> Floats:
    """Price per click of a generalised second-price auction with click rates as quality.

    Ads are ordered by score `s_i = b_i·q_i` (q_i: stand-alone click rate), equal scores by index.
    A winner pays `s_next/q_i`, at least the reserve and at most its bid; `next` is the winner after
    it, or for the last one the best ad that did not win. Losers' prices are 0.

    Args:
        bids: (..., n) per click.
        stand_alone: (..., n) q_i, the click rate of ad i shown alone.
        winners: (..., n) who is shown.
        reserve: least price per click.

    >>> gsp(np.array([3.0, 2.0, 1.0]), np.full(3, 0.1), np.array([True, True, False]))
    array([2., 1., 0.])
    """
    n = bids.shape[-1]
    scores = bids * stand_alone
    mine, other = scores[..., :, None], scores[..., None, :]
    index = np.arange(n)
    behind = (other < mine) | ((other == mine) & (index[None, :] > index[:, None]))
    next_winner = np.where(behind & winners[..., None, :], other, -1.0).max(axis=-1, initial=-1.0)
    best_loser = np.where(winners, 0.0, scores).max(axis=-1, initial=0.0, keepdims=True)
    following = np.where(next_winner >= 0, next_winner, best_loser)
    # s_next >= s_i would price above the bid: there, and where q_i is 0, no division is needed
    capped = np.where(following > 0, bids, 0.0)
    price = np.divide(following, stand_alone, out=capped, where=following < scores)
    return np.where(winners, np.minimum(np.maximum(price, reserve), bids), 0.0)


def myerson_draws(bids: Floats, drawn: Floats, missed: Floats, by_count: Floats) -> Floats:
    """Myerson's payments `b·x(b) − ∫_0^b x(z)dz` for k independent draws proportional to bids.

    An ad is drawn with probability `t = q·b/(q·b + S)` each time and clicked at rate a_m if drawn m
    times: `x = Σ_m C(k,m)·t^m·(1−t)^(k−m)·a_m`. Since `p = ∫ z dx(z)` and `z = (S/q)·t/(1−t)`,

        p = (S/q)·Σ_{m<k} k·C(k−1,m)·(a_{m+1} − a_m)·J_m(t),  J_m = ∫_0^t s^{m+1}(1−s)^{k−2−m} ds,

    with S/q = b·(1−t)/t. No terms cancel, and none is negative where a_m does not fall in m.

    Args:
        bids: (...) per click.
        drawn: (...) t.
        missed: (...) 1 − t, given for its own sake: its digits are lost where t is near 1.
        by_count: (..., k+1) a_m, broadcast against the others.
    """
    k = by_count.shape[-1] - 1
    steps = np.diff(by_count, axis=-1)
    # a fall of rounding size is none
    rounding = 1e-14 * by_count.max(axis=-1, keepdims=True)
    steps = np.where((steps < 0) & (steps > -rounding), 0.0, steps)
    total = steps[..., k - 1] * k * missed * _log_remainder(drawn, missed, k)
    for m in range(k - 1):
        powers = sum(
            (-1) ** j * comb(k - 2 - m, j) / (m + 2 + j) * drawn**j for j in range(k - 1 - m)
        )
        total = total + steps[..., m] * k * comb(k - 1, m) * missed * drawn ** (m + 1) * powers
    return bids * total


def _log_remainder(t: Floats, rest: Floats, k: int) -> Floats:
    """`∫_0^t s^k/(1−s) ds / t = (−log(1−t) − Σ_{j<=k} t^j/j) / t`, where `rest = 1 − t` > 0.

    Below t = 0.1 the difference would cancel, and its series `Σ_{j>k} t^(j−1)/j` is summed instead.
    At rest = 0, where it is infinite, finite: it is only used times `rest`.
    """
    small, large = np.minimum(t, 0.1), np.maximum(t, 0.1)
    series = np.zeros_like(t)
    for j in range(k + 16, k, -1):
        series = series * small + 1.0 / j
    head = sum(large**j / j for j in range(1, k + 1))
    logs = -np.log(np.maximum(rest, np.finfo(np.float64).tiny))
    return np.where(t < 0.1, series * small**k, (logs - head) / large)
