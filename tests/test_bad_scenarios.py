"""Generated bad scenarios: each is refused in a line, or runs; none hangs, or fills the machine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market import Scenario
from mechanisms import BadInput
from tests.command_line import admarket, check_refusal, small_world

SMALL = {
    "rounds": 4,
    "requests_per_round": 3,
    "replications": 2,
    "requests": {"queries": 4, "ads": 2},
    "replies": {"source": "synthetic", "per_request": 4, "context_probe": 0, "max_tokens": 16},
    "mechanism": {"name": "mosaic", "parameters": {"tau": 0.1}},
    "beside": [{"name": "gsp", "parameters": {"slots": 1, "reserve": 0.1}}, "segment"],
    "population": [
        {"objective": "utility", "count": 2, "value": [1.0, 2.0], "learner": "hedge"},
        {
            "objective": "value",
            "count": 2,
            "target_roi": [1.0, 1.5],
            "budget": 9.0,
            "learner": {"name": "exp3", "parameters": {"grid_size": 5}},
        },
    ],
}
WHOLE = yaml.safe_load(Scenario.from_dict({"name": "small", **SMALL, "training": {}}).to_yaml())
"""With every default written out: any key may go wrong."""

HUGE = 10**12
WRONG = st.one_of(
    st.sampled_from([None, True, False, "", " ", "many", "1e400", "\n", "ü\u2028", "\x00", "~x"]),
    st.sampled_from([0, -1, 2**31, HUGE, 2**63, -(2**70), 10**400, 1e308, 5e-324, -0.0, 1e-9]),
    st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    st.sampled_from([[], {}, [[]], [None], {"a": 1}, {1: 2}, [1, 2, 3], [2, 1], [1.0, "x"]]),
    st.sampled_from(["/", "..", "no/such", "a" * 5000, "synthetic", "recorded", "context"]),
    st.integers(-3, 9),
    st.floats(-2, 20),
    st.text(max_size=8),
)


def paths(given: Any, here: tuple = ()) -> list[tuple]:
    """Where there is anything in a document."""
    parts = given.items() if isinstance(given, dict) else enumerate(given)
    found = []
    for key, part in parts:
        found.append((*here, key))
        if isinstance(part, dict | list):
            found += paths(part, (*here, key))
    return found


@st.composite
def mutated(draw) -> bytes:
    """A valid document with one to three things wrong."""
    given = yaml.safe_load(yaml.safe_dump(draw(st.sampled_from([SMALL, SMALL, WHOLE]))))
    for _ in range(draw(st.integers(1, 3))):
        *inner, last = draw(st.sampled_from(paths(given)))
        holder = given
        for key in inner:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "replace", "replace", "drop", "add", "deepen"])):
            case "replace":
                holder[last] = draw(WRONG)
            case "drop":
                del holder[last]
            case "add" if isinstance(holder, dict):
                holder[draw(st.sampled_from(["colour", "rounds", "tau", "", 7]))] = draw(WRONG)
            case "deepen":
                holder[last] = [holder[last]]
        if not given:
            break
    return yaml.safe_dump(given, allow_unicode=True).encode("utf-8", "surrogatepass")


@st.composite
def corrupted(draw) -> bytes:
    """The bytes of a valid file, damaged."""
    text = bytearray(yaml.safe_dump(SMALL).encode())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        junk = draw(
            st.one_of(
                st.binary(min_size=1, max_size=6),
                st.sampled_from([b"\t", b"\x00", b"&a ", b"*a ", b"!!python/object:os.system x "]),
                st.sampled_from(
                    [b"{", b"[", b"'", b'"', b": ", b"\n- ", b"? ", b"<<: ", b"%", b"#"]
                ),
                st.sampled_from(
                    [b"2026-13-45", b"!!float x", b"!!bool x", b"!!timestamp x", b"0x"]
                ),
            )
        )
        text[at : at + draw(st.integers(0, 9))] = junk
    return bytes(text[: draw(st.integers(0, 2 * len(text)))])


ODD = (
    b"",
    b"\xff\xfe\x00",
    bytes(range(256)),
    b"\x7fELF" + bytes(200),
    yaml.safe_dump(SMALL).encode("utf-16"),
    yaml.safe_dump(SMALL).encode("utf-32"),
    "name: café\n".encode("latin-1"),
    b"\xef\xbb\xbf" + yaml.safe_dump(SMALL).encode(),
    b"[" * 3000,
    b"rounds: " + b"[" * 500 + b"]" * 500,
    b"- " * 3000,
    b"a: " * 3000,
    b"rounds: " + b"9" * 6000,
    b"rounds: 0x" + b"f" * 6000,
    b"rounds: 1e999999",
    b"rounds: &a [*a]",
    b"rounds: &a {*a : *a}",
    b"&a beside: [&b {name: *b}]",
    b"a: &a [x, x]\n"
    + b"".join(b"%c: &%c [*%c, *%c, *%c]\n" % (*[k + 1] * 2, *[k] * 3) for k in range(97, 121)),
    b"a0: &a0 {x: 1}\n"
    + b"".join(
        b"a%d: &a%d {<<: [%s]}\n" % (k, k, b",".join([b"*a%d" % (k - 1)] * 9)) for k in range(1, 9)
    ),
    b"? !!merge [x]\n: {rounds: 1}",
    b"mechanism: &m {name: mosaic, parameters: {tau: *m}}",
    b"name: 2026-99-99",
    b"rounds: 5\nrounds: 6\n",
    b"rounds: 5\n" * 3000,
    b"---\nrounds: 1\n---\nrounds: 2\n",
    b"!!python/object/apply:os.system ['touch pwned']",
    b"x" * 2**19,
)
"""Odd files, each by itself."""


@pytest.fixture(scope="module", autouse=True)
def world(engine, tmp_path_factory):
    with small_world(engine, tmp_path_factory.mktemp("cache")):
        yield


def examine(text: bytes, whole: bool) -> str:
    """What comes of a scenario file with this content: "refused", or "done".

    `whole`: run what is valid to its report; else only its candidate replies are made.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder, "given.yaml"), Path(folder, "out")
        file.write_bytes(text)
        try:
            Scenario.from_yaml(file)
            valid = True
        except BadInput:
            valid = False
        said = admarket(*(("run", file, "--out", out) if whole or not valid else ("record", file)))
        if said.code:
            check_refusal(said)
            assert valid or said.last.startswith(
                (f"admarket: {file}: ", f"admarket: {file}, line ")
            )
            assert [each.name for each in Path(folder).iterdir()] == ["given.yaml"]
            return "refused"
        assert valid and (not whole or (out / "report.html").exists()), said
        return "done"


