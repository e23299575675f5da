"""Scenarios: what is read, what is refused, and in how many words."""

import pytest
import yaml

from market import Scenario
from market.scenario import BUNDLED
from mechanisms import BadInput

SMALL = {
    "rounds": 5,
    "replies": {"source": "synthetic", "per_request": 6},
    "population": [
        {"objective": "utility", "count": 2, "value": [1, 2], "learner": "hedge"},
        {"objective": "value", "count": 2, "value": 3, "target_roi": 1.25, "learner": "pacing"},
    ],
    "requests": {"queries": 4, "ads": 3},
}


def written(tmp_path, text: str):
    path = tmp_path / "market.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", sorted(path.stem for path in BUNDLED.glob("*.yaml")))
def test_bundled_scenarios_load_by_name_and_by_path(name):
    scenario = Scenario.from_yaml(name)
    assert scenario == Scenario.from_yaml(BUNDLED / f"{name}.yaml")
    assert scenario.name == name
    assert len(scenario.advertisers) == scenario.num_advertisers


def test_resolved_scenario_reads_back_as_itself(tmp_path):
    scenario = Scenario.from_dict(SMALL)
    assert Scenario.from_yaml(written(tmp_path, scenario.to_yaml())) == scenario


def test_values_are_drawn_from_the_environment_seed_alone():
    one, two = Scenario.from_dict(SMALL), Scenario.from_dict(SMALL)
    assert one.advertisers == two.advertisers
    other = Scenario.from_dict({**SMALL, "environment_seed": 1})
    assert other.advertisers != one.advertisers
    assert {spec.target_roi for spec in one.advertisers} == {1.0, 1.25}
    assert all(1 <= s.value <= 2 for s in one.advertisers if s.objective == "utility")


def changed(**changes):
    return yaml.safe_dump({**SMALL, **changes})


BAD = {
    "unknown key": (changed(colour="red"), "colour: unknown key"),
    "unknown nested key": (changed(requests={"querys": 3}), "requests.querys: unknown key"),
    "negative value": (
        changed(population=[{"objective": "utility", "count": 1, "value": -1}]),
        "greater than 0",
    ),
    "NaN value": (
        changed(population=[{"objective": "utility", "count": 1, "value": float("nan")}]),
        "population.0.value",
    ),
    "no population": (changed(population=[]), "population"),
    "unknown mechanism": (changed(mechanism="lottery"), "lottery"),
    "unknown mechanism parameter": (
        changed(mechanism={"name": "mosaic", "parameters": {"temperature": 1}}),
        "temperature",
    ),
    "NaN tau": (
        changed(mechanism={"name": "mosaic", "parameters": {"tau": float("nan")}}),
        "tau",
    ),
    "unknown learner": (
        changed(population=[{"objective": "utility", "count": 4, "learner": "oracle"}]),
        "oracle",
    ),
    "words for a learner's number": (
        changed(
            population=[
                {
                    "objective": "utility",
                    "count": 4,
                    "learner": {"name": "hedge", "parameters": {"grid_size": "abc"}},
                }
            ]
        ),
        "learner hedge: bad parameters {'grid_size': 'abc'}",
    ),
    "infinity for a learner's number": (
        changed(
            population=[
                {
                    "objective": "utility",
                    "count": 4,
                    "learner": {"name": "hedge", "parameters": {"grid_size": float("inf")}},
                }
            ]
        ),
        "learner hedge: bad parameters {'grid_size': inf}",
    ),
    "a learner's number out of range": (
        changed(
            population=[
                {
                    "objective": "value",
                    "count": 4,
                    "learner": {"name": "pacing", "parameters": {"step": -1}},
                }
            ]
        ),
        "pacing: step must be positive",
    ),
    "target ROI of utility maximizers": (
        changed(population=[{"objective": "utility", "count": 4, "target_roi": 1.5}]),
        "target_roi is given for utility maximizers",
    ),
    "unknown objective": (
        changed(population=[{"objective": "fame", "count": 4}]),
        "population.0.objective",
    ),
    "zero replies": (changed(replies={"per_request": 0}), "replies.per_request"),
    "zero ads": (changed(requests={"ads": 0}), "requests.ads"),
    "more ads than advertisers": (changed(requests={"ads": 9}), "requests.ads is 9"),
    "range upside down": (
        changed(population=[{"objective": "utility", "count": 4, "value": [2, 1]}]),
        "lower end first",
    ),
    "same mechanism twice": (
        changed(mechanism={"name": "gsp"}, beside=["gsp"]),
        "listed twice",
    ),
    "a seed of two words": (changed(environment_seed=2**32), "environment_seed"),
    "no server for its engine": (
        changed(replies={"engine": "openai"}),
        "give its address in replies.server",
    ),
    "a server for another engine": (
        changed(replies={"server": "http://127.0.0.1:8000"}),
        "replies.server is for engine openai",
    ),
    "unknown way of writing": (changed(replies={"generation": "magic"}), "replies.generation"),
    "a token auction without an LLM": (
        changed(mechanism="token", replies={"source": "synthetic"}),
        "token needs replies by an LLM",
    ),
    "a token auction on a server": (
        changed(mechanism="token", replies={"engine": "vllm"}),
        "set replies.engine to transformers",
    ),
    "a mechanism on another's replies": (
        changed(mechanism="vcg", replies={"generation": "auction"}),
        "vcg cannot trade on replies written by auction",
    ),
    "log-ratios that nobody scored": (
        changed(mechanism={"name": "mosaic", "parameters": {"tau": 1, "reward": "log-ratio"}}),
        "replies.log_ratios: true",
    ),
    "a list, not keys": ("- 1\n- 2\n", "holds a list"),
    "broken YAML": ("rounds: [1,\n", "not valid YAML"),
    "words for a number": (changed(rounds="many"), "rounds"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_scenarios_are_refused_in_one_line_that_names_file_and_key(tmp_path, case):
    text, expected = BAD[case]
    path = written(tmp_path, text)
    with pytest.raises(BadInput) as caught:
        Scenario.from_yaml(path)
    message = str(caught.value)
    assert expected in message
    assert str(path) in message
    assert "\n" not in message


def test_bad_values_in_a_dictionary_are_refused_in_one_line():
    group = {**SMALL["population"][0], "learner": {"name": "hedge", "parameters": {}}}
    for wrong in ("abc", "1\n2", None, [3], {}, float("nan"), float("inf"), 1, -4, True):
        group["learner"]["parameters"] = {"grid_size": wrong}
        with pytest.raises(BadInput, match=r"^scenario: .*hedge.*grid_size") as caught:
            Scenario.from_dict({**SMALL, "population": [group, SMALL["population"][1]]})
        assert "\n" not in str(caught.value)


def test_missing_scenario_names_the_bundled_ones():
    with pytest.raises(BadInput, match=r"no such scenario file.*default"):
        Scenario.from_yaml("no-such-market")
