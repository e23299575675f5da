"""The behavioural users: every driver pushes clicks and satisfaction the way it should."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from agents.users import BehaviouralUsers, ClickCoefficients, Norms, SatisfactionCoefficients
from market.catalog import Catalog
from mechanisms.errors import BadInput
from mechanisms.recording import Features, Request
from tests.tiny_llm import ADS, HashEncoder, needs_model

GEM_BENCH = Path(
    os.environ.get("ADMARKET_GEM_BENCH", Path(__file__).parents[2].parent / "shared/data/gem-bench")
)
quick = settings(max_examples=60, deadline=None)
NATIVE, SCALE, FLUENT = -9.0, 1.7, -0.4
NORMS = Norms(NATIVE, SCALE, FLUENT, 0.15)
users = BehaviouralUsers(HashEncoder(), norms=NORMS)


def features(exposure, **measured):
    """Features of replies with `exposure` (B, M, n), all else the same everywhere."""
    exposure = np.asarray(exposure, dtype=bool)
    B, M, _ = exposure.shape
    plain = {
        "text": [f"reply {j}" for j in range(B * M)],
        "exposure": exposure,
        "nativeness": np.where(exposure, NATIVE, 0.0),
        "place": np.where(exposure, 1.0, 0.0),
        "sentences": np.full((B, M), 3.0),
        "fluency": np.full((B, M), FLUENT),
        "complete": np.ones((B, M), dtype=bool),
        "malformed": np.zeros((B, M)),
    }
    return Features(**{**plain, **measured})


def clicks(measured, to_query=0.3, to_user=0.1):
    shape = measured.exposure.shape[0], measured.exposure.shape[2]
    shown = measured.exposure.sum(2)
    return users.click_probabilities(
        measured, NORMS, np.broadcast_to(to_query, shape), np.broadcast_to(to_user, shape), shown
    )


def rises(x):
    return (np.diff(x) > 0).all()


def test_clicks_rise_with_relevance_and_profile():
    n = 9
    cosines = np.linspace(-1, 1, n)
    exposure = np.eye(n, dtype=bool)[None]  # each ad alone in a reply
    for name in ("to_query", "to_user"):
        ctr = clicks(features(exposure), **{name: cosines})[0]
        assert rises(ctr.diagonal())
        assert (ctr[~exposure[0]] == 0).all()


def test_clicks_fall_with_place():
    exposure = np.ones((1, 6, 1), dtype=bool)
    ctr = clicks(features(exposure, place=np.arange(6.0).reshape(1, 6, 1)))[0, :, 0]
    np.testing.assert_allclose(ctr[1:] / ctr[:-1], 0.85)
    # a mention that nobody reads past keeps its first place's clicks
    assert ctr[0] == pytest.approx(users.attraction(0.3, 0.1, 0.0))


def test_clicks_fall_with_the_number_of_ads():
    exposure = np.tril(np.ones((4, 4), dtype=bool))[None]  # one ad, two, three, four
    ctr = clicks(features(exposure))[0, :, 0]
    np.testing.assert_allclose(ctr[1:] / ctr[:-1], 0.8)


def test_clicks_rise_with_nativeness_up_to_a_point():
    native = NATIVE + SCALE * np.array([-50.0, -2.0, -1.0, 0.0, 0.5, 2.0, 50.0])
    exposure = np.ones((1, len(native), 1), dtype=bool)
    ctr = clicks(features(exposure, nativeness=native.reshape(1, -1, 1)))[0, :, 0]
    assert rises(ctr[1:6])
    assert ctr[0] == ctr[1]
    assert ctr[5] == ctr[6]
    expected = 0.85 * users.attraction(0.3, 0.1, np.array([-2.0, -1.0, 0.0, 0.5, 2.0]))
    np.testing.assert_allclose(ctr[1:6], expected)


def test_log_probabilities_count_within_their_recording():
    """Another LLM or temperature, all log-probabilities shifted and stretched: the same users."""
    rng = np.random.default_rng(0)
    exposure = rng.random((4, 6, 3)) < 0.6
    native, fluent = rng.normal(NATIVE, SCALE, (4, 6, 3)), rng.normal(FLUENT, 0.1, (4, 6))
    asked = [Request("q", f"query {b}", "u", "A user.", ADS, range(3)) for b in range(4)]

    def recording(shift, stretch):
        shown = np.where(exposure, shift + stretch * native, 0.0)
        return features(exposure, nativeness=shown, fluency=shift + stretch * fluent)

    def z(x):
        return np.clip((x - x.mean()) / x.std(), -2, 2)

    self_made = BehaviouralUsers(HashEncoder())
    plain, other = recording(0, 1), recording(-30, 2.5)
    ours, theirs = self_made(asked, plain), self_made(asked, other)
    np.testing.assert_allclose(theirs.ctr, ours.ctr)
    np.testing.assert_allclose(theirs.quality, ours.quality)
    norms = Norms.of(plain)
    assert norms.nativeness_mean == pytest.approx(native[exposure].mean())  # of those shown
    assert ours.provenance["norms"] == vars(norms)
    given = replace(users, norms=norms)
    np.testing.assert_array_equal(given(asked, plain).ctr, ours.ctr)
    assert np.abs(given(asked, other).ctr - ours.ctr).max() > 0.01
    # by the words of the formula
    to_query, to_user = (
        self_made.relevance([r.ads for r in asked], texts)[:, None]
        for texts in ([r.query for r in asked], [r.user for r in asked])
    )
    standard = np.zeros_like(native)
    standard[exposure] = z(native[exposure])
    others = exposure.sum(2, keepdims=True) - 1.0
    attracted = users.attraction(to_query, to_user, standard)
    expected = np.where(exposure, 0.85 * 0.8**others * attracted, 0)
    np.testing.assert_allclose(ours.ctr, expected)
    same = replace(plain, text=["same"] * 24, exposure=np.zeros_like(exposure))
    judged = self_made(asked, same).quality
    logits = np.log(judged / (1 - judged))
    np.testing.assert_allclose(
        logits - logits.mean(1, keepdims=True),
        0.3 * (z(fluent) - z(fluent).mean(1, keepdims=True)),
        atol=1e-9,
    )


def test_norms_where_nothing_varies_or_nothing_is_shown():
    one = Norms.of(features([[[1]]]))
    assert vars(one) == pytest.approx(
        {"nativeness_mean": NATIVE, "nativeness_scale": 1, "fluency_mean": FLUENT}
        | {"fluency_scale": 1}
    )
    assert Norms.of(features([[[0]]])).nativeness_mean == 0
    assert Norms.of(features([[[0]]])).nativeness_scale == 1
    none = Norms.of(features(np.zeros((2, 3, 0))))
    assert np.isfinite(list(vars(none).values())).all()


@quick
@given(
    st.integers(0, 2**32 - 1),
    st.floats(-200, 0),
    st.floats(0, 40),
    st.sampled_from([users, BehaviouralUsers(HashEncoder())]),
)
def test_ranges(seed, log_prob, place, users):
    """Click probabilities lie in (0, 1) where shown and are 0 elsewhere; satisfaction in [0, 1]."""
    rng = np.random.default_rng(seed)
    B, M, n = rng.integers(1, 4, 3)
    exposure = rng.random((B, M, n)) < 0.5
    measured = features(
        exposure,
        nativeness=np.where(exposure, log_prob * rng.random((B, M, n)), 0),
        place=np.where(exposure, np.floor(place * rng.random((B, M, n))), 0),
        fluency=log_prob * rng.random((B, M)),
        malformed=rng.integers(0, 9, (B, M)).astype(float),
        complete=rng.random((B, M)) < 0.5,
    )
    asked = [Request("q", f"query {b}", "u", "A user.", ADS[:n], range(n)) for b in range(B)]
    judged = users(asked, measured)
    assert judged.ctr.shape == exposure.shape
    assert (judged.ctr[~exposure] == 0).all()
    assert (judged.ctr[exposure] > 0).all()
    assert (judged.ctr < 1).all()
    assert judged.quality.shape == (B, M)
    assert ((judged.quality >= 0) & (judged.quality <= 1)).all()


def test_satisfaction():
    asked = [Request("q", "How do I sleep?", "u", "A user.", ADS, range(3))]
    same = {"text": ["Sleep well."] * 5}

    def quality(measured, to_query=0.2):
        shown = measured.exposure.sum(2)
        return users.quality(asked, measured, NORMS, np.full((1, 3), to_query), shown)[0]

    none = np.zeros((1, 5, 3), dtype=bool)
    fluency = FLUENT + np.linspace(-1, 1, 5) / 10
    assert rises(quality(features(none, fluency=fluency[None], **same)))
    malformed = np.arange(5.0)[None]
    assert rises(-quality(features(none, malformed=malformed, **same)))
    half = np.array([[False, True, False, True, True]])
    complete = quality(features(none, complete=half, **same))
    assert (complete[half[0]] > complete[0]).all()
    # An irrelevant ad costs, each one more; a relevant one costs less, or even helps.
    more = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)[None]
    assert rises(-quality(features(more, **same), to_query=0.2)[:4])
    assert rises(quality(features(more, **same), to_query=0.9)[:4])
    # What answers the query (here word for word) is worth more than what does not.
    said = {"text": ["How do I sleep?", "a", "b", "c", "How do I @sleep@[Ad-1]?"]}
    answer = quality(features(none, **said))
    assert answer[0] == answer.max() == pytest.approx(answer[4])


def test_judgement_reads_query_user_and_ad():
    """The cosines are of each request's own ads with its own query and user."""
    exposure = np.ones((2, 1, 2), dtype=bool)
    asked = [
        Request("q", "Tea Pot. Keeps tea warm.", "u", "A user.", ADS[:2], range(2)),
        Request("q", "Something else.", "u", f"{ADS[0].title}. {ADS[0].text}", ADS[:2], range(2)),
    ]
    to_query = users.relevance([r.ads for r in asked], [r.query for r in asked])
    assert to_query[0, 1] == pytest.approx(1)
    assert np.abs(to_query).ravel()[[0, 2, 3]].max() < 0.9
    to_user = users.relevance([r.ads for r in asked], [r.user for r in asked])
    assert to_user[1, 0] == pytest.approx(1)
    ctr = users(asked, features(exposure)).ctr
    assert ctr[0, 0, 1] > ctr[0, 0, 0]
    expected = 0.85 * 0.8 * users.attraction(to_query, to_user, 0.0)
    np.testing.assert_allclose(ctr[:, 0], expected)


