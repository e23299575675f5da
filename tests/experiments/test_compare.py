import io
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.compare import cells, compare, figures, report
from experiments.compare.populations import Populations
from experiments.equilibrium.play import Style, play
from experiments.game import Game
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.kernels import threads
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism

SCENARIO = Scenario.from_dict(
    {
        "requests": {"queries": 6, "ads": 3},
        "replies": {"source": "synthetic", "per_request": 8},
        "population": [
            {"objective": "utility", "count": 2, "value": [1.0, 2.0]},
            {"objective": "value", "count": 3, "value": [3.0, 5.0], "target_roi": [1.2, 1.6]},
        ],
    }
)
SMALL = {
    "mechanisms": ("mosaic", "vcg"),
    "shares": (0.0, 0.4, 1.0),
    "learners": ("hedge", "gradient"),
    "draws": 2,
    "rounds": 20,
    "starts": 2,
    "seed": 5,
}


def small(**changes):
    return compare(SCENARIO, **{**SMALL, **changes})


@cache
def once():
    return small()


def parquet(frame):
    file = io.BytesIO()
    frame.write_parquet(file)
    return file.getvalue()


def test_same_seed_same_bytes_serially_and_with_two_processes():
    assert parquet(once().frame) == parquet(small(executor="processes", workers=2).frame)
    some = {"mechanisms": ("vcg",), "learners": ("gradient",), "shares": (0.4,)}
    assert parquet(small(**some).frame) == parquet(small(**some).frame)
    assert not small(**some).frame.equals(small(**some, seed=6).frame)


def test_threads_change_no_byte(monkeypatch):
    """Workers compute on one thread each, and this process on as many as it has cores."""
    large = SCENARIO.model_copy(
        update={
            "requests": SCENARIO.requests.model_copy(update={"queries": 40, "ads": 5}),
            "replies": SCENARIO.replies.model_copy(update={"per_request": 24}),
        }
    )
    asked = {"shares": (0.4,), "learners": ("hedge",), "draws": 1, "rounds": 6, "starts": 4}
    pool, threads_used = threads._pool, []
    monkeypatch.setattr(threads, "_pool", lambda: threads_used.append(1) or pool())
    with threads.limited(2):
        two = compare(large, ("mosaic", "vcg"), **asked).frame
    assert len(threads_used) > 20
    with threads.limited(1):
        assert parquet(two) == parquet(compare(large, ("mosaic", "vcg"), **asked).frame)


def test_same_seed_same_bytes_on_ray():
    pytest.importorskip("ray")
    assert parquet(once().frame) == parquet(small(executor="ray", workers=2).frame)


def test_a_cell_is_the_same_whatever_else_is_compared(tmp_path):
    alone = small(mechanisms=("vcg",), shares=(0.4,), learners=("gradient",), draws=1).frame
    keys = ["mechanism", "learner", "share", "draw"]
    assert alone.equals(once().frame.join(alone.select(keys), on=keys, how="semi"))
    # and what was kept is found again
    small(kept=tmp_path / "kept")
    said = []
    again = small(kept=tmp_path / "kept", say=said.append)
    assert said == ["24 jobs, serial, 24 finished earlier"]
    assert parquet(again.frame) == parquet(once().frame)


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.floats(0, 1), min_size=2, max_size=6).map(sorted),
    st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_populations_are_nested_and_share_values(seed, shares, draws):
    drawn = Populations.drawn(SCENARIO, draws, seed)
    for draw in range(draws):
        people = [drawn.population(draw, share) for share in shares]
        for each, share in zip(people, shares, strict=True):
            assert (each.values == drawn.values[draw]).all()
            assert abs(each.value_maximizer.sum() - 5 * share) <= 0.5 + 1e-12
            vm = each.value_maximizer
            assert (each.target_roi[vm] == drawn.target_roi[draw][vm]).all()
            assert (each.target_roi[~vm] == 1).all()
        for fewer, more in pairwise(people):
            assert (fewer.value_maximizer <= more.value_maximizer).all()


def test_ends_of_the_share_and_ranges_of_the_scenario():
    drawn = Populations.drawn(SCENARIO, 40, 0)
    assert not drawn.population(3, 0.0).value_maximizer.any()
    assert drawn.population(3, 1.0).value_maximizer.all()
    low = drawn.values <= 2
    assert ((drawn.values >= 1) & (low | (drawn.values >= 3)) & (drawn.values <= 5)).all()
    assert (low.sum(axis=1) == 2).all()  # groups keep their sizes
    assert ((drawn.target_roi >= 1.2) & (drawn.target_roi <= 1.6)).all()
    assert (drawn.values[:2] == Populations.drawn(SCENARIO, 2, 0).values).all()
    everywhere = np.bincount(drawn.place[:, 0], minlength=5)
    assert (everywhere > 0).all()


