"""Requests whose questions the User-LLM writes: who asks, what is kept, and what is refused."""

from zlib import crc32

import numpy as np
import pytest

from market import environment
from market.asking import written_for
from market.catalog import Catalog
from market.environment import LazyEngine, make_pool, make_requests, pool_folder
from market.scenario import Scenario
from mechanisms.errors import BadInput
from tests.agents.scripted import Scripted
from tests.tiny_llm import HashEncoder


class Near(HashEncoder):
    """Finds everything on topic."""

    def embed(self, texts):
        rows = super().embed(texts) + 4 * np.eye(16)[0]
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ADMARKET_CACHE", str(tmp_path))
    monkeypatch.setattr(environment, "TextEncoder", Near)
    return tmp_path


def market(tiny_llm, **changes):
    given = {
        "requests": {"source": "generated", "queries": 9, "ads": 3},
        "replies": {"model": tiny_llm, "dtype": "fp32", "per_request": 4, "max_tokens": 16},
        "population": [{"objective": "utility", "count": 5}],
    }
    return Scenario.from_dict(given | changes)


def writer(prompt, k):
    """A question about its topic, in the words of nobody else."""
    topic = prompt.partition("about ")[2].partition(".")[0]
    return f"Which {topic} suits number {crc32(prompt.encode())}?"


def engines_of(scenario, engine):
    engines = LazyEngine(scenario)
    engines.engine = engine
    return engines


def test_users_ask_in_their_own_name_and_once(tiny_llm, cache):
    scenario, llm = market(tiny_llm), Scripted(writer)
    requests, _ = make_requests(scenario, engines_of(scenario, llm))
    assert len({request.query for request in requests}) == 9
    profiles = {user.id: user.description for user in Catalog.bundled().users}
    for request in requests:
        assert request.user == profiles[request.user_id]
        assert request.query_id.startswith(f"Asked-{request.user_id}-")
        (prompt,) = (p for p in llm.prompts if f"number {crc32(p.encode())}?" in request.query)
        assert request.user in prompt
    assert len({request.user_id for request in requests}) > 2
    assert len({request.query.split()[1] for request in requests}) > 2
    # kept: nobody is asked again, and the pool knows the questions
    again, _ = make_requests(scenario, engines_of(scenario, None))
    assert [vars(request) for request in again] == [vars(request) for request in requests]
    catalog = scenario.with_(requests={**scenario.requests.model_dump(), "source": "catalog"})
    folders = {pool_folder(each, *make_requests(each)) for each in (scenario, catalog)}
    assert len(folders) == 2
    asked = len(llm.prompts)
    other = scenario.with_(environment_seed=1)
    make_requests(other, engines_of(other, llm))
    assert len(llm.prompts) == 2 * asked


def test_a_pool_of_generated_questions(tiny_llm, engine, cache):
    """By the tiny LLM, which has to write many until one is a question."""
    scenario = market(
        tiny_llm, requests={"source": "generated", "queries": 2, "ads": 2},
        replies={**market(tiny_llm).replies.model_dump(), "temperature": 0.8},
    )  # fmt: skip
    pool = make_pool(scenario, engine=engines_of(scenario, engine))
    assert pool.shape == (2, 4, 2)
    assert all(text.endswith("?") for text in pool.requests["query"])
    assert make_pool(scenario).content_hash == pool.content_hash


def test_too_few_questions(tiny_llm, cache):
    scenario = market(tiny_llm)
    llm = Scripted(lambda *_: "Buy it.")
    with pytest.raises(
        BadInput, match=r"asks for 9, but of 80 questions .* 0 can be used; ask for"
    ):
        written_for(Catalog.bundled(), scenario, Near(), lambda: llm)


def test_synthetic_replies_answer_no_questions(tiny_llm):
    with pytest.raises(BadInput, match=r"requests\.source: is generated, but synthetic replies"):
        market(tiny_llm, replies={"source": "synthetic"})
    assert Scenario.from_dict({}).requests.source == "catalog"
