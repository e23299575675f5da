"""The README's examples work as pasted. No LLM: the Python example's scenario is synthetic."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from market import Scenario

ROOT = Path(__file__).parents[1]


def pasted(number):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[number]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return code, done.stdout.splitlines()


def test_the_python_example_runs_when_pasted():
    code, said = pasted(0)
    assert len(code.strip().splitlines()) <= 11
    assert said[0].startswith("mosaic utility maximizers")


def test_the_example_of_audits_and_equilibria_finds_what_theory_says():
    _, said = pasted(1)
    mosaic, settled, ideal, settled_too, bids = said
    assert float(mosaic.split()[-1]) < 1e-6 < 0.01 < float(ideal.split()[-1])
    assert settled.startswith("converged") and settled_too.startswith("converged")
    learned = np.array(bids.strip("[]").split(), dtype=float)
    np.testing.assert_allclose(learned, [0.2, 0.4, 0.6], atol=0.01)


def test_the_yaml_example_is_a_scenario():
    [text] = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    market = Scenario.from_dict(yaml.safe_load(text), source="README.md")
    assert market.num_advertisers == 8
    assert market.arms[0].name == "gsp" and len(market.arms) == 3
