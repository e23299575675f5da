"""What `admarket reproduce mosaic` concludes: every verdict can be any; and its page."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from experiments.bootstrap import Estimate
from experiments.reproduce import mosaic, mosaic_conclusions, mosaic_figures, mosaic_page
from experiments.reproduce.page import FEWEST, judge
from tests.experiments.small_study import converged, pool, small_study, world


@pytest.fixture(scope="module")
def study():
    return small_study(requests=20)


def verdicts(found):
    return {each.verdict for each in (found if hasattr(found, "__iter__") else [found])}


def mirrored(frame, *columns):
    return frame.with_columns(-pl.col(column) for column in columns)


def with_convergence(study, pools, truth=None):
    ways = {way: pools for way in mosaic.WAYS} if not isinstance(pools, dict) else pools
    return replace(study, convergence=converged(ways, truth or study.pools["truth"]))


def of(found, reward):
    return [each for each in found if each.question.endswith(reward)]


def test_judge():
    up, down, unclear = Estimate(2, 1, 3), Estimate(-2, -3, -1), Estimate(0, -1, 1)
    assert judge(20, up, up) == "agrees"
    assert judge(20, up, down) == judge(20, unclear, down) == "differs"
    assert judge(20, up, unclear) == judge(20, up, given=[unclear]) == "open"
    assert judge(20, up, given=[down]) == "open"  # what is given is no claim of the paper's
    assert judge(FEWEST - 1, up) == judge(FEWEST - 1, down) == "open"
    assert -up == down
    assert up.less(2) == (0, -1, 1)


def rates(study, worlds):
    """Verdicts on clicks, of every way of writing, by how often."""
    found = []
    for k, space in enumerate(worlds):
        pools = {way: pool(space, 32, 10 * k + j, 1.0) for j, way in enumerate(mosaic.WAYS)}
        some = mosaic_conclusions.convergence(with_convergence(study, pools))
        found += [each.verdict for each in of(some, "clicks")]
    return {verdict: found.count(verdict) / len(found) for verdict in ("agrees", "differs")}


def test_convergence_agrees_on_candidates_of_the_space(study):
    found = rates(study, [world(requests=20)] * 5)
    assert found["agrees"] >= 0.7
    assert found["differs"] == 0


def test_convergence_hardly_ever_agrees_on_junk(study):
    assert rates(study, [world(seed, 20) for seed in range(60, 65)])["agrees"] <= 0.1


@pytest.mark.parametrize("seed", [50, 51, 52, 53])
def test_convergence_does_not_agree_on_junk(study, seed):
    """Candidates of another world: tau·log Z grows with M, and total variation falls, there too."""
    junk = with_convergence(study, pool(world(seed, 20), 32, 0, 1.0))
    by = junk.convergence.filter(pl.col("reward") == "clicks").group_by("M")
    means = by.agg(pl.col("welfare", "distance").mean()).sort("M")
    assert (np.diff(means["welfare"]) > 0).all()
    assert (np.diff(means["distance"]) < 0).all()
    assert "agrees" not in verdicts(mosaic_conclusions.convergence(junk))


def test_convergence_differs_on_candidates_that_lead_away(study):
    """Clicks only for what the optimum does not show: the more candidates, the farther."""
    truth = study.pools["truth"]
    opposed = pool(world(requests=20), 32, 0, 1.0)
    away = replace(opposed, ctr=np.where(opposed.exposure, 0.9 - opposed.ctr.clip(0, 0.8), 0))
    calm = replace(truth, ctr=truth.ctr * 1e-3)
    found = of(mosaic_conclusions.convergence(with_convergence(study, away, calm)), "clicks")
    assert verdicts(found) == {"differs"}


def test_ways_of_writing(study):
    context, reference = study.pools["context"], study.pools["reference"]
    found = of(mosaic_conclusions.ways_of_writing(study), "clicks")
    assert found[0].verdict == "agrees"
    swapped = with_convergence(study, dict.fromkeys(mosaic.WAYS, context) | {"context": reference})
    found = of(mosaic_conclusions.ways_of_writing(swapped), "clicks")
    assert found[0].verdict == "differs"
    same = dict.fromkeys(mosaic.WAYS, reference)
    assert verdicts(mosaic_conclusions.ways_of_writing(with_convergence(study, same))) == {"open"}


def test_revenue(study):
    conclude = mosaic_conclusions.revenue
    assert conclude(study).verdict == "agrees"
    earns = study.offsets.with_columns(payment=pl.col("payment").abs())
    assert conclude(replace(study, offsets=earns)).verdict == "differs"  # without it, earns too
    loses = mirrored(study.offsets, "utility")
    assert conclude(replace(study, offsets=loses)).verdict == "differs"
    nothing = study.offsets.with_columns(payment=0.0)
    assert conclude(replace(study, offsets=nothing)).verdict == "open"


def test_utility_and_contribution(study):
    def verdict(offsets):
        return next(
            mosaic_conclusions.utility_and_contribution(replace(study, offsets=offsets))
        ).verdict

    assert verdict(study.offsets) == "agrees"
    assert verdict(mirrored(study.offsets, "utility")) == "differs"
    both = study.offsets.with_columns(utility=pl.col("contribution"))
    assert verdict(both) == "open"  # as much without the offset
    assert verdict(study.offsets.with_columns(utility=0.3)) == "differs"  # constant


def test_tau_and_users(study):
    for conclude, column in (
        (mosaic_conclusions.temperature, "kl"),
        (mosaic_conclusions.temperature, "value"),
        (mosaic_conclusions.satisfaction, "satisfaction"),
    ):
        frame = study.temperatures
        assert conclude(study).verdict == "agrees"
        other = replace(study, temperatures=mirrored(frame, column))
        assert conclude(other).verdict == "differs"
        flat = replace(study, temperatures=frame.with_columns(pl.lit(0.5).alias(column)))
        assert conclude(flat).verdict == "open"


def test_incentives(study):
    frame = study.misreports
    assert verdicts(mosaic_conclusions.honesty(study)) == {"agrees"}
    gains = frame.with_columns(gain=pl.col("gain") + 1e-3 * pl.col("stake"))
    assert verdicts(mosaic_conclusions.honesty(replace(study, misreports=gains))) == {"differs"}
    idle = replace(study, misreports=frame.with_columns(gain=0.0))
    assert verdicts(mosaic_conclusions.honesty(idle)) == {"open"}  # no misreport matters


def test_participation(study):
    conclude = mosaic_conclusions.participation
    assert conclude(study).verdict == "agrees"
    loses = replace(study, offsets=mirrored(study.offsets, "utility"))
    assert conclude(loses).verdict == "differs"


def test_few_requests_leave_everything_open():
    found = mosaic_conclusions.conclusions(small_study(requests=FEWEST - 1))
    assert verdicts(found[:-1]) == {"open"}
    assert found[-1].verdict == "figures only"


def test_intervals_are_over_requests_not_ads(study):
    """Repeating every ad of every request changes no interval."""
    twice = replace(study, misreports=pl.concat([study.misreports] * 2))
    once = [each.found.split("Half")[1] for each in mosaic_conclusions.honesty(study)]
    again = [each.found.split("Half")[1] for each in mosaic_conclusions.honesty(twice)]
    assert once == again


def test_page(study, tmp_path):
    named = study.scenario.with_(catalog={"source": "<script>"})
    folder = tmp_path / "out"
    path = mosaic_page.write(replace(study, scenario=named), folder)
    page = path.read_text("utf-8")
    assert page.count("data:image/png") == 5
    assert "<script>" not in page
    assert "figures only" in page
    assert all(each["verdict"] for each in json.loads((folder / "summary.json").read_text()))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["seed"], manifest["seconds"]) == (0, study.seconds)
    assert {each.stem for each in folder.glob("*.parquet")} == set(mosaic_page.TABLES)
    assert {each.stem for each in (folder / "figures").iterdir()} == set(mosaic_figures.CAPTIONS)
    assert mosaic_page.write(replace(study, scenario=named), folder) == path  # replaced
