"""`llm-auction` in a market: recorded and live, its writer beside the LLM that users go by."""

import json
from dataclasses import replace

import numpy as np
import pytest

from agents.users import BehaviouralUsers, Norms
from experiments.live_check import agreement
from experiments.report import estimates_label
from experiments.run import provenance, run
from market import environment
from market.environment import LazyEngine, pools_of, written_by
from market.live import LiveReplies
from market.model import MarketModel
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.llm.base import END, Sample
from mechanisms.llm_auction import prompt as auction_prompts
from mechanisms.llm_auction.ad_llm import AdLLM
from mechanisms.llm_auction.mechanism import LLMAuction
from mechanisms.llm_auction.prompt import SYMBOLS, PromptStyle
from mechanisms.llm_auction.surface import MANIFEST
from mechanisms.mentions import render
from mechanisms.policies import Rules
from mechanisms.pretrained import PROFILES
from mechanisms.recording import Design, Request, record
from mechanisms.recording.conditions import prompt
from tests.tiny_adapter import random_ad_llm
from tests.tiny_llm import ADS, Copy, HashEncoder

pytestmark = pytest.mark.filterwarnings("ignore::mechanisms.gibbs.LowEffectiveSampleSize")
RULES = Rules(sentences=2, mentions=1, max_tokens=20, loop=10**6)
STYLE = PromptStyle("compact")
AD_LLM = AdLLM(style=STYLE, rules=RULES, temperature=0.9)
DESIGN = Design(24, "auction", temperature=0.8, rules=Rules(max_tokens=40), ad_llm=AD_LLM)
QUERIES = ("How do I sleep better?", "Which tea is good?", "Do my shoes fit?", "A soft bed?")
REQUESTS = [
    Request(f"Query-{b}", query, f"User-{b}", f"User number {b}.", ADS, (b % 2, 2, 3))
    for b, query in enumerate(QUERIES)
]
N = 4
SYMBOLIC = Copy("Ad-9", f"Tea {SYMBOLS[3]}")


class Obliging:
    """An Ad-LLM of known response: it mentions ad i with odds bid_i / 50 against no ad."""

    model = "obliging"

    def __init__(self, engine):
        self.encode, self.decode, self.end_token = engine.encode, engine.decode, engine.end_token
        self.prompts = []

    def generate(self, prompts, n, *, guide, keys, seed, **_):
        self.prompts += prompts
        return [
            [self.write(prompt, guide, p, k, [seed, keys[p], k]) for k in range(n)]
            for p, prompt in enumerate(prompts)
        ]

    def write(self, prompt, guide, p, k, stream):
        listed = [json.loads(line) for line in prompt.splitlines() if line.startswith("[")]
        odds = np.array([bid for bid, *_ in listed] + [50.0])
        drawn = np.random.default_rng(stream).choice(len(odds), p=odds / odds.sum())
        said = "I sleep. You read."
        if drawn < len(ADS):
            said = f"I sleep. You could try {render(ADS[drawn])}."
        tokens = []
        for token in [*self.encode(said), self.end_token]:
            tokens.append(token)
            if token != self.end_token and guide.step(p, k, tokens) == END:
                break
        ended = tokens[-1] == self.end_token
        return Sample(np.array(tokens), np.zeros(len(tokens)), np.zeros(len(tokens), bool), ended)


@pytest.fixture(scope="module")
def norms(engine):
    design = Design(8, temperature=0.8, rules=Rules(max_tokens=40))
    pool = record(REQUESTS, engine, BehaviouralUsers(HashEncoder()), design, num_advertisers=N)
    return Norms(**pool.manifest["users"]["norms"])


def live_replies(engine, norms, seed=0):
    users = BehaviouralUsers(HashEncoder(), norms=norms)
    return LiveReplies(REQUESTS, engine, users, DESIGN, seed, N, writer=Obliging(engine))


class Deaf(LLMAuction):
    """Takes recorded replies for what is written under any bids."""

    def weights(self, pool, bids):
        B, M, _ = pool.shape
        return np.full((B, bids.shape[1], M), 1 / M)


