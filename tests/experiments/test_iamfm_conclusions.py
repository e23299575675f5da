"""What `admarket reproduce iamfm` concludes: every verdict can be any; and its page."""

import json

import numpy as np
import polars as pl
import pytest

from experiments.bootstrap import Estimate, mean_of
from experiments.iamfm.searches import BASELINES, CONTENDERS
from experiments.reproduce import iamfm_conclusions as concluded
from experiments.reproduce import iamfm_figures, iamfm_page
from experiments.reproduce import iamfm_incentives as incentives
from experiments.reproduce import iamfm_payments as paid
from experiments.reproduce.page import FEWEST
from tests.experiments import small_iamfm as made
from tests.experiments.small_iamfm import small_study


def verdicts(found):
    return {each.verdict for each in (found if hasattr(found, "__iter__") else [found])}


@pytest.mark.parametrize(("lead", "verdict"), [(0.1, "agrees"), (-0.1, "differs"), (0.002, "open")])
def test_welfare(lead, verdict):
    found = list(concluded.welfare(small_study(welfare=made.welfare(lead))))
    assert len(found) == 2 * 3
    assert verdict in verdicts(found)
    if verdict != "open":  # of noise alone, a few may tell
        assert verdicts(found) == {verdict}


def test_welfare_states_exceptions():
    """Ahead at all budgets but one: open, and the one is named."""
    frame = made.welfare(0.1).with_columns(
        welfare=pl.col("welfare")
        - pl.when((pl.col("budget") == 4e3) & ~pl.col("method").is_in(BASELINES))
        .then(0.1)
        .otherwise(0.0)
    )
    for each in concluded.welfare(small_study(welfare=frame)):
        assert "Exceptions: not shown to be ahead at 4,000" in each.found
        assert each.verdict != "agrees"


def test_the_best_baseline_is_the_yardstick():
    """A method ahead of two baselines and behind the third is not ahead."""
    frame = made.welfare(0.1).with_columns(
        welfare=pl.col("welfare") + pl.when(pl.col("method") == BASELINES[1]).then(1).otherwise(0)
    )
    study = small_study(welfare=frame)
    best, leads = concluded.against_best(
        concluded.samples(frame, "synthetic", "welfare")[1], "model-based"
    )
    assert set(best) == {BASELINES[1]}
    assert all(lead.high < 0 for lead in leads)
    assert verdicts(concluded.welfare(study)) == {"differs"}


@pytest.mark.parametrize(
    ("slope", "verdict", "words"),
    [(0.05, "agrees", "cross at 4,"), (-0.05, "agrees", "cross at 4,")],
)
def test_trade_off_crosses_where_it_was_made_to(slope, verdict, words):
    """2.2 budgets from the first: 1,000 x 2^2.2 = 4,595 tokens."""
    found = list(concluded.trade_off(small_study(welfare=made.welfare(0.1, slope))))
    assert verdicts(found) == {verdict}
    assert all(words in each.found for each in found)


def test_divided():
    up, down, unclear = Estimate(2, 1, 3), Estimate(-2, -3, -1), Estimate(0, -1, 1)
    assert concluded.divided(20, [up, unclear, down]) == "agrees"
    assert concluded.divided(20, [up, up]) == concluded.divided(20, [down, down]) == "differs"
    assert concluded.divided(20, [up, unclear]) == concluded.divided(20, [unclear]) == "open"
    assert concluded.divided(FEWEST - 1, [up, down]) == "open"


@pytest.mark.parametrize(("factor", "verdict"), [(3.0, "agrees"), (1.25, "differs")])
def test_payments(factor, verdict):
    study = small_study(payments=made.payments(factor))
    *few, _ = concluded.counterfactuals(study)
    assert len(few) == 2 * 2  # worlds and yardsticks
    assert verdicts(few) == {verdict}
    for each in paid.savings(study, made.SYNTHETIC, made.FEW):
        # at 85 % of the error, so fewer tokens
        assert 0.6 / factor <= each.ratio.mean <= 1.2 / factor
        assert each.way == "naive" and each.tells


def test_where_there_is_nothing_to_save_nothing_is_concluded():
    """No tokens at all do as well as running again: that is no merit of ACO."""
    *few, growth = concluded.counterfactuals(
        small_study(payments=made.payments(factor=1000.0, none=0.1))
    )
    assert verdicts(few) == {growth.verdict} == {"open"}
    assert all("nothing to save: 3 of 3 budgets" in each.found for each in few)
    assert "at n = 3, 5, 7" in growth.found


def test_aco_is_held_against_the_better_way_of_running_again():
    frame = made.payments(3.0)
    better = frame.with_columns(
        pl.col("error", "range_error")
        * pl.when(pl.col("way") == "naive-common").then(0.3).otherwise(1.0)
    )
    before, after = (
        paid.savings(small_study(payments=each), made.SYNTHETIC, made.FEW)
        for each in (frame, better)
    )
    assert {each.way for each in after} == {"naive-common"}
    for one, other in zip(before, after, strict=True):
        assert other.ratio.mean > one.ratio.mean


