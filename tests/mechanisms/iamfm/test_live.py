"""Live evaluations with the tiny LLM: agreement with recorded ones, streams, and limits."""

from dataclasses import replace

import numpy as np
import pytest

from agents.users import BehaviouralUsers
from mechanisms.errors import BadInput
from mechanisms.iamfm.configuration import Steering
from mechanisms.iamfm.evaluations import Evaluations, TokenBudget
from mechanisms.iamfm.exposure import live_exposure, recorded_exposure
from mechanisms.iamfm.live import LiveEvaluator
from mechanisms.iamfm.recorded import RecordedEvaluator
from mechanisms.iamfm.short import with_short
from mechanisms.mentions import MENTION
from mechanisms.policies import UNREACHED, Rules
from mechanisms.recording import Design, Judgement, Request, record
from tests.tiny_llm import ADS, Copy, HashEncoder

QUERIES = ("How do I sleep better?", "Which tea is good?")
# `loop` out of reach, since the tiny LLM repeats itself; no room, so that the first decision is
# offered to short replies where it is offered to full ones
DESIGN = Design(replies=240, temperature=0.8, rules=Rules(max_tokens=48, room=0, loop=10**6))
STEERING = Steering((0.3, 1.0))
CONFIGURATIONS = np.array([[0, 0, 0], [2, 1, 0], [1, 2, 2]])
# One-word titles that the tiny LLM writes by itself.
WORDS = (Copy("Ad-1", "like"), Copy("Ad-2", "just"), Copy("Ad-3", "less"))


def requests(ads=ADS):
    return [
        Request(f"Query-{b}", query, f"User-{b}", f"User {b}.", ads, np.roll(range(3), b))
        for b, query in enumerate(QUERIES)
    ]


def users(requests, features):
    """Clicks fall with the place; satisfaction is a matter of length."""
    ctr = np.where(features.exposure, 0.8**features.place, 0.0)
    return Judgement(ctr, np.minimum(features.sentences / 4, 1.0))


def live(engine, ads=ADS, **options):
    options = {"design": DESIGN, "steering": STEERING, "short_tokens": 48} | options
    return LiveEvaluator(engine, requests(ads), users, CONFIGURATIONS, **options)


@pytest.fixture(scope="module")
def pool(engine):
    recorded = record(requests(), engine, users, DESIGN, seed=3)
    return with_short(recorded, requests(), users, limit=48)


@pytest.fixture(scope="module")
def samples(engine):
    """By level: outcomes and tokens of all configurations on the same pairs."""
    evaluator = live(engine, seed=1)
    return [evaluator.sample(np.arange(3), level, 0, 120) for level in (0, 1)]


def error_of_truth(evaluator, level, strengths, pool):
    """(N + 1) standard error of the pool's expectation, from its weights (delta method)."""
    p = evaluator.probabilities(strengths)
    ctr, quality = (
        (pool.ctr, pool.quality)
        if level
        else (pool.extras["short_ctr"], pool.extras["short_quality"])
    )
    outcomes = np.zeros((*p.shape, 4))
    np.put_along_axis(outcomes, np.repeat(pool.ads[:, None], p.shape[1], axis=1), ctr, axis=2)
    outcomes[..., -1] = quality
    apart = outcomes - np.einsum("bm,bmk->bk", p, outcomes)[:, None]
    return np.sqrt(np.einsum("bm,bmk->k", p**2, apart**2)) / len(p)


def test_recorded_and_live_agree_in_the_mean(pool, samples):
    recorded = RecordedEvaluator(pool, CONFIGURATIONS, STEERING)
    assert recorded.support()["effective_sample_size_min"] > 20
    for level, (outcomes, _) in enumerate(samples):
        for s, strengths in enumerate(CONFIGURATIONS):
            # requests are drawn live: weigh them alike, as the truth does
            gap = outcomes[s].mean(axis=0) - recorded.truth(level)[s]
            live_error = outcomes[s].std(axis=0) / np.sqrt(outcomes.shape[1])
            error = np.hypot(live_error, error_of_truth(recorded, level, strengths, pool))
            assert (np.abs(gap) <= 4 * error + 1e-9).all()
            assert error.max() < 0.07


def test_tokens_are_bounded_and_short_replies_cost_less(engine, samples):
    evaluator = live(engine, seed=1)
    for level, (_, tokens) in zip(evaluator.levels, samples, strict=True):
        assert tokens.min() >= 1
        assert tokens.max() <= level.tokens
    assert evaluator.levels[0].tokens < evaluator.levels[1].tokens
    assert (samples[0][1] <= samples[1][1]).all()
    assert samples[0][1].mean() < 0.8 * samples[1][1].mean()
    assert live(engine, short_tokens=12).levels[0].tokens == evaluator.levels[0].tokens - 36