def test_coefficients():
    for name in ("carry_on", "share_attention"):
        for wrong in (0, -0.1, 1.1, float("nan")):
            with pytest.raises(BadInput, match=name):
                ClickCoefficients(**{name: wrong})
        ClickCoefficients(**{name: 1.0})
    keen = replace(users, clicks=ClickCoefficients(intercept=0.0))
    assert keen.attraction(0, 0, 0) == pytest.approx(0.5)
    generous = replace(users, satisfaction=SatisfactionCoefficients(per_ad=0.0, ad_relevance=0.0))
    asked = [Request("q", "x", "u", "y", ADS, range(3))]
    measured = features([[[1, 1, 1], [0, 0, 0]]], text=["same", "same"])
    assert np.ptp(generous(asked, measured).quality) == pytest.approx(0)


# --- against human labels ---


def auc(scores, labels):
    """Chance that a relevant item scores above one that is not (ties count half)."""
    positive = labels.sum()
    ranks = rankdata(scores)[labels == 1].sum()
    return (ranks - positive * (positive + 1) / 2) / (positive * (len(labels) - positive))


@pytest.fixture(scope="module")
def judged():
    """Attraction (Q, A) of every ad for every labelled query; label, −1 where there is none."""
    from mechanisms.llm.encoder import TextEncoder

    real = BehaviouralUsers(TextEncoder())
    catalog = Catalog.gem_bench(GEM_BENCH)
    asked = sorted({query for query, _ in catalog.relevance})
    texts = {query.id: query.text for query in catalog.queries}
    to_query = real.relevance([catalog.ads] * len(asked), [texts[query] for query in asked])
    column = {ad.id: i for i, ad in enumerate(catalog.ads)}
    labels = np.full(to_query.shape, -1)
    for (query, ad), label in catalog.relevance.items():
        labels[asked.index(query), column[ad]] = label
    return real.attraction(to_query, 0.0, 0.0), labels


