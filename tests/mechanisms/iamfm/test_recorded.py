"""Recorded evaluations: weights, truth and samples against each other and against closed forms."""

from dataclasses import asdict, replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.errors import BadInput
from mechanisms.iamfm.configuration import Steering, full_grid
from mechanisms.iamfm.recorded import Pairs, RecordedEvaluator
from mechanisms.iamfm.reweighing import steered
from mechanisms.iamfm.short import cut_short, with_short
from mechanisms.policies import NOTHING, InsertionPolicy, Rules, reference_policy
from mechanisms.pool import ReplyPool
from mechanisms.recording import Judgement, Request
from tests.tiny_llm import ADS

RULES = Rules()
STEERING = Steering((0.3, 0.9))


def guided_pool(rng, B=3, M=40, n=2, N=3, **design):
    """Replies whose free tokens say nothing: only insertions were drawn, at one decision."""
    events = rng.integers(NOTHING, n, size=(B * M, 1))
    policy = InsertionPolicy("guided", np.full(3, 0.5), np.ones(n))
    back = reference_policy(n, RULES, 0.1)
    exposure = (events == np.arange(n)).reshape(B, M, n)
    free = rng.normal(-50, 5, (B, M))
    said = {
        "generation": "guided",
        "mention_rate": 0.1,
        "inline_rate": 0.0,
        "rules": asdict(RULES),
    }
    return ReplyPool.from_arrays(
        np.where(exposure, rng.random((B, M, n)), 0.0),
        log_ref=free + back.log_density(events).reshape(B, M),
        log_gen=free + policy.log_density(events).reshape(B, M),
        quality=rng.random((B, M)),
        ads=np.stack([rng.permutation(N)[:n] for _ in range(B)]),
        exposure=exposure,
        num_advertisers=N,
        replies=pl.DataFrame(
            {
                "events": pl.Series(events.tolist(), dtype=pl.List(pl.Int64)),
                "tokens": rng.integers(20, 100, B * M),
            }
        ),
        manifest={"design": said | design},
    )


@st.composite
def pools(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, 3))
    return guided_pool(rng, draw(st.integers(1, 4)), 30, n, n + draw(st.integers(0, 2)))


def test_probabilities_by_hand():
    """Weight of a reply: what the configuration inserts over what was inserted."""
    pool = guided_pool(np.random.default_rng(1))
    strengths = np.array([2, 0, 1])
    found = RecordedEvaluator(pool, [strengths], STEERING).probabilities(strengths)
    odds = np.array([0.0, 0.3, 0.9])[strengths]
    events = np.array(pool.replies["events"].to_list()).reshape(3, 40)
    for b in range(3):
        mine = odds[pool.ads[b]]
        target = np.append(mine, 1.0) / (1 + mine.sum())  # the last is NOTHING, index −1
        proposal = np.append(np.full(2, 0.25), 0.5)
        weights = target[events[b]] / proposal[events[b]]
        np.testing.assert_allclose(found[b], weights / weights.sum(), rtol=1e-10)


@settings(max_examples=25, deadline=None)
@given(pools())
def test_the_truth_is_the_mean_under_the_probabilities(pool):
    B, N = len(pool.ads), pool.num_advertisers
    evaluator = RecordedEvaluator(pool, full_grid(N, 2), STEERING)
    truth = evaluator.truth()
    for s in range(0, len(truth), max(1, len(truth) // 7)):
        p = evaluator.probabilities(evaluator.configurations[s])
        expected = pool.by_advertiser(np.einsum("bm,bmn->bn", p, pool.ctr)) / B
        np.testing.assert_allclose(truth[s, :N], expected, atol=1e-12)
        assert truth[s, N] == pytest.approx((p * pool.quality).sum() / B)
        rows = evaluator.configurations[s][pool.ads]
        np.testing.assert_allclose(steered(pool, rows, STEERING), p, atol=1e-14)
        unsponsored = evaluator.configurations[s] == 0
        assert (truth[s, :N][unsponsored] == 0).all()


def test_samples_agree_with_the_truth():
    pool = guided_pool(np.random.default_rng(2), B=4, M=50)
    evaluator = RecordedEvaluator(pool, full_grid(3, 2), STEERING, seed=5)
    which = np.array([0, 5, 13, 26])
    outcomes, tokens = evaluator.sample(which, 0, 0, 20_000)
    error = outcomes.std(axis=1) / np.sqrt(outcomes.shape[1])
    assert (np.abs(outcomes.mean(axis=1) - evaluator.truth()[which]) < 4.5 * error + 1e-12).all()
    assert tokens.max() <= evaluator.levels[0].tokens
    assert (outcomes[0, :, :3] == 0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3000), st.integers(1, 1500), st.integers(0, 5))
def test_pairs_do_not_depend_on_how_far_one_has_sampled(start, count, seed):
    pairs = Pairs(seed, 7)
    requests, uniforms = pairs.take(0, start + count)
    mine = pairs.take(start, start + count)
    np.testing.assert_array_equal(mine[0], requests[start:])
    np.testing.assert_array_equal(mine[1], uniforms[start:])
    assert uniforms.max() < 1
    assert set(np.unique(requests)) <= set(range(7))


def test_common_random_numbers_and_fresh_ones():
    pool = guided_pool(np.random.default_rng(3))
    evaluator = RecordedEvaluator(pool, full_grid(3, 2), STEERING)
    both, _ = evaluator.sample(np.array([13, 14]), 0, 0, 4000)
    alone, _ = evaluator.sample(np.array([14]), 0, 1000, 4000)
    np.testing.assert_array_equal(both[1, 1000:], alone[0])
    gap = both[1] - both[0]
    apart = both.var(axis=1).sum(axis=0)  # of the difference, were they independent
    assert (gap.var(axis=0) < 0.7 * apart).all()
    other, _ = evaluator.reseeded(1).sample(np.array([13, 14]), 0, 0, 4000)
    assert not np.array_equal(other, both)
    np.testing.assert_array_equal(
        evaluator.reseeded(0).sample(np.array([13]), 0, 0, 9)[0], both[:1, :9]
    )


def test_support_counts_replies():
    pool = guided_pool(np.random.default_rng(4))
    nobody = RecordedEvaluator(pool, [[0, 0, 0]], STEERING).support()
    # without ads all replies that show none weigh the same
    counts = (~pool.exposure.any(axis=2)).sum(axis=1)
    assert nobody["effective_sample_size_min"] == pytest.approx(counts.min())
    assert nobody["effective_sample_size_median"] == pytest.approx(np.median(counts))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"generation": "mixture"}, "generation 'mixture'"),
        ({"inline_rate": 0.01}, "inline_rate above 0"),
    ],
)
def test_other_pools_are_refused(change, told):
    pool = guided_pool(np.random.default_rng(0), **change)
    with pytest.raises(BadInput, match=told):
        RecordedEvaluator(pool, [[0, 0, 0]], STEERING)


