"""Live mode with the tiny LLM: the same code, the same outcomes, one engine call a round."""

from types import SimpleNamespace

import numpy as np
import pytest

from agents.users import BehaviouralUsers, Norms
from experiments.live_check import agreement
from market.live import LiveReplies
from market.model import MarketModel
from market.scenario import AdvertiserSpec, Named
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.insertion import Rules
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool
from mechanisms.pretrained import PROFILES
from mechanisms.recording import Design, Request, record
from mechanisms.registry import make_mechanism
from mechanisms.token_auction import BID_PROFILES
from tests.tiny_llm import ADS, HashEncoder

RULES = Rules(max_tokens=40, loop=10**6)
DESIGN = Design(replies=8, temperature=0.8, rules=RULES)
QUERIES = ("How do I sleep better?", "Which tea is good?", "Do my shoes fit?", "A soft bed?")
REQUESTS = [
    Request(f"Query-{b}", query, f"User-{b}", f"User number {b}.", ADS, (b % 2, 2, 3))
    for b, query in enumerate(QUERIES)
]
N = 4


class Counting:
    """Counts calls of `generate`, and prompts."""

    def __init__(self, engine):
        self.engine, self.calls = engine, []

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def generate(self, prompts, *args, **options):
        self.calls.append(len(prompts))
        return self.engine.generate(prompts, *args, **options)


@pytest.fixture(scope="module")
def pool(engine):
    return record(REQUESTS, engine, BehaviouralUsers(HashEncoder()), DESIGN, num_advertisers=N)


def live_replies(engine, pool, design=DESIGN, seed=0):
    users = BehaviouralUsers(HashEncoder(), norms=Norms(**pool.manifest["users"]["norms"]))
    return LiveReplies(REQUESTS, engine, users, design, seed, N)


def market(pool, live, mechanism, seed=1, learner="hedge"):
    spec = AdvertiserSpec(
        objective="utility", value=2.0, target_roi=1.0, budget=None, learner=Named(name=learner)
    )
    scenario = SimpleNamespace(
        rounds=3, requests_per_round=5, replications=2, advertisers=[spec] * N
    )
    return MarketModel(scenario, seed, pool=pool, live=live, mechanism=mechanism)


def test_live_with_the_streams_of_the_recording_is_the_recording(engine, pool):
    fresh = live_replies(engine, pool).replies(np.arange(4)[None], np.ones((4, 3)))
    assert fresh.content_hash == pool.content_hash
    one, other = (Mosaic(0.2).run(p, np.ones(N), np.random.default_rng(3)) for p in (pool, fresh))
    for field in vars(one):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_a_round_is_one_engine_call(engine, pool):
    counting = Counting(engine)
    live = live_replies(counting, pool)
    result = market(pool, live, Mosaic(0.2)).run()
    assert counting.calls == [10, 10, 10]  # five requests in each of two replications
    assert result.rounds.height == 6
    assert live.asked == 30
    table = live.table()
    assert table.height == 30 * 8
    assert table["round"].unique().to_list() == [0, 1, 2]
    assert table["request"].max() < 4
    assert table["chosen"].sum() == 30
    keys = table.select("round", "replication", "position", "reply")
    assert keys.n_unique() == table.height
    # replies differ from round to round, and from the recording
    first = table.filter(table["round"] == 0)["text"].to_list()
    assert len(set(first) & set(table.filter(table["round"] == 1)["text"])) < len(first) / 2


def test_same_seed_same_bytes(engine, pool):
    one, again, other = (
        market(pool, live_replies(engine, pool, seed=seed), Mosaic(0.2)).run() for seed in (5, 5, 6)
    )
    assert one.rounds.equals(again.rounds)
    assert one.advertisers.equals(again.advertisers)
    assert not one.rounds.equals(other.rounds)


def test_replies_are_judged_by_the_norms_of_the_recording(engine, pool):
    norms = pool.manifest["users"]["norms"]
    fresh = live_replies(engine, pool).replies(np.array([[0, 1]]), np.ones((2, 3)))
    assert fresh.manifest["users"]["norms"] == norms
    with pytest.raises(BadInput, match=r"not recorded from an LLM"):
        synthetic = ReplyPool.synthetic(2, 3, 2, np.random.default_rng(0))
        LiveReplies.of(SimpleNamespace(), synthetic, 0)


@pytest.mark.parametrize("name", ["token", "pretrained"])
def test_replies_written_to_bids_are_told_them(engine, pool, name):
    mechanism = make_mechanism(name)
    design = Design(4, mechanism.generation, temperature=0.8, rules=RULES)
    users = BehaviouralUsers(HashEncoder())
    recorded = record(REQUESTS, engine, users, design, num_advertisers=N)
    live = live_replies(engine, recorded, design)
    bids = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 0.0]])
    fresh = live.replies(np.array([[1, 2]]), bids)
    shares = bids / bids.sum(1, keepdims=True)
    profile = fresh.extras[{"token": BID_PROFILES, "pretrained": PROFILES}[name]]
    # pretrained: as the LLM reads them, in whole hundredths of the highest bid
    found = profile / profile.sum(2, keepdims=True)
    np.testing.assert_allclose(found, np.repeat(shares[:, None], 4, axis=1), atol=0.02)
    np.testing.assert_allclose(mechanism.allocate(fresh, bids).probabilities, 0.25)
    result = market(recorded, live, mechanism).run()
    assert result.rounds.height == 6


class Deaf(Mechanism):
    """Replies say nothing of other bids; remembers which pool it was asked about."""

    name = "deaf"
    tells_of_other_bids = False

    def __init__(self):
        self.asked = []

    def allocate(self, pool, bids):
        return Mosaic(0.2).allocate(pool, bids)

    def charge(self, pool, bids, allocation, chosen, clicks):
        return allocation.payments

    def counterfactual(self, pool, bids, alternatives):
        self.asked.append(pool)
        return Mosaic(0.2).counterfactual(pool, bids, alternatives)


def test_what_other_bids_bring_may_be_known_from_the_recording_only(engine, pool):
    deaf = Deaf()
    model = market(pool, live_replies(engine, pool), deaf)
    model.run()
    drawn = [model.arrivals.of(round_number).ravel() for round_number in range(3)]
    asked = np.concatenate([asked.ctr for asked in deaf.asked])
    np.testing.assert_array_equal(asked, pool.ctr[np.concatenate(drawn)])


@pytest.mark.filterwarnings("ignore::mechanisms.gibbs.LowEffectiveSampleSize")
def test_recorded_and_live_agree_over_208_requests(engine, pool):
    asked = np.arange(208) % 4
    values = np.array([2.0, 3.0, 1.0, 4.0])
    names = [f"Ad {i}" for i in range(N)]
    found = agreement(live_replies(engine, pool), Mosaic(0.2), values, asked, names)
    assert found.requests == 208
    assert found.table["quantity"].to_list() == ["revenue", *(f"ITCTR of {name}" for name in names)]
    assert found.agree, found.table
    assert (found.table["recorded"] > 0).all()
    # the check can fail: a recording that mentions ads more often does not agree
    eager = Design(8, "context", temperature=0.8, rules=RULES)
    other = live_replies(engine, pool, eager)
    other.replies = live_replies(engine, pool).replies
    assert not agreement(other, Mosaic(0.2), values, asked, names).agree
