"""Recording with a tiny LLM: what is kept agrees with the texts and with the densities."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from agents.users import BehaviouralUsers
from mechanisms.errors import BadInput
from mechanisms.insertion import NOTHING, PHRASES, UNREACHED, GuidedInsertion, Rules
from mechanisms.mentions import MENTION, parse
from mechanisms.recording import Design, Request, describe, record
from mechanisms.recording.context import CONTEXT_PROMPT
from mechanisms.recording.design import REFERENCE_PROMPT
from mechanisms.recording.measure import count_sentences
from tests.tiny_llm import ADS, Copy, HashEncoder, needs_model

QUERIES = ("How do I sleep better?", "Which tea is good?", "Do my shoes fit?")
USERS = BehaviouralUsers(HashEncoder())
# One-word titles that the tiny LLM writes by itself, for the context condition.
WORDS = (Copy("Ad-1", "like"), Copy("Ad-2", "just"), Copy("Ad-3", "less"))
RULES = Rules(max_tokens=120)
GUIDED = Design(replies=24, temperature=0.8, rules=RULES)
CONTEXT = Design(replies=16, generation="context", temperature=0.8, rules=Rules(max_tokens=40))


def requests(ads=ADS, queries=QUERIES):
    return [
        Request(f"Query-{b}", query, f"User-{b}", f"User number {b}.", ads, range(len(ads)))
        for b, query in enumerate(queries)
    ]


def recorded(engine, design, ads=ADS, **options):
    return record(requests(ads), engine, USERS, design, **options)


@pytest.fixture(scope="module")
def guided(engine):
    return recorded(engine, GUIDED)


@pytest.fixture(scope="module")
def context(engine):
    return recorded(engine, CONTEXT, WORDS)


@pytest.fixture(params=["guided", "context"])
def pool_and_ads(request, guided, context):
    return (guided, ADS) if request.param == "guided" else (context, WORDS)


def texts(pool):
    B, M, _ = pool.shape
    return np.array(pool.replies["text"].to_list(), dtype=object).reshape(B, M)


def test_shapes_and_tables(pool_and_ads):
    pool, ads = pool_and_ads
    B, M, n = pool.shape
    assert (B, n) == (3, 3)
    assert pool.replies["request"].to_list() == np.repeat(range(B), M).tolist()
    assert pool.replies["reply"].to_list() == np.tile(range(M), B).tolist()
    assert pool.requests["query"].to_list() == list(QUERIES)
    assert pool.requests["ad_ids"].to_list() == [[ad.id for ad in ads]] * B
    assert pool.manifest["source"] == "recorded"
    assert pool.manifest["content_hash"] == pool.content_hash
    assert pool.manifest["tokens"] == pool.replies["tokens"].sum()
    assert np.isfinite(pool.log_ref).all()
    assert np.isfinite(pool.log_gen).all()
    assert pool.replies["tokens"].max() <= pool.manifest["design"]["rules"]["max_tokens"]


def test_exposure_is_what_the_text_shows(pool_and_ads):
    pool, ads = pool_and_ads
    for b, row in enumerate(texts(pool)):
        for j, text in enumerate(row):
            parsed = parse(text, ads)
            np.testing.assert_array_equal(np.flatnonzero(pool.exposure[b, j]), sorted(parsed.ads))
            assert pool.malformed[b, j] == parsed.malformed == 0
    assert pool.exposure.any(axis=(0, 1)).all()
    assert (pool.ctr[~pool.exposure] == 0).all()
    assert (pool.ctr[pool.exposure] > 0).all()
    assert (pool.ctr < 1).all()
    assert ((pool.quality >= 0) & (pool.quality <= 1)).all()
    # Some reply shows nothing, so that every mechanism can refuse every ad.
    assert (pool.exposure.sum(2) == 0).any(axis=1).all()
    nativeness = np.array(pool.replies["nativeness"].to_list()).reshape(pool.shape)
    assert (nativeness[pool.exposure] < 0).all()
    assert (nativeness[~pool.exposure] == 0).all()


def test_free_text_has_no_marker(pool_and_ads):
    pool, ads = pool_and_ads
    for text in texts(pool).ravel():
        bare = MENTION.sub("", text)
        assert "@" not in bare
        assert not parse(bare, ads).ads


def test_places_and_sentences(guided):
    place = np.array(guided.replies["place"].to_list()).reshape(guided.shape)
    sentences = guided.replies["sentences"].to_numpy().reshape(guided.shape[:2])
    assert (place[~guided.exposure] == 0).all()
    assert (place[guided.exposure] >= 1).all()  # a mention comes after a sentence
    assert (place <= sentences[:, :, None]).all()
    assert sentences.max() <= RULES.sentences + 2 * RULES.mentions
    assert count_sentences('Dr. Moss is in. "Is he?" I paid 3.50 for it... e.g. tea.') == 4


def test_single_conditions_show_their_ad(guided):
    conditions = guided.replies["condition"].to_list()[:24]
    assert conditions == guided.replies["condition"].to_list()[24:48]
    for j, name in enumerate(conditions):
        shown = guided.exposure[:, j]
        if name == "reference":
            assert not shown.any()
        elif name.startswith("single:"):
            only = np.arange(3) == int(name[-1])
            assert not shown[:, ~only].any()
    assert conditions.count("single:1") == 4
    singles = np.array([name.startswith("single:") for name in conditions])
    assert guided.exposure[:, singles].any(2).mean() > 0.8


def density_by_hand(events, rates, shares):
    """One reply's probability of its events, straight from the words of DESIGN 3.0."""
    shares, p = list(shares), 1.0
    for t, event in enumerate(events):
        open_share = sum(shares)
        if event == UNREACHED or (open_share == 0 and event == NOTHING):
            continue
        if event >= 0 and shares[event] == 0:
            return 0.0
        p *= 1 - rates[t] if event < 0 else rates[t] * shares[event] / open_share / len(PHRASES)
        if event >= 0:
            shares[event] = 0
    return p


