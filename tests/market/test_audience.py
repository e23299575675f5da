"""Who judges a scenario's replies: recorded under keys of their own, and alike in live mode."""

import numpy as np
import pytest

from market import environment
from market.audience import norms_of
from market.environment import LazyEngine, make_pool, make_requests, pool_folder, pools_of
from market.live import LiveReplies
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.pool import ReplyPool
from mechanisms.pretrained import Pretrained
from tests.tiny_llm import HashEncoder

KINDS = ("behavioural", "user-llm", "content")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("ADMARKET_CACHE", str(tmp_path))
    monkeypatch.setattr(environment, "TextEncoder", HashEncoder)


def market(tiny_llm, kind):
    return Scenario.from_dict(
        {
            "requests": {"queries": 3, "ads": 2},
            "replies": {
                "model": tiny_llm, "dtype": "fp32", "per_request": 12, "max_tokens": 16,
                "temperature": 0.8,
            },
            "users": kind,
            "population": [{"objective": "utility", "count": 3}],
        }
    )  # fmt: skip


def engines_of(scenario, engine):
    engines = LazyEngine(scenario)
    engines.engine = engine
    return engines


def test_who_judges_is_a_setting(tiny_llm, engine, elsewhere):
    pools = {}
    for kind in KINDS:
        scenario = market(tiny_llm, kind)
        pools[kind] = make_pool(scenario, engine=engines_of(scenario, engine))
        assert pools[kind].manifest["users"].get("kind", "behavioural") == kind
        said = []
        again = make_pool(scenario, said.append)
        assert "reusing" in said[0]
        assert again.content_hash == pools[kind].content_hash
    # the same replies, judged by others
    texts = [pool.replies["text"].to_list() for pool in pools.values()]
    assert texts[0] == texts[1] == texts[2]
    assert len({pool.ctr.tobytes() for pool in pools.values()}) == 3
    assert norms_of(pools["user-llm"]) is None
    assert norms_of(pools["content"]) == norms_of(pools["behavioural"])
    with pytest.raises(BadInput, match="not recorded from an LLM"):
        norms_of(ReplyPool.synthetic(2, 3, 2, np.random.default_rng(0)))


def test_behavioural_users_keep_their_keys(tiny_llm, elsewhere):
    folders = set()
    for kind in KINDS:
        scenario = market(tiny_llm, kind)
        requests, users = make_requests(scenario)
        folders.add(pool_folder(scenario, requests, users))
    behavioural = market(tiny_llm, "behavioural")
    spelled = behavioural.with_(users={"kind": "behavioural", "mode": "json"})
    requests, users = make_requests(behavioural)
    assert pool_folder(spelled, requests, users) in folders
    assert len(folders) >= 2  # content is told by its users, not by the scenario


@pytest.mark.parametrize("kind", KINDS)
def test_they_judge_live_replies_as_recorded_ones(tiny_llm, engine, elsewhere, kind):
    """The same words written live, or for another mechanism, are met in the same way."""
    scenario = market(tiny_llm, kind)
    engines = engines_of(scenario, engine)
    (pool,) = pools_of(scenario, [Pretrained()], engine=engines)
    assert pool.manifest["users"].get("kind", "behavioural") == kind
    shared = make_pool(scenario, engine=engines)
    live = LiveReplies.of(scenario, shared, 0, engines=engines)
    live.seed = environment.recording_seed(scenario, 0)  # so that it writes what was recorded
    fresh = live.replies(np.arange(3)[None], np.ones((3, 2)))
    assert fresh.replies["text"].to_list() == shared.replies["text"].to_list()
    np.testing.assert_allclose(fresh.ctr, shared.ctr, atol=1e-9)
    np.testing.assert_allclose(fresh.quality, shared.quality, atol=1e-9)
