"""The report: self-contained, safe, complete, and the same again from the folder alone."""

import json
import re
import shutil
from functools import partial
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
import yaml

from experiments import plots
from experiments import run as running
from experiments.measures import MEASURES
from experiments.report import build, number, rebuild, render, replies_label
from experiments.report.wording import (
    listed,
    parameters,
    percent,
    pool_measures,
    told_difference,
)
from experiments.samples import load_samples
from mechanisms.errors import BadInput
from mechanisms.pool import ReplyPool
from tests.experiments import small_folder, small_run
from tests.experiments.small_run import HOSTILE
from tests.experiments.test_cli import SCENARIO, admarket
from tests.mechanisms.iamfm.guided import guided_pool

MARKED = {"name": f"of {HOSTILE}"}
CHANGED = "it was damaged or changed, repeat the run\n"


@pytest.fixture(scope="module", autouse=True)
def coarse():
    """Figures of few dots, which are written sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", partial(plots.save, dpi=40))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    written = small_folder.write(
        tmp_path_factory.mktemp("report") / "run", scenario=MARKED, manifest={"host": HOSTILE}
    )
    build(written)
    return written


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text("utf-8")


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without figures, where they are not what is tested."""
    monkeypatch.setattr(render, "_drawn", lambda _: {})


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_runs_nothing_and_loads_nothing(page):
    assert "<script" not in page.lower()
    assert not re.search(r"https?://|//\w", re.sub(r"base64,[^\"]*", "", page))
    tags = Tags(page)
    assert not tags.open
    assert not {"script", "link", "iframe", "object", "a", "b"} & set(tags.seen)
    for name, value in tags.attributes:
        assert not name.startswith("on")
        assert name != "src" or value.startswith("data:image/png;base64,")
    assert "default-src 'none'" in page


def test_hostile_text_is_escaped_wherever_it_comes_from(page):
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 8
    assert "&lt;b&gt;bold" in page
    assert "<h1>Market of &lt;script" in page


def test_page_tells_everything_in_order(page):
    heads = re.findall(r"<h2>([\w ]+?)\s*<", page)
    assert heads == [
        "Summary", "Figures", "Mechanisms side by side", "Advertisers", "Sample replies", "Method",
        "Provenance",
    ]  # fmt: skip
    label = "replies written by smollm2-135m, a 135M-parameter model"
    assert page.count(label) >= 5
    assert page.count("data:image/png") == 3 and plots.CAPTIONS["market"] in page
    assert "Effective sample size" in page and small_run.pool().content_hash in page
    assert "versions.numpy" in page and "requests_per_round: 4" in page
    assert re.search(r"<mark><bdi>.+?</bdi> <span class=\"price\">Ad-\d · pays ", page)
    alternatives = [value for name, value in Tags(page).attributes if name == "alt"]
    assert len(alternatives) == 3 and all("mosaic" in each for each in alternatives)


def test_numbers_are_those_of_the_summary(page):
    part = small_run.result().summary["mosaic"]["revenue"]
    assert f"{number(part['mean'])}<small>[{number(part['low'])},\u00a0" in page
    mean = small_run.result().summary["mosaic"]["welfare"]["mean"]
    assert re.search(f"welfare [^;]*{number(mean)} ", page)  # in a caption
    assert page.count(MEASURES["welfare"].meaning) == 3  # of the summary, a figure and a table


def test_the_page_is_made_again_of_its_folder_to_the_byte(folder, page, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "moved")
    (moved / "report.html").write_text("spoilt")
    shutil.rmtree(moved / "figures")
    said = []
    assert rebuild(moved, said.append) == moved / "report.html"
    for path in folder.rglob("*.*"):
        assert (moved / path.relative_to(folder)).read_bytes() == path.read_bytes(), path
    assert not said
    assert [each.name for each in tmp_path.iterdir()] == ["moved"]


def test_the_page_of_a_run_is_made_again_without_its_pool(monkeypatch, capsys, tmp_path):
    path, out = tmp_path / "small.yaml", tmp_path / "out"
    pool = guided_pool(np.random.default_rng(8), requests=6, replies=40, ads=3, advertisers=4)
    planned = {"name": "iamfm-elimination", "parameters": {"tokens": 5000, "period": 2, "cap": 40}}
    change = {"rounds": 6, "replies": {"source": "recorded"}, "mechanism": planned}
    path.write_text(yaml.safe_dump({**SCENARIO, **change, "beside": []}))
    monkeypatch.setattr(running, "pools_of", lambda _, arms, *__: [pool] * len(arms))
    assert admarket(monkeypatch, capsys, "run", path, "--out", out)[0] == 0
    before = {file: file.read_bytes() for file in out.rglob("*.*")}
    (out / "report.html").unlink()
    monkeypatch.setattr(running, "pools_of", None)
    code, printed, err = admarket(monkeypatch, capsys, "report", out)
    assert code == 0 and printed.strip() == str(out / "report.html") and not err
    assert {file: file.read_bytes() for file in out.rglob("*.*")} == before
    assert "Figure 4." in before[out / "report.html"].decode()  # of periods
    for file in out.glob("*.parquet"):  # a bit that fell over, wherever it is
        data = before[file]
        file.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
        code, _, err = admarket(monkeypatch, capsys, "report", out)
        assert code == 2 and err == f"admarket: {file}: not as the run wrote it; " + CHANGED
        file.write_bytes(data)


