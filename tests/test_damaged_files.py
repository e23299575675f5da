"""Damaged catalogs, pools, journals and models: refused in one line, or of no consequence."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechanisms.recording import load_pool
from tests.command_line import admarket, check_refusal, small_world

ROOT = Path(__file__).parents[1]
GENERATED = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
MANY = settings(GENERATED, max_examples=150, derandomize=False)


@pytest.fixture(scope="module", autouse=True)
def world(engine, tmp_path_factory):
    with small_world(engine, tmp_path_factory.mktemp("cache")):
        yield


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """A file cut off, or with bytes flipped, put in, taken out, or all replaced."""
    at = draw(st.integers(0, len(whole)))
    junk = draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(JUNK)))
    match draw(st.sampled_from(["cut", "flip", "insert", "drop", "replace"])):
        case "cut":
            return whole[:at]
        case "flip" if at < len(whole):
            return whole[:at] + bytes([whole[at] ^ draw(st.integers(1, 255))]) + whole[at + 1 :]
        case "insert":
            return whole[:at] + junk + whole[at:]
        case "drop":
            return whole[:at] + whole[at + draw(st.integers(1, 99)) :]
    return junk * draw(st.integers(0, 40))


JUNK = [b"\n", b"\t", b'"', b"}\n{", b"null", b"1e999", b"[" * 3000, b"\x00", b"\xff\xfe", b"{}\n"]


# Catalogs

CATALOG = {
    "ads.jsonl": [
        {"id": f"Ad-{k}", "title": f"{name} Bed", "text": "Soft.", "category": "sleep"}
        for k, name in enumerate(("Oak", "Pine", "Elm"))
    ],
    "queries.jsonl": [{"id": f"Q-{k}", "text": f"How do I sleep in {k} beds?"} for k in (2, 3)],
    "users.jsonl": [{"id": f"U-{k}", "description": f"A sleeper of {k}."} for k in (2, 3)],
}
GEM_BENCH = {
    "products.tsv": "product_id\ttitle\tdescription\tbrand\tsite\tcategory\n"
    '7\t"Oak Bed, 55"" H"\t"A <b>solid</b> bed."\tOak\toak.com\t2.0\n'
    "8\tPine Bed\tLight.\tOak\toak.com\t2.0\n9\tTea Pot\t\tPot\t\t3.0\n",
    "queries.tsv": "query_id\tquery_text\n5\tnani%27s bed\n6\tpot\n",
    "relevance.tsv": "query_id\tproduct_id\trelevant\n5\t7\t1\n5\t8\t0\n",
    "prompts.jsonl": '{"prompt": "Plan a trip.", "category": "Travel"}\n',
}
FOLDERS = {
    "jsonl": {name: "".join(json.dumps(r) + "\n" for r in rows) for name, rows in CATALOG.items()},
    "gem-bench": GEM_BENCH,
}
RECORDED = {
    "requests": {"queries": 2, "ads": 2},
    "replies": {"per_request": 2, "max_tokens": 16},
    "population": [{"objective": "utility", "count": 3}],
}


@pytest.fixture(scope="module")
def scenario(tmp_path_factory):
    file = tmp_path_factory.mktemp("scenario") / "recorded.yaml"
    file.write_text(yaml.safe_dump(RECORDED))
    return file


@pytest.fixture(scope="module", params=FOLDERS)
def catalog(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalog")
    for name, text in FOLDERS[request.param].items():
        (folder / name).write_text(text)
    return folder


def refuses_or_records(scenario, catalog):
    said = admarket("record", scenario, "--catalog", catalog)
    if said.code:
        check_refusal(said)
    else:
        assert re.fullmatch("content_hash [0-9a-f]{64}", said.out.splitlines()[-1])
    return said


@contextmanager
def changed(file: Path, text: bytes | None):
    """The file with other content, or missing, for a while."""
    whole = file.read_bytes()
    if text is None:
        file.unlink()
    else:
        file.write_bytes(text)
    try:
        yield
    finally:
        file.write_bytes(whole)


def damage_a_catalog(data, scenario, catalog):
    file = data.draw(st.sampled_from(sorted(catalog.iterdir())))
    with changed(file, data.draw(damaged(file.read_bytes()))):
        refuses_or_records(scenario, catalog)


@GENERATED
@given(data=st.data())
def test_damaged_catalogs(scenario, catalog, data):
    damage_a_catalog(data, scenario, catalog)


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_more_damaged_catalogs(scenario, catalog, data):
    damage_a_catalog(data, scenario, catalog)


def test_whole_catalogs_are_recorded_and_incomplete_ones_refused(scenario, catalog):
    assert refuses_or_records(scenario, catalog).code == 0
    for file in sorted(catalog.iterdir()):
        with changed(file, None):
            said = refuses_or_records(scenario, catalog)
        assert said.code == (0 if file.name == "users.jsonl" else 2)
    for source in ("no/such", "/dev/null", "~nobody", "x" * 5000, "a\x00b"):
        check_refusal(admarket("record", scenario, "--catalog", source))


# Pools


@pytest.fixture(scope="module")
def pool(scenario):
    """The folder of a recorded pool, and its content hash."""
    said = admarket("record", scenario)
    assert said.code == 0, said
    wanted = said.out.splitlines()[-1].split()[-1]
    pools = [each for each in Path(os.environ["ADMARKET_CACHE"], "pools").iterdir()]
    [folder] = [each for each in pools if load_pool(each).content_hash == wanted]
    return folder, wanted


def damage_a_pool(data, scenario, pool):
    folder, wanted = pool
    file = data.draw(st.sampled_from(sorted(folder.iterdir())))
    text = data.draw(damaged(file.read_bytes()))
    with changed(file, text):
        said = admarket("record", scenario)
        assert file.read_bytes() == text  # left for a person to look at
    if said.code:
        check_refusal(said)
        assert "record" in said.last and str(folder) in said.last
    else:  # white space in the manifest, say
        assert said.out.splitlines()[-1] == f"content_hash {wanted}"


@GENERATED
@given(data=st.data())
def test_damaged_pools(scenario, pool, data):
    damage_a_pool(data, scenario, pool)


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_more_damaged_pools(scenario, pool, data):
    damage_a_pool(data, scenario, pool)


def test_a_pool_of_another_version_is_refused_and_says_so(scenario, pool):
    manifest = pool[0] / "manifest.json"
    newer = json.loads(manifest.read_text()) | {"schema": 2}
    del newer["sha256"]
    with changed(manifest, json.dumps(newer).encode()):
        said = admarket("record", scenario)
    check_refusal(said)
    assert "has schema 2, this version reads 1; record it again" in said.last


@pytest.mark.parametrize("text", [b"", b"admarket jour", b"notes of mine\n", b"\x00" * 99])
def test_a_foreign_or_damaged_journal(scenario, pool, text, tmp_path):
    """What is ours is gone on from, what is not is left alone."""
    folder, wanted = pool
    moved = shutil.move(folder, tmp_path / "pool")
    journal = folder.with_name(f".{folder.name}.journal")
    journal.write_bytes(text)
    try:
        said = admarket("record", scenario)
        if b"admarket journal 1\n".startswith(text):
            assert said.out.splitlines()[-1] == f"content_hash {wanted}"
            assert not journal.exists()
        else:
            check_refusal(said)
            assert "is no journal of this version" in said.last
            assert journal.read_bytes() == text and not folder.exists()
    finally:
        journal.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(moved, folder)


# Models


@pytest.mark.parametrize("damage", ["config.json", "tokenizer.json", "model.safetensors", "none"])
def test_a_damaged_model_is_refused(tmp_path, tiny_llm, damage):
    model, file = tmp_path / "llm", tmp_path / "own.yaml"
    shutil.copytree(tiny_llm, model)
    replies = {**RECORDED["replies"], "model": str(model)}
    file.write_text(yaml.safe_dump({**RECORDED, "replies": replies}))
    if damage == "none":
        assert admarket("record", file).code == 0
        return
    for text in (b"", b"{", b"\xff" * 200):
        (model / damage).write_bytes(text)
        said = admarket("record", file)
        check_refusal(said)
        assert f"model {model} cannot be loaded" in said.last


@pytest.mark.parametrize("name", ["nobody/nothing", "a/b/c", "~nobody", "x" * 5000, "", "a\x00b/c"])
def test_a_model_that_is_not_there_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    file = tmp_path / "other.yaml"
    replies = {**RECORDED["replies"], "model": name}
    file.write_text(yaml.safe_dump({**RECORDED, "replies": replies}))
    check_refusal(admarket("record", file))


# Pickles


class Planted:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_a_planted_pickle_is_not_read(scenario, pool, tmp_path):
    """In the place of every file that is read of a pool and of a results folder."""
    mark = tmp_path / "executed"
    planted = pickle.dumps(Planted(mark))
    pickle.loads(planted)
    assert mark.exists()  # it would work
    mark.unlink()
    for file in sorted(pool[0].iterdir()):
        with changed(file, planted):
            check_refusal(admarket("record", scenario))
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(SYNTHETIC))
    out = tmp_path / "out"
    assert admarket("run", small, "--out", out).code == 0
    read = [each for each in sorted(out.iterdir()) if each.suffix in (".parquet", ".json", ".yaml")]
    assert len(read) >= 6
    for file in read:
        with changed(file, planted):
            said = admarket("report", out)
        if said.code:  # not everything is read again
            check_refusal(said)
    for file in (out / "scenario.yaml", out / "manifest.json"):
        with changed(file, planted):
            check_refusal(admarket("run", small, "--out", out))
    assert not mark.exists()


SYNTHETIC = {
    "rounds": 2,
    "requests_per_round": 2,
    "replications": 2,
    "requests": {"queries": 3, "ads": 2},
    "replies": {"source": "synthetic", "per_request": 3},
    "population": [{"objective": "utility", "count": 2}],
}

UNSAFE = re.compile(
    r"\b(pickle|cPickle|dill|joblib|shelve|marshal|cloudpickle)\b|torch\.load\(|yaml\.unsafe"
    r"|allow_pickle\s*=\s*True|yaml\.(full_)?load\((?!_text\(path\), _Loader\))"
)


def test_no_module_reads_pickles():
    """Workers are sent pickles by their own parent process; nothing else is ever unpickled."""
    for package in ("agents", "experiments", "market", "mechanisms"):
        for file in (ROOT / package).rglob("*.py"):
            code = re.sub(r'""".*?"""|#.*', "", file.read_text(), flags=re.DOTALL)
            assert not UNSAFE.search(code), file
