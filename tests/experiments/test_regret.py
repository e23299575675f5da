"""Regret grows as theorems say: measured exponents, and a measurement that can tell."""

import numpy as np
import pytest

from agents.learners import LEARNERS
from agents.learners.hedge import Hedge
from experiments.regret import MARGIN, RATE, SEQUENCES, MarketGame, Sequence01, regret_growth
from mechanisms.errors import BadInput
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism

SHORT = (128, 256, 512, 1024)
LONG = (2048, 4096, 8192, 16384, 32768)


def growth(learner, sequence, horizons, replications, seed=1, **more):
    rng = np.random.default_rng(seed)
    return regret_growth(learner, Sequence01(sequence), horizons, replications, rng, **more)


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_hedge_regret_grows_no_faster_than_the_square_root(sequence):
    found = growth("hedge", sequence, SHORT, 128)
    assert found.exponent.high <= RATE + MARGIN, found
    assert found.share_of_bound < 1
    if sequence == "gap":
        assert found.exponent.high < 0.2  # all arms seen, the best one is soon known


def test_exp3_regret_on_the_lower_bounds_payoffs():
    found = growth("exp3", "minimax", SHORT, 256)
    assert found.exponent.high <= RATE + MARGIN, found
    assert found.share_of_bound < 1


@pytest.mark.slow
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_exp3_regret_grows_no_faster_than_the_square_root(sequence):
    """From where its arms have been tried: at short horizons regret is still linear."""
    found = growth("exp3", sequence, LONG, 128)
    assert found.exponent.high <= RATE + MARGIN, found
    assert found.share_of_bound < 1


def test_regret_in_a_market_game():
    pool = ReplyPool.synthetic(16, 12, 3, np.random.default_rng(0), advertisers=4)
    mechanism = make_mechanism("llm-auction-ideal", tau=0.3)
    game = MarketGame(mechanism, pool, np.array([1.0, 1.5, 2.0, 3.0]))
    hedge, exp3 = (
        regret_growth(name, game, (64, 128, 256, 512), 8, np.random.default_rng(1))
        for name in ("hedge", "exp3")
    )
    assert hedge.exponent.high <= RATE and hedge.share_of_bound < 1, hedge
    assert exp3.exponent.high < 1 and exp3.share_of_bound < 1, exp3


def test_a_learner_that_does_not_learn_is_found_out(monkeypatch):
    """Followed by a leader without a regulariser, alternating payoffs cost half of all rounds."""

    class Leader(Hedge):
        name = "hedge"

        def __init__(self, population, replications, rng, *, grid_size):
            super().__init__(population, replications, rng, grid_size=grid_size, step=1e6)

    monkeypatch.setitem(LEARNERS, "hedge", Leader)
    found = growth("hedge", "alternating", SHORT, 4)
    assert found.exponent.mean == pytest.approx(1, abs=0.02)
    assert "faster than T^1/2" in found.verdict


def test_the_fit_finds_a_known_exponent_and_its_interval():
    from experiments.regret import _fit

    rng = np.random.default_rng(3)
    T = 2 ** np.arange(6, 12)
    hits = 0
    for _ in range(60):
        regret = T[:, None] ** 0.6 * rng.lognormal(sigma=0.5, size=(6, 40))
        found = _fit(T, regret, rng, 400)
        hits += found.low <= 0.6 <= found.high
    assert hits >= 50  # 95 % intervals, somewhat short with 40 runs
    assert np.isnan(_fit(T, -regret, rng, 10).mean)


def test_same_seed_same_regret():
    one, again = (growth("exp3", "spiteful", (32, 64, 128), 4, seed=5) for _ in range(2))
    np.testing.assert_array_equal(one.regret, again.regret)
    assert one.exponent == again.exponent
    assert not np.array_equal(one.regret, growth("exp3", "spiteful", (32, 64, 128), 4).regret)


def test_bad_requests_are_refused():
    with pytest.raises(BadInput, match="ascending horizons"):
        growth("hedge", "noise", (64, 32, 128), 4)
    with pytest.raises(BadInput, match="ascending horizons"):
        growth("hedge", "noise", SHORT, 1)
    with pytest.raises(BadInput, match="keeps no mixture"):
        growth("pacing", "noise", SHORT, 4)
    with pytest.raises(BadInput, match="unknown learner"):
        growth("heddge", "noise", SHORT, 4)
    with pytest.raises(BadInput, match="unknown payoffs"):
        Sequence01("loud")
