"""Agreement of two models of the user: measures by their definitions, and on a recorded pool."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from agents.judge import JudgeSettings, JudgingUsers
from agents.users import BehaviouralUsers
from experiments import plots
from experiments.agreement import (
    agreement,
    expected_auc,
    features_of,
    kappa,
    section,
    spearman,
    user_agreement,
)
from mechanisms.errors import BadInput
from mechanisms.policies import Rules
from mechanisms.pool import ReplyPool
from mechanisms.recording import Design, Features, Request, load_pool, record, save_pool
from tests.tiny_llm import ADS, HashEncoder

quick = settings(max_examples=60, deadline=None)
# Few levels, so that there are ties.
rates = arrays(float, 12, elements=st.integers(1, 8).map(lambda k: k / 10))


@quick
@given(rates, rates)
def test_measures_by_their_definitions(p, q):
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j]
    weight = np.array([p[i] * (1 - p[j]) for i, j in pairs])
    wins = np.array([(q[i] > q[j]) + (q[i] == q[j]) / 2 for i, j in pairs])
    assert expected_auc(p, q) == pytest.approx(weight @ wins / weight.sum())
    if np.ptp(p) and np.ptp(q):
        assert spearman(p, q) == pytest.approx(spearmanr(p, q)[0])
    else:
        assert np.isnan(spearman(p, q))


@quick
@given(rates)
def test_no_score_beats_the_probabilities_themselves(p):
    rng = np.random.default_rng(0)
    best = expected_auc(p, p)
    assert expected_auc(p, p**3) == pytest.approx(best)
    assert all(expected_auc(p, rng.random(12)) <= best + 1e-12 for _ in range(20))
    assert expected_auc(p, -p) == pytest.approx(1 - best)


def test_auc_of_clicks_drawn():
    """In expectation over clicks: the mean over many draws, each weighed by its pairs."""
    rng = np.random.default_rng(0)
    p, q = rng.random(30) * 0.5, rng.random(30)
    q += p
    above = (q[:, None] > q) + (q[:, None] == q) / 2
    clicks = rng.random((20_000, 30)) < p
    wins = np.einsum("ri,ij,rj->r", clicks, above, ~clicks)
    pairs = clicks.sum(1) * (~clicks).sum(1)
    assert expected_auc(p, q) == pytest.approx(wins.sum() / pairs.sum(), abs=2e-3)


def test_kappa_by_hand():
    p = np.array([1.0, 2, 3, 4, 5, 6, 7, 8]) / 10
    assert kappa(p, p, 0.25) == 1
    assert kappa(p, -p, 0.25) == pytest.approx((0.5 - 0.625) / 0.375)
    q = p[[0, 1, 2, 3, 4, 7, 6, 5]]  # one of the two best is another's
    assert kappa(p, q, 0.25) == pytest.approx((0.75 - 0.625) / 0.375)
    assert np.isnan(kappa(np.ones(8), np.ones(8), 0.25))


def truth(requests=40, replies=6, ads=3, seed=0):
    rng = np.random.default_rng(seed)
    exposure = rng.random((requests, replies, ads)) < 0.5
    of_request = rng.normal(0, 0.5, (requests, 1, 1))
    ctr = 1 / (1 + np.exp(2 - of_request - rng.normal(size=exposure.shape)))
    return exposure, np.where(exposure, ctr, 0.0), rng


def test_models_that_agree():
    """One is the other on another scale: all that ranks is at its best."""
    exposure, ctr, rng = truth()
    found = agreement(exposure, ctr, ctr**2 / 3, rng)
    assert found.spearman == pytest.approx((1, 1, 1))
    assert found.within.mean == pytest.approx(1)
    assert found.kappa.mean == pytest.approx(1)
    assert found.auc.mean == pytest.approx(found.ceilings[0])
    assert found.auc_back.mean == pytest.approx(found.ceilings[1])
    assert 0.6 < found.ceilings[0] < 0.8


def test_models_that_have_nothing_in_common(monkeypatch):
    monkeypatch.setattr("experiments.agreement.RESAMPLES", 200)
    covered = 0
    for seed in range(10):
        exposure, ctr, rng = truth(seed=seed)
        other = np.where(exposure, rng.random(exposure.shape) * 0.2, 0.0)
        found = agreement(exposure, ctr, other, rng)
        for estimate, chance in (
            (found.spearman, 0), (found.within, 0), (found.auc, 0.5), (found.kappa, 0)
        ):  # fmt: skip
            covered += estimate.low <= chance <= estimate.high
    assert covered >= 33  # of 40; 38 expected


def test_intervals_are_over_requests():
    """The same pairs told a hundred times over are no more evidence."""
    exposure, ctr, rng = truth(requests=10)
    other = np.where(exposure, np.clip(ctr + rng.normal(0, 0.2, ctr.shape), 0.01, 0.9), 0)
    once = agreement(exposure, ctr, other, np.random.default_rng(1))
    often = agreement(
        *(np.repeat(x, 20, axis=1) for x in (exposure, ctr, other)), np.random.default_rng(1)
    )
    assert often.spearman.mean == pytest.approx(once.spearman.mean, abs=1e-3)
    width = once.spearman.high - once.spearman.low
    assert often.spearman.high - often.spearman.low == pytest.approx(width, rel=0.05)


def test_pairs_that_are_not_shown_do_not_count():
    exposure, ctr, rng = truth()
    noise = np.where(exposure, ctr, rng.random(ctr.shape))
    assert agreement(exposure, ctr, noise, rng).spearman.mean == pytest.approx(1)


def test_what_a_page_shows(tmp_path):
    exposure, ctr, rng = truth()
    found = agreement(exposure, ctr, np.where(exposure, ctr + 0.1, 0), rng, names=("A", "B"))
    shown = section(found)
    assert plots.save(shown.figure, tmp_path / "figure.png", dpi=50).stat().st_size > 5000
    assert f"over {int(exposure.sum())} ads shown" in shown.caption
    assert "replies to 40 requests" in shown.caption
    frame = shown.table.frame
    assert {column.name for column in shown.table.columns} <= set(frame.columns)
    assert frame.height == 5
    assert frame["measure"].str.contains("AUC of B for clicks of A").any()
    assert (frame["value_low"] <= frame["value"] + 1e-9).all()


REQUESTS = [
    Request(f"Query-{b}", text, "User-1", "A user.", ADS, range(3))
    for b, text in enumerate(("How do I sleep?", "Which tea is best?", "Beds?", "Pots?"))
]


@pytest.fixture(scope="module")
def pool(engine, tmp_path_factory):
    design = Design(8, rules=Rules(max_tokens=24))
    pool = record(REQUESTS, engine, BehaviouralUsers(HashEncoder()), design)
    return load_pool(save_pool(pool, tmp_path_factory.mktemp("agreement") / "pool"))


def test_features_are_those_that_users_saw(engine, pool):
    seen = []

    def spy(requests, measured):
        seen.append(measured)
        return BehaviouralUsers(HashEncoder())(requests, measured)

    record(REQUESTS, engine, spy, Design(8, rules=Rules(max_tokens=24)))
    again = features_of(pool)
    assert again.text == seen[0].text
    for name in Features.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(seen[0], name))


def test_a_pool_judged_again(engine, pool):
    judge = JudgingUsers(engine, JudgeSettings("score"))
    found = user_agreement(pool, REQUESTS, judge, np.random.default_rng(0))
    assert found.ctr.shape == (2, pool.exposure.sum())
    np.testing.assert_array_equal(found.ctr[0], pool.ctr[pool.exposure])
    some = user_agreement(pool, REQUESTS, judge, np.random.default_rng(0), count=3)
    assert some.requests == 3
    drawn = np.sort(np.random.default_rng(0).permutation(4)[:3])
    np.testing.assert_array_equal(some.ctr[0], pool.ctr[drawn][pool.exposure[drawn]])
    theirs = found.ctr[1][np.isin(np.nonzero(pool.exposure)[0], drawn)]
    np.testing.assert_allclose(some.ctr[1], theirs, rtol=1e-4)


def judged_by(pool, users):
    return replace(pool, manifest={**pool.manifest, "users": users})


def test_the_first_model_is_named_as_the_manifest_names_it(engine, pool):
    judge, rng = JudgingUsers(engine, JudgeSettings("score")), np.random.default_rng(0)
    assert user_agreement(pool, REQUESTS, judge, rng).names == ("behavioural users", "User-LLM")
    other = judged_by(pool, {"kind": "user-llm"})
    assert user_agreement(other, REQUESTS, judge, rng).names == ("the pool's User-LLM", "User-LLM")
    with pytest.raises(BadInput, match="users content judged this pool, and their ctr is not of"):
        user_agreement(judged_by(pool, {"kind": "content"}), REQUESTS, judge, rng)


def test_bad_input(pool):
    judge, rng = JudgingUsers(None, JudgeSettings("score")), np.random.default_rng(0)
    synthetic = ReplyPool.synthetic(4, 8, 3, rng)
    with pytest.raises(BadInput, match="not recorded from an LLM"):
        user_agreement(synthetic, REQUESTS, judge, rng)
    with pytest.raises(BadInput, match="not those of the pool"):
        user_agreement(pool, REQUESTS[::-1], judge, rng)
    exposure, ctr, _ = truth(requests=1)
    with pytest.raises(BadInput, match="1 requests show an ad"):
        agreement(exposure, ctr, ctr, rng)
    exposure, ctr, _ = truth()
    with pytest.raises(BadInput, match="top is 1"):
        agreement(exposure, ctr, ctr, rng, top=1)