def known(values, share=0.0, roi=1.0):
    """Two advertisers and one request: an ad alone each, or no ad, which users prefer."""
    pool = ReplyPool.from_arrays(
        ctr=[[[0.5, 0.0], [0.0, 0.4], [0.0, 0.0]]], quality=[[0.2, 0.3, 0.7]]
    )
    drawn = Populations(np.array([values]), np.full((1, 2), roi), np.array([[0, 1]]))
    return pool, drawn.population(0, share)


def test_first_best_and_amounts_of_a_known_instance():
    pool, people = known([2.0, 3.0])
    # 2 · 0.5 + 0.2 = 1.2;  3 · 0.4 + 0.3 = 1.5;  0.7
    assert cells.first_best(pool, people.values) == pytest.approx(1.5)
    assert cells.first_best(pool, np.array([0.1, 0.2])) == pytest.approx(0.7)
    game = Game(make_mechanism("vcg"), pool, people)
    found = cells.outcome(game, np.array([[2.0, 3.0], [2.0, 1.0]]))
    # the second advertiser wins and pays 2 · 0.5; then the first does, and pays 1 · 0.4
    assert found["revenue"] == pytest.approx((1.0 + 0.4) / 2)
    assert found["advertisers_value"] == pytest.approx((1.2 + 1.0) / 2)
    assert found["user_satisfaction"] == pytest.approx((0.3 + 0.2) / 2)
    assert found["welfare"] == pytest.approx((1.5 + 1.2) / 2)


def test_liquid_welfare_counts_value_maximizers_by_what_they_would_pay():
    pool, people = known([2.0, 3.0], share=0.5, roi=2.0)
    game = Game(make_mechanism("vcg"), pool, people)
    found = cells.outcome(game, np.array([[4.0, 3.0], [0.0, 3.0]]))
    assert found["advertisers_value"] == pytest.approx((1.0 + 1.2) / 2)
    assert found["liquid_welfare"] == pytest.approx((1.0 / 2 + 1.2) / 2)


def test_price_of_anarchy_of_a_known_instance():
    """vcg serves the highest declared value, though users would rather have no ad at all."""
    pool, people = known([1.0, 1.0])
    setting = cells.Setting(
        {"vcg": make_mechanism("vcg")},
        {"vcg": pool},
        Populations(people.values[None], np.ones((1, 2)), np.array([[0, 1]])),
        rounds=8,
        starts=1,
        seed=0,
    )
    row = cells.cell(("vcg", "truthful", 0.0, 0), setting)
    # 1 · 0.5 + 0.2 is served, and 0.7 would be best too
    assert row["price_of_anarchy"] == pytest.approx(1.0)
    setting.pools["vcg"] = ReplyPool.from_arrays(pool.ctr, quality=[[0.1, 0.3, 0.9]])
    row = cells.cell(("vcg", "truthful", 0.0, 0), setting)
    assert (row["welfare"], row["first_best"]) == (pytest.approx(0.6), pytest.approx(0.9))
    assert row["price_of_anarchy"] == pytest.approx(1.5)


def duel(mechanism, learner="gradient", rounds=8, **parameters):
    """Two advertisers after the one place, ctr 1, worth 1 and 0.8 to them."""
    pool = ReplyPool.from_arrays(ctr=[[[1.0, 0.0], [0.0, 1.0]]])
    drawn = Populations(np.array([[1.0, 0.8]]), np.ones((1, 2)), np.array([[0, 1]]))
    game = Game(make_mechanism(mechanism, **parameters), pool, drawn.population(0, 0.0))
    rng = np.random.default_rng(0)
    return game, play(game, [Style(learner)] * 2, rng, rounds=rounds, starts=1)


