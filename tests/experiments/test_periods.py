"""What a run tells of periods: rows, intervals, figure, report."""

import numpy as np
import polars as pl
import pytest

from experiments import audit, plots
from experiments.audit.properties import counterfactual_error
from experiments.best_response import best_responses
from experiments.game import population_of
from experiments.periods import measured, over_periods, plans_frame
from experiments.report import period_rows
from mechanisms.registry import make_mechanism
from tests.mechanisms.iamfm.guided import guided_pool

ROUNDS, PERIOD = 40, 10


def row(period, replication, **changes):
    return {
        "period": period,
        "round": PERIOD * period,
        "replication": replication,
        "tokens_limit": 1000.0,
        "tokens_allocation": 600.0,
        "tokens_payments": 100.0 + 200 * replication,
        "configuration": 1,
        "strengths": [2, 0, 1],
        "prices": [0.5, 0.0, 0.2],
        "believed_welfare": 1.3,
        "welfare": 1.0,
        "best_welfare": 1.25,
    } | changes


def frame(**changes):
    rows = [row(p, r, **changes) for p in range(ROUNDS // PERIOD) for r in range(2)]
    return plans_frame({"mosaic": [], "iamfm-elimination": rows})


def test_means_are_of_the_last_quarter_of_rounds_and_intervals_over_replications():
    plans = frame()
    early = pl.col("round") < 30
    plans = plans.with_columns(
        tokens_allocation=pl.when(early).then(0.0).otherwise(pl.col("tokens_allocation"))
    )
    found = {what: by["iamfm-elimination"] for what, _, by in measured(plans, ROUNDS)}
    assert found["Tokens for the allocation"]["mean"] == 600
    paid = found["Tokens for payments"]
    assert paid["mean"] == 200 and paid["clusters"] == 2 and paid["low"] < 200 < paid["high"]
    assert found["Sponsorship strength"]["mean"] == 1
    assert found["Advertisers sponsored"]["mean"] == 2
    assert found["Welfare lost by the search"]["mean"] == pytest.approx(0.25)


def test_without_a_limit_none_is_told_and_without_periods_nothing():
    told = [what for what, _, _ in measured(frame(tokens_limit=None), ROUNDS)]
    assert "Token budget" not in told and "Sponsorship strength" in told
    assert plans_frame({"mosaic": [], "vcg": []}) is None
    assert list(period_rows(None, {})) == []
    assert [r.cells[0].mean for r in period_rows(frame(), {"rounds": ROUNDS})][:2] == [600, 200]


@pytest.mark.parametrize("limit", [1000.0, None])
def test_figure(tmp_path, limit):
    figure = over_periods(frame(tokens_limit=limit), ["A $ad", "Tea", "Bed"], [1.0, 3.0, 2.0])
    tokens, strengths = figure.axes[:2]
    assert len(tokens.lines) == (limit is not None)
    assert [t.get_text() for t in strengths.get_yticklabels()] == ["Tea", "Bed", r"A \$ad"]
    drawn = strengths.images[0].get_array()
    np.testing.assert_array_equal(drawn[:, 0], [0, 1, 2])
    assert plots.save(figure, tmp_path / "periods.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def pool():
    return guided_pool(np.random.default_rng(5), requests=8, replies=40, ads=2, advertisers=4)


VALUES = np.array([1.0, 1.5, 2.0, 2.5])
EXACT = make_mechanism("iamfm-elimination", tokens=None)


def test_best_responses_to_exact_vcg_are_truthful(pool):
    """Against what all bid, also those whose ads never meet: bids decide on a plan together."""
    found = best_responses(EXACT, pool, population_of(pool, VALUES), grid=9, zoom=5, tolerance=0.05)
    assert found.converged and found.sweeps == 1
    np.testing.assert_array_equal(found.bids, VALUES)


@pytest.mark.parametrize("others", ["truthful", [2.0, 0.5, 1.0, 3.0]])
def test_an_audit_of_exact_vcg_finds_no_gain(pool, others):
    report = audit(EXACT, pool, VALUES, grid=[0.0, 0.5, 2.0], times=2, others=others)
    assert report.max_regret < 1e-9
    assert report.ir_violations["utility"].none
    assert all(each.verdict == "holds" for each in report.findings if each.key == "counterfactuals")


def test_an_audit_holds_a_period_for_every_bid_where_plans_are_estimates(pool):
    mechanism = make_mechanism("iamfm-elimination", tokens=1500, cap=30)
    people = population_of(pool, VALUES)
    told = counterfactual_error(mechanism, pool, people, VALUES, np.array([0.5, 1.0]))
    # no estimate at the bid that is played
    assert counterfactual_error(mechanism, pool, people, VALUES, np.array([1.0])) < 1e-9
    assert told > 1e-3
