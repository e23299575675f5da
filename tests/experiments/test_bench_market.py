"""The market's bench on markets of no size: it times what it says, and leaves nothing changed."""

from dataclasses import replace

import numpy as np
import pytest

from experiments import bench_market
from experiments.bench_market import GSP, MOSAIC, STRETCHES, Case, Timed
from mechanisms.kernels import VARIABLE, kernel

SMALL = Case(4, 2, 5, 6, requests=3, rounds=4, learner="hedge", by_numpy=2, grid_size=5)


@pytest.mark.parametrize("mechanism", [MOSAIC, GSP])
def test_both_kernels_play_the_same_number_of_stretches_in_turns(mechanism, monkeypatch):
    monkeypatch.setenv(VARIABLE, "numba")
    said, played = [], []

    def seconds(model, rounds):
        played.append((kernel(), rounds))
        for _ in range(rounds):
            model.step()
        return len(played) / 8

    monkeypatch.setattr(bench_market, "_seconds_a_round", seconds)
    timed = bench_market._timed(replace(SMALL, mechanism=mechanism, budget=5.0), said.append)
    assert played == STRETCHES * [("numba", 4), ("numpy", 2)]
    assert timed.ours == (1 / 8, 3 / 8, 5 / 8) and timed.reference == (2 / 8, 4 / 8, 6 / 8)
    assert mechanism["name"] in said[0] and kernel() == "numba"


def test_figures_of_known_times():
    timed = Timed(ours=(0.5, 0.1, 0.2), reference=(4.0, 1.0, 3.0), frames=0.3)
    assert timed.rate == pytest.approx(5)
    assert timed.best == pytest.approx(10)
    assert timed.with_frames == pytest.approx(2)
    assert timed.ratio == "15.0 (10.0) x the NumPy reference"
    many = replace(timed, replications=64)
    assert many.rate == pytest.approx(64 * 5) and many.with_frames == pytest.approx(64 * 2)
    assert many.ratio == timed.ratio


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (bench_market._hedge, ["4 (5) rounds/s", "8.0 (10.0) x the NumPy reference"]),
        (bench_market._auctionnet, ["12 can be shown", "12.80 s (target 3", "elsewhere: 16.6"]),
        (bench_market._single_requests, ["4 (5) rounds/s, 2 with its frames (target 25000"]),
        (bench_market._large, ["4.0 (5.0) rounds/s (target 1)"]),
    ],
)
def test_lines_tell_the_times(part, words, monkeypatch):
    timed = Timed(ours=(0.25, 0.2, 0.35), reference=(2.0, 2.0, 2.0), frames=0.25)
    monkeypatch.setattr(bench_market, "_timed", lambda case, say: timed)
    lines = list(part(print))
    for word in words:
        assert word in lines[0]


def test_a_case_is_the_market_it_describes():
    scenario = replace(SMALL, advertisers=5, replications=2).scenario
    assert scenario.num_advertisers == 5 and scenario.replications == 2
    assert (
        sorted(spec.objective for spec in scenario.advertisers) == ["utility"] * 3 + ["value"] * 2
    )
    assert {spec.learner.name for spec in scenario.advertisers} == {"hedge"}
    assert scenario.rounds == 4 * STRETCHES
    assert scenario.make_pool().shape == (6, 5, 2)


def test_what_the_process_holds_grows_with_what_it_holds():
    before, most = bench_market.resident(), bench_market.peak()
    held = np.ones(2**24)  # 128 MB
    assert 120 < bench_market.resident() - before < 140
    assert bench_market.peak() >= max(most, before + 120)
    assert held.all()
