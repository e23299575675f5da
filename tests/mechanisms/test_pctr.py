"""pCTR: it learns a known click model, exactly reproducibly, and is not moved by titles."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.errors import BadInput
from mechanisms.llm_auction.calibration import auc, calibration, correlation
from mechanisms.llm_auction.impressions import Impressions, examples_of
from mechanisms.llm_auction.pctr import CARD, PCTR, WEIGHTS, Embeddings, Training
from mechanisms.mentions import render
from mechanisms.pool import ReplyPool
from mechanisms.recording import Request
from mechanisms.recording.design import Written
from mechanisms.recording.measure import measure, reply_table, request_table
from tests.tiny_llm import ADS, HashEncoder

quick = settings(max_examples=60, deadline=None)
SHORT = Training(epochs=2, batch=64)


@pytest.fixture(scope="module")
def embeddings():
    return Embeddings(HashEncoder())


def impressions(requests, seed, per_request=6, slope=6.0, users=8):
    """Shown ads with clicks by `σ(−2 + slope·cos(query, ad)) · 0.8^(others)`."""
    rng = np.random.default_rng(seed)
    rows = requests * per_request
    request = np.repeat(np.arange(requests), per_request)
    texts = {
        "query": [f"query {seed} {b}" for b in request],
        "user": [f"u{b % users}" for b in request],
        "profile": [f"profile {b % users}" for b in request],
        "ad": [f"Ad-{i}" for i in rng.integers(30, size=rows)],
        "reply": [f"reply {i}" for i in rng.integers(40, size=rows)],
    }
    texts["copy"] = [f"copy of {ad}" for ad in texts["ad"]]
    embed = Embeddings(HashEncoder())
    near = (embed(texts["query"]) * embed(texts["copy"])).sum(1)
    shown = rng.integers(1, 3, size=rows).astype(float)
    ctr = 0.8 ** (shown - 1) / (1 + np.exp(2 - slope * near))
    return Impressions(
        at=np.stack([request, np.tile(np.arange(per_request), requests), 0 * request], axis=1),
        **{name: np.array(column, dtype=object) for name, column in texts.items()},
        shown=shown,
        place=rng.integers(3, size=rows).astype(float),
        clicks=(rng.random(rows) < ctr).astype(float),
        ctr=ctr.astype(float),
    )


def weights(model):
    return b"".join(each.numpy().tobytes() for each in model.network.state_dict().values())


class TestFit:
    def test_learns_a_known_click_model(self, embeddings):
        learning, held = impressions(600, 0).split(0.3, seed=0)
        model = PCTR.fit(
            learning, embeddings, training=Training(epochs=12, batch=128), validation=held
        )
        last = model.history[-1]
        assert len(model.history) == 12
        assert last["loss"] < model.history[0]["loss"]
        assert last["correlation"] > 0.85
        assert last["auc"] > last["auc_of_truth"] - 0.04
        assert last["calibration_error"] < last["calibration_by_chance"] + 0.04
        predicted = model.predict(held)
        assert predicted.shape == (len(held),)
        assert ((predicted > 0) & (predicted < 1)).all()
        alone = replace(held, shown=np.ones(len(held)))
        crowded = replace(held, shown=np.full(len(held), 2.0))
        assert model.predict(alone).mean() > model.predict(crowded).mean()

    def test_same_seed_same_bytes(self, embeddings):
        rows = impressions(60, 1)
        before = torch.get_rng_state()
        first = PCTR.fit(rows, embeddings, training=SHORT, seed=5, validation=rows)
        assert torch.equal(before, torch.get_rng_state())
        # another process's cache, that has met other texts in another order
        other = Embeddings(HashEncoder())
        other(["something else", *reversed(rows.reply.tolist())])
        again = PCTR.fit(rows, other, training=SHORT, seed=5, validation=rows)
        assert weights(first) == weights(again)
        assert first.history == again.history
        assert weights(first) != weights(PCTR.fit(rows, embeddings, training=SHORT, seed=6))
        # looking at how it goes changes nothing
        assert weights(first) == weights(PCTR.fit(rows, embeddings, training=SHORT, seed=5))

    def test_goes_on_from_an_earlier_state(self, embeddings):
        first, later = impressions(60, 1), impressions(60, 2, users=12)
        start = PCTR.fit(first, embeddings, training=SHORT)
        kept = weights(start)
        still = PCTR.fit(later, embeddings, training=Training(epochs=0), start=start)
        np.testing.assert_array_equal(still.predict(first), start.predict(first))
        assert list(still.users)[: len(start.users)] == list(start.users)
        assert len(still.users) == 12 > len(start.users)
        assert set(still.ads) >= set(start.ads)
        moved = PCTR.fit(later, embeddings, training=SHORT, start=start)
        assert weights(moved) != weights(still)
        assert weights(start) == kept

    def test_follows_a_shift(self, embeddings):
        """Users turn against relevance: the old model is wrong now, and one fit mends it."""
        training = Training(epochs=8, batch=128)
        old = PCTR.fit(impressions(300, 0), embeddings, training=training)
        now = impressions(400, 3, slope=-6.0)
        learning, held = now.split(0.3, seed=1)
        assert old.scores(held)["correlation"] < 0
        new = PCTR.fit(learning, embeddings, training=training, start=old, validation=held)
        assert new.history[-1]["correlation"] > 0.5

    def test_unknown_users_and_ads(self, embeddings):
        rows = impressions(60, 1)
        model = PCTR.fit(rows, embeddings, training=SHORT)
        nobody = replace(rows, user=np.full(len(rows), "?", object), ad=np.full(len(rows), "!"))
        assert np.abs(model.predict(nobody) - model.predict(rows)).max() < 0.2
        assert len(model.predict(rows.take([]))) == 0

    def test_a_flat_truth_is_told_as_none(self, embeddings):
        rows = impressions(20, 1)
        calm = replace(rows, clicks=np.zeros(len(rows)), ctr=np.full(len(rows), np.nan))
        model = PCTR.fit(rows, embeddings, training=SHORT, validation=calm)
        found = model.history[-1]
        assert found["auc"] is found["auc_of_truth"] is found["correlation"] is None
        assert found["calibration_error"] > 0

    def test_bad_input(self, embeddings):
        rows = impressions(5, 1)
        unknown = replace(rows, clicks=np.full(len(rows), np.nan))
        for wrong in ({"examples": rows.take([])}, {"examples": unknown}, {"validation": unknown}):
            given = {"examples": rows, "embeddings": embeddings, **wrong}
            with pytest.raises(BadInput, match=f"{next(iter(wrong))} of a pCTR model"):
                PCTR.fit(given.pop("examples"), given.pop("embeddings"), **given)
        for wrong in ({"epochs": -1}, {"batch": 0}, {"learning_rate": 0}, {"dropout": 1.0}):
            with pytest.raises(BadInput, match=next(iter(wrong))):
                Training(**wrong)


class TestStorage:
    def test_exact(self, embeddings, tmp_path):
        rows = impressions(40, 1)
        model = PCTR.fit(rows, embeddings, training=SHORT, validation=rows)
        found = PCTR.load(model.save(tmp_path / "a"), embeddings)
        assert weights(found) == weights(model)
        assert found.history == model.history
        assert found.training == model.training
        np.testing.assert_array_equal(found.predict(rows), model.predict(rows))
        # going on from it is going on from the model
        on = [PCTR.fit(rows, embeddings, training=SHORT, start=each) for each in (model, found)]
        assert weights(on[0]) == weights(on[1])
        found.save(tmp_path / "b")
        for name in (WEIGHTS, CARD):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    def test_damage(self, embeddings, tmp_path):
        model = PCTR.fit(impressions(5, 1), embeddings, training=SHORT)
        with pytest.raises(BadInput, match="no pCTR model"):
            PCTR.load(tmp_path, embeddings)
        model.save(tmp_path)
        other = HashEncoder()
        other.model = "another"
        with pytest.raises(BadInput, match="another"):
            PCTR.load(tmp_path, Embeddings(other))
        (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:100])
        with pytest.raises(BadInput, match="damaged"):
            PCTR.load(tmp_path, embeddings)
        model.save(tmp_path)
        (tmp_path / CARD).write_text("{}")
        with pytest.raises(BadInput, match="damaged"):
            PCTR.load(tmp_path, embeddings)


# --- impressions ---

TEXTS = (
    "Sleep well. You could try {0}, or {1}. Good night.",
    "Nothing to buy here.",
    "Try {2} first.",
)


def recording(texts=TEXTS, count=2):
    """Requests, what was measured of their replies, and a pool of these."""
    asked = [
        Request(f"q{b}", f"How {b}?", f"u{b}", f"User {b}.", ADS, range(3)) for b in range(count)
    ]
    said = [text.format(*map(render, ADS)) for text in texts]
    written = [[Written(text, "reference", 0.0, 0.0, {}, 9) for text in said]] * count
    features = measure(asked, written)
    rising = np.linspace(0.1, 0.9, 3 * len(texts)).reshape(1, len(texts), 3)
    ctr = np.where(features.exposure, rising, 0.0)
    pool = ReplyPool.from_arrays(
        ctr,
        exposure=features.exposure,
        malformed=features.malformed,
        replies=reply_table(written, features),
        requests=request_table(asked),
    )
    return asked, features, pool


class TestImpressions:
    def test_replies_and_pools_fill_them_alike(self):
        asked, features, pool = recording()
        of = Impressions.of(asked, features)
        copies = {ad.id: f"{ad.title}. {ad.text}" for ad in ADS}
        from_pool = Impressions.of_pool(pool, copies)
        for name in ("at", "query", "user", "profile", "ad", "copy", "reply", "shown", "place"):
            np.testing.assert_array_equal(getattr(of, name), getattr(from_pool, name))
        assert of.at.tolist() == [[b, *at] for b in range(2) for at in ([0, 0], [0, 1], [2, 2])]
        assert of.ad.tolist() == ["Ad-1", "Ad-2", "Ad-3"] * 2
        assert of.shown.tolist() == [2, 2, 1] * 2
        assert of.place.tolist() == [1, 1, 0] * 2
        assert of.reply[0] == "Sleep well. You could try or Good night."
        assert np.isnan(of.clicks).all()
        assert Impressions.of_pool(pool).copy[0] == ADS[0].title
        np.testing.assert_array_equal(of.scattered(of.values(pool.ctr), pool.shape), pool.ctr)

    def test_clicks_come_from_the_probabilities(self):
        _, _, pool = recording()
        rows = examples_of(pool, np.random.default_rng(0), rounds=4000)
        assert len(rows) == 6 * 4000
        rates = rows.clicks.reshape(4000, 6).mean(0)
        truth = Impressions.of_pool(pool).values(pool.ctr)
        np.testing.assert_allclose(rates, truth, atol=4 * 0.5 / np.sqrt(4000))
        np.testing.assert_array_equal(rows.ctr[:6], truth)
        again = examples_of(pool, np.random.default_rng(0), rounds=4000)
        np.testing.assert_array_equal(rows.clicks, again.clicks)
        with pytest.raises(BadInput, match="probabilities"):
            Impressions.of_pool(pool).drawn(pool.ctr + 1, np.random.default_rng(0))

    def test_split_and_stack(self):
        rows = impressions(20, 1)
        kept, held = rows.split(0.25, seed=0)
        assert len(kept) + len(held) == len(rows)
        assert len(np.unique(held.at[:, 0])) == 5
        assert not set(kept.at[:, 0]) & set(held.at[:, 0])
        both = Impressions.stacked([rows, impressions(20, 2), rows.take([])])
        assert len(np.unique(both.at[:, 0])) == 40
        assert rows.at.max() == 19  # untouched
        for share in (0.0, 0.01, 0.99, 1.0):
            with pytest.raises(BadInput, match="share"):
                rows.split(share, seed=0)
        with pytest.raises(BadInput, match="at least one"):
            Impressions.stacked([])

    def test_saying_a_title_again_moves_no_prediction(self, embeddings):
        """The paper's reward hacking, against a fitted model: plain repeats are invisible."""
        model = PCTR.fit(impressions(60, 1), embeddings, training=SHORT)
        hack = " ".join([ADS[0].title] * 20)
        honest = ("Sleep well. You could try {0}. Good night.",)
        cheat = (f"Sleep well. You could try {{0}}. {hack}. {hack.lower()}! Good night.",)
        (asked, fair, _), (_, foul, _) = recording(honest), recording(cheat)
        foul = replace(foul, place=fair.place)
        np.testing.assert_array_equal(
            model.click_probabilities(asked, fair), model.click_probabilities(asked, foul)
        )
        assert (model.click_probabilities(asked, fair)[~fair.exposure] == 0).all()

    def test_bad_input(self):
        _, _, pool = recording()
        with pytest.raises(BadInput, match="no texts"):
            Impressions.of_pool(replace(pool, replies=None))
        with pytest.raises(BadInput, match="different lengths"):
            replace(impressions(3, 1), clicks=np.zeros(2))
        asked, features, _ = recording()
        with pytest.raises(BadInput, match="do not fit"):
            Impressions.of(asked[:1], features)
        assert len(Impressions.of(*recording(("No ads.",))[:2])) == 0


