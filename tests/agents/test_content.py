"""Content-only ads: what moves a reply towards an ad, and nothing else, is attributed to it."""

import re
from dataclasses import replace
from functools import cache
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.content import ContentUsers, counterfactuals_of, shapley_of_largest
from agents.users import BehaviouralUsers
from mechanisms.errors import BadInput
from mechanisms.mentions import render
from mechanisms.pool import ReplyPool
from mechanisms.recording import Request
from mechanisms.recording.design import Written
from mechanisms.recording.measure import measure, reply_table, request_table
from tests.tiny_llm import Copy, needs_model

quick = settings(max_examples=60, deadline=None)
QUERY = "How do I sleep better at night in summer heat?"
BED = Copy("Ad-1", "CloudRest Mattress", "A soft foam bed that stays cool.")
POT = Copy("Ad-2", "Tea Pot", "Brews green leaves for breakfast.")
SHOE = Copy("Ad-3", "Pacelark Nova", "Running trainer with springy sole.")
PLAIN = (
    "To sleep better at night in summer heat, keep the window open.",
    "In summer you sleep better at night if you drink water.",
    "Sleep at night is better without heat, so close the blinds in summer.",
    "How you sleep at night depends on the heat of your room.",
    "Summer heat makes sleep hard, try a fan at night.",
)


class BagEncoder:
    """Texts are sums of unrelated word vectors: near if they share words."""

    model = "bag"

    def embed(self, texts):
        words = [re.findall(r"\w+", text.lower()) for text in texts]
        rows = [sum(map(word_vector, each), np.zeros(256)) for each in words]
        return np.array([row / max(np.linalg.norm(row), 1e-9) for row in rows]).reshape(-1, 256)


@cache
def word_vector(word):
    return np.random.default_rng(list(word.encode())).normal(size=256)


users = ContentUsers(BagEncoder())


def speaks_of(ad, base=PLAIN[0]):
    return f"{base} Many like {render(ad)}, it is: {ad.text}"


def recording(texts, ads=(BED, POT, SHOE), query=QUERY):
    """One request with these replies."""
    asked = [Request("q", query, "u", "A user.", ads, range(len(ads)))]
    written = [[Written(text, "reference", 0.0, -1.0, {}, 9) for text in texts]]
    return asked, measure(asked, written), written


def attributed(texts, ads=(BED, POT, SHOE), by=users, query=QUERY):
    asked, features, _ = recording(texts, ads, query)
    return by(asked, features).ctr[0]


def test_speaking_of_an_ad_raises_its_attribution_alone():
    named = f"{PLAIN[0]} Many like {render(BED)}."
    ctr = attributed([*PLAIN, named, speaks_of(BED), speaks_of(POT)])
    assert (ctr[:5] == 0).all()
    assert 0 <= ctr[5, 0] <= ctr[6, 0] <= 1
    assert ctr[6, 0] > 0.2
    assert ctr[7, 1] > 0.2
    assert (ctr[[5, 6, 7], [1, 2, 2]] == 0).all()
    asked, features, _ = recording([*PLAIN, named, speaks_of(BED)])
    lift = users.lift(asked, features).lift[0]
    assert lift[6, 0] > lift[5, 0] > lift[:5, 0].max()


def test_no_ad_replies_lift_nothing_in_the_mean():
    asked, features, _ = recording([*PLAIN, speaks_of(BED)])
    lift, noise = users.lift(asked, features)
    np.testing.assert_allclose(lift[0, :5].mean(0), 0, atol=1e-12)
    assert (noise > 0).all()
    assert (users.attributions(users.lift(asked, features), features.exposure)[0, :5] == 0).all()


