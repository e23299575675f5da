"""Runs that are killed at any moment go on, and end with the same bytes."""

import json
import re
import signal
import subprocess
import sys

import pytest
import yaml

from mechanisms.policies import Rules
from tests.experiments.test_cli import SCENARIO
from tests.tiny_adapter import random_ad_llm

KILLED = {
    **SCENARIO,
    "rounds": 1500,
    "population": [
        {"objective": "utility", "count": 2, "learner": "hedge", "budget": 200},
        {"objective": "utility", "count": 1, "learner": "exp3"},
        {"objective": "value", "count": 2, "target_roi": [1, 1.5], "learner": "pacing"},
    ],
}

LIVE = {
    "rounds": 3,
    "requests_per_round": 5,
    "replications": 2,
    "requests": {"queries": 5, "ads": 2},
    "replies": {
        "source": "live",
        "dtype": "fp32",
        "per_request": 4,
        "max_tokens": 16,
        "context_probe": 0,
    },
    "mechanism": {"name": "mosaic", "parameters": {"tau": 0.3}},
    "population": [
        {"objective": "utility", "count": 2, "learner": "hedge", "budget": 20},
        {"objective": "value", "count": 1, "target_roi": 1.2, "learner": "pacing"},
    ],
}


def kill(tmp_path, described, kills, *options):
    """See `killing`; what became of each run that was killed."""
    path = tmp_path / "killed.yaml"
    path.write_text(yaml.safe_dump(described))
    arguments = (path, tmp_path, str(kills), "7", *options)
    done = subprocess.run(
        [sys.executable, "-m", "tests.experiments.killing", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    log = (tmp_path / "log").read_text()
    assert done.returncode == 0, done.stderr + log
    whole, *killed = map(json.loads, done.stdout.splitlines())
    assert whole["code"] == 0 and len(killed) == kills, log
    assert {"rounds.parquet", "advertisers.parquet", "summary.json"} <= set(whole["files"])
    for k, each in enumerate(killed):
        assert each["killed"] == -signal.SIGKILL and each["code"] == 0, log
        assert each["files"] == whole["files"], each
        # what was there before the kill is there after it, and nothing else
        assert each["meanwhile"] in ([whole["files"]] if k % 2 else [{}, whole["files"]])
        assert each["left"] == []
    assert any(each["kept"] for each in killed)  # some were killed with something to go on from
    return killed


def test_kill_9(tmp_path):
    kill(tmp_path, KILLED, 2, "bare")


@pytest.mark.slow
def test_kill_9_at_twenty_moments(tmp_path):
    killed = kill(tmp_path, KILLED, 20)
    arms = {name for each in killed for name in each["kept"]}
    assert len(arms) == 3  # in all of the markets


@pytest.mark.slow
def test_kill_9_of_a_market_whose_replies_are_written_live(tmp_path, tiny_llm):
    """By the scenario's LLM, by a trained one in its place, and by those of all advertisers."""
    rules = Rules(sentences=2, mentions=1, max_tokens=16, loop=10**6)
    random_ad_llm(tmp_path / "ad-llm", tiny_llm, rules=rules)
    written = {"name": "llm-auction", "parameters": {"ad_llm": str(tmp_path / "ad-llm")}}
    replies = {**LIVE["replies"], "model": tiny_llm}
    described = {**LIVE, "replies": replies, "beside": [written, "token"]}
    killed = kill(tmp_path, described, 8, "bare", "live")
    assert all("live_replies.parquet" in each["files"] for each in killed)
    markets = ("0-mosaic", "1-llm-auction", "2-token")
    for market, each in zip(markets, killed, strict=False):
        assert market in each["kept"] and market in each["amid"], each
    # what was written in the round of the kill was not written again
    kept = re.findall(r"unfinished/(\S+)/\S*journal: \d+ prompt", (tmp_path / "log").read_text())
    assert set(kept) == set(markets)