def test_a_folder_of_an_earlier_version_keeps_its_page(undrawn, tmp_path):
    lacks = ("gains.parquet", "samples.json", "best_responses.parquet")
    old = small_folder.write(tmp_path / "old", without=lacks)
    manifest = json.loads((old / "manifest.json").read_text())
    (old / "manifest.json").write_text(json.dumps({k: manifest[k] for k in ("seed", "pool")}))
    (old / "report.html").write_text("with sample replies")
    said = []
    for _ in range(2):
        page = rebuild(old, said.append).read_text("utf-8")
    assert "best responses, what could be gained by other bids, sample replies" in said[0]
    assert (old / "report-earlier.html").read_text() == "with sample replies"
    assert "Written by an earlier version; this folder lacks" in page
    assert "does not tell what could be gained" in page
    assert "Sample replies" not in page and "smollm2-135m" in page


def test_there_is_a_page_at_any_time_while_it_is_made_again(undrawn, monkeypatch, tmp_path):
    old = small_folder.write(tmp_path / "old", without=("gains.parquet",))
    (old / "report.html").write_text("with gains")
    move = render.os.replace

    def moving(source, target):
        if source.name == "report.html":
            raise OSError(28, "No space left on device")
        move(source, target)

    monkeypatch.setattr(render.os, "replace", moving)
    with pytest.raises(BadInput, match=r"cannot be written \(No space left"):
        rebuild(old)
    assert (old / "report.html").read_text() == "with gains"
    assert (old / "report-earlier.html").read_text() == "with gains"


def damaged(folder, name, how):
    path = folder / name
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "noise":
        path.write_bytes(bytes(np.random.default_rng(0).integers(256, size=2000, dtype=np.uint8)))
    elif how == "[]":
        path.write_text("[]")
    elif how == "strange":
        text = path.read_text("utf-8")
        path.write_text(re.sub('"ads_per_reply": [^,]*', '"ads_per_reply": "many"', text))
    elif how == "deep":
        path.write_text("[" * 100_000)
    elif how == "empty frame":
        pl.read_parquet(path).clear().write_parquet(path)
    elif how == "fewer rows":
        pl.read_parquet(path).head(7).write_parquet(path)
    elif how == "other mechanisms":
        frame = pl.read_parquet(path)
        frame.with_columns(mechanism=pl.lit("gsp")).write_parquet(path)
    elif how == "words for numbers":
        frame = pl.read_parquet(path)
        name = "bid" if "bid" in frame.columns else "revenue"
        frame.with_columns(pl.col(name).cast(pl.String)).write_parquet(path)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, "gone") for name in ("manifest.json", "scenario.yaml", "rounds.parquet")),
        *((name, "cut") for name in ("manifest.json", "rounds.parquet", "advertisers.parquet")),
        *((name, "cut") for name in ("samples.json", "best_responses.parquet", "gains.parquet")),
        *((name, "noise") for name in ("manifest.json", "scenario.yaml", "gains.parquet")),
        *((name, "[]") for name in ("manifest.json", "scenario.yaml", "samples.json")),
        *((name, "deep") for name in ("manifest.json", "scenario.yaml", "samples.json")),
        *((f"{name}.parquet", "fewer rows") for name in ("rounds", "advertisers")),
        *((f"{name}.parquet", "words for numbers") for name in ("rounds", "advertisers")),
        *((f"{name}.parquet", "other mechanisms") for name in ("advertisers", "best_responses")),
        ("gains.parquet", "empty frame"),
        ("manifest.json", "strange"),
    ],
)
def test_damaged_folders_are_refused_in_a_line_and_left_alone(
    monkeypatch, capsys, folder, tmp_path, name, how
):
    spoilt = shutil.copytree(folder, tmp_path / "spoilt")
    damaged(spoilt, name, how)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    code, printed, err = admarket(monkeypatch, capsys, "report", spoilt)
    assert code == 2 and not printed
    (line,) = err.strip().splitlines()
    assert name in line or how == "fewer rows"
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_other_folders_are_refused_with_what_they_are(monkeypatch, capsys, folder, tmp_path):
    audited = shutil.copytree(folder, tmp_path / "audit")
    manifest = json.loads((audited / "manifest.json").read_text())
    (audited / "manifest.json").write_text(json.dumps(manifest | {"kind": "audit"}))
    (tmp_path / "empty").mkdir()
    for given, expected in (
        (audited, "another command ('audit')"),
        (tmp_path / "empty", "no finished run (no manifest.json)"),
        (tmp_path / "none", "no such folder"),
        (folder / "report.html", "no such folder"),
    ):
        code, _, err = admarket(monkeypatch, capsys, "report", given)
        assert code == 2 and expected in err and len(err.strip().splitlines()) == 1
    assert not any((tmp_path / "empty").iterdir())


