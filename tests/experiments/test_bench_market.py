"""The market's bench on markets of no size: it times what it says, and leaves nothing changed."""

import os
from dataclasses import replace

import pytest

from experiments import bench_market
from experiments.bench_market import GSP, MOSAIC, Case
from mechanisms.kernels import VARIABLE, kernel

SMALL = Case(4, 2, 5, 6, requests=3, rounds=12, learner="hedge", by_numpy=3, grid_size=5)


@pytest.mark.parametrize("mechanism", [MOSAIC, GSP])
def test_a_case_is_timed_by_both_kernels(mechanism, monkeypatch):
    monkeypatch.setenv(VARIABLE, "numba")
    said = []
    timed = bench_market._timed(replace(SMALL, mechanism=mechanism, budget=5.0), said.append)
    assert timed.rounds == 12 and timed.rate > timed.rate_with_frames > 0
    assert timed.ratio.endswith("x the NumPy reference")
    assert mechanism["name"] in said[0] and kernel() == "numba"


def test_a_case_is_the_market_it_describes():
    scenario = replace(SMALL, advertisers=5, replications=2).scenario
    assert scenario.num_advertisers == 5 and scenario.replications == 2
    assert (
        sorted(spec.objective for spec in scenario.advertisers) == ["utility"] * 3 + ["value"] * 2
    )
    assert {spec.learner.name for spec in scenario.advertisers} == {"hedge"}
    assert scenario.make_pool().shape == (6, 5, 2)


def test_the_kernel_is_changed_within_the_block_only(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with bench_market._numpy():
        assert kernel() == "numpy"
    assert VARIABLE not in os.environ
    monkeypatch.setenv(VARIABLE, "torch")
    with pytest.raises(ZeroDivisionError), bench_market._numpy():
        _ = 1 / 0
    assert os.environ[VARIABLE] == "torch"


def test_what_the_process_holds_is_plausible():
    assert 10 < bench_market._resident() < 100_000