GENERATED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@GENERATED
@given(mutated())
def test_mutated_scenarios_are_refused_in_a_line_or_work(text):
    examine(text, whole=False)


@GENERATED
@given(corrupted())
def test_damaged_scenario_files_are_refused_in_a_line_or_work(text):
    examine(text, whole=False)


@pytest.mark.parametrize("text", ODD, ids=lambda text: repr(text[:24]))
def test_odd_files_are_refused_in_a_line_or_work(text):
    examine(text, whole=False)


@pytest.mark.slow
@settings(GENERATED, max_examples=100, derandomize=False)
@given(st.one_of(mutated(), corrupted()))
def test_more_generated_scenarios_each_run_to_its_report(text):
    examine(text, whole=True)


SIZES = {
    "rounds": {"rounds": HUGE},
    "requests_per_round": {"requests_per_round": HUGE},
    "replications": {"replications": HUGE},
    "replications that rounds would fit": {"replications": 10**7, "rounds": 3, "beside": []},
    "requests whose replies are not kept": {"requests_per_round": 5 * 10**8, "beside": []},
    "queries": {"requests": {"queries": HUGE, "ads": 2}},
    "ads": {"requests": {"queries": 4, "ads": HUGE}},
    "per_request": {"replies": {"source": "synthetic", "per_request": HUGE}},
    "per_request of an LLM": {"replies": {"per_request": HUGE}},
    "count": {"population": [{"objective": "utility", "count": HUGE}]},
    "a learner's grid": {
        "population": [
            {
                "objective": "utility",
                "count": 4,
                "learner": {"name": "hedge", "parameters": {"grid_size": HUGE}},
            }
        ]
    },
    "all a little": {
        "rounds": 10**6,
        "replications": 10**4,
        "requests_per_round": 10**4,
    },
}


@pytest.mark.parametrize("size", SIZES)
def test_what_no_memory_holds_is_refused_before_it_is_asked_for(tmp_path, size):
    file = tmp_path / "huge.yaml"
    file.write_text(yaml.safe_dump({**SMALL, **SIZES[size]}))
    check_refusal(admarket("run", file, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", ["/dev/zero", "/", "a" * 5000, "no\nsuch", "~nobody/x.yaml", ""])
def test_paths_that_are_no_scenario(path):
    check_refusal(admarket("run", path))
