"""Requests and dice: by seed and round, however they are asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import streams
from agents.streams import Arrivals, Dice

SIZES = dict(requests=st.integers(1, 40), ads=st.integers(1, 9), block=st.integers(1, 2000))


@settings(max_examples=40, deadline=None)
@given(rounds=st.lists(st.integers(0, 60), min_size=1, max_size=8), **SIZES)
def test_a_rounds_dice_are_the_same_in_any_order_and_either_way(rounds, requests, ads, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "_BLOCK", block)
        whole = Dice(5, requests, ads)
        first = {round: whole.uniforms(round).copy() for round in range(61)}
        again = Dice(5, requests, ads)
        for round in rounds:
            np.testing.assert_array_equal(again.uniforms(round), first[round])
            # as `Mechanism.run` draws them
            rng = again.generator(round)
            replies, clicks = rng.random((requests, 1)), rng.random((requests, ads))
            drawn = np.concatenate([replies.ravel(), clicks.ravel()])
            np.testing.assert_array_equal(drawn, first[round])


def test_a_generator_that_was_used_elsewhere_stands_where_it_should():
    dice = Dice(1, 3, 2)
    for round in (0, 4, 4, 1):
        dice.generator(round).integers(7, size=5)  # leaves half a 64-bit number behind
        np.testing.assert_array_equal(dice.generator(round).random(9), dice.uniforms(round))


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 70_000)])
def test_arrivals_are_by_seed_and_round(shape):
    ours, same, other = Arrivals(3, 11, shape), Arrivals(3, 11, shape), Arrivals(4, 11, shape)
    drawn = [ours.of(round).copy() for round in range(4)]
    for round in (3, 0, 2):
        np.testing.assert_array_equal(same.of(round), drawn[round])
    assert all(batch.shape == shape and batch.min() >= 0 and batch.max() < 11 for batch in drawn)
    if shape != (1, 1):
        assert (drawn[0] != drawn[1]).any() and (other.of(0) != drawn[0]).any()


def test_what_is_drawn_is_uniform():
    arrivals, dice = Arrivals(0, 5, (1, 1)), Dice(0, 1, 1)
    seen = np.array([arrivals.of(t)[0, 0] for t in range(20_000)])
    shares = np.bincount(seen, minlength=5) / len(seen)
    np.testing.assert_allclose(shares, 0.2, atol=5 * np.sqrt(0.16 / len(seen)))
    numbers = np.array([dice.uniforms(t) for t in range(40_000)])  # over more than one block
    np.testing.assert_allclose(numbers.mean(axis=0), 0.5, atol=5 / np.sqrt(12 * len(numbers)))
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 5 / np.sqrt(len(numbers))
    assert len(np.unique(numbers)) == numbers.size


def test_nobody_can_change_what_was_drawn():
    with pytest.raises(ValueError, match="read-only"):
        Dice(0, 1, 1).uniforms(0)[0] = 1
    arrivals = Arrivals(0, 5, (1, 1))
    first = arrivals.of(0)
    first += 1
    assert (arrivals.of(0) == first - 1).all()