def test_weights_from_the_events(guided):
    """log_ref − log_gen, recomputed from the events in the table alone."""
    events = guided.replies["events"].to_list()
    conditions = guided.replies["condition"].to_list()[:24]
    mixture = [
        *[((0, 0, 0), (0, 0, 0))] * conditions.count("reference"),
        *[((0.35,) * 3, (1, 1, 1))] * conditions.count("guided"),
        *[((first, 1, 1), only) for only in np.eye(3) for first in (1, 0.5, 0.5, 0.5)],
    ]
    assert len(mixture) == 24
    w = []
    for each in events:
        generated = np.mean([density_by_hand(each, *policy) for policy in mixture])
        w.append(density_by_hand(each, (0.1,) * 3, (1, 1, 1)) / generated)
    np.testing.assert_allclose(guided.log_weights.ravel(), np.log(w), atol=1e-9)
    free = guided.replies["log_free"].to_numpy()
    by_hand = [np.log(density_by_hand(each, (0.1,) * 3, (1, 1, 1))) for each in events]
    np.testing.assert_allclose(guided.log_ref.ravel() - free, by_hand, atol=1e-9)
    assert guided.effective_sample_size.min() > 4


def test_free_tokens_are_what_the_llm_wrote(engine, guided):
    """`log_free` is the LLM's own score of all but the tokens of the mentions."""
    asked = requests()
    prompts = [REFERENCE_PROMPT.format(query=r.query) for r in asked]
    policies = [policy for policy, count in GUIDED.policies(3) for _ in range(count)]
    guide = GuidedInsertion(engine, [ADS] * 3, [policies] * 3, RULES, 0)
    samples = engine.generate(prompts, 24, max_new_tokens=120, temperature=0.8, seed=0, guide=guide)
    tokens = [[sample.tokens for sample in row] for row in samples]
    scores = engine.score(prompts, tokens, temperature=0.8)
    free = [
        score[~sample.forced].sum()
        for row, row_scores in zip(samples, scores, strict=True)
        for sample, score in zip(row, row_scores, strict=True)
    ]
    np.testing.assert_allclose(guided.replies["log_free"], free, atol=2e-3)
    assert any(sample.forced.any() for row in samples for sample in row)


