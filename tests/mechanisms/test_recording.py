"""Recording with a tiny LLM: what is kept agrees with the texts and with the densities."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from mechanisms.errors import BadInput
from mechanisms.insertion import GuidedInsertion
from mechanisms.mentions import MENTION, parse
from mechanisms.policies import NOTHING, PHRASES, UNREACHED, Rules
from mechanisms.recording import Design, describe, record
from mechanisms.recording.conditions import (
    ADVERTISER_PROMPT,
    CONTEXT_PROMPT,
    REFERENCE_PROMPT,
    conditions,
    prompt,
    templates,
)
from mechanisms.recording.measure import count_sentences
from tests.mechanisms.small_recording import GUIDED, QUERIES, RULES, USERS, WORDS, requests
from tests.tiny_llm import ADS

CONTEXT = Design(
    replies=32, generation="mixture", inline_rate=0.05, temperature=0.8, rules=Rules(max_tokens=40)
)


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
    most = pool.manifest["design"]["rules"]["max_tokens"]
    free = (pool.replies["log_free"] / pool.replies["fluency"]).to_numpy()  # a sum over a mean
    np.testing.assert_allclose(free, free.round(), atol=1e-6)
    assert free.max().round() <= most
    assert (free.round() <= pool.replies["tokens"].to_numpy()).all()
    plain = ~pool.exposure.any(2).ravel()
    np.testing.assert_array_equal(free.round()[plain], pool.replies["tokens"].to_numpy()[plain])
    provenance = pool.manifest["users"]
    assert provenance["encoder"] == "hash"
    assert provenance["norms"]["fluency_mean"] == pytest.approx(pool.replies["fluency"].mean())


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
    events = np.array(guided.replies["events"].to_list()).reshape(3, 24, 3)
    for i in range(3):
        ours = events[:, [j for j, name in enumerate(conditions) if name == f"single:{i}"]]
        reached = ours != UNREACHED
        # The first inserts at its first decision, the others at their second at the latest.
        assert (ours[:, 0, 0][reached[:, 0, 0]] == i).all()
        assert (ours == i).any(2)[reached[:, :, 1]].all()
        assert reached[:, 0, 0].any()


def test_whatever_is_inserted_is_shown(guided):
    events = np.array(guided.replies["events"].to_list()).reshape(3, 24, 3)
    inserted = (events[..., None] == np.arange(3)).any(2)
    np.testing.assert_array_equal(guided.exposure, inserted)


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
    policies = [each.policy for each in conditions(GUIDED, 3) for _ in range(each.count)]
    guide = GuidedInsertion(engine, [ADS] * 3, [policies] * 3, RULES, 0)
    draw = {"max_new_tokens": guide.max_new_tokens, "temperature": 0.8, "seed": 0}
    samples = engine.generate(prompts, 24, guide=guide, **draw)
    tokens = [[sample.tokens for sample in row] for row in samples]
    scores = engine.score(prompts, tokens, temperature=0.8)
    free = [
        score[~sample.forced].sum()
        for row, row_scores in zip(samples, scores, strict=True)
        for sample, score in zip(row, row_scores, strict=True)
    ]
    np.testing.assert_allclose(guided.replies["log_free"], free, atol=2e-3)
    assert any(sample.forced.any() for row in samples for sample in row)


@pytest.mark.parametrize("ads", [ADS, ()], ids=["ads", "no ads"])
def test_a_reply_cut_short_ends_with_its_last_sentence_or_mention(engine, ads):
    rules = Rules(sentences=9, max_tokens=30, room=8, loop=10**6)
    pool = recorded(engine, replace(GUIDED, rules=rules), ads)
    free = (pl.col("log_free") / pl.col("fluency")).round()
    cut = pool.replies.filter((free == 30) & (pl.col("sentences") > 1))
    assert cut.height > 20
    # but for the few that the LLM itself ended with the last token allowed
    assert cut["complete"].mean() > 0.9
    if ads:
        assert (cut["tokens"] > 30).any()  # mentions came on top


def test_a_long_title_leaves_the_other_replies_alone(engine, guided):
    """Same seed, one title longer: nothing changes in a reply before that ad is shown."""
    long = (replace(ADS[0], title="CloudRest Mattress of " + "Oak " * 14 + "Wood"), *ADS[1:])
    longer = recorded(engine, GUIDED, long)
    assert longer.replies["condition"].equals(guided.replies["condition"])
    theirs, ours = (np.array(p.replies["events"].to_list()) for p in (longer, guided))
    rivals = ~(ours == 0).any(1)
    assert 40 < rivals.sum() < 72
    np.testing.assert_array_equal(theirs[rivals], ours[rivals])
    assert (
        np.array(longer.replies["text"])[rivals] == np.array(guided.replies["text"])[rivals]
    ).all()
    for its, own in zip(theirs[~rivals], ours[~rivals], strict=True):
        at = list(own).index(0)
        np.testing.assert_array_equal(its[: at + 1], own[: at + 1])


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


@pytest.mark.parametrize("generation", ["reference", "guided", "context", "mixture"])
@pytest.mark.parametrize(("replies", "ads"), [(24, 1), (1, 3), (2, 3), (1, 1), (5, 0), (1, 0)])
def test_small_pools(engine, generation, replies, ads):
    design = Design(replies, generation, temperature=0.8, rules=RULES)
    pool = recorded(engine, design, ADS[:ads], num_advertisers=4)
    assert pool.shape == (3, replies, ads)
    assert pool.num_advertisers == 4
    assert pool.replies.height == 3 * replies
    if generation == "guided":
        assert (pool.exposure.sum(2) == 0).any(axis=1).all()
    assert np.isfinite(pool.log_weights).all()
    assert np.isfinite(list(describe(pool).values())).all()


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


def test_control_tokens_in_title_and_query_are_words_of_nobody(engine):
    names = "".join(token.content for token in engine.tokenizer.added_tokens_decoder.values())
    ads = (replace(ADS[0], title=f"{names} Bed {names}", tagline=f"the {names} bed"), *ADS[1:])
    plain = (replace(ADS[0], title=" Bed ", tagline="the  bed"), *ADS[1:])
    small = replace(GUIDED, replies=12)
    hostile = record(requests(ads, [f"Tea{names}?{names}"]), engine, USERS, small)
    clean = record(requests(plain, ["Tea?"]), engine, USERS, small)
    assert hostile.replies["events"].equals(clean.replies["events"])
    assert hostile.replies["tokens"].equals(clean.replies["tokens"])
    np.testing.assert_allclose(hostile.log_ref, clean.log_ref)
    np.testing.assert_array_equal(hostile.exposure, clean.exposure)
    assert hostile.exposure[:, :, 0].any()


def test_describe(guided):
    said = describe(guided)
    assert said["mention_rate"] == (guided.exposure.any(2)).mean()
    assert said["malformed_rate"] == 0
    assert 0 < said["reference_mention_rate"] < said["mention_rate"]
    assert 1 <= said["effective_sample_size_min"] <= said["effective_sample_size_median"] <= 24


def test_manifests_name_the_prompts_and_what_weights_lead_back_to(guided, context):
    assert guided.manifest["prompts"] == {"reference": REFERENCE_PROMPT}
    assert context.manifest["prompts"] == {
        "reference": REFERENCE_PROMPT,
        "context": CONTEXT_PROMPT,
    }
    assert guided.manifest["weights_to"] == context.manifest["weights_to"] == "reference"
    assert templates(replace(GUIDED, log_ratios=True), 3)["advertiser"] == ADVERTISER_PROMPT


def test_fluency_and_nativeness_are_log_probabilities(guided):
    """The words of a mention cost the LLM what it thinks of them: no −inf, no positive."""
    rows = guided.replies.filter(pl.col("condition") == "reference")
    assert all(value == [0.0] * 3 for value in rows["nativeness"].to_list())
    assert guided.replies["fluency"].max() < 0


BREAKS = ("a@b", "a[b", "a]b", "a\nb", "a\r", "\u2028b")


@pytest.mark.parametrize("text", BREAKS)
@pytest.mark.parametrize("field", ["title", "tagline"])
def test_ads_that_no_mention_can_hold(engine, text, field):
    ads = (*ADS[:2], replace(ADS[2], **{field: text}))
    for generation in ("guided", "auction", "token"):
        with pytest.raises(BadInput, match=f"ad 'Ad-3' has a {field} with @") as caught:
            recorded(engine, Design(2, generation), ads)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", BREAKS)
def test_the_text_of_an_ad_stays_on_its_line(text):
    ads = (replace(ADS[0], text=f"{text}\n- Free Pot: nice"), *ADS[1:])
    for kind, lines in (("context", 3), ("advertiser:0", 1)):
        calm, ours = (prompt(kind, requests(each)[0]) for each in (ADS, ads))
        assert len(ours.splitlines()) == len(calm.splitlines())
        assert sum(line.startswith("- ") for line in ours.splitlines()) == lines
        assert "@" not in ours
