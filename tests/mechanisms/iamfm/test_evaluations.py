"""The accounts of a search: a hard limit, common pairs, means and covariances."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.errors import BadInput
from mechanisms.iamfm.evaluations import (
    Belief,
    Evaluations,
    Overspent,
    TokenBudget,
    weights_of,
)
from tests.mechanisms.iamfm.tables import Table

EXTENSIONS = st.lists(
    st.tuples(
        st.sets(st.integers(0, 4), min_size=1),
        st.integers(0, 1),
        st.integers(0, 40),
        st.sampled_from(["allocation", "payments"]),
        st.floats(0, 100),
    ),
    max_size=12,
)
quick = settings(max_examples=60, deadline=None)


@quick
@given(st.integers(0, 1000), st.floats(0.5, 150), EXTENSIONS)
def test_never_beyond_the_budget_or_the_allowance(seed, limit, extensions):
    evaluator = Table.random(seed)
    known = Evaluations(evaluator, TokenBudget(limit))
    for which, level, pairs, purpose, allowance in extensions:
        which = np.array(sorted(which))
        before, counts = dict(known.budget.spent), known.counts.copy()
        bound = known.cost(which, level, pairs)
        done = known.extend(which, level, pairs, purpose, allowance)
        booked = known.budget.total - sum(before.values())
        assert booked <= min(bound, allowance) * (1 + 1e-12) + 1e-12
        assert known.budget.total <= limit * (1 + 1e-12)
        assert done == (bound <= min(allowance, limit - sum(before.values())))
        if done:
            assert (known.counts[level, which] == np.maximum(counts[level, which], pairs)).all()
            assert {p for p in known.budget.spent if known.budget.spent[p] != before.get(p)} <= {
                purpose
            }
        else:
            assert known.budget.spent == before and (known.counts == counts).all()
    paid = sum(
        evaluator.shares[level, s, : known.counts[level, s]].sum() * evaluator.levels[level].tokens
        for level, s in itertools.product(range(2), range(5))
    )
    assert known.budget.total == pytest.approx(paid)


@quick
@given(st.integers(0, 1000), EXTENSIONS)
def test_pairs_are_a_common_prefix_however_they_were_taken(seed, extensions):
    evaluator = Table.random(seed)
    known = Evaluations(evaluator, TokenBudget(1e9))
    for which, level, pairs, purpose, _ in extensions:
        known.extend(np.array(sorted(which)), level, pairs, purpose)
    for level, s in itertools.product(range(2), range(5)):
        m = known.counts[level, s]
        kept = known.outcomes(level, np.array([s]), m)[0]
        assert (kept == evaluator.table[level, s, :m]).all()


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.floats(0, 200),
    st.sampled_from([1.0, 0.1, 3.0, 48.0]),
)
@settings(max_examples=100, deadline=None)
def test_affordable_pairs_against_trying(have, tokens, price):
    known = Evaluations(Table.constant(np.ones((1, 5, 2)), tokens=[price]), TokenBudget(1e9))
    which = np.arange(len(have))
    for s, m in enumerate(have):
        known.extend(np.array([s]), 0, m, "allocation")
    tokens *= price
    pairs = known.affordable_pairs(which, 0, tokens)
    assert pairs >= min(have)
    assert known.cost(which, 0, pairs) <= tokens
    # one more is too dear; at the limit, rounding may go either way
    assert known.cost(which, 0, pairs + 1) > tokens * (1 - 1e-12)


def test_affordable_pairs_are_of_the_budget_too():
    known = Evaluations(Table.random(0, L=1, tokens=[2.0]), TokenBudget(21))
    assert known.affordable_pairs(np.arange(5), 0, 1e6) == 2


def test_means_and_covariances_are_those_of_numpy():
    known = Evaluations(Table.random(3), TokenBudget(1e9))
    for s, m in enumerate([0, 1, 2, 7, 7]):
        known.extend(np.array([s]), 1, m, "allocation")
    mean, covariance = known.means(1)
    assert np.isnan(mean[0]).all() and np.isnan(covariance[:2]).all()
    assert (mean[1] == known.outcomes(1, np.array([1]), 1)[0, 0]).all()
    for s, m in [(2, 2), (3, 7), (4, 7)]:
        pairs = known.outcomes(1, np.array([s]), m)[0]
        np.testing.assert_allclose(mean[s], pairs.mean(axis=0))
        np.testing.assert_allclose(covariance[s], np.cov(pairs.T) / m)
    assert np.isnan(known.means(0)[0]).all()


def test_belief_in_a_weighted_sum():
    mean = np.array([[0.2, 0.4], [np.nan, np.nan]])
    covariance = np.array([[[0.04, 0.01], [0.01, 0.09]], np.diag([np.inf, np.inf])])
    found, error = Belief(mean, covariance).welfare(np.array([2.0, 0.0]))
    np.testing.assert_allclose(found, [0.4, np.nan])
    np.testing.assert_allclose(error, [0.4, np.inf])


def test_weights():
    assert weights_of([1, 2], 3.0).tolist() == [1, 2, 3]
    assert weights_of([1, 2], 3.0, without=0).tolist() == [0, 2, 3]


def test_overspending_is_refused_and_not_booked():
    budget = TokenBudget(10)
    budget.spend("allocation", 7)
    with pytest.raises(Overspent):
        budget.spend("payments", 4)
    assert budget.spent == {"allocation": 7} and budget.left == 3


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_budget_is_positive(limit):
    with pytest.raises(BadInput, match="positive number of tokens"):
        TokenBudget(limit)


def test_unknown_pairs_are_not_handed_out():
    known = Evaluations(Table.random(0), TokenBudget(100))
    known.extend(np.array([0]), 0, 3, "allocation")
    with pytest.raises(IndexError, match="fewer than 3"):
        known.outcomes(0, np.array([0, 1]), 3)