def test_mixtures_are_measured_as_mixtures_and_not_by_their_means():
    game, played = duel("first-price", "hedge")
    support, weights = np.array([[[0.2, 0.6], [0.1, 0.5]]]), np.full((1, 2, 2), 0.5)
    mixed = replace(played, support=support, weights=weights)
    end = cells.ending(game, mixed, np.random.default_rng(1))
    # (0.2, 0.1), (0.6, 0.1), (0.6, 0.5): the first wins; (0.2, 0.5): the second
    found = cells.outcome(game, end.profiles)
    assert found["revenue"] == pytest.approx((0.2 + 0.6 + 0.6 + 0.5) / 4, abs=0.03)
    assert found["advertisers_value"] == pytest.approx((3 * 1.0 + 0.8) / 4, abs=0.02)
    # utilities 0.4 and 0.075. Best are 0.5 and 0.2, a trifle more each: 0.5 and 0.3
    nash_conv = (0.5 - 0.4) + (0.3 - 0.075)
    assert end.exploitability[0] == pytest.approx(nash_conv / 0.95, abs=0.05)
    # at the mean bids, 0.4 and 0.3: the first would bid 0.3, the second 0.4
    pure = game.gains(np.array([[0.4, 0.3]])).exploitability[0]
    assert pure == pytest.approx(0.1 + 0.4, abs=0.01)


def test_learners_without_mixtures_are_measured_at_their_last_bids():
    game, played = duel("first-price")
    end = cells.ending(game, played, np.random.default_rng(1))
    assert (end.profiles == played.last).all()
    assert (end.exploitability == game.gains(played.last).exploitability).all()
    value, payment = game.outcome(played.last)
    found = cells.outcome(game, end.profiles)
    assert found["advertisers_value"] == pytest.approx(value.sum())
    assert found["revenue"] == pytest.approx(payment.sum())


@pytest.mark.parametrize(("left", "status"), [(0.0, "converged"), (0.1, "drifting")])
def test_status_is_of_the_profiles_measured(left, status):
    game, played = duel("first-price")
    rests = replace(played, bids=np.full((40, 1, 2), 0.5), spread=np.zeros((40, 1, 2)))
    end = cells.Ending(rests.last, np.array([left]), np.ones((1, 2)))
    assert cells.status(game, rests, end) == status


def test_rows_say_what_they_measure():
    profiles = once().frame.select("learner", "profile").unique().sort("learner")
    assert profiles.rows() == [("gradient", "last bids"), ("hedge", "mixture")]


def test_nothing_served_and_nothing_worth_anything():
    """Nobody clears the reserve, and users see nothing in the replies either."""
    pool = ReplyPool.from_arrays(ctr=[[[0.5, 0.0], [0.0, 0.4], [0.0, 0.0]]])
    drawn = Populations(np.array([[1.0, 2.0]] * 2), np.ones((2, 2)), np.array([[0, 1]] * 2))
    arms = {"vcg": make_mechanism("vcg", reserve=9.0), "first-price": make_mechanism("first-price")}
    setting = cells.Setting(arms, dict.fromkeys(arms, pool), drawn, rounds=8, starts=1, seed=0)
    rows = [cells.cell((name, "truthful", 0.0, draw), setting) for name in arms for draw in (0, 1)]
    assert (rows[0]["welfare"], rows[0]["price_of_anarchy"]) == (0.0, np.inf)
    assert rows[0]["welfare_over_truthful"] == 1.0
    table = report.Comparison(pl.DataFrame(rows), setting).table
    assert table["price_of_anarchy"].to_list() == [np.inf, 1.0]
    assert table["price_of_anarchy_low"][0] is None
    figure = figures.heat_maps(table)
    anarchy = list(figures.PANELS).index("price_of_anarchy")
    assert "∞" in [each.get_text() for each in figure.axes[anarchy].texts]


def test_truthful_bidders_under_vcg_are_an_equilibrium_at_welfare_ratio_1():
    found = small(mechanisms=("vcg", "mosaic"), learners=("truthful",), shares=(0.0,)).frame
    assert (found["welfare_over_truthful"] - 1).abs().max() < 1e-12
    assert found["exploitability"].max() < 1e-9
    assert (found["price_of_anarchy"] >= 1).all()


def test_learners_come_to_the_welfare_of_truth_under_truthful_mechanisms():
    found = small(mechanisms=("mosaic",), learners=("gradient",), shares=(0.0,), rounds=400).frame
    assert (found["welfare_over_truthful"] - 1).abs().max() < 1e-3
    assert found["exploitability"].max() < 1e-3
    assert (found["status"] == "converged").all()


