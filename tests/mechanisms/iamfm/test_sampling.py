"""What sample means say: correction of biased levels, pooled errors, nobody chosen by luck."""

import numpy as np
import pytest

from mechanisms.errors import BadInput
from mechanisms.iamfm.evaluations import Evaluations, TokenBudget
from mechanisms.iamfm.sampling import BySampleMeans, Purse, paired_gaps, sample_belief, trusted
from tests.mechanisms.iamfm.tables import Table


def taken(evaluator, counts, limit=1e9):
    """Samples of the pairs (L, S) `counts`."""
    known = Evaluations(evaluator, TokenBudget(limit))
    for level, row in enumerate(counts):
        for s, pairs in enumerate(row):
            known.extend(np.array([s]), level, pairs, "allocation")
    return known


def test_unbiased_means_are_believed_and_nothing_is_known_of_the_rest():
    known = taken(Table.random(1), [[0, 0, 0, 0, 0], [9, 9, 2, 1, 0]])
    belief = sample_belief(known)
    assert (belief.mean[:3] == known.means(1)[0][:3]).all()
    assert np.isnan(belief.mean[3:]).all()
    assert np.isinf(belief.covariance[3:, np.arange(3), np.arange(3)]).all()


def test_covariances_are_pooled():
    known = taken(Table.random(1), [[0] * 5, [9, 9, 2, 0, 0]])
    pairs = [known.outcomes(1, np.array([s]), m)[0] for s, m in enumerate([9, 9, 2])]
    own = [np.cov(each.T) for each in pairs]
    pooled = (8 * own[0] + 8 * own[1] + own[2]) / 17
    found = sample_belief(known).covariance
    np.testing.assert_allclose(found[2], (4 * pooled + own[2]) / 5 / 2)
    np.testing.assert_allclose(found[0], (4 * pooled + 8 * own[0]) / 12 / 9)


def test_a_constant_bias_is_corrected_exactly():
    full = np.random.default_rng(0).random((5, 3))
    short = full - [0.1, -0.2, 0.05]
    known = taken(Table.constant(np.stack([short, full])), [[4] * 5, [3, 3, 0, 0, 0]])
    belief = sample_belief(known)
    np.testing.assert_allclose(belief.mean, full)
    np.testing.assert_allclose(belief.covariance, 0, atol=1e-15)


def test_the_spread_of_the_bias_is_in_the_error():
    means = np.random.default_rng(0).random((2, 5, 3))
    known = taken(Table.constant(means), [[4] * 5, [3, 3, 3, 0, 0]])
    belief = sample_belief(known)
    differences = means[1, :3] - means[0, :3]
    np.testing.assert_allclose(belief.mean[3:], means[0, 3:] + differences.mean(axis=0))
    np.testing.assert_allclose(belief.covariance[3], np.cov(differences.T) * 4 / 3, atol=1e-15)


@pytest.mark.parametrize("both", [0, 1])
def test_one_difference_tells_no_spread(both):
    means = np.random.default_rng(0).random((2, 5, 3))
    known = taken(Table.constant(means), [[4] * 5, [3] * both + [0] * (5 - both)])
    belief = sample_belief(known)
    shift = both * (means[1, 0] - means[0, 0])
    np.testing.assert_allclose(belief.mean[4], means[0, 4] + shift)
    np.testing.assert_allclose(belief.covariance[4], np.eye(3))


def test_gaps_are_over_common_pairs():
    weights = np.array([1.0, 2.0, 0.5])
    known = taken(Table.random(2), [[0] * 5, [9, 6, 2, 2, 0]])
    mean, error = paired_gaps(known, np.array([0, 1, 2]), 0, weights)
    table = known.evaluator.table[1] @ weights
    gaps = [table[0, :9] * 0, table[1, :6] - table[0, :6], table[2, :2] - table[0, :2]]
    np.testing.assert_allclose(mean, [each.mean() for each in gaps], atol=1e-15)
    one, two = gaps[1].var(ddof=1), gaps[2].var(ddof=1)
    pooled = (5 * one + two) / 6
    expected = [0, (4 * pooled + 5 * one) / 9 / 6, (4 * pooled + two) / 5 / 2]
    np.testing.assert_allclose(error**2, expected)


def test_nobody_is_chosen_by_luck_in_few_pairs():
    pairs = np.zeros((1, 3, 100, 1))
    pairs[0, 0] = np.arange(100)[:, None] % 3 > 0  # 0, 1, 1, 0, 1, 1, ...
    pairs[0, 1] = np.arange(100)[:, None] % 2
    pairs[0, 2] = 1.0
    known = taken(Table(pairs), [[100, 100, 3]])
    assert trusted(known, 0.5).tolist() == [0, 1]
    assert sample_belief(known).mean[:, 0].argmax() == 2
    assert BySampleMeans().choose(known, np.ones(1)) == 0
    # a lead that is no luck counts, though it has the fewest pairs still
    known.extend(np.array([2]), 0, 30, "allocation")
    assert trusted(known, 0.5).tolist() == [0, 1]
    assert BySampleMeans().choose(known, np.ones(1)) == 2


def test_one_unbiased_pair_is_not_enough_to_be_chosen():
    known = taken(Table.random(0), [[4, 4, 1, 0, 0], [0, 0, 1, 1, 0]])
    assert trusted(known, 0.5).tolist() == [0, 1]


def test_nothing_known_is_refused():
    known = taken(Table.random(0), [[1] * 5, [1] * 5])
    with pytest.raises(BadInput, match="give more tokens, at least 2"):
        BySampleMeans().choose(known, np.ones(3))


def test_a_purse_spends_what_it_may():
    known = taken(Table.random(0, P=200), [[3, 0, 0, 0, 0], [0] * 5], limit=300)
    before = known.budget.total
    purse = Purse.of(known, 60.0, "payments", most_pairs=100)
    assert purse.pays_for(np.arange(5), 0, 4, 9.0) == 3  # 1 + 4 + 4
    purse.spread(np.arange(5), 1, 20.0)
    assert known.counts[1].tolist() == [2] * 5
    purse.exhaust(np.arange(5), 1)
    assert 60 - 2 < known.budget.total - before <= 60 and 0 <= purse.left < 2


def test_nobody_gets_more_than_the_most_pairs():
    known = taken(Table.random(0), [[0] * 5, [0] * 5])
    purse = Purse.of(known, 1e6, "allocation", most_pairs=7)
    purse.exhaust(np.arange(5), 1)
    assert known.counts[1].tolist() == [7] * 5