def test_noise_is_a_prediction_interval():
    """Of no-ad replies judged as if each had named an ad, 5 % are attributed anything."""
    rng = np.random.default_rng(0)

    class Noise:
        model = "noise"

        def embed(self, texts):
            """Cosines with the ad (the first axis) are normal, about 0.3."""
            near = np.array([1.0 if "Ad." in t else 0.3 + 0.05 * rng.normal() for t in texts])
            return np.stack([near, np.sqrt(np.maximum(1 - near**2, 0))], axis=1)

    ad = Copy("Ad-1", "An Ad", "text")
    hits = []
    for K in (2, 4, 12):
        ours = ContentUsers(Noise(), full=0.01)
        asked, features, _ = recording(["plain"] * K + [render(ad)] * 50, ads=(ad,))
        drawn = (ours.lift(asked, features) for _ in range(150))
        some = [(ours.attributions(each, features.exposure)[0, K:] > 0).mean() for each in drawn]
        hits.append(np.mean(some))
    np.testing.assert_allclose(hits, 0.05, atol=0.025)


def test_an_ad_that_has_nothing_to_do_with_what_is_said_gets_nothing():
    """Named by its title alone, in a reply about something else, against its own spread."""
    far = Copy("Ad-9", "Zorb", "Concrete drill rental with diesel delivery for quarries abroad.")
    ctr = attributed([*PLAIN, f"{PLAIN[0]} {PLAIN[1]} {PLAIN[2]} {render(far)}"], ads=(far,))
    assert ctr[5, 0] < 0.05


def test_an_ad_that_copies_the_query_gains_nothing_by_it():
    """By plain cosine it would win every reply; what no-ad replies have anyway is not its doing."""
    parrot = replace(POT, text=QUERY)
    texts = [*PLAIN, f"{PLAIN[3]} Many like {render(parrot)}.", PLAIN[3] + f" {render(BED)}."]
    _, features, _ = recording(texts, ads=(BED, parrot, SHOE))
    near = (
        users.encoder.embed(features.text)
        @ users.encoder.embed([f"{ad.title}. {ad.text}" for ad in (BED, parrot, SHOE)]).T
    )
    assert (near[:5, 1] > near[:5, 0] + 0.3).all()
    copied = attributed(texts, ads=(BED, parrot, SHOE))
    honest = attributed(
        [*PLAIN, f"{PLAIN[3]} Many like {render(POT)}.", texts[6]], ads=(BED, POT, SHOE)
    )
    assert copied[5, 1] <= honest[5, 1] + 1e-12
    assert (copied[:5] == 0).all()
    # Nor where a reply keeps closer to the query than no-ad replies do: against an ad of the same
    # title that says nothing else, copying the query gains nothing.
    for title in (render(parrot), f"{render(parrot)} {QUERY}"):
        reply = [*PLAIN, f"{QUERY} {QUERY} {title}"]
        echo, silent = (attributed(reply, ads=(ad,)) for ad in (parrot, replace(POT, text="")))
        assert 0 < echo[5, 0] < silent[5, 0]


@quick
@given(st.permutations(range(3)), st.permutations(range(9)))
def test_permutation_symmetry(ads, replies):
    texts = [*PLAIN, speaks_of(BED), speaks_of(POT), speaks_of(POT, speaks_of(BED)), "Well."]
    listed = (BED, POT, SHOE)
    plain = attributed(texts)
    mixed = attributed([texts[j] for j in replies], ads=tuple(listed[i] for i in ads))
    np.testing.assert_allclose(mixed, plain[np.ix_(replies, ads)], atol=1e-12)


def test_ads_in_one_reply_share_what_it_moves():
    twin = replace(BED, id="Ad-7", title="RestCloud Mattress")
    alone = attributed([*PLAIN, speaks_of(BED)], ads=(BED, twin))
    both = attributed([*PLAIN, speaks_of(BED, speaks_of(twin))], ads=(BED, twin))
    assert alone[5, 1] == 0
    assert both[5, 0] > 0
    assert both[5, 1] > 0
    assert both[5].sum() <= 1
    # with the same words each has half of what one would have
    same = replace(BED, id="Ad-7")
    asked, features, _ = recording([*PLAIN, speaks_of(BED)], ads=(BED, same))
    exposure = features.exposure.copy()
    exposure[0, 5] = True
    moved = users.lift(asked, features)
    halves = users.attributions(moved, exposure)[0, 5]
    whole = users.attributions(moved, features.exposure)[0, 5]
    np.testing.assert_allclose(halves, whole.sum() / 2)


