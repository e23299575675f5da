"""Private values redrawn each round: interim outcomes, best responses and what is reported."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from experiments.bayesian import Uniform, solve_bayesian
from experiments.bayesian.dual_averaging import respond
from experiments.bayesian.figures import bid_functions
from experiments.bayesian.functions import POINTS, function_losses, purified, smoothed
from experiments.bayesian.game import BayesianGame, single_slot_rates
from experiments.bayesian.interim import BidDistributions, Sampled, SingleSlot, interim_of
from experiments.bayesian.known import distance, single_item
from experiments.bayesian.response import best_payoffs, losses, most_value
from experiments.bayesian.solve import status_of
from mechanisms.errors import BadInput
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism
from tests.mechanisms.pools import generators, quick

FIRST_PRICE = make_mechanism("first-price")


def game(n=3, mechanism=FIRST_PRICE, **kinds):
    return BayesianGame.of(mechanism, single_item(n), Uniform(), **kinds)


# --- interim outcomes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "twin"),
    [
        ("first-price", {}, "first-price"),
        ("gsp", {}, "vcg"),
        ("vcg", {}, "gsp"),
        ("llm-auction-ideal", {"tau": 1e-6}, "first-price"),
        ("mosaic", {"tau": 1e-6}, "vcg"),
    ],
)
def test_exact_outcomes_are_the_mechanisms_own(name, parameters, twin):
    """Against Monte Carlo through the mechanism; Gibbs at tau -> 0 is the classical auction."""
    rng = np.random.default_rng(3)
    pool = ReplyPool.from_arrays([np.diag([0.3, 0.5, 0.9]), np.diag([0.6, 0.5, 0.2])])
    sampled = BayesianGame.of(
        make_mechanism(name, **parameters), pool, [Uniform(0, 1 + k / 100) for k in range(3)], top=1
    )
    exact = BayesianGame.of(make_mechanism(twin), pool, list(sampled.priors), top=1)
    assert exact.rates.shape == (2, 3)
    knots = np.tile(np.linspace(0, 1, 9), (3, 1))
    others = BidDistributions.on_cells(knots, rng.dirichlet(np.ones(8), 3))
    edges = np.tile(np.linspace(0, 1, 65), (3, 1))
    clicks, payments = SingleSlot(exact).cells(edges, others)
    clicks_mc, payments_mc = Sampled(sampled, 50_000, rng).cells(edges, others)
    # standard errors are at most 0.002; cells and their centres differ by less
    np.testing.assert_allclose(clicks, clicks_mc, atol=0.008)
    np.testing.assert_allclose(payments, payments_mc, atol=0.008)


def test_ads_that_are_no_candidates_win_nothing_and_stop_nobody():
    ctr = np.zeros((2, 3, 2))
    ctr[:, 1, 0] = ctr[:, 2, 1] = 0.5
    pool = ReplyPool.from_arrays(ctr, ads=[[0, 1], [0, 2]])
    assert single_slot_rates(FIRST_PRICE, pool).tolist() == [[0.5, 0.5, 0], [0.5, 0, 0.5]]
    alike = BayesianGame.of(FIRST_PRICE, pool, Uniform())
    edges = np.linspace(0, 1, 3) * np.ones((alike.classes, 1))
    others = BidDistributions.on_cells(edges, np.full((alike.classes, 2), 0.5))
    clicks, _ = SingleSlot(alike).cells(edges, others)
    # one rival in every request it competes in, and half the requests for advertisers 1 and 2
    np.testing.assert_allclose(clicks[alike.member], [[0.125, 0.375]] + [[0.0625, 0.1875]] * 2)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_bids_in_one_cell_split_evenly(n):
    """All bid uniformly in [0, 1]: everybody wins 1/n, and pays the mean of the greatest bid."""
    edges, probabilities = np.array([[0.0, 1.0]]), np.ones((1, 1))
    others = BidDistributions.on_cells(edges, probabilities)
    clicks, payments = SingleSlot(game(n)).cells(edges, others)
    np.testing.assert_allclose([clicks[0, 0], payments[0, 0]], [1 / n, 1 / (n + 1)], rtol=1e-12)
    _, second = SingleSlot(game(n, make_mechanism("vcg"))).cells(edges, others)
    np.testing.assert_allclose(second[0, 0], (n - 1) / (n * (n + 1)), rtol=1e-12)


@pytest.mark.parametrize("n", [2, 5])
def test_against_truthful_rivals(n):
    """`x = b^(n-1)`; first price pays `b^n`, second price `(n-1)/n b^n`."""
    edges = np.linspace(0, 1, 401)[None]
    others = BidDistributions.of_functions(np.linspace(0, 1, POINTS)[None])
    b = (edges[0, 1:] + edges[0, :-1]) / 2
    for name, share in (("first-price", 1.0), ("gsp", (n - 1) / n)):
        clicks, payments = SingleSlot(game(n, make_mechanism(name))).cells(edges, others)
        np.testing.assert_allclose(clicks[0], b ** (n - 1), atol=1e-5)
        np.testing.assert_allclose(payments[0], share * b**n, atol=1e-5)


def test_a_bid_that_all_share_is_split_and_found_out():
    """All bid 0: each wins 1/n and could win always, nearly for nothing."""
    found = game(4)
    lost, _ = function_losses(found, SingleSlot(found), np.zeros((1, POINTS)), 1024)
    np.testing.assert_allclose(lost.attained, 0.5 / 4, rtol=1e-2)
    np.testing.assert_allclose(lost.relative, 0.75, atol=0.01)


def test_what_tells_advertisers_apart_makes_classes():
    assert game(5).classes == 1
    pair = BayesianGame.of(FIRST_PRICE, single_item(4), [Uniform(), Uniform(0, 2)] * 2)
    assert pair.member.tolist() == [0, 1, 0, 1] and pair.top.tolist() == [1, 2]
    mixed = game(3, objective=("utility", "value", "value"), roi=1.5)
    assert mixed.member.tolist() == [0, 1, 1] and mixed.roi.tolist() == [1, 1.5]
    assert (
        BayesianGame.of(make_mechanism("mosaic", tau=1.0), single_item(3), Uniform()).classes == 3
    )
    assert game(2, make_mechanism("gsp", reserve=0.1)).rates is None
    assert game(2, make_mechanism("gsp", slots=2)).rates is None


def test_highest_bid_of_a_value_maximizer_allows_for_click_rates():
    """At a fifth of its rival's rate it needs bids of 4.5 to win for certain, and uses some."""
    pool = ReplyPool.from_arrays(np.diag([0.2, 0.9])[None])
    kinds = ("value", "utility")
    found = BayesianGame.of(FIRST_PRICE, pool, Uniform(), kinds)
    np.testing.assert_allclose(found.top, [4.5, 1.0])
    report = solve_bayesian(FIRST_PRICE, pool, Uniform(), objective=kinds)
    assert report.bids[0].max() > 1.1 and not report.at_cap.any()
    capped = solve_bayesian(FIRST_PRICE, pool, Uniform(), objective=kinds, top=1.0)
    assert capped.at_cap.tolist() == [True, False] and capped.bids.max() <= 1
    assert "advertiser 0" in bid_functions(capped).axes[0].texts[0].get_text()