def test_a_reply_cut_short_ends_with_its_last_sentence(engine):
    pool = recorded(engine, replace(GUIDED, rules=Rules(sentences=9, max_tokens=30, room=8)))
    cut = pool.replies.filter((pl.col("tokens") == 30) & (pl.col("sentences") > 1))
    assert cut.height > 20
    # but for the few that the LLM itself ended with the last token allowed
    assert cut["complete"].mean() > 0.9


def test_context_densities(engine, context):
    """Free tokens under both prompts, titles left out, weights against the mixture."""
    asked = requests(WORDS)
    listed = "\n".join(f"- {ad.title}: {ad.text}" for ad in WORDS)
    shown = context.exposure.sum(2)
    plain = [REFERENCE_PROMPT.format(query=r.query) for r in asked]
    named = [CONTEXT_PROMPT.format(query=r.query, ads=listed) for r in asked]
    both = [
        engine.generate(prompts, 8, max_new_tokens=40, temperature=0.8, seed=seed)
        for prompts, seed in ((plain, 0), (named, 1))
    ]
    for b in range(3):
        tokens = [sample.tokens for part in both for sample in part[b]]
        scores = [
            engine.score([prompts[b]], [tokens], temperature=0.8)[0] for prompts in (plain, named)
        ]
        for j in np.flatnonzero(shown[b] == 0):
            free, other = (score[j].sum() for score in scores)
            boundaries = (context.log_ref[b, j] - free) / np.log(0.9)
            assert boundaries == pytest.approx(round(boundaries), abs=1e-3)
            assert -1e-3 < boundaries < 20
            expected = np.log(0.5 * np.exp(free) + 0.5 * np.exp(other))
            assert context.log_gen[b, j] == pytest.approx(expected, abs=1e-3)
        for j in np.flatnonzero(shown[b]):
            # the tokens of the title left both densities
            assert context.log_ref[b, j] > scores[0][j].sum() + np.log(0.1 / 3) * shown[b, j] - 4
            assert context.log_gen[b, j] > np.log(0.5) + scores[1][j].sum()
    assert 0 < (shown > 0).mean() < 1


def test_context_keeps_characters_of_several_tokens(engine):
    """An emoji takes several tokens; text and title spans come out whole."""
    spoken = [engine.encode("😀 Try it, naïve like Tea Pot, 😀. It is “good” 😀.")]
    assert any("\ufffd" in engine.decode([token]) for token in spoken[0])
    pool = record(requests(queries=["Tea?"]), Speaking(engine, spoken), USERS, CONTEXT)
    expected = "😀 Try it, naïve like @Tea Pot@[Ad-2], 😀. It is “good” 😀."
    assert set(pool.replies["text"]) == {expected}
    assert pool.exposure[:, :, 1].all()
    # Ten nats a token in every score: as many tokens are free as the title does not touch.
    free = engine.encode("😀 Try it, naïve like") + engine.encode(", 😀. It is “good” 😀.")
    np.testing.assert_allclose(pool.replies["log_free"], -10.0 * len(free))


class Speaking:
    """An engine that says the same thing every time, at ten nats a token."""

    model = "speaking"

    def __init__(self, engine, spoken):
        self.encode, self.decode, self.spoken = engine.encode, engine.decode, spoken

    def generate(self, prompts, n, **_):
        from mechanisms.llm.base import Sample

        samples = []
        for k in range(n):
            tokens = np.array(self.spoken[k % len(self.spoken)])
            x = np.full(len(tokens), -10.0)
            samples.append(Sample(tokens, x, np.zeros(len(tokens), dtype=bool), False))
        return [samples for _ in prompts]

    def score(self, prompts, replies, *, temperature):
        return [[np.full(len(reply), -10.0) for reply in row] for row in replies]