@pytest.mark.parametrize(("growth", "verdict"), [(1.0, "agrees"), (0.0, "open"), (-0.3, "differs")])
def test_growth_with_advertisers(growth, verdict):
    *_, more = concluded.counterfactuals(small_study(payments=made.payments(3.0, growth)))
    assert more.verdict == verdict


@pytest.mark.parametrize(("use", "verdict"), [(0.5, "agrees"), (1.0, "agrees"), (1.1, "differs")])
def test_honesty(use, verdict):
    found = list(incentives.honesty(small_study(misreports=made.misreports(use))))
    assert verdicts(found) == {verdict}


def test_honesty_takes_each_problem_by_its_own_stakes():
    """An excess in a problem of small stakes is not made small by a problem of large ones."""
    frame = made.misreports(1.0).with_columns(
        scale=pl.when(pl.col("seed") == 0).then(1e-9).otherwise(1e3)
    )
    frame = frame.with_columns(gain=pl.col("gain") + 1e-12)
    assert verdicts(incentives.honesty(small_study(misreports=frame))) == {"differs"}


@pytest.mark.parametrize(("gain", "verdict"), [(-0.1, "agrees"), (0.1, "differs"), (0, "open")])
def test_shading(gain, verdict):
    frame = made.small_misreports(gain)
    ours, exact = incentives.shading(small_study(small_misreports=frame))
    assert (ours.verdict, exact.verdict) == (verdict, "figures only")
    pays = "0.5, 0.8, 0.9, 1.1, 1.25, 2" if gain > 0 else "none"
    assert f"shown to pay at: {pays}." in ours.found


def test_one_factor_that_pays_is_enough():
    frame = made.small_misreports(-0.1).with_columns(
        gain=pl.col("gain") + pl.when(pl.col("factor") == 0.9).then(0.1).otherwise(0)
    )
    ours, _ = incentives.shading(small_study(small_misreports=frame))
    assert ours.verdict == "differs"
    assert "shown to pay at: 0.9." in ours.found


def test_small_gains_are_shares_whose_intervals_hold_together():
    """Wider than each by itself."""
    frame = made.small_misreports(0.1).filter(pl.col("method") == "successive halving")
    factors, gains, utility = incentives.small_gains(frame)
    alone = mean_of(frame.filter(pl.col("factor") == factors[0])["gain"].to_numpy() / utility)
    assert utility == 0.5
    assert gains[0].mean == pytest.approx(alone.mean) == pytest.approx(0.1, abs=0.01)
    assert gains[0].low < alone.low < alone.high < gains[0].high


@pytest.mark.parametrize(("over", "verdict"), [(0.0, "agrees"), (1e-3, "differs")])
def test_participation(over, verdict):
    study = small_study(misreports=made.misreports(over=over), market=made.market(over))
    assert verdicts(incentives.participation(study)) == {verdict}


@pytest.mark.parametrize(
    ("apart", "optimal", "verdict"),
    [(1e-12, True, "agrees"), (1e-6, True, "differs"), (1e-12, False, "differs")],
)
def test_unlimited(apart, optimal, verdict):
    exact = small_study().exact.with_columns(difference=pl.lit(apart), optimal=pl.lit(optimal))
    assert incentives.unlimited(small_study(exact=exact)).verdict == verdict


@pytest.mark.parametrize(("step", "verdict"), [(0.1, "agrees"), (-0.1, "differs")])
def test_steering(step, verdict):
    found = list(concluded.steering(small_study(exposure=made.exposure(step))))
    assert len(found) == 4
    assert verdicts(found) == {verdict}


def test_market_tells_and_does_not_judge():
    equal, long, short, heard, costs = concluded.markets(small_study())
    assert verdicts([equal, long, short, heard, costs]) == {"figures only"}
    for each in (equal, long, short):
        assert "UM bid / value 0.775" in each.found
        assert "VM bid × target / value 1.09" in each.found  # (1.7 + 1.8) / 2 x 1.25 / 2
        assert "8 learning steps" in each.found
    assert "iamfm-model" in short.found and "iamfm-model" not in equal.found + long.found
    assert "0.8 of the value told -0.02 [-0.02, -0.02], planned anew +0.01" in heard.found
    assert "2.000 as played. More by +0.125 (best of the design)" in costs.found


def test_few_seeds_conclude_nothing():
    study = small_study(welfare=made.welfare(seeds=FEWEST - 1), payments=made.payments(seeds=5))
    assert verdicts(concluded.welfare(study)) == {"open"}
    assert verdicts(concluded.trade_off(study)) == {"open"}
    assert verdicts(concluded.counterfactuals(study)) == {"open"}


def test_page(tmp_path):
    study = small_study()
    page = iamfm_page.write(study, tmp_path / "out")
    text = page.read_text("utf-8")
    assert "IAMFM, reproduced" in text
    for name in CONTENDERS:
        assert name in text
    files = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert files == set(iamfm_figures.CAPTIONS)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))
    assert len(summary) == len(concluded.conclusions(study))
    again = pl.read_parquet(tmp_path / "out" / "welfare.parquet")
    np.testing.assert_array_equal(again["welfare"], study.welfare["welfare"])
    iamfm_page.write(study, tmp_path / "out")  # the same inquiry may replace it