@pytest.mark.parametrize(("requests", "samples"), [(1000, 64), (7, 64), (64, 64)])
def test_every_request_is_as_likely_to_be_sampled(requests, samples):
    pool = ReplyPool.synthetic(requests, 4, 2, np.random.default_rng(0))
    alike = BayesianGame.of(make_mechanism("mosaic", tau=0.2), pool, Uniform())
    drawn = Sampled(alike, samples, np.random.default_rng(1))
    counts = np.stack([np.bincount(drawn._draw()[0], minlength=requests) for _ in range(400)])
    # spread evenly within a draw, and over draws
    assert np.ptp(counts, axis=1).max() <= 1
    expected = 400 * samples / requests
    assert np.abs(counts.sum(axis=0) - expected).max() < 5 * np.sqrt(expected)


# --- best responses -----------------------------------------------------------------------------


@quick
@given(generators(), st.integers(1, 30), st.integers(1, 30))
def test_best_payoffs_by_brute_force(rng, bids, values):
    clicks, payments = rng.random((2, bids)).round(2)
    worth = rng.random(values) * 3
    brute = (worth[:, None] * clicks - payments).max(axis=1)
    np.testing.assert_allclose(best_payoffs(worth, clicks, payments), brute, atol=1e-12)


@quick
@given(generators(), st.sampled_from([0.5, 1.0, 1.7]))
def test_most_value_is_the_linear_programmes(rng, roi):
    K, L = 6, 8
    clicks = np.append(0.0, np.sort(rng.random(L - 1)))
    payments = np.append(0.0, np.sort(rng.random(L - 1)))
    values = rng.random(K)
    won = np.outer(values, clicks).ravel() / K
    paid = np.tile(payments, K) / K
    simplices = np.kron(np.eye(K), np.ones(L))
    exact = linprog(
        -won, A_ub=[roi * paid - won], b_ub=[0.0], A_eq=simplices, b_eq=np.ones(K), bounds=(0, 1)
    )
    bound = most_value(values, clicks, payments, roi)
    assert bound >= -exact.fun - 1e-9
    np.testing.assert_allclose(bound, -exact.fun, rtol=1e-4, atol=1e-6)