def test_table_and_paired_differences():
    found = once()
    assert found.table.height == 12 and found.differences.height == 6
    row = found.table.row(0, named=True)
    assert (row["mechanism"], row["learner"], row["share"]) == ("mosaic", "hedge", 0.0)
    ours = found.frame.filter(
        (pl.col("mechanism") == "mosaic") & (pl.col("learner") == "hedge") & (pl.col("share") == 0)
    )
    assert row["revenue"] == pytest.approx(ours["revenue"].mean())
    assert row["revenue_low"] < row["revenue"] < row["revenue_high"]
    assert row["converged"] + row["cycling"] + row["drifting"] == row["draws"] == 2
    keys = ["learner", "share", "draw"]
    vcg, mosaic = (
        found.frame.filter(pl.col("mechanism") == name).sort(keys)["revenue"].to_numpy()
        for name in ("vcg", "mosaic")
    )
    less = (vcg - mosaic).reshape(-1, 2).mean(axis=1)
    there = found.differences.sort("learner", "share")
    assert there["mechanism"].unique().to_list() == ["vcg"]
    assert there["revenue"].to_numpy() == pytest.approx(less)


def test_one_draw_has_no_intervals_and_one_mechanism_no_differences():
    found = small(draws=1, mechanisms=("vcg",), learners=("gradient",))
    assert found.table["revenue_low"].is_null().all()
    assert found.differences.height == 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"shares": (0.5, 1.2)}, "share is 1.2"),
        ({"shares": ()}, "no share"),
        ({"shares": (0.5, 0.5)}, "a share is named twice"),
        ({"learners": ("hedge", "hegde")}, "unknown learner 'hegde'"),
        ({"mechanisms": ("vgc",)}, "no mechanism 'vgc'"),
        ({"draws": 0}, "draws is 0"),
        ({"rounds": 3}, "rounds is 3; give at least 4"),
        ({"starts": 0}, "starts is 0; give at least 1"),
        ({"executor": "threads"}, "no executor 'threads'"),
        ({"executor": "processes", "workers": 0}, "workers is 0"),
    ],
)
def test_bad_input_is_refused_before_anything_is_recorded(monkeypatch, wrong, words):
    monkeypatch.setattr(report, "pools_of", None)
    with pytest.raises(BadInput, match=words):
        small(**wrong)


def test_budgets_are_left_out_and_that_is_said():
    group = SCENARIO.population[0].model_copy(update={"budget": 3.0})
    rich = SCENARIO.model_copy(update={"population": [group, SCENARIO.population[1]]})
    said = []
    found = compare(rich, **{**SMALL, "draws": 1, "learners": ("truthful",)}, say=said.append)
    assert said[0] == "the scenario's budgets are left out: learners play without them"
    same = small(draws=1, learners=("truthful",))
    assert found.frame.equals(same.frame)


def test_defaults_are_what_the_map_is_about():
    assert report.MECHANISMS[0] == "mosaic" and len(report.MECHANISMS) == 6
    assert report.SHARES == (0.0, 0.25, 0.5, 0.75, 1.0)
    arms = {arm.name: arm for arm in report.arms_of(SCENARIO, report.MECHANISMS)}
    assert (arms["gsp"].slots, arms["vcg"].slots, arms["mosaic"].tau) == (2, 1, 0.1)
    listed = [{"name": "gsp", "parameters": {"reserve": 0.1}}]
    own = Scenario.from_dict(SCENARIO.model_dump(mode="json") | {"beside": listed})
    (gsp,) = report.arms_of(own, ["gsp"])
    assert (gsp.slots, gsp.reserve) == (1, 0.1)


def test_gsp_is_vcg_with_one_place_and_not_with_two():
    rng = np.random.default_rng(3)
    alone, pair = np.eye(4, dtype=bool), np.eye(4, dtype=bool) | np.roll(np.eye(4, dtype=bool), 1)
    shows = np.broadcast_to(np.concatenate([alone, pair, np.zeros((1, 4), bool)]), (30, 9, 4))
    pool = ReplyPool.from_arrays(np.where(shows, rng.uniform(0.1, 0.4, (30, 9, 4)), 0.0))
    bids = rng.uniform(0.5, 3.0, (30, 4))
    by_slots = {}
    for slots in (1, 2):
        found = [
            make_mechanism(name, slots=slots).allocate(pool, bids).payments
            for name in ("gsp", "vcg")
        ]
        by_slots[slots] = np.abs(found[0] - found[1]).max()
    assert by_slots[1] < 1e-12 and by_slots[2] > 0.01
