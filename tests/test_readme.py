"""The README's examples work as pasted. No LLM: the Python example's scenario is synthetic."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

from market import Scenario

ROOT = Path(__file__).parents[1]


def test_the_python_example_runs_when_pasted():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(code.strip().splitlines()) <= 11
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "mosaic utility maximizers" in done.stdout


def test_the_yaml_examples_are_scenarios():
    texts = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    replies, market = sorted(
        (Scenario.from_dict(yaml.safe_load(text), source="README.md") for text in texts),
        key=lambda scenario: scenario.replies.source,
    )
    assert replies.replies.source == "live"
    assert market.num_advertisers == 8