def mean_and_error(each):
    return np.mean(each), np.std(each) / np.sqrt(len(each))


@pytest.mark.slow  # embeds 1,247 ads: some 25 s on one thread
@pytest.mark.skipif(not GEM_BENCH.is_dir(), reason="gem-bench data not found")
@needs_model("all-minilm-l6-v2")
class TestHumanLabels:
    """Attraction by all-MiniLM-L6-v2 (if cached) against gem-bench's human relevance labels."""

    def test_hard_cases(self, judged, capsys):
        """Every query's products were found by a search for it.

        So labels tell hard cases apart: which of twenty bone broths, or parts of pressure washers.
        The cosine of a query of three words with an ad does that somewhat better than chance;
        across queries it compares less well.
        """
        attraction, labels = judged
        known = labels >= 0
        mean, error = mean_and_error(
            [auc(a[k], y[k]) for a, y, k in zip(attraction, labels, known, strict=True)]
        )
        pooled = auc(attraction[known], labels[known])
        with capsys.disabled():
            print(f"\nAUC within a query {mean:.3f} ± {error:.3f} (mean of {len(labels)} queries)")
            print(f"AUC pooled {pooled:.3f} ({known.sum()} pairs)")
        assert len(labels) == 70
        assert known.sum() == 1248
        assert mean - 4 * error > 0.5
        assert mean > 0.61
        assert pooled > 0.56

    def test_easy_cases(self, judged, capsys):
        """Relevant ads against the products of other queries: what retrieval has to tell apart."""
        attraction, labels = judged
        mean, error = mean_and_error(
            [
                auc(a[y != 0], (y[y != 0] == 1).astype(int))
                for a, y in zip(attraction, labels, strict=True)
            ]
        )
        use = labels != 0
        pooled = auc(attraction[use], (labels[use] == 1).astype(int))
        with capsys.disabled():
            print(f"\nAUC, products of other queries {mean:.3f} ± {error:.3f}, pooled {pooled:.3f}")
        assert mean > 0.94
        assert pooled > 0.95
