"""Audits on replies that an LLM wrote: the tiny LLM, and the default scenario's if recorded."""

import numpy as np
import pytest

from agents.users import BehaviouralUsers
from experiments.audit.findings import THRESHOLD
from experiments.audit.report import audit
from market.environment import make_pool, make_requests, pool_folder
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.insertion import Rules
from mechanisms.llm import weights
from mechanisms.mosaic import Mosaic
from mechanisms.recording import Design, Request, record
from mechanisms.registry import make_mechanism
from tests.experiments.broken import BROKEN, Overcharged, WarmerAllocation
from tests.experiments.small_audit import FIRST_PRICE
from tests.tiny_llm import ADS, HashEncoder


def test_a_tiny_llm(engine):
    """Replies written on the spot, with importance weights that differ."""
    queries = ("How do I sleep better?", "Which tea is good?", "Do my shoes fit?", "A soft bed?")
    requests = [
        Request(f"Query-{b}", query, f"User-{b}", f"User number {b}.", ADS, (b % 2, 2, 3))
        for b, query in enumerate(queries)
    ]
    design = Design(replies=10, temperature=0.8, rules=Rules(max_tokens=40, loop=10**6))
    written = record(requests, engine, BehaviouralUsers(HashEncoder()), design, num_advertisers=4)
    assert np.ptp(written.log_weights) > 0
    values = [1.0, 2.0, 3.0, 4.0]
    assert audit(Mosaic(0.1), written, values).max_regret < THRESHOLD
    assert audit(make_mechanism("llm-auction-ideal", tau=0.1), written, values).max_regret > 0.01
    assert audit(Overcharged(0.1), written, values).max_regret > THRESHOLD


@pytest.fixture(scope="module")
def default():
    """The default scenario with its replies, where they have been recorded."""
    scenario = Scenario.from_yaml("default")
    try:
        weights.locate("all-minilm-l6-v2")
    except BadInput as error:
        pytest.skip(f"the text encoder is not to be had: {error}")
    folder = pool_folder(scenario, *make_requests(scenario))
    if not (folder / "manifest.json").exists():
        pytest.skip("the default scenario's replies are not in the cache; admarket record")
    people = scenario.advertisers
    types = {
        "values": [each.value for each in people],
        "objective": [each.objective for each in people],
        "roi": [each.target_roi for each in people],
    }
    return make_pool(scenario), types


def test_mosaic_on_the_default_pool(default):
    recorded, types = default
    found = audit(Mosaic(0.1), recorded, **types)
    um = np.array([kind == "utility" for kind in types["objective"]])
    assert found.regret[um].max() < 1e-6
    assert found.finding("reports").verdict == "holds"
    assert found.finding("rational").verdict == "holds"
    assert found.finding("target").verdict == "holds"
    everybody = audit(Mosaic(0.1), recorded, types["values"])
    assert everybody.max_regret < 1e-6
    assert everybody.interval == (0, 0)


@pytest.mark.parametrize("name", FIRST_PRICE)
def test_first_prices_on_the_default_pool(default, name):
    recorded, types = default
    found = audit(make_mechanism(name, **FIRST_PRICE[name]), recorded, types["values"])
    assert found.max_regret > 0.2
    assert found.interval[0] > 0.05


@pytest.mark.parametrize("broken", [each for each in BROKEN if each is not WarmerAllocation])
def test_broken_payments_on_the_default_pool(default, broken):
    recorded, types = default
    found = audit(broken(0.1), recorded, types["values"])
    assert found.max_regret > 1e-4
    assert found.interval[0] > 0
    assert found.finding("truthful").verdict == "fails"


def test_a_broken_allocation_on_the_default_pool(default):
    """Gains are seen; whether 28 requests prove them depends on the replies a CPU recorded."""
    recorded, types = default
    found = audit(WarmerAllocation(0.1), recorded, types["values"])
    assert found.max_regret > 1e-4
    assert found.finding("truthful").verdict in ("fails", "may fail")
