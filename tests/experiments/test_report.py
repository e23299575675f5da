"""The report: self-contained, safe, complete."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from experiments import plots
from experiments.report import number, replies_label, write_report
from experiments.samples import sample_replies
from mechanisms.pool import ReplyPool
from tests.experiments import small_run
from tests.experiments.small_run import HOSTILE


def write(folder, **changes):
    run = small_run.result()
    pool = small_run.pool()
    figure = plots.save(plots.market_over_rounds(run.rounds), folder / "figures/m.png", dpi=40)
    bids = small_run.PEOPLE.truthful_bids
    samples = {
        name: sample_replies(pool, small_run.mechanism(name), bids, np.random.default_rng(0), 8)
        for name in small_run.MECHANISMS
    }
    given = {
        "title": f"A market {HOSTILE}",
        "scenario": {"rounds": 60, "requests_per_round": 4, "note": HOSTILE, "x": np.float64(1)},
        "manifest": {"seed": 0, "versions": {"numpy": "2.0"}, "host": HOSTILE},
        "result": run,
        "best": small_run.best(),
        "samples": samples,
        "figures": {"market": figure, HOSTILE: figure},
        "pool": pool,
    }
    return write_report(folder, **(given | changes)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write(tmp_path_factory.mktemp("report"))


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


def test_page_tells_everything_in_order(page):
    heads = re.findall(r"<h2>([\w ]+?)\s*<", page)
    assert heads == [
        "Findings", "Mechanisms side by side", "Figures", "Sample replies", "Advertisers",
        "Reply pool", "Method and provenance",
    ]  # fmt: skip
    label = "replies written by smollm2-135m, a 135M-parameter model"
    assert page.count(label) >= 5
    assert page.count("data:image/png") == 2 and plots.CAPTIONS["market"] in page
    assert "under llm-auction-ideal (best response" in page
    assert "Effective sample size" in page and small_run.pool().content_hash in page
    assert "versions.numpy" in page and "requests_per_round: 4" in page
    assert re.search(r"<mark><bdi>.+?</bdi> <span class=\"price\">Ad-\d · pays ", page)


def test_numbers_are_those_of_the_summary(page):
    part = small_run.result().summary["mosaic"]["revenue"]
    text = f"{number(part['mean'])} [{number(part['low'])}, {number(part['high'])}] under mosaic"
    assert text in page


def test_a_page_with_less_to_tell(tmp_path):
    pool = ReplyPool.synthetic(8, 6, 3, np.random.default_rng(0), advertisers=small_run.N)
    run = small_run.result(1)
    page = write(tmp_path, best=None, samples={}, figures={}, pool=pool, result=run, scenario={})
    assert "replies: synthetic, no LLM" in page
    assert "Sample replies" not in page and "<h2>Figures" not in page
    assert "no interval" in page and "best response 1" not in page


def test_the_shortest_of_runs_has_a_page(tmp_path):
    assert "1 rounds" not in write(tmp_path, result=small_run.result(1, 1))


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
