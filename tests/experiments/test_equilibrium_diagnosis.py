"""Diagnosis of trajectories whose fate is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.equilibrium.diagnosis import diagnose
from tests.mechanisms.pools import quick

T = 2000
ROUNDS = np.arange(T)


def circle(period, rounds=T):
    angle = 2 * np.pi * np.arange(rounds) / period
    return 1 + 0.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)


@quick
@given(st.integers(1, 6), st.floats(0.01, 3))
def test_constants_converge_if_nobody_can_gain(dimensions, level):
    still = np.full((T, dimensions), level)
    assert diagnose(still).status == "converged"
    assert diagnose(still, exploitability=0.1).status == "drifting"


@quick
@given(st.floats(50, 200), st.floats(5, 300))
def test_decaying_spirals_converge(decay, period):
    spiral = 1 + (circle(period) - 1) * np.exp(-ROUNDS / decay)[:, None]
    assert diagnose(spiral).status == "converged"


@pytest.mark.parametrize("period", [2, 3, 5, 40, 250, 450])
def test_circles_cycle_with_their_period(period):
    found = diagnose(circle(period))
    assert found.status == "cycling"
    assert abs(found.period - period) <= 0.01 * period
    assert found.returned < 0.05


@pytest.mark.parametrize("period", [40, 120])
def test_noise_on_a_circle_does_not_hide_it(period):
    noise = 0.05 * np.random.default_rng(0).standard_normal((T, 2))
    found = diagnose(circle(period) + noise)
    assert found.status == "cycling" and abs(found.period - period) <= 0.01 * period


def test_cycles_that_lengthen_are_cycles():
    angle = 20 * np.log(1 + ROUNDS)
    found = diagnose(np.stack([np.cos(angle), np.sin(angle)], axis=1))
    assert found.status == "cycling" and found.period is None and found.recurrence > 0.9


@quick
@given(st.floats(0.3, 5), st.floats(-3, 3))
def test_linear_drift_drifts(speed, start):
    assert diagnose(np.stack([start + speed * ROUNDS / T, 0 * ROUNDS], axis=1)).status == "drifting"


@pytest.mark.parametrize("dimensions", [2, 3, 12])
def test_random_walks_are_hardly_ever_taken_for_cycles(dimensions):
    walks = [np.random.default_rng(k).standard_normal((T, dimensions)) for k in range(40)]
    found = [diagnose(1 + 0.05 * np.cumsum(walk, axis=0)).status for walk in walks]
    assert found.count("drifting") >= 39


def test_noise_about_a_point_is_no_cycle():
    noise = np.random.default_rng(1).standard_normal((T, 2))
    assert diagnose(1 + 0.3 * noise).status == "drifting"
    assert diagnose(1 + 0.003 * noise).status == "converged"


def test_best_response_cycles_of_an_edgeworth_price_war_are_found():
    bid, path = 0.0, []
    for _ in range(T):  # each outbids the other by a step, until it pays to fall back
        bid = bid + 0.05 if bid < 0.8 else 0.1
        path.append([bid, bid - 0.025])
    found = diagnose(np.array(path))
    assert found.status == "cycling" and found.period == 15
    assert "every 15 rounds" in found.evidence


def test_who_attains_nothing_may_bid_what_it_likes():
    x = np.stack([np.ones(T), 5 * np.random.default_rng(2).random(T)], axis=1)
    assert diagnose(x, shares=[1.0, 0.0]).status == "converged"
    assert diagnose(x).status != "converged"


@quick
@given(st.permutations([0, 1]))
def test_names_do_not_matter(order):
    x = circle(37)
    assert diagnose(x[:, order]).period == diagnose(x).period