def test_known_equilibrium_loses_nothing_and_a_wrong_one_does():
    found = game(3)
    known = 2 / 3 * np.linspace(0, 1, POINTS)[None]
    lost, _ = function_losses(found, SingleSlot(found), known, 1024)
    assert lost.relative.max() < 1e-5
    np.testing.assert_allclose(lost.attained, 1 / 12, rtol=1e-4)
    # truthful rivals leave (v/3)(2v/3)^2 to the best response, 1/27 on average, and truth nothing
    lost, _ = function_losses(found, SingleSlot(found), 1.5 * known, 1024)
    np.testing.assert_allclose(lost.attainable, 1 / 27, rtol=1e-3)
    assert lost.relative > 0.99


def test_whom_it_does_not_pay_to_win_bids_low():
    """Below a reserve of 0.2 nothing is won, above it more than a value of 0.1 is paid."""
    clicks, payments = np.array([[0.0, 0.0, 0.5, 0.6]]), np.array([[0.0, 0.0, 0.1, 0.2]])
    found = respond(np.array([[0.1, 1.0]]), clicks, payments, 50.0)[0]
    np.testing.assert_allclose(found, [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], atol=1e-4)
    np.testing.assert_allclose(
        respond(np.ones((1, 1)), np.zeros((1, 3)), np.zeros((1, 3)), 9), 1 / 3
    )


def test_reserve_price():
    """First price, reserve 1/4, two bidders: `β(v) = v/2 + r²/2v` above it (Riley & Samuelson)."""
    ctr = np.zeros((1, 3, 2))
    ctr[0, 1, 0] = ctr[0, 2, 1] = 1.0
    report = solve_bayesian(
        make_mechanism("first-price", reserve=0.25), ReplyPool.from_arrays(ctr), Uniform(),
        rounds=400, samples=1024, check_samples=2048,
    )  # fmt: skip
    values = np.linspace(0.35, 1, 40)
    apart = report.bid_function(values) - (values / 2 + 0.25**2 / (2 * values))
    assert np.sqrt((apart**2).mean()) < 0.015
    assert (report.bid_function(0.1) < 0.25).all()


def test_missed_targets_are_told_and_owed():
    """Won 0.25 for 0.25 where half was due; nothing within the target can be had for 1 a click."""
    found = game(2, objective="value", roi=2.0)
    values = found.values(4)
    outcome = np.full((1, 4), 0.5), np.full((1, 4), 0.25)
    lost = losses(found, values, outcome, (np.ones((1, 1)), np.ones((1, 1))))
    np.testing.assert_allclose(lost.violation, (2 * 0.25 - 0.25) / 0.25)
    np.testing.assert_allclose(lost.owed, 0.25)
    np.testing.assert_allclose(lost.gain, 0.25)
    assert lost.relative == np.inf


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.02, 1.1])
def test_bids_are_measured_as_they_are(scale):
    """Two value maximizers bid v at target 1; whoever bids more owes, whoever bids less gains."""
    found = game(2, objective="value")
    bids = scale * 0.9 * np.linspace(0, 1, POINTS)[None]
    wide = replace(found, top=np.array([2.0]), roi=np.array([1 / 0.9]))
    lost, factor = function_losses(wide, SingleSlot(wide), bids, 2048)
    # E[v x] = 1/3 and roi E[p] = scale/3 whatever both bid in proportion to their values
    np.testing.assert_allclose(lost.violation, max(scale - 1, 0), atol=1e-3)
    assert (lost.gain > 5e-3) == (scale != 1.0)
    assert (factor < 0.999) == (scale > 1) and (factor > 1.001) == (scale < 1)


