"""How far a settlement is from VCG, and what that is worth to an advertiser who misreports.

**Gain from misreporting.** Fix the true outcomes and what all but i report. Let W be welfare with
i's value in the place of its bid, M_i = max_s W_{−i}(s) at the truth and over all configurations,
in which i's report has no part (it has in what a search finds of it), and
P_i(s) = M_i − W_{−i}(s) >= 0 the true externality of s. A run of the mechanism plays s and charges
c_i, with payment error e = c_i − P_i(s). So i's utility is

    v_i(s) − c_i = W(s) − M_i − e.                                                         (1)

In run A the report is truthful, in run B it is not. Since W(s_B) <= max W, the gain from B is

    W(s_B) − W(s_A) − e_B + e_A  <=  [max W − W(s_A)] + |e_A| + |e_B|.                     (2)

With the *optimisation error* of a run for advertiser i, at the bids reported in it,

    ε_i = [max W − W(s)] + |c_i − P_i(s)|,                                                 (3)

the allocation's shortfall and the payment's error, both >= 0, the gain is at most
ε_i(A) + ε_i(B) <= 2·max(ε_i(A), ε_i(B)). Nothing was assumed of how the search went, of how samples
hang on bids, or of what was clamped. At ε = 0 this is the truthfulness of VCG. As (2) follows from
(1) alone, no run can break the bound: to look for a run that does is to check the program.

**What the bound does not say.** It is loose, and a report may pay on average well within it. For
i's bid moves i's own price: by where the search looks; by which configurations are known well
enough to be candidates; by the rule that no candidate is believed to be better than s* at the bids,
i's among them, so that p_i <= b_i·[ctr_i(s*) − ctr_i(s*_{−i})] as believed; and by the upper clamp.
By the last two a lower bid lowers the price. Mean gains of small misreports are measured by
`experiments.iamfm.shading`.

**What ε is made of.** Let α be the allocation's shortfall, γ = M_i − W_{−i}(s*_{−i}) that of the
counterfactual, η the error in the estimate of W_{−i}(s*_{−i}) − W_{−i}(s*), and
ν = b_i·|ĉtr_i(s*) − ctr_i(s*)|. Then

    |c_i − P_i(s*)| <= max(γ + η, α + ν) + ν.                                              (4)

For p_i before the clamps is off by at most γ + η. The lower clamp brings it nearer to P_i >= 0. The
upper one, where it takes p_i below P_i, leaves P_i − v̂_i <= α + ν, as
P_i − v_i(s*) = M_i − W(s*) <= max W − W(s*) = α. Mean charges by the click, p_i·ctr_i/ĉtr_i, are
within ν of p_i. Tokens shrink every term, and so the gain.

**Individual rationality.** By the upper clamp a click costs p_i/ĉtr_i(s*) <= b_i. So no advertiser
is charged above the reported value of the clicks it got, whatever was believed: ex post.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mechanisms.iamfm.evaluations import weights_of
from mechanisms.iamfm.exact import Settlement, externalities
from mechanisms.pool import Floats


class Deviation(NamedTuple):
    """A misreport: what it gained, and the larger optimisation error of the two runs.

    `gain <= 2·error` whatever was reported.
    """

    gain: float
    error: float


def optimisation_error(settlement: Settlement, truth: Floats, user_weight: float) -> Floats:
    """(n,) ε_i of a run at the bids reported in it, in money per request; see (3).

    Args:
        settlement: what was settled.
        truth: (S, n + 1) expected outcomes.
        user_weight: μ.
    """
    welfare = truth @ weights_of(settlement.bids, user_weight)
    shortfall = welfare.max() - welfare[settlement.chosen]
    due = externalities(truth, settlement.bids, user_weight, settlement.chosen)
    return shortfall + np.abs(settlement.charges(truth) - due)


def utilities(settlement: Settlement, truth: Floats, values: Floats) -> Floats:
    """(n,) utility per request, `v_i·ctr_i(s*)` less mean charges, expected at the truth."""
    return values * truth[settlement.chosen, :-1] - settlement.charges(truth)


def misreport_gain(
    run: Callable[[Floats], Settlement],
    truth: Floats,
    values: Floats,
    user_weight: float,
    advertiser: int,
    report: float,
) -> Deviation:
    """What an advertiser gains by reporting `report` instead of its value, others being truthful.

    Args:
        run: the whole mechanism, search and payments, from bids (n,); with the same random numbers
            every time.
        truth: (S, n + 1) expected outcomes.
        values: (n,) true values per click; the others' reports are these.
        user_weight: μ.
        advertiser: who misreports.
        report: its bid.
    """
    reports = values.copy()
    reports[advertiser] = report
    honest, deviating = run(values), run(reports)
    errors = [optimisation_error(each, truth, user_weight) for each in (honest, deviating)]
    gain = utilities(deviating, truth, values) - utilities(honest, truth, values)
    return Deviation(float(gain[advertiser]), float(np.max(errors, axis=0)[advertiser]))