# --- figures of merit ---


@quick
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30))
def test_auc_is_the_chance_to_rank_right(rows):
    scores, clicks = np.array([s for s, _ in rows], float), np.array([c for _, c in rows], float)
    ones, zeros = scores[clicks == 1], scores[clicks == 0]
    if not len(ones) or not len(zeros):
        assert np.isnan(auc(scores, clicks))
        return
    pairs = (ones[:, None] > zeros) + 0.5 * (ones[:, None] == zeros)
    assert auc(scores, clicks) == pytest.approx(pairs.mean())


def test_calibration():
    rng = np.random.default_rng(0)
    truth = rng.beta(2, 20, 20_000)
    errors = []
    for _ in range(20):
        found = calibration(truth, rng.random(len(truth)) < truth)
        errors.append(found.error)
        assert found.count.sum() == len(truth)
        assert (np.diff(found.predicted) > 0).all()
    # faultless predictions show what they show by chance, and no more
    assert np.mean(errors) == pytest.approx(found.by_chance, rel=0.25)
    clicks = rng.random(len(truth)) < truth
    assert calibration(truth + 0.05, clicks).error == pytest.approx(0.05, abs=0.01)
    by_hand = calibration([0.1, 0.2, 0.6, 0.8], [0, 1, 1, 1], bins=2)
    np.testing.assert_allclose(by_hand.observed, [0.5, 1.0])
    assert by_hand.error == pytest.approx((0.35 + 0.3) / 2)
    assert len(calibration([0.5], [1]).count) == 1


def test_correlation():
    x = np.array([0.1, 0.2, 0.4])
    assert correlation(x, 2 * x + 1) == pytest.approx(1)
    assert np.isnan(correlation(x, np.ones(3)))
    for wrong in (([], []), ([0.1], [0.1, 0.2]), ([[0.1]], [[0.2]])):
        for measure_of in (correlation, auc, calibration):
            with pytest.raises(BadInput, match="do not fit"):
                measure_of(*wrong)