@pytest.mark.parametrize("design", [GUIDED, CONTEXT], ids=["guided", "context"])
def test_seeds(engine, design):
    small = replace(design, replies=6)
    first = recorded(engine, small, seed=3)
    again = recorded(engine, small, seed=3)
    assert again.content_hash == first.content_hash
    assert again.replies.equals(first.replies)
    assert again.manifest == first.manifest
    assert recorded(engine, small, seed=4).content_hash != first.content_hash
    # a request recorded by itself, under its own key, is the same request
    alone = record(requests()[2:], engine, USERS, small, seed=3, keys=[2])
    assert alone.replies["text"].to_list() == first.replies["text"].to_list()[12:]
    np.testing.assert_allclose(alone.log_ref, first.log_ref[2:], atol=1e-3)


@pytest.mark.parametrize("generation", ["guided", "context"])
@pytest.mark.parametrize(("replies", "ads"), [(24, 1), (1, 3), (2, 3), (1, 1), (5, 0), (1, 0)])
def test_small_pools(engine, generation, replies, ads):
    design = Design(replies, generation, temperature=0.8, rules=RULES)
    pool = recorded(engine, design, ADS[:ads], num_advertisers=4)
    assert pool.shape == (3, replies, ads)
    assert pool.num_advertisers == 4
    assert pool.replies.height == 3 * replies
    assert (pool.exposure.sum(2) == 0).any(axis=1).all()
    assert np.isfinite(list(describe(pool).values())).all()


def test_one_reply_that_names_an_ad_by_itself(engine):
    """A title that the plain prompt alone can have written keeps a finite density."""
    pool = record(
        requests(),
        Speaking(engine, [engine.encode("A Tea Pot.")]),
        USERS,
        replace(CONTEXT, replies=1),
    )
    assert pool.exposure[:, :, 1].all()
    assert np.isfinite(pool.log_weights).all()


def test_bad_requests(engine):
    with pytest.raises(BadInput, match="no requests"):
        record([], engine, USERS, GUIDED)
    unequal = [requests()[0], requests(ADS[:2])[1]]
    with pytest.raises(BadInput, match=r"\[2, 3\] candidate ads"):
        record(unequal, engine, USERS, GUIDED)
    for wrong in (
        {"replies": 0},
        {"generation": "magic"},
        {"mention_rate": 0.0},
        {"guided_rate": 1.0},
        {"mention_rate": float("nan")},
    ):
        with pytest.raises(BadInput, match=next(iter(wrong))):
            Design(**wrong)


def test_boundaries_in_context(engine):
    """Three sentences end, once each, and at one of them stands the mention."""
    spoken = engine.encode('It is "good." Try Tea Pot now (really)! So it is. And Dr. Moss, 3.5')
    pool = record(requests(), Speaking(engine, [spoken]), USERS, replace(CONTEXT, replies=4))
    symbols = pool.log_ref.ravel() - pool.replies["log_free"].to_numpy()
    np.testing.assert_allclose(symbols, np.log(0.1 / 3) + 2 * np.log(0.9))


def test_describe(guided):
    said = describe(guided)
    assert said["mention_rate"] == (guided.exposure.any(2)).mean()
    assert said["malformed_rate"] == 0
    assert 0 < said["reference_mention_rate"] < said["mention_rate"]
    assert 1 <= said["effective_sample_size_min"] <= said["effective_sample_size_median"] <= 24


def test_nativeness_is_of_the_sentence(guided, engine):
    """The words of a mention cost the LLM what it thinks of them: no −inf, no positive."""
    rows = guided.replies.filter(pl.col("condition") == "reference")
    assert all(value == [0.0] * 3 for value in rows["nativeness"].to_list())
    assert guided.replies["fluency"].max() < 0


@needs_model("smollm2-135m")
def test_the_real_llm():
    """SmolLM2-135M-Instruct, if it is in the cache, records a healthy pool in bf16."""
    from mechanisms.llm.transformers_engine import TransformersEngine

    real = TransformersEngine("smollm2-135m")
    pool = record(requests(queries=QUERIES[:1]), real, USERS, Design(replies=12))
    assert pool.exposure.any(2).mean() > 0.25
    assert not pool.exposure[0, :2].any()
    alone = pool.exposure[0][pool.exposure[0].sum(1) == 1]
    assert alone.any(0).all()
    assert pool.effective_sample_size.min() > 3
    assert (pool.malformed == 0).all()
    assert pool.replies["complete"].mean() > 0.5