# --- bid functions ------------------------------------------------------------------------------


@quick
@given(generators())
def test_purified_functions_bid_the_same_distribution(rng):
    edges = np.linspace(0, 1, 6)[None]
    bids = BidDistributions.on_cells(edges, rng.dirichlet(np.ones(5), 1))
    function = purified(bids)[0]
    assert (np.diff(function) >= 0).all()
    at = rng.random(20)
    share = (function[None] <= at[:, None]).mean(axis=1)
    np.testing.assert_allclose(share, np.interp(at, edges[0], bids.cumulative[0]), atol=2 / POINTS)


def test_smoothing_keeps_cubics_and_order():
    u = (np.arange(100) + 0.5) / 100
    np.testing.assert_allclose(
        smoothed((u**3)[None], 32)[0], np.linspace(0, 1, POINTS) ** 3, atol=1e-9
    )
    assert (np.diff(smoothed(np.sin(9 * u)[None], 128)) >= 0).all()


@pytest.mark.parametrize(("values", "bid_cells"), [(4, 2), (4, 512), (9, 64), (128, 128)])
def test_smoothing_of_any_grid(values, bid_cells):
    u = (np.arange(values) + 0.5) / values
    found = smoothed(u[None], bid_cells)[0]
    np.testing.assert_allclose(found, np.linspace(0, 1, POINTS), atol=1e-9)


def test_what_stands_for_a_strategy_depends_on_its_grid_only():
    """The same spline whatever is measured, and an unsmoothed strategy that loses more."""
    reports = [solve_bayesian(FIRST_PRICE, single_item(n), Uniform()) for n in (3, 10)]
    spline = {report.produced_by["bid function"] for report in reports}
    assert spline == {"cubic spline of mean bids, 32 bid cells a piece"}
    for report in reports:
        assert (report.unsmoothed_loss > 10 * report.continuous_loss).all()
        assert (report.grid_loss < 1e-4).all()


@quick
@given(generators())
def test_leader_bids_more_for_more_value(rng):
    clicks = np.sort(rng.random((1, 7)), axis=1)
    payments = np.sort(rng.random((1, 7)), axis=1)
    found = respond(np.linspace(0.01, 2, 9)[None], clicks, payments, 5.0)
    np.testing.assert_allclose(found.sum(axis=2), 1)
    assert (found >= 0).all()


# --- reports ------------------------------------------------------------------------------------


def test_report_of_unequal_bidders():
    priors = [Uniform(0, 1), Uniform(0.5, 1.5)]
    report = solve_bayesian(FIRST_PRICE, single_item(2), priors, rounds=400)
    assert report.bid_function(0.7).shape == (2,)
    assert report.bid_function([0.2, 0.7, 1.2]).shape == (2, 3)
    assert (np.diff(report.bids, axis=1) >= 0).all()
    assert report.continuous_loss.max() < 2e-3 and report.status == "converged"
    assert report.exploitability < 1e-3 and report.seconds > 0
    assert report.produced_by["outcomes"] == "exact" and report.produced_by["rounds"] == 400
    assert bid_functions(report).axes


