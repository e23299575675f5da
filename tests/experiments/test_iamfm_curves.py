"""What is read off curves over tokens, where the answer is known."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from experiments.bootstrap import Estimate
from experiments.iamfm.curves import (
    ErrorCurve,
    crossing,
    crossings,
    differences,
    falling,
    leaders,
    show,
    table,
    token_ratios,
    tokens_to_reach,
)

X = np.array([1e3, 2e3, 4e3, 8e3, 16e3])
positive = st.floats(0.1, 10)


def test_table_is_by_seed_and_point_whatever_the_order():
    rows = [{"seed": s, "budget": x, "w": 10 * s + x} for s in (2, 0, 1) for x in (4.0, 1.0)]
    points, found = table(pl.DataFrame(rows), "w", "budget")
    np.testing.assert_array_equal(points, [1, 4])
    np.testing.assert_array_equal(found, [[1, 4], [11, 14], [21, 24]])
    for spoilt in (rows[1:], [*rows[1:], rows[1]]):
        with pytest.raises(ValueError, match="every budget once"):
            table(pl.DataFrame(spoilt), "w", "budget")


def test_differences_are_of_pairs():
    """What seeds have in common cancels."""
    rng = np.random.default_rng(0)
    theirs = 100 * rng.normal(size=(30, 2))
    ours = theirs + np.array([1.0, -1.0]) + 0.1 * rng.normal(size=(30, 2))
    up, down = differences(ours, theirs)
    assert 0.9 < up.low < 1 < up.high < 1.1
    assert down.high < -0.9


def test_leaders_point_by_point():
    one, other = np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([[0.0, 6.0], [3.0, 6.0]])
    assert leaders({"one": one, "other": other}) == ["one", "other"]


@settings(deadline=None)
@given(at=st.floats(1100, 15000), slope=st.floats(0.01, 100), up=st.booleans())
def test_crossing_of_a_line_in_the_logarithm(at, slope, up):
    y = slope * (np.log(X) - np.log(at)) * (1 if up else -1)
    if not (y == 0).any():
        assert crossings(X, y) == pytest.approx([at])


def test_all_crossings_and_none():
    assert crossings(X, np.ones(5)) == []
    assert crossings(X, np.zeros(5)) == []
    assert len(crossings(X, np.array([1.0, -1, 1, -1, 1]))) == 4
    assert crossings(X, np.array([1.0, 0, 0, 0, -1])) == pytest.approx([4e3])  # past the zeros
    assert crossings(X, np.array([1.0, 0, 0, 0, 2])) == []  # touched, not crossed


def test_crossing_intervals_cover():
    """Of 12 samples with noise whose means cross at 3,000, nearly all intervals hold it."""
    rng, held = np.random.default_rng(1), 0
    y = np.log(X) - np.log(3e3)
    for k in range(12):
        found = crossing(X, y + 0.3 * rng.normal(size=(40, 5)), seed=k)
        assert found.at == pytest.approx([3e3], rel=0.2)
        assert found.share == 1
        held += found.low <= 3e3 <= found.high
    assert held >= 10


def test_no_crossing():
    never = crossing(X, 1 + 0.1 * np.random.default_rng(0).normal(size=(40, 5)))
    assert never.at == ()
    assert never.share == 0
    assert np.isnan(never.low)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(positive, min_size=5, max_size=5), min_size=1, max_size=4))
def test_falling_is_isotonic_regression(curves):
    curves = np.array(curves)
    expected = [isotonic_regression(each, increasing=False).x for each in curves]
    np.testing.assert_allclose(falling(curves), expected)


def test_a_lucky_dip_is_no_merit():
    """Two points that reach 0.5 by chance, the mean curve lying at 0.7 until the last."""
    tokens = np.array([[0.0, 1, 2, 3, 10]] * 4)
    errors = np.array([[1.0, 0.5, 0.9, 0.7, 0.5]] * 4)
    theirs = ErrorCurve(np.array([[10.0]] * 4), np.full((4, 1), 0.5))
    (found,) = token_ratios(ErrorCurve(tokens, errors), theirs)
    np.testing.assert_allclose(found, 1.0)


def test_tokens_to_reach_by_hand():
    tokens, errors = np.array([0.0, 10, 20, 40]), np.array([1.0, 0.6, 0.2, 0.2])
    levels = [1.5, 1.0, 0.8, 0.6, 0.3, 0.2, 0.1]
    expected = [0, 0, 5, 10, 17.5, 20, np.inf]
    found = [float(tokens_to_reach(tokens, errors, np.array(level))) for level in levels]
    np.testing.assert_allclose(found, expected)
    many = tokens_to_reach(np.tile(tokens, (7, 1)), np.tile(errors, (7, 1)), np.array(levels))
    np.testing.assert_allclose(many, expected)


@settings(max_examples=15, deadline=None)
@given(factor=st.floats(0.05, 1), scale=positive)
def test_token_ratio_of_known_curves(factor, scale):
    """A curve that falls as another does, on a share of its tokens, has that share as its ratio."""
    spread = np.linspace(0.8, 1.2, 12)[:, None]
    tokens = np.tile(X, (12, 1))
    errors = scale * spread / X
    ours, theirs = ErrorCurve(factor * tokens, errors), ErrorCurve(tokens, errors)
    for found in token_ratios(ours, theirs):
        np.testing.assert_allclose(found, factor)


def test_token_ratio_of_straight_lines_between_points():
    """Errors 1 − t/T of a T half as large, seen at other points."""
    ours = ErrorCurve(np.array([[0.0, 3, 6, 9]] * 4), 1 - np.array([[0.0, 3, 6, 9]] * 4) / 10)
    theirs = ErrorCurve(np.array([[4.0, 8, 16]] * 4), 1 - np.array([[4.0, 8, 16]] * 4) / 20)
    for found in token_ratios(ours, theirs):
        np.testing.assert_allclose(found, 0.5)


def test_token_ratio_is_infinite_where_the_error_is_not_reached():
    tokens = np.array([[1.0, 2.0]] * 5)
    high, low = ErrorCurve(tokens, np.ones((5, 2))), ErrorCurve(tokens, np.full((5, 2), 0.5))
    assert token_ratios(high, low) == [Estimate(np.inf, np.inf, np.inf)] * 2
    found = token_ratios(low, high)
    np.testing.assert_allclose(found, [[1] * 3, [0.5] * 3])


def test_token_ratio_interval_covers():
    """Of samples with noise whose ratio is a half, nearly all intervals hold it."""
    rng, held = np.random.default_rng(3), 0
    tokens = np.tile(X, (60, 1))
    for k in range(20):
        noise = 1 + 0.3 * rng.normal(size=(2, 60, 5))
        ours = ErrorCurve(0.5 * tokens, noise[0] / X)
        theirs = ErrorCurve(tokens, noise[1] / X)
        found = token_ratios(ours, theirs, k)[2]
        held += found.low <= 0.5 <= found.high
    assert held >= 17


def test_show():
    assert show(Estimate(0.12345, -1, 2), "+") == "+0.123 [-1, +2]"
