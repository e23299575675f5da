"""The dashboard: what it plays and shows, without a browser; then the page itself, in Chromium."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from experiments.cli import main
from experiments.dashboard import server, view
from experiments.dashboard.desk import MARKET, Desk
from experiments.dashboard.replay import Served
from experiments.dashboard.stage import (
    NotRecorded,
    RecordedOnly,
    Stage,
    StagedMarket,
    pools_of_run,
)
from experiments.report.records import Records
from experiments.samples import ConsideredAd, SampleReply, Segment
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.recording import save_pool
from tests.experiments import small_run

MARKUP = "<img src=x onerror=alert(1)>{{ 7 * 7 }}"
SCENARIO = {
    "rounds": 300,
    "requests_per_round": 4,
    "replications": 2,
    "replies": {"source": "synthetic", "per_request": 8},
    "requests": {"queries": 6, "ads": 3},
    "mechanism": {"name": "mosaic", "parameters": {"tau": 0.15}},
    "beside": [{"name": "llm-auction-ideal", "parameters": {"tau": 0.1}}],
    "population": [
        {"objective": "utility", "count": 3, "learner": "hedge"},
        {
            "objective": "value",
            "count": 3,
            "target_roi": [1, 1.5],
            "budget": 9,
            "learner": "pacing",
        },
    ],
}


@pytest.fixture(scope="module")
def stage():
    return Stage.of(Scenario.from_dict(SCENARIO))


def played(stage, rounds, **changes):
    market = StagedMarket(stage, **asdict(replace(stage.first, **changes)))
    for _ in range(rounds):
        market.step()
    return market


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A finished run with hostile titles, in `results` of a folder; its replies are in a cache."""
    home = tmp_path_factory.mktemp("dashboard")
    folder, pool = home / "results" / "hostile-seed0", small_run.pool()
    small_run.result().save(folder)
    arms = [{"name": n, "parameters": p} for n, p in small_run.MECHANISMS.items()]
    described = {
        "name": "hostile", "rounds": 60, "replications": 3, "requests_per_round": 4,
        "mechanism": arms[0], "beside": arms[1:], "requests": {"queries": 8, "ads": 3},
        "population": SCENARIO["population"],
    }  # fmt: skip
    (folder / "scenario.yaml").write_text(yaml.safe_dump(described))
    manifest = {
        "seed": 0,
        "pool": {"source": "recorded", "model": "smollm2-135m"},
        "pool_hash_by_mechanism": dict.fromkeys(small_run.MECHANISMS, pool.content_hash),
        "revision": MARKUP,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    save_pool(pool, home / "cache" / "pools" / "hostile")
    return folder


def test_the_market_is_first_the_one_described(stage):
    choice = stage.first
    assert (choice.mechanism, choice.tau, choice.value_maximizers) == ("mosaic", 0.15, 3)
    assert stage.cast(choice).advertisers == stage.scenario.advertisers
    assert {"mosaic", "llm-auction-ideal", "vcg", "gsp", "first-price"} <= set(stage.mechanisms)


def test_shares_of_value_maximizers_are_nested_and_keep_values(stage):
    kinds = []
    for count in range(7):
        people = stage.cast(replace(stage.first, value_maximizers=count)).advertisers
        kinds.append({i for i, each in enumerate(people) if each.objective == "value"})
        assert len(kinds[-1]) == count
        assert [each.value for each in people] == [s.value for s in stage.scenario.advertisers]
        assert all(each.target_roi == 1 for each in people if each.objective == "utility")
        assert all(each.learner.name == "pacing" for each in people if each.objective == "value")
    assert all(less < more for less, more in pairwise(kinds))


def test_learners_and_tau_are_those_chosen(stage):
    market = played(stage, 1, utility_learner="exp3", value_learner="truthful", tau=0.5)
    names = {a.kind: type(a.learner).name for a in market.advertisers}
    assert names == {"utility": "exp3", "value": "truthful"}
    assert market.platform.mechanism.tau == 0.5
    assert played(stage, 0, mechanism="first-price").choice.tau is None
    assert stage.settled(replace(stage.first, mechanism="llm-auction-ideal")).tau == 0.1


def test_what_users_read_is_what_the_ledger_has(stage):
    market = played(stage, 3)
    served = Served.last_of(market)
    frame = market.result().advertisers.filter(pl.col("round") == 2)
    replies = [served.reply(k) for k in range(4)]
    mine = frame.filter(pl.col("replication") == 0).sort("advertiser")
    for name, column in (("charge", "charge"), ("clicked", "clicks")):
        total = np.zeros(6)
        for ad in (ad for reply in replies for ad in reply.ads):
            total[ad.advertiser] += getattr(ad, name)
        np.testing.assert_allclose(total, mine[column].to_numpy(), atol=1e-12)


def test_a_round_of_a_finished_run_is_served_again(run_folder):
    run, pool = Records.read(run_folder), small_run.pool()
    for name in small_run.MECHANISMS:
        ours = run.advertisers.filter((pl.col("mechanism") == name) & (pl.col("round") == 40))
        ours = ours.sort("replication", "advertiser")
        served = Served.of_run(run, dict.fromkeys(small_run.MECHANISMS, pool), name, 40)
        paid = np.zeros((3, small_run.N))
        who = np.repeat(np.arange(3), 4)[:, None], pool.ads[served.requests.ravel()]
        np.add.at(paid, who, served.outcome.payments)
        np.testing.assert_allclose(paid.ravel(), ours["payment"].to_numpy(), atol=1e-12)


def test_a_market_that_is_over_stays_as_it_is(stage):
    market = played(stage, SCENARIO["rounds"] + 5)
    assert (market.round, market.steps, market.running) == (300, 300, False)


def test_no_llm_is_opened_and_default_gives_way_to_synthetic(monkeypatch):
    described = Scenario.from_yaml("default")
    with pytest.raises(NotRecorded, match="admarket record default"):
        RecordedOnly(described).open()
    live = described.with_(replies={"source": "live"})
    with pytest.raises(BadInput, match="too slow to watch"):
        Stage.of(live)

    def of(scenario, say):
        if scenario.replies.source != "synthetic":
            RecordedOnly(scenario).open()
        return Stage(scenario, {})

    monkeypatch.setattr(Stage, "of", of)
    shown = Stage.of_default()
    assert shown.scenario.name == "synthetic" and "not recorded yet" in shown.note


def test_titles_texts_and_facts_are_escaped():
    ad = ConsideredAd(0, "Ad-0", MARKUP, 1.0, True, 0.1, 0.2, False)
    parts = (Segment(f"Buy {MARKUP} or "), Segment(MARKUP, "Ad-0"))
    sample = SampleReply(0, MARKUP, MARKUP, parts, (ad,), 0.5, MARKUP)
    pages = [
        view.reply(sample, MARKUP),
        view.reply(None, MARKUP, MARKUP),
        view.header(MARKUP, {"source": "recorded", "model": MARKUP}, [MARKUP], [MARKUP]),
        view.facts({MARKUP: MARKUP}, MARKUP),
        view.numbers({name: small_run.result().summary["mosaic"] for name in (MARKUP, "mosaic")}),
    ]
    for page in pages:
        assert "<img src=x" not in page
        assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path, run_folder):
    def refused(*arguments):
        monkeypatch.setattr(sys, "argv", ["admarket", "dashboard", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2 and len(said) == 1, said
        return said[0]

    with socket.socket() as taken:
        taken.bind((server.HOST, 0))
        taken.listen()
        assert "in use" in refused("--port", taken.getsockname()[1], "--no-open")
    assert "65535" in refused("--port", 99999)
    assert "no finished run" in refused(tmp_path, "--port", 0)
    assert "no such scenario" in refused(tmp_path / "none", "--port", 0)
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    assert 'pip install "admarket[dashboard]"' in refused("--port", 0)


def test_a_folder_is_shown_with_the_market_it_came_of(run_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("ADMARKET_CACHE", str(run_folder.parents[1] / "cache"))
    desk = Desk.of(str(run_folder))
    assert (desk.opened, desk.names) == ("hostile-seed0", [MARKET, "hostile-seed0"])
    market = played(desk.stage, 2)
    assert market.advertisers[2].title == small_run.HOSTILE
    assert small_run.HOSTILE in {
        ad.title for k in range(4) for ad in Served.last_of(market).reply(k).ads
    }
    # what was written anew in every round is not what was recorded
    run = Records.read(run_folder)
    assert set(pools_of_run(run)) == set(small_run.MECHANISMS)
    assert pools_of_run(replace(run, manifest={**run.manifest, "replies": "live"})) == {}
    # elsewhere, without its replies, it can be looked at only
    monkeypatch.setenv("ADMARKET_CACHE", str(tmp_path))
    assert Desk.of(str(run_folder)).names == ["hostile-seed0"]


REQUIRED = "ADMARKET_CHROMIUM"
"""Set to `required`, no Chromium is a failure, as it should be where changes are judged."""


def launched(playwright, driver):
    """Chromium: the system's, else playwright's own, which is downloaded once if need be."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next((path for name in names if (path := shutil.which(name))), None)

    def launch():
        return driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])

    if path:
        return launch()
    try:
        return launch()
    except playwright.Error:
        command = [sys.executable, "-m", "playwright", "install", "--only-shell", "chromium"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, timeout=180)
    try:
        return launch()
    except playwright.Error as error:
        (why, *_) = str(error).splitlines()
        told = (
            "no Chromium here and none to be downloaded: `apt-get install chromium`, or "
            f"`playwright install --with-deps chromium` ({why})"
        )
        if os.environ.get(REQUIRED) == "required":
            pytest.fail(told)
        pytest.skip(told)


@pytest.fixture
def browser():
    """Chromium; see `launched`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = launched(playwright, driver)
        yield opened
        opened.close()


@pytest.fixture
def served(run_folder):
    """The address of a dashboard of SCENARIO, beside the finished run; it is ended by Ctrl-C."""
    pytest.importorskip("solara", reason="solara is not installed (admarket[dashboard])")
    home = run_folder.parents[1]
    (home / "small.yaml").write_text(yaml.safe_dump(SCENARIO))
    command = [sys.executable, "-m", "experiments.cli", "dashboard", "small.yaml"]
    environment = {
        **os.environ,
        "ADMARKET_CACHE": str(home / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    process = subprocess.Popen(
        [*command, "--port", "0", "--no-open"], cwd=home, env=environment, text=True,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        told = next((line for line in process.stderr if "http://" in line), None)
        assert told, "the dashboard did not start"
        yield re.search(r"http://\S+", told)[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def page(browser, served):
    """Chromium on the dashboard, with the network blocked; complaints are held against it."""
    opened = browser.new_page(viewport={"width": 1500, "height": 1100})
    wrong = []
    opened.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))

    def local_only(route):
        if route.request.url.startswith((served, "data:")):
            route.continue_()
        else:
            wrong.append(f"asked the network for {route.request.url}")
            route.abort()

    opened.route("**/*", local_only)
    opened.goto(served)
    opened.set_default_timeout(90_000)
    yield opened
    opened.close()
    assert wrong == []


def test_the_page_plays_changes_and_shows_runs(page):
    def told():
        return " ".join(page.inner_text(".admarket.sheet").split())

    def round_shown():
        return int(re.search(r"round ([\d,]+) of 300", told())[1])

    def until(condition, what):
        begun = time.monotonic()
        while not condition():
            assert time.monotonic() - begun < 120, f"{what}: {told()[:300]}"
            page.wait_for_timeout(100)

    def choose(label, option):
        page.get_by_role("button", name=label).click()
        page.get_by_role("option", name=option, exact=True).click()

    def picture():
        return page.locator(".admarket figure img").first.get_attribute("src")

    # it loads, and says what is shown
    page.wait_for_selector(".admarket.sheet")
    assert "replies: synthetic, no LLM" in told() and "seed 0" in told() and round_shown() == 0

    # a step, then play and pause: rounds go on, and the picture with them
    page.get_by_role("button", name="Step").click()
    until(lambda: round_shown() == 7, "step")
    first = picture()
    page.get_by_role("button", name="▶").click()
    until(lambda: round_shown() > 7, "play")
    page.get_by_role("button", name="❚❚").click()
    page.get_by_role("button", name="▶").wait_for()
    assert picture() != first
    assert "Synthetic replies have no words" in told()

    # parameters take effect at once: a new market, under them
    choose("tau", "0.5")
    until(lambda: "tau 0.5" in told() and round_shown() == 0, "tau")
    page.get_by_role("button", name="Step").click()
    until(lambda: round_shown() == 7, "step under tau 0.5")
    assert picture() != first
    choose("Mechanism", "first-price")
    until(lambda: "under first-price" in told() and "tau" not in told(), "mechanism")
    page.get_by_role("button", name="Reset").click()
    until(lambda: "under first-price" in told() and round_shown() == 0, "reset")

    # a finished run, whose titles are hostile
    choose("Show", "hostile-seed0")
    until(lambda: "Market hostile, seed 0" in told() and "What produced it" in told(), "run")
    assert "replies written by smollm2-135m" in told() and MARKUP in told()
    page.locator(".admarket figure img").first.wait_for()
    page.locator(".v-slider__thumb-container").first.focus()
    page.keyboard.press("Home")
    until(lambda: "rounds 1 to 1 of 60" in told(), "slider of rounds")
    until(lambda: "Reply 1 of 4 in round 1" in told() and "What about" in told(), "replies")
    assert page.locator(".admarket script, .admarket img[src=x]").count() == 0