def test_short_replies_are_the_beginning_of_full_ones(engine):
    evaluator = live(engine)
    strengths = np.tile(CONFIGURATIONS, (8, 1, 1))
    asked = [requests()[p % 2] for p in range(8)]
    short, full = (
        [reply for row in evaluator.write(asked, strengths, level, range(8)) for reply in row]
        for level in (0, 1)
    )
    shown = 0
    for part, whole in zip(short, full, strict=True):
        assert whole.text.startswith(part.text[:-1])
        mentions = MENTION.findall(part.text)
        assert len(mentions) <= 1
        assert mentions == MENTION.findall(whole.text)[: len(mentions)]
        shown += len(mentions)
    assert shown > 4


def test_common_random_numbers(engine, samples):
    outcomes, _ = samples[1]
    gap = (outcomes[1] - outcomes[2])[:, -1]
    assert gap.var() < 0.8 * (outcomes[1, :, -1].var() + outcomes[2, :, -1].var())


def test_same_seed_same_bytes(engine):
    first, again, other = (
        live(engine, seed=seed).sample(np.array([1, 2]), 1, 3, 9) for seed in (4, 4, 5)
    )
    for mine, theirs in zip(first, again, strict=True):
        assert mine.tobytes() == theirs.tobytes()
    assert first[0].tobytes() != other[0].tobytes()
    reseeded = live(engine, seed=5).reseeded(4).sample(np.array([1, 2]), 1, 3, 9)
    assert reseeded[0].tobytes() == first[0].tobytes()


def test_prompted_replies_show_titles_in_the_llms_own_words(engine):
    evaluator = live(engine, WORDS, way="prompted")
    outcomes, tokens = evaluator.sample(np.arange(3), 1, 0, 40)
    assert (outcomes[..., :3] > 0).any()
    assert tokens.max() <= evaluator.levels[1].tokens
    # nothing is inserted: titles of more than a word, the tiny LLM does not write
    assert (live(engine, way="prompted").sample(np.arange(3), 1, 0, 10)[0][..., :3] == 0).all()


def test_a_search_stays_within_its_budget(engine):
    evaluator = live(engine, seed=2)
    budget = TokenBudget(6 * evaluator.levels[1].tokens)
    known = Evaluations(evaluator, budget)
    assert known.extend(np.arange(3), 1, 2, "allocation")
    assert 0 < budget.total <= budget.limit
    assert not known.extend(np.arange(3), 1, 9, "allocation")


def test_exposure_by_strength(engine, pool):
    exact = recorded_exposure(pool, STEERING)
    assert exact.shape == (2, 3, 2)
    assert (exact[:, 0] == 0).all()
    assert (np.diff(exact.mean(axis=0), axis=0) > 0.05).all()
    seen = live_exposure(live(engine, seed=6), 60)
    assert seen.shape == (60, 3, 2)
    error = np.maximum(seen.std(axis=0), 0.2) / np.sqrt(60) + 0.02
    assert (np.abs(seen.mean(axis=0) - exact.mean(axis=0)) < 4 * error).all()


def test_an_ad_that_is_alone_is_shown_as_often_as_there_are_decisions(pool):
    """1 − E[(1 + odds)^(−D)], D the decisions in a reply of the reference LLM alone."""
    exact = recorded_exposure(pool, STEERING)[:, 1:, 0]
    events = np.array(pool.replies["events"].to_list()).reshape(2, 240, -1)
    decisions = (events != UNREACHED).sum(axis=2)
    plain = np.array(pool.replies["condition"].to_list()).reshape(2, 240) == "reference"
    for b in range(2):
        for odds, found in zip(STEERING.odds, exact[b], strict=True):
            shown = 1 - (1 + odds) ** -decisions[b][plain[b]].astype(float)
            # the pool's own error is that of about as many replies again
            assert abs(found - shown.mean()) < 4 * np.sqrt(2 / len(shown)) * shown.std() + 0.02


def test_what_does_not_fit_is_refused(engine):
    with pytest.raises(BadInput, match="norms of a recording"):
        LiveEvaluator(engine, requests(), BehaviouralUsers(HashEncoder()), CONFIGURATIONS)
    with pytest.raises(BadInput, match="no requests"):
        LiveEvaluator(engine, [], users, CONFIGURATIONS)
    with pytest.raises(BadInput, match="name advertiser 2"):
        LiveEvaluator(engine, requests(), users, [[0, 0]])
    with pytest.raises(BadInput, match="way of steering"):
        live(engine, way="begged")
    uneven = [requests()[0], replace(requests()[1], ads=ADS[:2], advertisers=(0, 1))]
    with pytest.raises(BadInput, match="same number"):
        LiveEvaluator(engine, uneven, users, CONFIGURATIONS)
