"""What a run asks of memory is known beforehand to a factor of two: measured in processes."""

import json
import subprocess
import sys

import pytest

from market.sizes import PER_GAIN, PER_RECORD

MEASURE = r"""
import json, re, sys, tempfile
from pathlib import Path
from experiments import run as running
from market import Scenario

def peak(**sizes):
    scenario = Scenario.from_yaml("synthetic").with_(beside=[], requests_per_round=1, **sizes)
    with tempfile.TemporaryDirectory() as folder:
        running.write(running.run(scenario), Path(folder, "out"))
    # not ru_maxrss, which a process has from the one that started it
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

print(peak(rounds=8, replications=2), peak(**json.loads(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc/self/status")
# large enough for what any run takes, figures above all, not to count
@pytest.mark.parametrize(("rounds", "replications"), [(3, 12_000), (8000, 8)])
def test_memory_is_known_to_a_factor_of_two(rounds, replications):
    sizes = json.dumps({"rounds": rounds, "replications": replications})
    command = [sys.executable, "-c", MEASURE, sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    small, large = map(int, done.stdout.split())
    people = replications * 8  # advertisers of the synthetic market
    least = max(people * rounds * PER_RECORD, people * PER_GAIN)
    assert least <= large - small <= 2 * least
