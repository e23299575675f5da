"""Payments on a token budget: exact where all is known, better with tokens, never beyond them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.errors import BadInput
from mechanisms.iamfm.counterfactual import HOW, differences, settle
from mechanisms.iamfm.evaluations import Evaluations, TokenBudget, weights_of
from mechanisms.iamfm.exact import exact_vcg, externalities, outcomes_along
from mechanisms.iamfm.synthetic import SyntheticEvaluator, SyntheticSettings
from tests.mechanisms.iamfm.evenly import Evenly, searched
from tests.mechanisms.pools import close

SMALL = SyntheticSettings(advertisers=3)
EXACT = SyntheticSettings(advertisers=3, noise=0.0)
METHOD = Evenly()


def settled(evaluator, pairs, tokens, how="aco", seed=0, limit=1e7):
    known = searched(evaluator, pairs, limit)
    rng = np.random.default_rng(seed)
    return known, settle(known, METHOD, evaluator.values, 1.0, tokens, rng, how)


def error(evaluator, found):
    """Mean distance from the true externality of what was chosen."""
    due = externalities(evaluator.truth(), evaluator.values, 1.0, found.chosen)
    return np.abs(found.payments - due).mean()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("seed", range(3))
def test_with_all_known_payments_are_exact(how, seed):
    evaluator = SyntheticEvaluator(EXACT, seed)
    _, found = settled(evaluator, 2, 3 * 27 * 2 * 64, how)
    exact = exact_vcg(evaluator.truth(), evaluator.values, 1.0)
    assert found.chosen == exact.chosen
    assert found.counterfactual.tolist() == exact.counterfactual.tolist()
    np.testing.assert_allclose(found.payments, exact.payments, rtol=0, atol=1e-9)
    assert found.payments.sum() > 0.01
    # what is certain costs nothing more
    assert how.startswith("naive") or "payments" not in found.tokens


def test_tokens_buy_exact_payments():
    # without noise, two pairs make a configuration certain; of half, nothing is known at first
    evaluator = SyntheticEvaluator(EXACT, 1)
    known = Evaluations(evaluator, TokenBudget(1e7))
    known.extend(np.arange(0, 27, 2), known.full, 2, "allocation")
    exact = exact_vcg(evaluator.truth(), evaluator.values, 1.0)
    rng = np.random.default_rng(0)
    before = settle(known, METHOD, evaluator.values, 1.0, 0.0, rng, "none")
    after = settle(known, METHOD, evaluator.values, 1.0, 1e6, rng)
    close(after.payments, exact.payments)
    assert np.abs(before.payments - exact.payments).max() > 1e-3
    assert after.chosen == exact.chosen


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**20),
    st.floats(0, 40_000),
    st.sampled_from(HOW),
    st.sampled_from([0, 3_000, 10**7]),
)
def test_never_beyond_allowance_or_budget(seed, tokens, how, spare):
    evaluator = SyntheticEvaluator(SMALL, seed % 7, pair_seed=seed)
    known = searched(evaluator, 4)
    known.budget.limit = known.budget.total + spare + 1e-6
    try:
        found = settle(known, METHOD, evaluator.values, 1.0, tokens, np.random.default_rng(0), how)
    except BadInput:
        # too little for two pairs of each of 27 configurations, three times
        assert how.startswith("naive") and min(tokens / 3, spare) < 4 * 27 * 64
        assert known.budget.spent.get("payments", 0.0) <= min(tokens, spare) + 1e-6
        return
    spent = found.tokens.get("payments", 0.0)
    assert spent <= min(tokens, spare) + 1e-6
    assert known.budget.total <= known.budget.limit
    assert how != "none" or spent == 0
    if how == "aco":
        # noise never ends, so all is spent but what buys no pair
        assert spent > min(tokens, spare) - 64 - 1e-6
    assert (found.payments >= 0).all() and (found.payments <= found.values).all()


@pytest.mark.parametrize("how", ["aco", "none"])
@pytest.mark.parametrize("seed", range(4))
def test_the_settlement_is_vcg_of_what_is_believed(how, seed):
    evaluator = SyntheticEvaluator(SMALL, seed)
    values = evaluator.values
    known, found = settled(evaluator, 6, 10_000, how)
    exact = exact_vcg(found.outcomes[found.candidates], values, 1.0)
    assert found.chosen == found.candidates[exact.chosen]
    close(found.payments, exact.payments)
    assert not found.clamped.any()
    assert (known.counts[known.full, found.candidates] >= 2).all()
    if how == "none":
        assert found.chosen == METHOD.choose(known, weights_of(values, 1.0))
    # so a report that leads to the same samples gains nothing on what is believed
    grids = values[:, None] * (np.arange(31) / 10)
    along = outcomes_along(found, 1.0, grids)
    assert (along.payments[:, 10] == found.payments).all()
    assert (along.chosen[:, 10] == found.chosen).all()
    gain = values[:, None] * along.itctr - along.payments
    honest = found.values - found.payments
    assert (gain <= honest[:, None] + 1e-12).all()


def missed(evaluator):
    """Samples of the best three; of the best one, so few that the method does not trust it."""
    known = Evaluations(evaluator, TokenBudget(1e6))
    order = np.argsort(evaluator.truth() @ evaluator.weights)
    known.extend(order[-3:-1], known.full, 8, "allocation")
    known.extend(order[-1:], known.full, 2, "allocation")
    return known, METHOD.choose(known, evaluator.weights), order[-1]


def test_what_the_search_missed_is_played_if_that_is_sure():
    # there is no noise, so two pairs are sure
    known, first, best = missed(SyntheticEvaluator(EXACT, 2))
    values = known.evaluator.values
    found = settle(known, METHOD, values, 1.0, 0.0, np.random.default_rng(0), "none")
    assert first != best and found.chosen == best


@pytest.mark.parametrize("seed", range(5))
def test_what_the_search_may_have_missed_is_charged_to_nobody(seed):
    known, first, _ = missed(SyntheticEvaluator(SMALL, 2, pair_seed=seed))
    values, weights = known.evaluator.values, known.evaluator.weights
    found = settle(known, METHOD, values, 1.0, 0.0, np.random.default_rng(0), "none")
    assert found.chosen == first
    assert (found.outcomes[found.candidates] @ weights).max() <= found.welfare + 1e-12
    assert not found.clamped.any()


def test_active_optimisation_nears_the_truth():
    ways = {how: (how, 1.0) for how in HOW} | {"half": ("aco", 0.5)}
    errors = {way: [] for way in ways}
    for seed in range(20):
        evaluator = SyntheticEvaluator(SMALL, seed, pair_seed=seed)
        for way, (how, share) in ways.items():
            # three naive runs at the same number of pairs as the search had
            _, found = settled(evaluator, 8, share * 3 * 27 * 8 * 64, how, seed)
            errors[way].append(error(evaluator, found))
    aco, naive, common, none, half = (np.mean(errors[way]) for way in ways)
    assert aco < 0.7 * none
    assert aco < 0.7 * naive
    assert half < min(naive, common)
    assert common < naive  # the search found the same on both; only the comparison is better


def test_pairs_go_to_what_may_change_a_payment():
    for seed in range(4):
        evaluator = SyntheticEvaluator(SMALL, seed, pair_seed=seed)
        values, rng = evaluator.values, np.random.default_rng(0)
        known = searched(evaluator, 64)
        before = settle(known, METHOD, values, 1.0, 0.0, rng, "none")
        hopeless = np.ones(27, dtype=bool)
        for i, incumbent in enumerate(before.counterfactual):
            weights = weights_of(values, 1.0, without=i)
            gap, off = differences(known, METHOD.belief(known), incumbent, weights).welfare(weights)
            hopeless &= gap + 4 * off < 0
        found = settle(known, METHOD, values, 1.0, 27 * 64 * 64, rng)
        pairs = known.counts[known.full]
        assert hopeless.any() and (pairs[hopeless] == 64).all()
        assert min(pairs[found.chosen], *pairs[found.counterfactual]) > 2 * 64


def test_same_seed_same_bytes():
    evaluator = SyntheticEvaluator(SMALL, 2)
    for how in HOW:
        one, two = (settled(evaluator, 6, 3 * 27 * 3 * 64, how, seed=5)[1] for _ in range(2))
        assert one.payments.tobytes() == two.payments.tobytes()
        assert one.tokens == two.tokens


@pytest.mark.parametrize("how", ["aco", "none"])
def test_money_has_no_unit(how):
    evaluator = SyntheticEvaluator(SMALL, 3)
    known, dear = searched(evaluator, 6), searched(evaluator, 6)
    rng = np.random.default_rng(0)
    found = settle(known, METHOD, evaluator.values, 1.0, 8_000, rng, how)
    scaled = settle(dear, METHOD, evaluator.values * 1024, 1024.0, 8_000, rng, how)
    assert scaled.chosen == found.chosen
    assert scaled.tokens == found.tokens
    close(scaled.payments, 1024 * found.payments)


def test_who_is_worth_nothing_pays_nothing_and_costs_nothing():
    evaluator = SyntheticEvaluator(SMALL, 0)
    known = searched(evaluator, 4)
    found = settle(known, METHOD, np.zeros(3), 1.0, 10_000, np.random.default_rng(0))
    assert (found.payments == 0).all() and (found.prices == 0).all()
    assert "payments" not in found.tokens


def test_naive_runs_draw_pairs_of_their_own():
    evaluator = SyntheticEvaluator(SMALL, 1)
    known, found = settled(evaluator, 6, 3 * 27 * 6 * 64, "naive")
    assert (known.counts[known.full] == 6).all()  # the allocation's samples are as they were
    weights = weights_of(evaluator.values, 1.0, without=0)
    known_worth = METHOD.belief(known).mean[found.counterfactual[0]] @ weights
    assert abs(found.others_best[0] - known_worth) > 1e-6
    assert 0 < found.tokens["payments"] <= 3 * 27 * 6 * 64


def test_naive_runs_on_common_pairs_compare_there():
    """What the query does to all configurations is no part of a payment then."""
    shared = SyntheticSettings(advertisers=3, query_share=1.0, level_correlation=1.0)
    off = {"naive": [], "naive-common": []}
    for seed in range(15):
        evaluator = SyntheticEvaluator(shared, 1, pair_seed=seed)
        for how, apart in off.items():
            known, found = settled(evaluator, 16, 3 * 27 * 16 * 64, how, seed)
            assert (known.counts[known.full] == 16).all()
            truth = evaluator.truth()
            for i in range(3):
                weights = weights_of(evaluator.values, 1.0, without=i)
                gap = (truth[found.counterfactual[i]] - truth[found.chosen]) @ weights
                told = found.others_best[i] - found.outcomes[found.chosen] @ weights
                apart.append(told - gap)
                if how == "naive-common" and found.counterfactual[i] == found.chosen:
                    assert abs(told) < 1e-12
    assert np.std(off["naive-common"]) < 0.8 * np.std(off["naive"])


def test_differences_come_from_common_pairs():
    evaluator = SyntheticEvaluator(SyntheticSettings(advertisers=2, query_share=0.95), 0)
    known = searched(evaluator, 5)
    known.extend(np.array([4]), known.full, 40, "allocation")
    weights = evaluator.weights
    found = differences(known, METHOD.belief(known), 4, weights)
    outcomes = known.outcomes(known.full, np.arange(9), 5)
    apart = (outcomes - outcomes[4]).mean(axis=1)
    paired = np.isclose(found.mean, apart).all(axis=1)
    assert paired[8]  # strengths 2, 2 beside 1, 1: mostly the query's noise, which they share
    unpaired = METHOD.belief(known).mean - METHOD.belief(known).mean[4]
    assert (paired | np.isclose(found.mean, unpaired).all(axis=1)).all()
    assert (found.mean[4] == 0).all() and (found.covariance[4] == 0).all()
    # a standard error that says how far off the difference is
    _, errors = found.welfare(weights)
    off = []
    for pair_seed in range(200):
        drawn = searched(evaluator.reseeded(pair_seed), 5)
        drawn.extend(np.array([4]), drawn.full, 40, "allocation")
        gap, told = differences(drawn, METHOD.belief(drawn), 4, weights).welfare(weights)
        truth = (evaluator.truth() - evaluator.truth()[4]) @ weights
        others = np.arange(9) != 4
        off.append((gap - truth)[others] / told[others])
    assert 0.85 < np.std(off) < 1.3
    assert errors[8] < np.sqrt(2) * METHOD.belief(known).welfare(weights)[1][8]


@pytest.mark.parametrize(
    ("change", "say"),
    [
        ({"how": "magic"}, "how is 'magic'"),
        ({"tokens": -1.0}, "tokens for payments is -1"),
        ({"tokens": np.inf}, "finite"),
        ({"bids": [1.0, 2.0]}, "bids must be 3"),
        ({"bids": [1.0, 2.0, np.nan]}, "bids must be 3"),
        ({"user_weight": -1.0}, "user_weight"),
        ({"how": "naive", "tokens": 100.0}, "give more"),
    ],
)
def test_bad_input(change, say):
    known = searched(SyntheticEvaluator(SMALL), 2)
    given = {"bids": np.ones(3), "user_weight": 1.0, "tokens": 1e3, "how": "aco"} | change
    with pytest.raises(BadInput, match=say):
        settle(known, METHOD, rng=np.random.default_rng(0), **given)


def test_nothing_known():
    known = Evaluations(SyntheticEvaluator(SMALL), TokenBudget(1e5))
    with pytest.raises(BadInput, match="give"):
        settle(known, METHOD, np.ones(3), 1.0, 1e3, np.random.default_rng(0))