def test_recorded_and_live_agree(engine, norms):
    """The surface tells from replies under other bids what is written under these."""
    values, names = np.array([2.0, 3.0, 1.0, 4.0]), [f"Ad {i}" for i in range(N)]
    found, deaf = (
        agreement(live_replies(engine, norms), mechanism, values, np.arange(32) % 4, names, 32)
        for mechanism in (LLMAuction(), Deaf())
    )
    assert (found.table["live"] > 0).all()
    assert found.agree, found.table
    assert not deaf.agree


def test_the_writer_writes_and_the_reference_measures(engine, norms):
    writer = Obliging(engine)
    users = BehaviouralUsers(HashEncoder(), norms=norms)
    pool = record(REQUESTS, engine, users, DESIGN, num_advertisers=N, writer=writer)
    assert len(writer.prompts) == 4 * 24
    profiles = pool.extras[PROFILES].reshape(-1, 3)
    read = [[json.loads(x)[0] for x in p.splitlines() if x.startswith("[")] for p in writer.prompts]
    np.testing.assert_array_equal(read, profiles)
    assert pool.exposure.sum() > 24
    assert (pool.exposure.sum(axis=2) <= 1).all()
    # a reply is as fluent as the reference LLM finds it, at the reference's temperature
    plain = "I sleep. You read."
    tokens = engine.encode(plain)
    said = pool.replies.filter(pool.replies["text"] == plain)
    request = said["request"][0]
    (scores,), *_ = engine.score(
        [prompt("reference", REQUESTS[request])], [[tokens]], temperature=DESIGN.temperature
    )
    assert said["fluency"][0] == pytest.approx(scores.mean(), abs=1e-5)
    assert pool.manifest["design"]["ad_llm"] == AD_LLM.identity
    assert pool.manifest["prompts"]["auction"] == STYLE.message("", "", (), ())
    with pytest.raises(BadInput, match="generation 'guided' has no writer of its own"):
        record(REQUESTS, engine, users, Design(4), writer=writer)
    with pytest.raises(BadInput, match="generation 'guided' has no ad_llm; leave it out"):
        Design(4, ad_llm=AD_LLM)