def test_a_folder_that_cannot_be_written_is_left_alone(undrawn, monkeypatch, folder, tmp_path):
    kept = shutil.copytree(folder, tmp_path / "kept")
    before = (kept / "report.html").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(render, "_write", full)
    with pytest.raises(BadInput, match=r"cannot be written \(No space left"):
        rebuild(kept)
    assert (kept / "report.html").read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]


def test_a_page_with_less_to_tell(undrawn, tmp_path):
    pool = ReplyPool.synthetic(8, 6, 3, np.random.default_rng(0), advertisers=small_run.N)
    small_folder.write(tmp_path, run=small_run.result(1), pool=pool)
    page = build(tmp_path).read_text("utf-8")
    assert "replies: synthetic, no LLM" in page
    assert "Sample replies" not in page and "<h2>Figures" not in page
    assert "no interval" in page


def test_the_shortest_of_runs_has_a_page(tmp_path):
    small_folder.write(tmp_path, run=small_run.result(1, 1))
    page = build(tmp_path).read_text("utf-8")
    assert "1 rounds" not in page and "from fewer than 4 rounds" in page


def test_samples_come_back_as_they_were(folder):
    samples = load_samples(folder / "samples.json")
    assert list(samples) == list(small_run.MECHANISMS)
    assert HOSTILE in {ad.title for found in samples.values() for each in found for ad in each.ads}
    assert all(part.text for each in samples["mosaic"] for part in each.segments)


def test_satisfaction_without_ads_is_by_reference_weight():
    ctr = np.zeros((2, 3, 1))
    ctr[0, 0] = ctr[1] = 0.1  # the second request has no reply without an ad
    quality = np.array([[0.1, 0.5, 0.9], [0.2, 0.2, 0.2]])
    weights = np.array([[5.0, 3.0, 1.0], [1.0, 1.0, 1.0]])
    pool = ReplyPool.from_arrays(ctr, log_ref=np.log(weights), quality=quality)
    found = pool_measures(pool)
    assert found["satisfaction_without_ads"] == pytest.approx((3 * 0.5 + 0.9) / 4)
    assert found["with_an_ad"] == pytest.approx(4 / 6)
    shown = ReplyPool.from_arrays(np.full((1, 2, 1), 0.5))
    assert pool_measures(shown)["satisfaction_without_ads"] is None


@pytest.mark.parametrize(
    ("manifest", "label"),
    [
        ({"source": "synthetic"}, "replies: synthetic, no LLM"),
        (
            {"source": "recorded", "model": "smollm2-135m"},
            "replies written by smollm2-135m, a 135M-parameter model",
        ),
        (
            {"source": "recorded", "model": {"name": "Qwen3-4B-Instruct"}},
            "replies written by Qwen3-4B-Instruct, a 4B-parameter model",
        ),
        ({"source": "recorded", "model": "gpt"}, "replies written by gpt"),
        ({}, "replies: source not stated, model not stated"),
    ],
)
def test_label_of_replies(manifest, label):
    assert replies_label(manifest) == label


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (None, "–"), (float("nan"), "–"), (0, "0"), (1, "1.00"), (0.99996, "1.00"),
        (0.12345, "0.123"), (12.345, "12.3"), (123.4, "123"), (12345.6, "12,346"),
        (0.00123, "0.0012"), (1e-9, "<0.0001"), (-0.5, "−0.500"), (-1e-9, ">−0.0001"),
    ],
)  # fmt: skip
def test_numbers_have_three_figures(x, text):
    assert number(x) == text


@pytest.mark.parametrize(
    ("mean", "low", "high", "text"),
    [
        (0.02, -0.01, 0.05, "0.0200 [−0.0100,\u00a00.0500]"),
        (0.0005, -0.00002, 0.001, "0.0005 [−0.0000,\u00a00.0010]"),
        (3e-5, -2e-5, 8e-5, "between −0.0002 and 0.0002"),
        (-1e-6, -0.0123, 0.0121, "between −0.0124 and 0.0124"),
        (0.0, 0.0, 0.0, "0 [0,\u00a00]"),
        (3e-5, None, None, "<0.0001 [no interval from one]"),
    ],
)
def test_differences_too_small_to_show_are_said_to_lie_in_a_range(mean, low, high, text):
    assert told_difference({"mean": mean, "low": low, "high": high}) == text


def test_words():
    assert [listed(list("abc")[:k]) for k in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert listed(["a", "b"], "or") == "a or b"
    assert percent(0.1234) == "12.3\u00a0%" and percent(None) == "–"
    assert parameters("Qwen2.5-1.5B-Instruct") == ("1.5B", 1.5e9)
    assert parameters("gpt") is None
