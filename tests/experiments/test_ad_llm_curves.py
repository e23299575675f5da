"""How clicks answer to a bid: sweeps, curves and best responses where the answer is known."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from experiments.ad_llm.curves import Curve, Sweep, clicks, texts_before
from experiments.ad_llm.responses import responses
from mechanisms.errors import BadInput
from mechanisms.pool import ReplyPool
from tests.experiments.small_auction import requests

LEVELS = np.array([1.0, 25.0, 50.0, 75.0, 100.0])


def sweep(**options):
    return Sweep.of(requests(7), 0, **options)


def test_a_sweep_moves_one_bid_and_nothing_else():
    found = sweep(draws=2, levels=LEVELS)
    R, D, L, n = found.bids.shape
    assert (R, D, L, n) == (7, 2, 5, 3)
    assert found.moved.tolist() == [0, 1, 2, 0, 1, 2, 0]
    for r in range(R):
        own = found.bids[r, :, :, found.moved[r]]
        assert (own == LEVELS).all()
        others = np.delete(found.bids[r], found.moved[r], axis=2)
        assert (others == others[:, :1]).all()
    assert len(found.asked) == len(found.keys) == R * D * L
    assert (found.keys.reshape(R * D, L) == np.arange(R * D)[:, None]).all()
    fixed = np.delete(sweep(levels=LEVELS, others=50.0).bids[0], 0, axis=2)
    assert (fixed == 50).all()
    with pytest.raises(BadInput, match="must rise"):
        sweep(levels=[1, 1])


def test_clicks_are_those_of_the_moved_ad():
    found = sweep(draws=2, levels=LEVELS)
    ctr = np.zeros((7, 2, 5, 3))
    for r in range(7):
        ctr[r, :, :, found.moved[r]] = 0.1 * (r + 1) * LEVELS / 100
    curve = clicks(ReplyPool.from_arrays(ctr.reshape(70, 1, 3)), found)
    np.testing.assert_allclose(curve.answers, 0.1 * np.arange(1, 8)[:, None] * LEVELS / 100)


def test_texts_before_a_mention():
    found = sweep(levels=LEVELS)
    texts = np.full((7, 5), "Nothing to sell.", dtype=object)
    texts[1, 0] = "First @Tea Pot@[Ad-2]."
    texts[1, 3] = "Then try @Tea Pot@[Ad-2] and @Oak Bed Frame@[Ad-3]."
    texts[2, 2] = "Broken @Tea Pot@[Ad-9] here."
    pool = ReplyPool.from_arrays(
        np.zeros((35, 1, 3)), replies=pl.DataFrame({"text": texts.ravel().tolist()})
    )
    assert texts_before(pool, found) == [[None], ["Then try "], *[[None]] * 5]


def test_curves_that_rise_fall_and_jump():
    rising = Curve(LEVELS, np.tile([0.1, 0.2, 0.3, 0.4, 0.5], (6, 1)), "clicks")
    assert rising.spearman() == (1, 1, 1)
    assert rising.violation == pytest.approx(0)
    assert rising.falls == 0
    assert rising.rise == pytest.approx(0.4)
    assert rising.jump == pytest.approx(0.1)
    assert rising.gain().mean == pytest.approx(0.4)
    falling = Curve(LEVELS, rising.answers[:, ::-1], "clicks")
    assert falling.spearman().mean == -1
    assert falling.rise == pytest.approx(0)
    assert falling.violation == pytest.approx(0.2)
    assert falling.falls == pytest.approx(0.4)
    flat = Curve(LEVELS, np.full((6, 5), 0.2), "clicks")
    assert flat.spearman() == (0, 0, 0)
    step = Curve(LEVELS, np.tile([0.1, 0.1, 0.4, 0.4, 0.3], (6, 1)), "clicks")
    assert step.jump == pytest.approx(0.3)
    assert step.violation == pytest.approx(0.2 / 3)  # 0.4, 0.4, 0.3 become their mean
    with pytest.raises(BadInput, match="at least two requests"):
        Curve(LEVELS, np.ones((1, 5)), "share")


@settings(max_examples=20, deadline=None)
@given(arrays(float, (4, 6), elements=st.floats(0, 1)))
def test_violation_is_nought_just_for_curves_that_do_not_fall(answers):
    curve = Curve(np.arange(6.0), answers, "clicks")
    assert (curve.violation < 1e-12) == (np.diff(curve.mean) >= -1e-12).all()
    assert 0 <= curve.violation <= curve.falls + 1e-12
    rank = curve.spearman()
    assert -1 <= rank.low <= rank.high <= 1


def test_round_off_has_no_rank():
    flat = np.repeat(np.random.default_rng(0).random((16, 1)), 11, axis=1)
    assert Curve(np.arange(11.0), flat, "share").spearman() == (0, 0, 0)
    tilted = Curve(np.arange(11.0), flat + 1e-6 * np.arange(11), "share")
    assert tilted.spearman() == (1, 1, 1)


def test_noise_is_not_taken_for_a_rise():
    rng = np.random.default_rng(0)
    curves = [Curve(LEVELS, rng.random((20, 5)), "clicks") for _ in range(20)]
    assert np.mean([each.gain().low > 0 for each in curves]) < 0.2
    assert np.mean([each.spearman().mean >= 0.9 for each in curves]) < 0.2


def test_best_responses_to_known_curves():
    """Clicks proportional to the bid: a utility maximizer bids half its value."""
    line = Curve(np.array([0.0, 50.0, 100.0]), np.tile([0.0, 0.25, 0.5], (5, 1)), "clicks")
    found = responses(line, values=(40.0, 80.0), targets=(1.0, 1.25))
    shading = found.filter(pl.col("objective") == "utility")
    np.testing.assert_allclose(shading["ratio"], 0.5, atol=0.005)
    assert found.filter(pl.col("objective") == "value")["ratio"].to_list() == [1] * 4
    assert found.filter(pl.col("target_roi") == 1.25)["bid"].to_list() == [32, 64]
    flat = responses(Curve(LEVELS, np.full((5, 5), 0.3), "clicks"))
    assert (flat["ratio"] == 0).all()
    peak = Curve(np.array([0.0, 60.0, 100.0]), np.tile([0.0, 0.4, 0.1], (5, 1)), "clicks")
    best = responses(peak, values=(100.0,), targets=(1.0,)).filter(pl.col("objective") == "value")
    assert best["bid"][0] == pytest.approx(60, abs=0.5)