def scenario(tiny_llm, folder, source="recorded", **changes):
    given = {
        "rounds": 2, "requests_per_round": 2, "replications": 1,
        "requests": {"queries": 3, "ads": 2},
        "replies": {
            "source": source, "model": tiny_llm, "dtype": "fp32", "per_request": 6,
            "max_tokens": 16, "temperature": 0.8,
        },
        "mechanism": {"name": "llm-auction", "parameters": {"ad_llm": str(folder)}},
        "population": [{"objective": "utility", "count": 3, "learner": "hedge"}],
    }  # fmt: skip
    return Scenario.from_dict(given | changes)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("ADMARKET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environment, "TextEncoder", HashEncoder)
    return tmp_path


def test_a_market_has_a_recording_of_its_ad_llm(tiny_llm, engine, elsewhere):
    folder = elsewhere / "trained"
    random_ad_llm(folder, tiny_llm, size=0.2, rules=RULES, temperature=0.8)
    market = scenario(tiny_llm, folder)
    arms = [LLMAuction(ad_llm=str(folder)), LLMAuction(ad_llm=str(folder), estimate="kernel")]
    engines = LazyEngine(market)
    engines.engine = engine
    said = []
    pool, same = pools_of(market, arms, said.append, engines)
    assert pool.content_hash == same.content_hash
    assert any(f"{folder} writes 6 to each of 3 requests by auction" in line for line in said)
    assert pool.manifest["design"]["ad_llm"] == AdLLM.load(folder).identity
    assert "held_out" in pool.manifest[MANIFEST]
    assert engines.writer(market) is None  # the scenario's own replies are the LLM's
    written = written_by(market, arms[0].writing)
    assert engines.writer(written).adapter is not None
    # the adapter changes what is written, and its recording is told from others by its weights
    plain = record(
        environment.make_requests(market)[0], engine, BehaviouralUsers(HashEncoder()),
        written.replies.design, num_advertisers=3,
    )  # fmt: skip
    assert plain.replies["text"].to_list() != pool.replies["text"].to_list()
    random_ad_llm(folder, tiny_llm, size=0.2, seed=1, rules=RULES, temperature=0.8)
    (retrained,) = pools_of(market, arms[:1], engine=engines)
    assert retrained.content_hash != pool.content_hash
    results = [MarketModel(market, 3, pool=pool, mechanism=arms[0]).run() for _ in range(2)]
    assert results[0].rounds.equals(results[1].rounds)
    # a run says by what it was estimated
    (said,) = provenance(run(market, pool=pool))["estimates"].values()
    assert said == {"estimate": "surface", "held_out": pool.manifest[MANIFEST]["held_out"]}
    label = estimates_label({"estimates": {"llm-auction": said}})
    assert label.endswith("what other bids would bring: llm-auction by its surface")
    assert estimates_label({}) == estimates_label({"estimates": {}}) == ""
    # live: the same code, the same seed, the same replies
    live = [
        LiveReplies.of(market, retrained, 5, arms[0].writing, engines).replies(
            np.array([[0, 2]]), np.ones((2, 2))
        )
        for _ in range(2)
    ]
    assert live[0].content_hash == live[1].content_hash
    assert (live[0].extras[PROFILES] == 100).all()
    assert live[0].manifest["design"]["ad_llm"] == AdLLM.load(folder).identity


def test_an_ad_llm_that_cannot_write_is_refused_before_anything_is_recorded(
    tiny_llm, engine, elsewhere, monkeypatch
):
    market = scenario(tiny_llm, elsewhere / "none")
    engines = LazyEngine(market)
    engines.engine = engine
    with pytest.raises(BadInput, match="none is no trained Ad-LLM") as caught:
        pools_of(market, [LLMAuction(ad_llm=str(elsewhere / "none"))], engine=engines)
    assert "\n" not in str(caught.value)
    # a title that its prompt cannot hold
    folder = elsewhere / "embedded"
    random_ad_llm(folder, tiny_llm, rules=RULES, style=PromptStyle("compact", "embedding"))
    requests, users = environment.make_requests(market)
    named = [replace(request, ads=[SYMBOLIC, *request.ads[1:]]) for request in requests]
    monkeypatch.setattr(environment, "make_requests", lambda *_: (named, users))
    with pytest.raises(BadInput, match="holds what stands for bids"):
        pools_of(market, [LLMAuction(ad_llm=str(folder))], engine=engines)
    assert not list((elsewhere / "cache").rglob("*"))  # nothing was recorded in vain


def test_a_pool_is_told_from_others_by_all_that_its_ad_llm_is_and_reads(
    tiny_llm, elsewhere, monkeypatch
):
    folder = elsewhere / "trained"
    random_ad_llm(folder, tiny_llm, rules=RULES, style=STYLE)
    market = scenario(tiny_llm, folder)
    requests, users = environment.make_requests(market)

    def key(named=folder):
        written = written_by(market, LLMAuction(ad_llm=str(named)).writing)
        return environment.pool_folder(written, requests, users)

    before, shared = key(), environment.pool_folder(market, requests, users)
    monkeypatch.chdir(elsewhere)
    assert key("trained") == before
    monkeypatch.setattr(auction_prompts, "_COMPACT", "Answer.")
    assert key() != before
    assert environment.pool_folder(market, requests, users) == shared


def test_refuses(tiny_llm):
    with pytest.raises(BadInput, match=r"replies\.ad_llm: is for generation auction, not guided"):
        scenario(tiny_llm, "x", replies={"ad_llm": "x"})
    with pytest.raises(BadInput, match="llm-auction needs replies by an LLM"):
        scenario(tiny_llm, "x", replies={"source": "synthetic"})
    for kind in ("user-llm", "content"):
        with pytest.raises(BadInput, match=f"users: {kind} read replies, and synthetic ones have"):
            Scenario.from_dict({"replies": {"source": "synthetic"}, "users": kind})
    assert Scenario.from_dict({"users": "content"}).users.kind == "content"
    assert Scenario.from_dict({}).users.kind == "behavioural"