@pytest.mark.parametrize("objective", ["utility", ("utility", "value")])
def test_units_of_money_do_not_matter(objective):
    cents, euros = (
        solve_bayesian(
            FIRST_PRICE, single_item(2), Uniform(0, high), objective=objective, rounds=60
        )
        for high in (100.0, 1.0)
    )
    np.testing.assert_allclose(cents.bids, 100 * euros.bids, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(cents.stretch, euros.stretch, rtol=1e-9)


def test_optimism_damps_what_plain_averaging_amplifies():
    lost = [
        solve_bayesian(FIRST_PRICE, single_item(2), Uniform(), optimism=how).grid_loss[0]
        for how in (0.0, 2.0)
    ]
    assert lost[1] < 0.1 * lost[0]


@pytest.mark.parametrize("learner", ["dual-averaging", "gradient"])
def test_same_seed_same_bids(learner):
    few = {"rounds": 20} if learner == "dual-averaging" else {"steps": 20}

    def once():
        rng = np.random.default_rng(7)
        mechanism = make_mechanism("mosaic", tau=0.2)
        found = solve_bayesian(
            mechanism, single_item(2), Uniform(), learner, rng=rng, check_samples=256, **few
        )
        return found.bids.tobytes()

    assert once() == once()


def test_mosaic_is_truthful_and_value_maximizers_stretch():
    report = solve_bayesian(
        make_mechanism("mosaic", tau=0.3), single_item(2), Uniform(), "dual-averaging",
        ("utility", "value"), 1.5, rounds=150, samples=256, check_samples=2048,
    )  # fmt: skip
    assert distance(report, lambda v: v, 0) < 0.01
    # against bids of at most 1 the reply hardly changes with bids far above: there any bid will do
    values = np.linspace(0.1, 0.6, 6)
    stretched = values * report.stretch[1] / 1.5
    np.testing.assert_allclose(report.bid_function(values)[1], stretched, atol=0.02)
    assert report.stretch[1] > 1.1 and not report.at_cap.any()
    # bids as they are, to the accuracy of 256 samples a round
    assert report.roi_violation[1] < 5e-3
    np.testing.assert_allclose(report.target_factor, 1, atol=0.01)


def test_learners_agree_where_no_closed_form_is_known():
    pool = ReplyPool.synthetic(4, 8, 2, np.random.default_rng(1))
    mechanism = make_mechanism("llm-auction-ideal", tau=0.2)
    grid = solve_bayesian(mechanism, pool, Uniform(0, 2), rounds=200, check_samples=2048)
    network = solve_bayesian(
        mechanism, pool, Uniform(0, 2), "gradient", steps=250, samples=256, check_samples=2048
    )
    values = np.linspace(0, 2, 50)
    apart = grid.bid_function(values) - network.bid_function(values)
    assert np.sqrt((apart**2).mean()) < 0.03
    assert max(grid.continuous_loss.max(), network.continuous_loss.max()) < 2e-3


def test_status_by_what_the_bids_did():
    t = np.linspace(0, 8 * np.pi, 100)[:, None, None]
    top = np.ones(1)
    still = np.full((100, 1, 3), 0.4)
    assert status_of(still, top, 1e-3) == "converged" and status_of(still, top, 0.5) == "stalled"
    assert status_of(0.5 + 0.2 * np.sin(t) * np.ones((1, 1, 3)), top, 0.0) == "cycling"
    assert status_of(t / 30 * np.ones((1, 1, 3)), top, 0.0) == "drifting"


def test_bids_that_hardly_move_are_no_equilibrium():
    report = solve_bayesian(
        FIRST_PRICE, single_item(2), Uniform(), "gradient", steps=40, learning_rate=1e-6
    )
    assert report.status == "stalled" and report.continuous_loss.max() > 0.9
    assert "no equilibrium" in bid_functions(report).axes[0].get_title("left")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"learner": "hedge"}, "dual-averaging, gradient"),
        ({"rate": 3}, "no parameter"),
        ({"rounds": 0}, "rounds"),
        ({"temperature": -1.0}, "temperature"),
        ({"objective": "fame"}, "objective"),
        ({"objective": ("utility",)}, "2 advertisers"),
        ({"roi": 0.0}, "roi"),
        ({"top": [1.0, -1.0]}, "top"),
        ({"prior": 3.0}, "Uniform"),
        ({"samples": 0}, "samples"),
        ({"samples": 1.5}, "samples"),
        ({"value_cells": 3}, "value_cells"),
        ({"rounds": 10.0}, "rounds"),
        ({"optimism": np.inf}, "optimism"),
        ({"weight_power": -1}, "weight_power"),
        ({"temperature": "a"}, "temperature"),
        ({"rate_power": 1.5}, "rate_power"),
        ({"learner": "gradient", "dual_step": "a"}, "dual_step"),
        ({"learner": "gradient", "steps": True}, "steps"),
        ({"learner": "gradient", "learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_bad_input_is_refused(arguments, word):
    given = {"prior": Uniform(), **arguments}
    with pytest.raises(BadInput, match=word):
        solve_bayesian(FIRST_PRICE, single_item(2), **given)


def test_bad_priors_are_refused():
    for low, high in ((1.0, 1.0), (-1.0, 1.0), (0.0, np.inf), (0.0, np.nan)):
        with pytest.raises(BadInput, match="low"):
            Uniform(low, high)
    assert isinstance(interim_of(game(2), 10, np.random.default_rng(0)), SingleSlot)
