"""VCG by enumeration: what theory says of it, for any outcomes and any reports."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechanisms.errors import BadInput
from mechanisms.iamfm.evaluations import weights_of
from mechanisms.iamfm.exact import exact_vcg, externalities, outcomes_along, priced
from mechanisms.payments import vcg
from tests.mechanisms.pools import close, quick


@st.composite
def problems(draw):
    """Outcomes (S, n + 1), values (n,), user weight, and the generator they came from."""
    S, n = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shown = rng.random((S, n)) < draw(st.sampled_from([0.2, 0.7, 1.0]))
    outcomes = np.column_stack([rng.random((S, n)) * shown, rng.random(S)])
    values = rng.random(n) * (rng.random(n) < 0.9) * draw(st.sampled_from([0.01, 1.0, 100.0]))
    return outcomes, values, draw(st.sampled_from([0.0, 0.5, 3.0])), rng


def utilities(settlement, truth, values):
    return values * truth[settlement.chosen, :-1] - settlement.payments


def test_worked_example():
    # each ad alone, both, none: rivals take clicks from each other, users pay with attention
    truth = [[0, 0, 1.0], [0.5, 0, 0.8], [0, 0.4, 0.8], [0.4, 0.3, 0.3]]
    found = exact_vcg(truth, [2.0, 1.0], 1.0)
    # W = 1, 1.8, 1.2, 1.4; without ad 1: 1, 0.8, 1.2, 0.6; without ad 2: 1, 1.8, 0.8, 1.1
    assert found.chosen == 1
    assert found.counterfactual.tolist() == [2, 1]
    close(found.values, [1.0, 0.0])
    close(found.payments, [0.4, 0.0])
    close(found.prices, [0.8, 0.0])
    close(found.welfare, 1.8)
    assert not found.clamped.any()
    # had both been shown: ad 1 takes 0.6 from the others, and ad 2 0.7, which is beyond its value
    both = exact_vcg(truth, [2.0, 1.0], 1.0, chosen=3)
    close(both.payments, [0.6, 0.3])
    assert both.clamped.tolist() == [False, True]
    close(externalities(np.array(truth), np.array([2.0, 1.0]), 1.0, 3), [0.6, 0.7])


@quick
@given(problems())
def test_it_is_clarkes_pivot(problem):
    outcomes, values, user_weight, _ = problem
    found = exact_vcg(outcomes, values, user_weight)
    own = outcomes[:, :-1] * values
    welfare = outcomes @ weights_of(values, user_weight)
    scale = abs(welfare).max()
    close(found.welfare, welfare.max(), scale)
    close(found.payments, vcg(welfare, own, np.array(found.chosen)), scale)
    due = externalities(outcomes, values, user_weight, found.chosen)
    close(found.payments, due, scale)
    # utility is the marginal contribution to welfare
    close(utilities(found, outcomes, values), welfare.max() - found.others_best, scale)
    assert not found.clamped.any()


@quick
@given(problems(), st.floats(0, 1e3))
def test_truth_is_optimal_and_nobody_loses(problem, factor):
    outcomes, values, user_weight, rng = problem
    reports = values.copy()
    reports[0] = rng.random() * 2 * max(values[0], 0.1)  # the others may lie
    i = len(values) - 1
    reports[i] = values[i]
    honest = utilities(exact_vcg(outcomes, reports, user_weight), outcomes, values)[i]
    scale = values.max() + user_weight
    assert honest >= -1e-12 * scale
    for report in (0.0, factor * values[i], factor, rng.random()):
        reports[i] = report
        lied = utilities(exact_vcg(outcomes, reports, user_weight), outcomes, values)[i]
        # rounding is of the size of all that is added up
        assert lied <= honest + 1e-12 * (scale + report)


@quick
@given(problems(), st.sampled_from([1e-3, 7.0, 1e5]))
def test_money_has_no_unit_and_advertisers_no_order(problem, unit):
    outcomes, values, user_weight, rng = problem
    found = exact_vcg(outcomes, values, user_weight)
    scale = values.max() + user_weight
    dear = exact_vcg(outcomes, values * unit, user_weight * unit)
    close(dear.payments, found.payments * unit, scale * unit)
    order = rng.permutation(len(values))
    columns = np.append(order, len(values))
    turned = exact_vcg(outcomes[:, columns], values[order], user_weight)
    close(turned.payments, found.payments[order], scale)
    rows = rng.permutation(len(outcomes))
    mixed = exact_vcg(outcomes[rows], values, user_weight)
    close(mixed.payments, found.payments, scale)


@quick
@given(problems())
def test_other_bids_give_what_a_new_plan_would(problem):
    outcomes, bids, user_weight, rng = problem
    plan = exact_vcg(outcomes, bids, user_weight)
    grids = np.column_stack([np.zeros(len(bids)), bids, rng.random((len(bids), 3)), 2 * bids])
    along = outcomes_along(plan, user_weight, grids)
    assert (along.chosen[:, 1] == plan.chosen).all()
    assert (along.payments[:, 1] == plan.payments).all()
    for i, g in np.ndindex(grids.shape):
        reports = bids.copy()
        reports[i] = grids[i, g]
        anew = exact_vcg(outcomes, reports, user_weight)
        scale = reports.max() + user_weight
        close(along.payments[i, g], anew.payments[i], scale)
        close(along.itctr[i, g], outcomes[anew.chosen, i])
        assert along.payments[i, g] <= grids[i, g] * along.itctr[i, g]


@quick
@given(problems(), st.floats(-2, 2))
def test_clamps(problem, shift):
    # W_-i(s*_-i) as other searches might have over- or underestimated it
    outcomes, bids, user_weight, _ = problem
    exact = exact_vcg(outcomes, bids, user_weight)
    others_best = exact.others_best + shift
    everything = np.arange(len(outcomes))
    elsewhere = (exact.counterfactual, others_best)
    found = priced(outcomes, everything, bids, user_weight, {}, elsewhere=elsewhere)
    assert (found.payments >= 0).all() and (found.payments <= found.values).all()
    assert (found.prices <= bids).all() and (found.prices >= 0).all()
    free = found.payments == exact.payments + shift
    moved = exact.payments + shift
    close(found.payments, np.clip(moved, 0, found.values), abs(shift) + bids.max() + user_weight)
    beyond = (moved < -1e-9) | (moved > found.values + 1e-9)
    assert found.clamped[beyond].all()
    assert not found.clamped[free].any()
    along = outcomes_along(found, user_weight, bids[:, None])
    assert (along.payments[:, 0] == found.payments).all()
    # charged by the click, nobody pays more than its clicks are worth to it, whatever the truth
    truth = np.random.default_rng(0).random(outcomes.shape)
    assert (found.charges(truth) <= bids * truth[found.chosen, :-1]).all()


@pytest.mark.parametrize(
    ("outcomes", "bids", "say"),
    [
        ([[0.1, np.nan]], [1.0], "finite outcomes"),
        ([[-0.1, 0.5]], [1.0], "click rate below 0"),
        ([[0.1, 0.5]], [1.0, 2.0], "bids must be 1"),
        ([[0.1, 0.5]], [-1.0], "bids must be 1"),
        ([[0.1, 0.5]], [np.inf], "bids must be 1"),
        (np.empty((0, 2)), [1.0], "finite outcomes"),
    ],
)
def test_bad_input(outcomes, bids, say):
    with pytest.raises(BadInput, match=say):
        exact_vcg(outcomes, bids, 1.0)
