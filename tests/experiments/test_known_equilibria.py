"""Known equilibria, found again by learners; and that what is known is right."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from agents.learners.base import Population
from experiments.bayesian import figures, known, page, solve_bayesian
from experiments.bayesian.anarchy import anarchy_pool, iterate_best_responses
from experiments.bayesian.closed_forms import (
    gibbs_first_price,
    uniform_pair,
    utility_against_value,
)
from experiments.bayesian.figures import first_price, utility_maximizer_against_value_maximizer
from experiments.bayesian.functions import POINTS, function_losses
from experiments.bayesian.game import BayesianGame
from experiments.bayesian.interim import SingleSlot
from experiments.bayesian.prior import Uniform
from experiments.best_response import best_responses
from mechanisms.errors import BadInput
from mechanisms.registry import make_mechanism


def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def warm():
    known.first_price_row(2, "dual-averaging", 0)


@pytest.mark.parametrize("n", known.BIDDERS)
def test_first_price_by_dual_averaging(n):
    row = known.first_price_row(n, "dual-averaging", 0)
    assert row.met, row


@pytest.mark.parametrize("n", known.BIDDERS)
def test_first_price_by_gradient(n):
    row = known.first_price_row(n, "gradient", 0)
    assert row.met, row


@pytest.mark.parametrize("mechanism", ["vcg", "gsp"])
def test_second_price_is_truthful(mechanism):
    row = known.second_price_row(mechanism, "dual-averaging", 0)
    assert row.met, row


@pytest.mark.slow
def test_second_price_is_truthful_by_gradient():
    row = known.second_price_row("vcg", "gradient", 0)
    assert row.met, row


@pytest.mark.parametrize("roi", [1.0, 1.5])
def test_utility_against_value_maximizer(roi):
    for row in known.utility_against_value_rows(roi, 0):
        assert row.met, row


@pytest.mark.parametrize("roi", [0.8, 1.0, 2.0])
def test_closed_form_of_utility_against_value_maximizer(roi):
    """Neither loses anything, to the accuracy of the check; another stretch misses the target."""
    *functions, stretch = utility_against_value(roi)
    game = BayesianGame.of(
        make_mechanism("first-price"), known.single_item(2), Uniform(),
        objective=("utility", "value"), roi=roi,
    )  # fmt: skip
    u = np.linspace(0, 1, POINTS)
    bids = np.stack([function(u) for function in functions])
    lost, factor = function_losses(game, SingleSlot(game), bids, 2048)
    assert lost.relative.max() < 1e-4 and lost.violation.max() < 1e-4
    np.testing.assert_allclose(factor, 1, rtol=1e-4)
    assert stretch > 1


def test_uniform_pair_of_equals_is_half():
    np.testing.assert_allclose(uniform_pair([0.0, 0.4, 1.0], 1.0, 1.0), [0.0, 0.2, 0.5])
    # both bid up to the same highest bid, ab/(a + b)
    np.testing.assert_allclose(uniform_pair(3.0, 3.0, 1.0), 0.75)
    np.testing.assert_allclose(uniform_pair(1.0, 1.0, 3.0), 0.75)


@pytest.mark.parametrize(
    ("learner", "parameters"), [("gradient", {"rounds": 600}), ("hedge", {"rounds": 2000})]
)
def test_fixed_values_under_gibbs_allocations(learner, parameters):
    for row in known.fixed_value_rows(learner, parameters, 0):
        assert row.met, row


@pytest.mark.parametrize("tau", [0.1, 0.3])
def test_root_finder_agrees_with_iterated_best_response(tau):
    pool, ctr = known.gibbs_pool()
    vm = np.array([False, True, False, True])
    roi = np.where(vm, known.GIBBS_ROI, 1.0)
    people = Population(known.GIBBS_VALUES, vm, roi, np.full(4, np.inf))
    found = best_responses(make_mechanism("llm-auction-ideal", tau=tau), pool, people)
    exact = gibbs_first_price(ctr, known.GIBBS_VALUES, vm, roi, tau)
    np.testing.assert_allclose(found.bids, exact, rtol=2e-3)


@pytest.mark.parametrize("mechanism", ["vcg", "gsp"])
def test_value_maximizers_at_second_price_come_down_to_half(mechanism):
    auction = make_mechanism(mechanism)
    ratios = []
    for epsilon in (0.5, 0.2, 0.05, 0.01, 0.001):
        found = iterate_best_responses(auction, epsilon)
        assert (found.gains == 0).all() and (found.roi >= 1).all()
        ratios.append(found.welfare_ratio)
        np.testing.assert_allclose(found.welfare_ratio, (1 + epsilon) / 2)
        deviations_do_not_pay(auction, epsilon, found.bids)
    assert 0.5 < ratios[-1] < 0.501


def deviations_do_not_pay(auction, epsilon, bids):
    """By `allocate` alone, over random bids of all sizes."""
    pool = anarchy_pool(epsilon)
    stay = auction.allocate(pool, bids).itctr.sum(axis=0)
    for i in range(2):
        for bid in np.append(10 ** rng().uniform(-3, 5, 200), bids[::-1]):
            tried = bids.copy()
            tried[i] = bid
            found = auction.allocate(pool, tried)
            value, paid = found.itctr[:, i].sum(), found.payments[:, i].sum()
            assert value <= stay[i] + 1e-12 or value < paid


def test_the_best_allocation_is_an_equilibrium_too():
    """From bids high enough nobody moves: the start decides which equilibrium comes about."""
    found = iterate_best_responses(make_mechanism("vcg"), 0.1, start=(1.0, 50.0))
    assert found.welfare_ratio == 1 and found.turns == 1


def test_pacing_reaches_the_bad_equilibrium_from_truthful_bids():
    row = known.anarchy_pacing_row(0.2)
    assert row.met, row


def test_bad_instances_are_refused():
    with pytest.raises(BadInput, match="epsilon"):
        anarchy_pool(1.0)
    with pytest.raises(BadInput, match="roi"):
        utility_against_value(-1.0)


def test_a_value_maximizer_is_measured_unscaled(monkeypatch):
    """Bids scaled up by 5 % miss the target and say so: the row is not met."""

    def solved(*args, **parameters):
        report = solve_bayesian(*args, **parameters)
        game = BayesianGame.of(*args[:3], args[4], args[5])
        bids = report.bids * [[1.0], [1.05]]
        lost, factor = function_losses(game, SingleSlot(game), bids, 1024)
        return replace(report, roi_violation=lost.violation, target_factor=factor)

    assert known.utility_against_value_rows(1.0, 0)[0].met
    monkeypatch.setattr(known, "solve_bayesian", solved)
    row = known.utility_against_value_rows(1.0, 0)[0]
    assert not row.met and row.report.roi_violation[1] > 0.01
    np.testing.assert_allclose(row.report.target_factor[1], 1 / 1.05, rtol=1e-3)


def test_page_draws_the_solves_of_its_table(monkeypatch, tmp_path):
    for name, fewer in (("BIDDERS", (2,)), ("TARGETS", (1.0,)), ("EPSILONS", (0.2,))):
        monkeypatch.setattr(known, name, fewer)
    monkeypatch.setattr(known, "FINE", {"rounds": 60})
    monkeypatch.setattr(known, "fixed_value_rows", lambda *args: [])
    drawn, solves = {}, []
    for name in ("first_price", "utility_maximizer_against_value_maximizer"):
        monkeypatch.setattr(figures, name, noted(drawn, name, getattr(figures, name)))
    monkeypatch.setattr(known, "solve_bayesian", lambda *a, **k: kept(solves, *a, **k))
    path = page.write_known(3, tmp_path / "known", lambda words: None)
    assert path.exists()
    mixed = drawn["utility_maximizer_against_value_maximizer"][1.0]
    shown = [mixed, *(by_n[2] for by_n in drawn["first_price"].values())]
    assert all(any(report is solved for solved in solves) for report in shown)
    table = pl.read_parquet(tmp_path / "known" / "known.parquet")
    l2 = known.distance(mixed, utility_against_value(1.0)[0])
    assert f"UM {l2:.4f}" in table.filter(pl.col("name").str.ends_with(": bids"))["found"][0]


def noted(drawn, name, plot):
    def draw(reports):
        drawn[name] = reports
        return plot(reports)

    return draw


def kept(solves, *args, **parameters):
    few = {"steps": 30} if "gradient" in args else {}
    solves.append(solve_bayesian(*args, **parameters, **few))
    return solves[-1]


def test_rows_do_not_depend_on_one_another():
    alone, again = (known.second_price_row("vcg", "dual-averaging", 0) for _ in range(2))
    assert alone.found == again.found
    assert alone.report.bids.tobytes() == again.report.bids.tobytes()


def test_table_and_figures():
    rows = [known.anarchy_row(0.2), known.first_price_row(2, "dual-averaging", 0)]
    assert known.table(rows).count("\n") == 3
    auction = make_mechanism("first-price")
    report = known.solve_bayesian(auction, known.single_item(2), Uniform(), rounds=50)
    assert len(first_price({"dual-averaging": {2: report}}).axes) == 1
    mixed = known.solve_bayesian(
        auction, known.single_item(2), Uniform(), objective=("utility", "value"), rounds=50
    )
    assert len(utility_maximizer_against_value_maximizer({1.0: mixed}).axes) == 1
    assert "report" not in rows[1].entry() and rows[1].entry()["met"] == rows[1].met