def brute_force(credit):
    """Shapley value over all orders of arrival."""
    n = len(credit)
    total = np.zeros(n)
    orders = list(permutations(range(n)))
    for order in orders:
        reached = 0.0
        for i in order:
            total[i] += max(credit[i] - reached, 0)
            reached = max(reached, credit[i])
    return total / len(orders)


@quick
@given(st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.7, 1.0]) | st.floats(0, 1), max_size=5))
def test_shapley(credit):
    credit = np.array(credit)
    shares = shapley_of_largest(credit)
    np.testing.assert_allclose(shares, brute_force(credit), atol=1e-12)
    assert shares.sum() == pytest.approx(credit.max(initial=0.0))
    assert (shares[credit == 0] == 0).all()


def test_recorded_and_live_judge_alike():
    """With counterfactuals a judgement is a function of the reply alone."""
    texts = [*PLAIN, speaks_of(BED), speaks_of(POT)]
    asked, features, written = recording(texts)
    pool = ReplyPool.from_arrays(
        np.zeros(features.exposure.shape),
        exposure=features.exposure,
        malformed=features.malformed,
        replies=reply_table(written, features),
        requests=request_table(asked),
    )
    known = counterfactuals_of(pool)
    assert known == {QUERY: list(PLAIN)}
    fixed = replace(users, counterfactuals=known)
    everything = attributed(texts, by=fixed)
    np.testing.assert_allclose(everything, attributed(texts), atol=1e-12)
    np.testing.assert_allclose(attributed(texts[5:], by=fixed), everything[5:], atol=1e-12)
    assert fixed.identity != users.identity
    assert users.identity["counterfactuals"] is None
    # a title in a marker that was taken apart is no reply without ads
    with pytest.raises(BadInput, match="no texts"):
        counterfactuals_of(replace(pool, replies=None))
    spoilt = replace(pool, malformed=np.ones(pool.shape[:2]))
    assert counterfactuals_of(spoilt) == {QUERY: []}


def test_satisfaction_is_that_of_other_users():
    asked, features, _ = recording([*PLAIN, speaks_of(BED)])
    ours, theirs = users(asked, features), BehaviouralUsers(BagEncoder())(asked, features)
    np.testing.assert_array_equal(ours.quality, theirs.quality)
    assert ours.provenance["kind"] == "content"
    assert ours.provenance["norms"] == theirs.provenance["norms"]


@pytest.mark.slow  # loads the encoder
@needs_model("all-minilm-l6-v2")
def test_real_embeddings():
    """MiniLM (if cached): the bed that is spoken of is attributed more than one merely named."""
    from mechanisms.llm.encoder import TextEncoder

    real = ContentUsers(TextEncoder())
    named = f"{PLAIN[0]} Many like {render(BED)}."
    ctr = attributed([*PLAIN, named, speaks_of(BED), speaks_of(SHOE)], by=real)
    assert (ctr[:5] == 0).all()
    assert 0 < ctr[5, 0] <= ctr[6, 0] <= 1
    assert ctr[7, 2] > 0.2
    # against an ad that says nothing but its title, copying the query gains nothing
    for text in (f"{QUERY} {{}}", f"{PLAIN[3]} Many like {{}}.", f"{PLAIN[0]} {QUERY} {{}}"):
        parrot, silent = (
            attributed([*PLAIN, text.format(render(ad))], ads=(ad,), by=real)[5, 0]
            for ad in (replace(BED, text=QUERY), replace(BED, text=""))
        )
        assert 0 < parrot < silent


def test_bad_input():
    for texts in ([speaks_of(BED)], [PLAIN[0], speaks_of(BED)]):
        with pytest.raises(BadInput, match="too few to compare"):
            attributed(texts)
    with pytest.raises(BadInput, match="too few to compare"):
        attributed([*PLAIN, speaks_of(BED)], by=replace(users, counterfactuals={}))
    assert (attributed([PLAIN[0]]) == 0).all()  # no ads, nothing to compare
    for wrong in ({"full": 0}, {"full": np.nan}, {"confidence": 1.0}, {"confidence": 0.4}):
        with pytest.raises(BadInput, match=next(iter(wrong))):
            ContentUsers(BagEncoder(), **wrong)
