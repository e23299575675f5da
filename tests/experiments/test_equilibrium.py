"""What learners come to: against theory, against iterated best response, and the results folder."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from experiments.best_response import best_responses
from experiments.equilibrium import equilibrium, find_equilibrium
from experiments.equilibrium.externality import closest_rivals, crowding_out
from experiments.equilibrium.findings import findings
from experiments.equilibrium.mixtures import draw_profiles, mixed_gains, pure_gains
from experiments.equilibrium.play import play, starting_points
from experiments.equilibrium.seats import Style
from experiments.equilibrium.solver import solve
from experiments.equilibrium.study import tables
from experiments.game import Game
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism
from tests.experiments.test_game import N, population, small_game

VM = np.arange(N) % 2 == 1
OBJECTIVES = ["value" if vm else "utility" for vm in VM]


def solved(name, learner="gradient", rounds=600, starts=3, **parameters):
    game = small_game(name)
    people = game.people
    return solve(
        game.mechanism, game.pool, people.values, OBJECTIVES, 1.3, learner,
        np.random.default_rng(0), rounds=rounds, starts=starts, **parameters,
    )  # fmt: skip


def two_ads(rates=(0.5, 0.5)):
    """One request; a reply without ads, and one for each of two ads."""
    ctr = np.zeros((1, 3, 2))
    ctr[0, 1, 0], ctr[0, 2, 1] = rates
    return ReplyPool.from_arrays(ctr)


@pytest.mark.parametrize("learner", ["gradient", "hedge"])
@pytest.mark.parametrize("name", ["mosaic", "llm-auction-ideal"])
def test_learners_come_to_the_equilibrium_of_iterated_best_response(name, learner):
    more = {"rounds": 6000, "starts": 2, "grid_size": 61} if learner == "hedge" else {}
    report = solved(name, learner, **more)
    assert report.status == "converged" and report.exploitability <= 0.005
    game = report.game
    settled = best_responses(game.mechanism, game.pool, game.people)
    tolerance = 0.01 if learner == "gradient" else 0.1
    at_cap = settled.bids >= 0.99 * game.top  # a target that never binds: any high bid will do
    apart = np.abs(report.bids - settled.bids) / settled.bids
    assert apart[~at_cap].max() < tolerance
    if name == "mosaic":
        np.testing.assert_allclose(report.bids[~VM], game.people.values[~VM], rtol=0.01)
    else:
        np.testing.assert_allclose(report.bids[VM], game.people.values[VM] / 1.3, rtol=tolerance)
    assert (report.cce_gap < 0.02).all()
    assert report.relative_utility_loss.max() < 0.05


def test_exploitability_reported_is_that_of_the_bids_reported():
    report = solved("llm-auction-ideal")
    assert report.profile == "last"
    gains = report.game.gains(report.play.last)
    np.testing.assert_allclose(gains.exploitability, report.judged, rtol=1e-9)
    assert report.exploitability == np.median(gains.exploitability)
    assert report.bids.tolist() == report.play.last[report.start].tolist()
    assert gains.exploitability[report.start] == np.sort(gains.exploitability)[1]
    np.testing.assert_allclose(gains.gain[report.start], report.gain)
    mean = report.game.people.values.mean()
    assert report.per_click_value == pytest.approx(np.median(gains.nash_conv) / mean)
    assert report.fixed_bids.tolist() == report.bids.tolist()
    frame = report.frame
    assert frame["bid"].to_list() == report.bids.tolist()
    assert frame["objective"].to_list() == OBJECTIVES
    assert report.snapshots[-1] == len(report.play.bids) == 600
    assert report.trajectory[0].min() > 10 * report.trajectory[-1].max()


def test_one_good_start_of_three_does_not_make_an_equilibrium():
    """Starts that rest at bad bids are counted, and the profile is chosen by the learner alone."""
    report = solved("first-price", rounds=40, starts=5)
    assert report.judged.min() < report.exploitability < report.judged.max()
    most = max(report.counts, key=report.counts.get)
    assert report.counts[most] > 2 and report.status == most
    assert solved("first-price", "hedge", rounds=20, starts=1).profile == "mixture"


def test_a_bad_profile_is_told_from_a_good_one():
    """Truthful bidding under first price, for ever: nothing moves, and everybody could gain."""
    report = solved("llm-auction-ideal", "shading", rounds=8, starts=1, factor=1.0)
    assert report.status == "drifting"
    assert report.exploitability > 0.05
    np.testing.assert_allclose(report.bids, report.game.people.truthful_bids)


def price_war():
    """Each of two ads has a request to itself, and they share a third: Edgeworth's price war.

    In a first-price slot they outbid each other for the third request until that costs more than
    falling back to the least bid, which wins one's own request. No fixed bids are stable.
    """
    ctr = np.zeros((3, 3, 2))
    ctr[[0, 2], 1, 0] = ctr[[1, 2], 2, 1] = 0.5
    return ReplyPool.from_arrays(ctr)


def test_best_response_in_a_price_war_cycles():
    report = solve(
        make_mechanism("first-price"), price_war(), [1.0, 1.0], learner="best-response",
        rounds=400, starts=2,
    )  # fmt: skip
    assert report.status == "cycling"
    assert report.diagnoses[0].period is not None
    assert report.ends[:2].min() > 0.1  # fixed bids; on average it is a fair mixture
    settled = best_responses(report.game.mechanism, report.game.pool, report.game.people)
    assert not settled.converged


def test_hedge_in_a_price_war_comes_near_a_mixed_equilibrium():
    report = solve(make_mechanism("first-price"), price_war(), [1.0, 1.0], rounds=3000, starts=2)
    assert report.profile == "mixture"
    assert report.judged.max() < 0.05 and report.ends[:2].min() > 0.1
    assert report.fixed_exploitability == report.ends[:2].min()
    assert report.cce_gap.max() < 0.02


def test_regret_is_that_of_the_profiles_played():
    """The running means against a replay, for a learner that plays the same bids for ever."""
    game = small_game("llm-auction-ideal")
    styles = [Style("shading", {"factor": 0.9})] * N
    played = play(game, styles, np.random.default_rng(0), rounds=5, starts=2)
    assert len(played.last) == 1  # a learner that has no starting point plays once
    bids = 0.9 * game.people.truthful_bids[None]
    value, payment = game.curves(bids, played.grid)
    np.testing.assert_allclose(played.value[0], value[0], atol=1e-12)
    np.testing.assert_allclose(played.own_payment[0], game.outcome(bids)[1][0], atol=1e-12)
    kept = game.objective(value, payment).max(axis=2)
    own = np.where(VM, *(x[0] for x in (played.own_value, played.own_value - played.own_payment)))
    gap = np.maximum(kept - own, 0).sum() / played.own_value[0].sum()
    assert played.cce_gap(game.people)[0] == pytest.approx(gap)


def test_a_mixture_on_one_point_is_that_profile():
    game = small_game("llm-auction-ideal")
    bids = 0.7 * game.people.truthful_bids
    support, weights = np.stack([bids, 2 * bids], axis=1), np.tile([1.0, 0.0], (N, 1))
    mixed = mixed_gains(game, support, weights, np.random.default_rng(0), profiles=8)
    pure = pure_gains(game, bids)
    np.testing.assert_allclose(mixed.gain, pure.gain, atol=1e-9)
    np.testing.assert_allclose(mixed.owed, pure.owed, atol=1e-9)
    assert mixed.exploitability.mean == pytest.approx(pure.exploitability.mean, rel=1e-6)


def test_gains_against_a_uniform_mixture_are_those_of_the_closed_form():
    """A slot at first price, clicked for sure; both bid uniformly on [0, 1/2] and value it at 1.

    A bid b wins with probability 2b and brings 2b(1 − b): 1/3 on average, 1/2 at best, b = 1/2.
    """
    people = population([1.0, 1.0], [False, False])
    game = Game(make_mechanism("first-price"), two_ads((1.0, 1.0)), people)
    grid = np.tile(np.linspace(0, 0.5, 201), (2, 1))
    rng = np.random.default_rng(0)
    found = mixed_gains(game, grid, np.full(grid.shape, 1 / 201), rng, profiles=512)
    np.testing.assert_allclose(found.gain, 1 / 2 - 1 / 3, atol=0.02)
    np.testing.assert_allclose(found.best, 0.5, atol=0.02)
    np.testing.assert_allclose(found.relative_loss, 1 / 3, atol=0.04)


def test_intervals_of_mixtures_hold_the_truth_as_often_as_they_say():
    """As above: gains of 1/6 each over a value of 1 together; best replies known, few draws."""
    people = population([1.0, 1.0], [False, False])
    game = Game(make_mechanism("first-price"), two_ads((1.0, 1.0)), people)
    grid = np.tile(np.linspace(0, 0.5, 41), (2, 1))
    weights = np.full(grid.shape, 1 / 41)
    exact = mixed_gains(game, grid, weights, np.random.default_rng(99), profiles=8000)
    held, widths = 0, []
    for seed in range(60):
        found = mixed_gains(game, grid, weights, np.random.default_rng(seed), profiles=64)
        low, high = found.exploitability.low, found.exploitability.high
        held += low <= exact.exploitability.mean <= high
        widths.append(high - low)
    assert held >= 48
    assert np.median(widths) < 0.1


def test_a_loss_of_all_there_is_to_gain_is_not_called_none():
    found = pure_gains(small_game("first-price"), 0.001 * small_game().people.truthful_bids)
    alone = replace(found, best_objective=np.zeros(N), gain=np.ones(N), owed=np.zeros(N))
    assert np.isinf(alone.relative_loss).all()


def test_draws_have_the_mixture_s_weights():
    support = np.array([[0.0, 1.0, 2.0]])
    draws = draw_profiles(support, np.array([[0.5, 0.2, 0.3]]), np.random.default_rng(0), 1000)
    np.testing.assert_allclose([(draws == b).mean() for b in range(3)], [0.5, 0.2, 0.3], atol=2e-3)


def test_starts_are_truthful_first_and_spread_by_objective():
    people = population(np.ones(6), [False] * 3 + [True] * 3)
    starts = starting_points(people, 500, np.random.default_rng(0))
    assert (starts[0] == 1).all()
    assert 0.05 <= starts[1:, :3].min() < 0.06 and 1.4 < starts[1:, :3].max() <= 1.5
    assert 0.2 <= starts[1:, 3:].min() < 0.22 and 2.8 < starts[1:, 3:].max() <= 3


def test_grids_reach_as_high_as_value_maximizers_want_to_bid():
    """Alone, at a high temperature, a value maximizer is charged next to nothing for its clicks."""
    people = population([1.0, 1.0], [True, False], roi=1.01)
    game = Game(make_mechanism("mosaic", tau=5.0), two_ads(), people)
    styles = [Style("hedge")] * 2
    played = play(game, styles, np.random.default_rng(0), rounds=300, starts=2)
    np.testing.assert_allclose(played.reach, [10, 1.5])
    fixed = [Style("hedge", {"max_multiple": 2.0})] * 2
    asked = play(game, fixed, np.random.default_rng(0), rounds=50, starts=2)
    np.testing.assert_allclose(asked.reach, [2, 2])


def test_who_crowds_out_whom():
    people = population([1.0, 1.0], [False, False])
    game = Game(make_mechanism("vcg"), two_ads((1.0, 0.5)), people)
    lost, clicks = crowding_out(game, np.array([1.0, 1.0]))
    np.testing.assert_allclose(clicks, [1, 0])
    np.testing.assert_allclose(lost, [[0, 1], [0, 0]])  # the first takes the slot from the second
    assert closest_rivals(np.array([[0, 0.5, 0], [0.2, 0, 0.1], [0, 0.1, 0]]), np.ones(3), [0] * 3)[
        :2
    ] in ((0, 1), (1, 0))


def test_same_seed_same_numbers_and_a_sample_of_requests():
    game = small_game("mosaic")
    runs = [
        play(game, [Style("hedge")] * N, np.random.default_rng(7), rounds=30, starts=2, requests=4)
        for _ in range(2)
    ]
    assert runs[0].bids.tobytes() == runs[1].bids.tobytes()
    other = play(game, [Style("hedge")] * N, np.random.default_rng(7), rounds=30, starts=2)
    assert runs[0].bids.tobytes() != other.bids.tobytes()


def test_learners_may_differ():
    game = small_game("llm-auction-ideal")
    styles = [Style("pacing") if vm else Style("hedge") for vm in VM]
    played = play(game, styles, np.random.default_rng(0), rounds=800, starts=2)
    assert game.gains(played.average).exploitability.max() < 0.02
    np.testing.assert_allclose(played.weights.sum(axis=2), 1)


@pytest.mark.parametrize("learner", ["exp3", "reinforce", "fictitious-play", "dual-averaging"])
def test_every_learner_can_play(learner):
    played = play(
        small_game("mosaic"), [Style(learner)] * N, np.random.default_rng(0), rounds=20, starts=2
    )
    assert np.isfinite(played.bids).all() and np.isfinite(played.cce_gap(small_game().people)).all()
    np.testing.assert_allclose(played.weights.sum(axis=2), 1)
    means = (played.support * played.weights).sum(axis=2)
    np.testing.assert_allclose(means, played.average, rtol=1e-6)


def test_bad_input_is_refused():
    game = small_game()
    values = game.people.values
    with pytest.raises(BadInput, match="prior"):
        equilibrium(game.mechanism, game.pool)
    with pytest.raises(BadInput, match="give one for each"):
        equilibrium(game.mechanism, game.pool, values[:2])
    with pytest.raises(BadInput, match="fame"):
        equilibrium(game.mechanism, game.pool, values, objective="fame")
    with pytest.raises(BadInput, match="roi"):
        equilibrium(game.mechanism, game.pool, values, roi=[1.0, 2.0])
    with pytest.raises(BadInput, match="unknown learner"):
        equilibrium(game.mechanism, game.pool, values, learner="oracle")
    with pytest.raises(BadInput, match="rounds >= 4"):
        equilibrium(game.mechanism, game.pool, values, rounds=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    scenario = Scenario.from_yaml("synthetic").with_(
        requests={"queries": 6, "ads": 3},
        population=[
            {"objective": "utility", "count": 2, "learner": "hedge"},
            {"objective": "value", "count": 2, "target_roi": 1.2, "learner": "pacing"},
        ],
    )
    path = tmp_path_factory.mktemp("equilibrium") / "found"
    told = []
    find_equilibrium(
        scenario, 3, path, told.append, learner="scenario", rounds=120, starts=2,
        mechanisms=["mosaic", "first-price"],
    )  # fmt: skip
    assert any("mosaic" in line for line in told)
    return scenario, path


def test_the_results_folder_has_everything(folder):
    _, path = folder
    summary = json.loads((path / "summary.json").read_text())
    assert set(summary) == {"mosaic", "first-price"}
    for found in summary.values():
        assert found["status"] in ("converged", "cycling", "drifting")
        assert sum(found["starts"].values()) == 2
        assert 0 <= found["exploitability"] < 1 and len(found["bids"]) == 4
        assert found["nash_of_closest_rivals"]
    page = (path / "report.html").read_text()
    assert "exploitability" in page and "iterated best response" in page
    assert page.count("data:image/png") == 6
    deviations = pl.read_parquet(path / "deviations.parquet")
    assert set(deviations["game"]) == {"roles", "pair"} and (deviations["gain"] > 0).all()
    assert pl.read_parquet(path / "advertisers.parquet").height == 8
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["seed"] == 3 and manifest["produced_by"]["mosaic"]["rounds"] == 120


def test_the_same_inquiry_gives_the_same_tables_and_another_none(folder):
    scenario, path = folder
    found = findings(
        scenario, 3, learner="scenario", rounds=120, starts=2, mechanisms=["mosaic", "first-price"]
    )
    for name, table in tables(found).items():
        assert table.equals(pl.read_parquet(path / f"{name}.parquet")), name
    for name, table in tables(found).items():
        if name == "advertisers":
            assert (table["lowest_over_truthful"] <= table["bid_over_truthful"] + 1e-12).all()
    with pytest.raises(BadInput, match="1 <= requests <= 6"):
        find_equilibrium(scenario, 4, path / "more", requests=7)
    with pytest.raises(BadInput, match="another"):
        find_equilibrium(scenario, 4, path, learner="scenario", rounds=120, starts=2)
