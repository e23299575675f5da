"""What every search by sample means does, and what elimination adds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.errors import BadInput
from mechanisms.iamfm.baselines import RandomSearch, UniformAllocation
from mechanisms.iamfm.elimination import ConfidenceElimination, SuccessiveHalving
from mechanisms.iamfm.evaluations import Evaluations, TokenBudget, weights_of
from mechanisms.iamfm.synthetic import FULL, SHORT, SyntheticEvaluator, SyntheticSettings
from tests.mechanisms.iamfm.tables import Permuted, Table

ELIMINATION = [SuccessiveHalving(), ConfidenceElimination()]
METHODS = [*ELIMINATION, RandomSearch(), UniformAllocation()]
SMALL = SyntheticSettings(advertisers=3)
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
each_elimination = pytest.mark.parametrize("method", ELIMINATION, ids=lambda method: method.name)


def searched(evaluator, method, tokens, weights=None, seed=0, limit=1e9):
    known = Evaluations(evaluator, TokenBudget(limit))
    weights = evaluator.weights if weights is None else weights
    method.search(known, weights, tokens, "allocation", np.random.default_rng(seed))
    return known


def regret(evaluator, known, method, weights):
    welfare = evaluator.truth() @ weights
    return welfare.max() - welfare[method.choose(known, weights)]


@every_method
@settings(max_examples=25, deadline=None)
@given(tokens=st.floats(1, 8000), limit=st.floats(1, 8000), seed=st.integers(0, 50))
def test_never_beyond_the_allowance_or_the_budget(method, tokens, limit, seed):
    known = searched(SyntheticEvaluator(SMALL, seed), method, tokens, seed=seed, limit=limit)
    assert known.budget.total <= min(tokens, limit) * (1 + 1e-12)
    assert set(known.budget.spent) <= {"allocation"}


@every_method
@pytest.mark.parametrize("tokens", [2_000, 20_000])
def test_spends_nearly_all_of_it(method, tokens):
    known = searched(SyntheticEvaluator(SMALL, 1), method, tokens)
    assert known.budget.total > tokens - 2 * SMALL.tokens


@every_method
def test_deterministic(method):
    counts, chosen = [], []
    for _ in range(2):
        evaluator = SyntheticEvaluator(SMALL, 5)
        known = searched(evaluator, method, 3_000, seed=9)
        counts.append(known.counts)
        chosen.append(method.choose(known, evaluator.weights))
    assert (counts[0] == counts[1]).all() and chosen[0] == chosen[1]


@every_method
@pytest.mark.parametrize("seed", range(5))
def test_without_noise_it_finds_the_optimum(method, seed):
    evaluator = SyntheticEvaluator(SyntheticSettings(noise=0, bias=0), seed)
    known = searched(evaluator, method, 270_000)
    assert regret(evaluator, known, method, evaluator.weights) < 1e-12


@each_elimination
def test_without_noise_the_biased_level_is_enough_to_find_it_with_few_tokens(method):
    evaluator = SyntheticEvaluator(SyntheticSettings(noise=0, bias=0), 2)
    known = searched(evaluator, method, 80_000)
    assert (known.counts[FULL] >= 2).sum() <= 100
    assert regret(evaluator, known, method, evaluator.weights) < 1e-12


@every_method
@pytest.mark.parametrize("scale", [0.25, 8.0])
def test_money_has_no_unit(method, scale):
    evaluator = SyntheticEvaluator(SMALL, 3)
    known, scaled = (
        searched(evaluator, method, 4_000, weights=c * evaluator.weights) for c in (1.0, scale)
    )
    assert (known.counts == scaled.counts).all()
    assert method.choose(known, evaluator.weights) == method.choose(
        scaled, scale * evaluator.weights
    )


@every_method
def test_advertisers_have_no_order(method):
    evaluator = SyntheticEvaluator(SMALL, 3)
    order = np.array([2, 0, 1])
    known = searched(evaluator, method, 4_000)
    weights = evaluator.weights[np.append(order, 3)]
    permuted = searched(Permuted(evaluator, order), method, 4_000, weights=weights)
    assert (known.counts == permuted.counts).all()
    assert method.choose(known, evaluator.weights) == method.choose(permuted, weights)


@every_method
def test_more_tokens_are_better_in_the_mean(method):
    def mean(tokens):
        found = []
        for seed in range(16):
            evaluator = SyntheticEvaluator(SMALL, seed, pair_seed=seed)
            known = searched(evaluator, method, tokens, seed=seed)
            found.append(regret(evaluator, known, method, evaluator.weights))
        return np.mean(found)

    few, some, many = mean(500), mean(4_000), mean(32_000)
    assert few > some > many


@every_method
def test_looks_only_where_it_is_told_to(method):
    evaluator = SyntheticEvaluator(SMALL, 0)
    known = Evaluations(evaluator, TokenBudget(1e6))
    among = np.array([3, 9, 10, 20])
    rng = np.random.default_rng(0)
    method.search(known, evaluator.weights, 5_000, "payments", rng, among=among)
    assert not np.delete(known.counts, among, axis=1).any()
    assert method.choose(known, evaluator.weights) in among
    with pytest.raises(BadInput, match="`among` is empty"):
        method.search(known, evaluator.weights, 10, "payments", rng, among=among[:0])


@each_elimination
def test_a_search_for_other_weights_starts_from_what_is_known(method):
    """The counterfactual problem without advertiser 0, after the allocation and from nothing."""
    warm, cold = [], []
    for seed in range(16):
        evaluator = SyntheticEvaluator(SMALL, seed, pair_seed=seed)
        weights = weights_of(evaluator.values, SMALL.user_weight, without=0)
        fresh = searched(evaluator, method, 1_000, weights=weights)
        known = searched(evaluator, method, 20_000)
        counts = known.counts.copy()
        method.search(known, weights, 1_000, "payments", np.random.default_rng(seed))
        assert (known.counts >= counts).all() and known.budget.spent["payments"] <= 1_000
        warm.append(regret(evaluator, known, method, weights))
        cold.append(regret(evaluator, fresh, method, weights))
    assert np.mean(warm) < np.mean(cold)


def test_what_is_known_is_not_paid_for_again():
    evaluator = SyntheticEvaluator(SMALL, 0)
    known = Evaluations(evaluator, TokenBudget(1e7))
    method = SuccessiveHalving(most_pairs=50)
    for level in (SHORT, FULL):
        known.extend(np.arange(27), level, 50, "allocation")
    method.search(known, evaluator.weights, 1e6, "payments", np.random.default_rng(0))
    assert "payments" not in known.budget.spent or known.budget.spent["payments"] == 0


def test_rungs_of_a_known_shape():
    """27 configurations in thirds: 27 at the biased level, 9 and 3 at the unbiased one."""
    known = searched(SyntheticEvaluator(SMALL, 0), SuccessiveHalving(), 30_000)
    assert (known.counts[SHORT] > 0).sum() == 27 and len(np.unique(known.counts[SHORT])) == 1
    full = np.sort(known.counts[FULL])[::-1]
    assert (full > 0).sum() == 9 and len(np.unique(full[3:9])) == 1
    assert full[2] > 2 * full[3] and full[0] - full[2] <= 3


def test_the_clearly_worse_get_no_more_pairs():
    means = np.linspace(0.1, 0.9, 9)[:, None] * np.ones((1, 9, 1))
    rng = np.random.default_rng(0)
    table = Table((rng.random((1, 9, 3000, 1)) < means[:, :, None]).astype(float))
    known = searched(table, ConfidenceElimination(width=3), 4_000, weights=np.ones(1))
    assert known.counts[0].min() >= 4 and known.counts[0, 8] > 20 * known.counts[0, :4].max()


def test_a_biased_level_does_not_have_the_last_word():
    """The biased level swaps the best two; elimination at the unbiased one finds out."""
    full = np.array([[0.9], [0.8], [0.3], [0.2], [0.1]])
    means = np.stack([full[[1, 0, 2, 3, 4]], full])
    for method in ELIMINATION:
        known = searched(Table.constant(means), method, 200, weights=np.ones(1))
        assert method.choose(known, np.ones(1)) == 0


@pytest.mark.parametrize(
    ("method", "parameter", "value"),
    [
        (SuccessiveHalving, "eta", 1.0),
        (SuccessiveHalving, "biased_share", 1.2),
        (SuccessiveHalving, "least_pairs", 1),
        (ConfidenceElimination, "confidence", 0.5),
        (ConfidenceElimination, "biased_share", -0.1),
        (ConfidenceElimination, "width", 1),
        (ConfidenceElimination, "growth", 1.0),
        (RandomSearch, "pairs", 0),
        (UniformAllocation, "least_pairs", 2.5),
    ],
)
def test_unfit_parameters_are_refused(method, parameter, value):
    with pytest.raises(BadInput, match=f"{parameter} is"):
        method(**{parameter: value})