def test_what_does_not_fit_is_refused():
    pool = guided_pool(np.random.default_rng(0))
    plain = replace(pool, replies=None)
    drawn = ReplyPool.synthetic(2, 5, 2, np.random.default_rng(0))
    for given_pool, told in ((plain, "does not tell"), (drawn, "synthetic")):
        with pytest.raises(BadInput, match=told):
            RecordedEvaluator(given_pool, [[0] * given_pool.num_advertisers], STEERING)
    with pytest.raises(BadInput, match="no level 'short'"):
        RecordedEvaluator(pool, [[0, 0, 0]], STEERING, levels=["short", "full"])
    with pytest.raises(BadInput, match="3 advertisers"):
        RecordedEvaluator(pool, [[0, 0]], STEERING)
    with pytest.raises(BadInput, match="range from"):
        RecordedEvaluator(pool, [[0, 0, 3]], STEERING)
    with pytest.raises(BadInput, match="could have written"):
        always = replace(pool, replies=pool.replies.with_columns(events=pl.lit([0])))
        RecordedEvaluator(always, [[0, 0, 0]], STEERING)


FIRST = "Keep the room cool."
MENTION = "You could try @Tea Pot@[Ad-2] (a pot), which is warm."


def test_cutting_short():
    whole = f"{FIRST} Sleep early. Read a book."
    part, tokens = cut_short(whole, NOTHING, 30, 40)
    assert part == FIRST
    assert tokens == -(-len(FIRST) * 30 // len(whole))
    part, tokens = cut_short(f"{FIRST} {MENTION} Then sleep.", 1, 40, 40)
    assert part == f"{FIRST} You could try @Tea Pot@[Ad-2] (a pot)."
    assert 10 < tokens < 40
    assert cut_short("Keep the room", -2, 4, 40) == ("Keep the room", 4)
    # a first sentence beyond the limit: cut to its last clause, and nobody is shown
    part, tokens = cut_short(f"Keep the room, {'and ' * 40}cool. {MENTION}", 1, 70, 20)
    assert (part, tokens) == ("Keep the room.", 20)


def test_short_replies_are_judged_anew():
    texts = [f"{FIRST} Sleep early.", f"{FIRST} {MENTION}", f"{FIRST} Yes, early. {MENTION}"]
    events = [[NOTHING, NOTHING], [1, NOTHING], [NOTHING, 1]]
    base = guided_pool(np.random.default_rng(0), B=1, M=3, n=2)
    shown = np.array([[[0, 0], [0, 1], [0, 1]]], dtype=bool)
    table = pl.DataFrame(
        {
            "text": texts,
            "events": events,
            "tokens": [9, 25, 28],
            "condition": ["guided"] * 3,
            "log_free": [-9.0] * 3,
            "fluency": [-1.0] * 3,
            "nativeness": [[0.0, 0.0], [0.0, -3.0], [0.0, -4.0]],
        }
    )
    request = Request("Query-1", "How?", "User-1", "A user.", ADS[:2], (0, 1))
    pool = replace(
        base,
        exposure=shown,
        ctr=shown * 0.5,
        ads=np.array([[0, 1]]),
        replies=table,
        requests=pl.DataFrame({"query": ["How?"]}),
    )
    seen = []

    def users(requests, features):
        seen.append(features)
        return Judgement(features.exposure * 0.25, features.sentences / 10)

    pool = with_short(pool, [request], users)
    (features,) = seen
    assert features.exposure[0, :, 1].tolist() == [False, True, False]  # what comes later is unseen
    assert features.nativeness[0, 1, 1] == -3.0
    evaluator = RecordedEvaluator(pool, [[1, 2, 0], [2, 2, 2]], STEERING)
    assert [level.name for level in evaluator.levels] == ["short", "full"]
    assert [level.biased for level in evaluator.levels] == [True, False]
    assert evaluator.levels[0].tokens < evaluator.levels[1].tokens == 28
    assert evaluator.truth(0)[0, 1] < evaluator.truth()[0, 1]
    cheap, few = evaluator.sample(np.array([0]), 0, 0, 500)
    full, many = evaluator.sample(np.array([0]), 1, 0, 500)
    assert (few < many).all()
    assert set(np.unique(cheap[0, :, 1])) == {0.0, 0.25}
    assert set(np.unique(full[0, :, 1])) == {0.0, 0.5}
    assert (full[0, cheap[0, :, 1] > 0, 1] > 0).all()  # the same replies at both levels
    with pytest.raises(BadInput, match="not the requests"):
        with_short(pool, [replace(request, query="Why?")], users)
