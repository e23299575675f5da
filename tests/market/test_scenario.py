"""Scenarios: what is read, what is refused, and in how many words."""

import copy

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


def someone(**changes):
    """A population whose second group is changed."""
    group = {"objective": "value", "count": 2, **changes}
    return {"population": [SMALL["population"][0], group]}


def learner(name, /, **parameters):
    return someone(learner={"name": name, "parameters": parameters})


def mechanism(name, /, **parameters):
    return {"mechanism": {"name": name, "parameters": parameters}}


BAD = {
    "unknown key": ({"colour": "red"}, "colour: unknown key; there are name, rounds, "),
    "unknown nested key": (
        {"requests": {"querys": 3}},
        "requests.querys: unknown key; did you mean 'queries'?",
    ),
    "a parameter beside the name": (
        {"mechanism": {"name": "mosaic", "tau": 0.1}},
        "mechanism.tau: unknown key; parameters go under parameters: {tau: ...}",
    ),
    "a key that is no word": ({7: 1}, "7: unknown key"),
    "negative value": (someone(value=-1), "population.1.value: give a number >= 1e-12; got -1"),
    "negative end of a range": (
        someone(value=[1, -1]),
        "population.1.value.1: give a number >= 1e",
    ),
    "words for a range": (someone(value="high"), "population.1.value: give a number, or a range"),
    "three ends": (someone(value=[1, 2, 3]), "population.1.value: give a number, or a range"),
    "range upside down": (someone(target_roi=[2, 1]), "population.1.target_roi: has range [2.0, 1"),
    "NaN value": (someone(value=float("nan")), "population.1.value: give a finite number;"),
    "no population": ({"population": []}, "population: give at least one; got []"),
    "a section left blank": ({"requests": None}, "requests: give keys and values; got nothing"),
    "unknown mechanism": (mechanism("mozaic"), "mechanism: no mechanism 'mozaic'; did you mean 'm"),
    "unknown mechanism in short": (
        {"mechanism": "lottery"},
        "mechanism: no mechanism 'lottery'; t",
    ),
    "unknown mechanism beside": ({"beside": ["vcg", "gps"]}, "beside.1: no mechanism 'gps'; did y"),
    "unknown mechanism parameter": (
        mechanism("mosaic", temperature=1),
        "mechanism: mosaic has no parameter 'temperature'; it has tau, ",
    ),
    "a parameter left out": (
        {"mechanism": "mosaic"},
        "mechanism: mosaic needs parameter 'tau'; in a scenario, write {name: mosaic, parameters: ",
    ),
    "NaN tau": (mechanism("mosaic", tau=float("nan")), "mechanism: tau is nan; give a finite"),
    "same mechanism twice": (
        {**mechanism("gsp"), "beside": ["vcg", "gsp"]},
        "beside.1: gsp is listed twice",
    ),
    "unknown learner": (
        learner("hegde"),
        "population.1.learner: unknown learner 'hegde'; did you mean 'hedge'?",
    ),
    "unknown learner parameter": (
        learner("hedge", gridsize=3),
        "population.1.learner: learner hedge has no parameter 'gridsize'; did you mean 'grid_s",
    ),
    "a learner's number out of range": (
        learner("pacing", step=-1),
        "population.1.learner: step is -1; give a finite number > 0",
    ),
    "target ROI of utility maximizers": (
        someone(objective="utility", target_roi=1.5),
        "population.1.target_roi: is given to utility maximizers",
    ),
    "unknown objective": (someone(objective="fame"), "population.1.objective: give 'utility' or"),
    "no objective": ({"population": [{"count": 4}]}, "population.0.objective: is missing; add it"),
    "unknown users": ({"users": "robots"}, "users: give 'behavioural', 'user-llm' or 'cont"),
    "users who would have nothing to read": ({"users": "content"}, "users: content read replies"),
    "questions that nobody answers": (
        {"requests": {"source": "generated"}},
        "requests.source: is generated",
    ),
    "zero replies": ({"replies": {"per_request": 0}}, "replies.per_request: give a number > 0;"),
    "zero ads": ({"requests": {"ads": 0}}, "requests.ads: give a number > 0; got 0"),
    "more ads than advertisers": (
        {"requests": {"ads": 9}},
        "requests.ads: is 9 but the population",
    ),
    "a seed of two words": ({"environment_seed": 2**32}, "environment_seed: give a number < 42949"),
    "a name with a blank": ({"name": "my market"}, "name: use letters A-Z a-z, digits and _ . -;"),
    "no server for its engine": (
        {"replies": {"engine": "openai"}},
        "replies.server: is missing, and engine openai needs one; give its address",
    ),
    "a server for another engine": (
        {"replies": {"server": "http://127.0.0.1:8000"}},
        "replies.server: is for engine openai, not transformers",
    ),
    "unknown way of writing": (
        {"replies": {"generation": "magic"}},
        "replies.generation: give 'guided', ",
    ),
    "a token auction without an LLM": (
        {"mechanism": "token"},
        "replies.source: is synthetic, but token needs replies by an LLM",
    ),
    "a token auction on a server": (
        {"mechanism": "token", "replies": {"engine": "vllm"}},
        "replies.engine: is vllm, which gives no whole distributions to token; set it to transf",
    ),
    "a mechanism on another's replies": (
        {"mechanism": "vcg", "replies": {"generation": "auction"}},
        "replies.generation: is auction, and vcg cannot trade on such replies",
    ),
    "log-ratios that nobody scored": (
        {**mechanism("mosaic", tau=1, reward="log-ratio"), "replies": {}},
        "replies.log_ratios: is false, but mosaic has reward log-ratio; set it to true",
    ),
    "log-ratios of synthetic replies": (
        mechanism("mosaic", tau=1, reward="log-ratio"),
        "replies.source: is synthetic, but mosaic with reward log-ratio needs",
    ),
    "words for a number": ({"rounds": "many"}, "rounds: give a whole number; got 'many'"),
    "an unknown key of training": (
        {"training": {"irpo": {"epoch": 2}}},
        "training.irpo.epoch: unknown key; did you mean 'epochs'?",
    ),
    "a parameter called name": (
        mechanism("gsp", name="x"),
        "mechanism: gsp has no parameter 'name'; it has slots, reserve",
    ),
    "a learner's parameter beside its name": (
        someone(learner={"name": "pacing", "step": 1}),
        "population.1.learner.step: unknown key; parameters go under parameters: {step: ...}",
    ),
    "two mechanisms in one place": (
        {"mechanism": ["mosaic", "vcg"]},
        "mechanism: give one mechanism; further ones go under beside; got ['mosaic', 'vcg']",
    ),
    "a number for a mechanism": (
        {"mechanism": 3},
        "mechanism: give a name, or {name: ..., parameters: {...}}; got 3",
    ),
    "a learner in a list": (
        someone(learner=["hedge"]),
        "population.1.learner: give a name, or {name: ..., parameters: {...}}; got ['hedge']",
    ),
    "nothing beside": ({"beside": [None]}, "beside.0: give a name, or {name: ..., parameters: {.."),
    "one beside, in no list": ({"beside": "vcg"}, "beside: give a list, such as [...]; got 'vcg'"),
    "users in a list": ({"users": ["content"]}, "users: give a kind, or {kind: ..., mode: ...}; "),
    "a name with more words": (
        mechanism("vcg-auction"),
        "mechanism: no mechanism 'vcg-auction'; d",
    ),
    "one end": (someone(value=[1]), "population.1.value: give a number, or a range [low, high]; "),
    "no ends": (someone(value=[]), "population.1.value: give a number, or a range [low, high]; "),
    "more money than there is": (
        someone(value=1e300),
        "population.1.value: give a number <= 1e+12",
    ),
    "less than a budget": (someone(budget=1e-300), "population.1.budget: give a number >= 1e-12;"),
    "an ROI of nobody": (
        someone(target_roi=2e6),
        "population.1.target_roi: give a number <= 1000000",
    ),
    "a number in quotes": ({"rounds": "3"}, "rounds: '3' is text; write the number without quotes"),
    "an end in quotes": (someone(value=[1, "2"]), "population.1.value: '2' is text; write the"),
    "true for a number": ({"rounds": True}, "rounds: give a number, not true or false"),
    "yes for a value": (
        "population: [{objective: value, count: 1, value: yes}]",
        "population.0.val",
    ),
    "a number for a name": ("name: 1e3", "name: give text, in quotes if it looks like a number; "),
    "a date for a name": (
        "name: 2026-01-02",
        "line 1: '2026-01-02' is read as a date; put text in",
    ),
    "a second document": (
        "rounds: 1\n---\nrounds: 2\n",
        "holds a second document, after ---; give",
    ),
    "text, not keys": ("hello", "holds text; give keys and values"),
    "a list, not keys": ("- 1\n- 2\n", "holds a list; give keys and values"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_scenarios_are_refused_in_one_line_that_begins_with_file_and_key(tmp_path, case):
    given, expected = BAD[case]
    text = given if isinstance(given, str) else yaml.safe_dump({**SMALL, **given})
    path = written(tmp_path, text)
    with pytest.raises(BadInput) as caught:
        Scenario.from_yaml(path)
    assert str(caught.value).startswith(f"{path}: {expected}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
def test_a_file_in_another_encoding_is_told_from_broken_yaml(tmp_path, encoding):
    path = tmp_path / "market.yaml"
    path.write_bytes("name: café\n".encode(encoding))
    with pytest.raises(BadInput) as caught:
        Scenario.from_yaml(path)
    assert str(caught.value).startswith(
        f"{path}: holds what is no text; save it as plain text in U"
    )


def test_numbers_are_read_as_people_write_them(tmp_path):
    for text, number in {"1e-1": 0.1, "1E-1": 0.1, ".1": 0.1, "+1.e-1": 0.1, "1e-05": 1e-5}.items():
        given = f"rounds: 1e1\nmechanism: {{name: mosaic, parameters: {{tau: {text}}}}}\n"
        scenario = Scenario.from_yaml(written(tmp_path, given))
        assert scenario.mechanism.parameters == {"tau": number} and scenario.rounds == 10
    with pytest.raises(BadInput, match=r"reserve is -0\.2; give a finite number >= 0"):
        Scenario.from_yaml(written(tmp_path, "mechanism: {name: gsp, parameters: {reserve: -.2}}"))


@pytest.mark.parametrize("name", ["1e3", "-.2", "7", "2026-01-02", "no"])
def test_text_that_looks_like_something_else_stays_text(tmp_path, name):
    scenario = Scenario.from_dict({**SMALL, "name": name})
    assert Scenario.from_yaml(written(tmp_path, scenario.to_yaml())) == scenario


@pytest.mark.parametrize(
    ("given", "drawn"),
    [
        (2.34567891, 2.3457),
        (0.123456, 0.1235),
        (0.1, 0.1),
        (0.01234567, 0.01235),
        (1e-5, 1e-5),
        (1.23456e-9, 1.235e-9),
        (1e-12, 1e-12),
    ],
)
def test_small_values_and_targets_keep_four_figures(given, drawn):
    for key in ("value", "target_roi"):
        specs = Scenario.from_dict({**SMALL, **someone(**{key: given})}).advertisers
        assert drawn in {getattr(spec, key) for spec in specs}


def test_broken_yaml_is_refused_with_its_line(tmp_path):
    path = written(tmp_path, "rounds: [1,\n")
    with pytest.raises(BadInput, match=r"market\.yaml, line 2: not valid YAML"):
        Scenario.from_yaml(path)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "{}", "null"])
def test_a_file_that_says_nothing_is_refused(tmp_path, text):
    path = written(tmp_path, text)
    with pytest.raises(BadInput) as caught:
        Scenario.from_yaml(path)
    assert str(caught.value).startswith(f"{path}: is empty; ")
    assert "default" in str(caught.value)
    assert Scenario.from_dict({}) == Scenario()  # whoever writes Python knows what they leave out


def places(given, here=()):
    """Where there is anything in a document."""
    for key, part in given.items() if isinstance(given, dict) else enumerate(given):
        yield (*here, key)
        if isinstance(part, dict | list):
            yield from places(part, (*here, key))


RESOLVED = Scenario.from_dict({**SMALL, "training": {}}).model_dump(mode="json")
"""With every default written out."""


def changed_at(place, change):
    """That, after `change(holder, key)` of what holds the place."""
    given = holder = copy.deepcopy(RESOLVED)
    for key in place[:-1]:
        holder = holder[key]
    change(holder, place[-1])
    return given


def refusal(given) -> str:
    with pytest.raises(BadInput) as caught:
        Scenario.from_dict(given)
    start, rest = str(caught.value).split(": ", 1)
    assert start == "scenario" and "\n" not in rest
    return rest


WHOLE = list(places(RESOLVED))


KEYS = [each for each in WHOLE if isinstance(each[-1], str) and "parameters" not in each[:-1]]


@pytest.mark.parametrize("place", KEYS, ids=str)
def test_any_misspelt_key_is_named_and_the_right_one_suggested(place):
    def misspell(holder, key):
        holder[key[:-1]] = holder.pop(key)

    wrong = ".".join(map(str, place))[:-1]
    assert refusal(changed_at(place, misspell)).startswith(f"{wrong}: unknown key; did you mean '")


@pytest.mark.parametrize("place", WHOLE, ids=str)
@pytest.mark.parametrize("wrong", [[[]], {"a": 1}], ids=["list", "keys"])
def test_any_wrong_value_is_named_by_a_key_that_was_written(place, wrong):
    def spoil(holder, key):
        holder[key] = wrong

    key = refusal(changed_at(place, spoil)).split(": ", 1)[0]
    key = key.removesuffix(".a").removesuffix(".0")  # what is wrong may be within the wrong value
    assert f"{'.'.join(map(str, place))}.".startswith(f"{key}.")


def test_missing_scenario_names_the_bundled_ones():
    with pytest.raises(BadInput, match=r"^no-such-market: no such scenario file.*default"):
        Scenario.from_yaml("no-such-market")
    with pytest.raises(BadInput, match=r"^sythetic: no such .*; did you mean 'synthetic'\?$"):
        Scenario.from_yaml("sythetic")


def test_a_folder_of_its_name_hides_no_bundled_scenario(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "synthetic").mkdir()
    assert Scenario.from_yaml("synthetic").name == "synthetic"
    with pytest.raises(BadInput, match="is a folder; give a scenario file"):
        Scenario.from_yaml(tmp_path / "synthetic")
