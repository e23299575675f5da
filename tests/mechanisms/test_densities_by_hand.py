"""Densities of a mixture, recorded with the tiny LLM, are those of its scores of the tokens."""

from dataclasses import replace

import numpy as np
import pytest

from mechanisms.insertion import INLINE
from mechanisms.policies import PHRASES, Rules
from mechanisms.recording import Design, describe, record, writing
from mechanisms.recording.conditions import on_behalf_of, prompt, reference
from tests.mechanisms.small_recording import USERS, WORDS, requests

GENERATIONS = ("reference", "guided", "context", "mixture")
MIXTURE = Design(
    24,
    "mixture",
    inline_rate=0.05,
    log_ratios=True,
    temperature=0.8,
    rules=Rules(max_tokens=40),
)


class Spy:
    """An engine that remembers what it has generated, by kind of prompt."""

    def __init__(self, engine):
        self.engine, self.drawn = engine, []

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def generate(self, prompts, n, *, guide, **options):
        samples = self.engine.generate(prompts, n, guide=guide, **options)
        self.drawn.append((samples, guide))
        return samples

    def replies(self, b):
        """Samples and drafts of a request, in the order of recording."""
        for samples, guide in self.drawn:
            for k, sample in enumerate(samples[b]):
                yield sample, guide.drafts[b, k]


@pytest.fixture(scope="module")
def spied(engine):
    spy = Spy(engine)
    return record(requests(WORDS), spy, USERS, MIXTURE), spy


def decided(draft, rates, shares, inline=0.0, own_words=False):
    """Log-probability of a draft's events, in the words of DESIGN 3.0."""
    left, decision, total = list(shares), 0, 0.0
    for event, at in zip(draft.events, draft.at, strict=True):
        rate = rates[decision] if at is None else inline
        decision += at is None
        if (at is None or not own_words) and sum(left) > 0:
            ways = len(PHRASES) if at is None else 1
            p = 1 - rate if event < 0 else rate * left[event] / sum(left) / ways
            total += np.log(p) if p > 0 else -np.inf
        elif event >= 0 and not own_words:
            return -np.inf
        if event >= 0:
            left[event] = 0
    return total


def free_and_own(sample, draft):
    """Which tokens the LLM wrote as prose, and which as a title in its own words."""
    mention = np.zeros(len(sample.tokens), dtype=bool)
    own = mention.copy()
    for _, phrase, start, length in draft.mentions:
        mention[start : start + length] = True
        own[start : start + length] = phrase == INLINE
    assert not (sample.forced & ~mention).any()
    return ~mention, own


def test_densities_by_hand(engine, spied):
    """Of the tiny LLM, from nothing but its scores of the tokens."""
    pool, spy = spied
    kinds = ["reference", "context", *(f"advertiser:{i}" for i in range(3))]
    inline = spelled = 0
    for b, request in enumerate(requests(WORDS)):
        replies = list(spy.replies(b))
        tokens = [[sample.tokens for sample, _ in replies]] * len(kinds)
        scores = engine.score([prompt(k, request) for k in kinds], tokens, temperature=0.8)
        for j, (sample, draft) in enumerate(replies):
            by_kind = dict(zip(kinds, (row[j] for row in scores), strict=True))
            free, own = free_and_own(sample, draft)
            inline += own.any()
            spelled += draft.spelled

            def log_p(kind, *policy, **more):
                return by_kind[kind][free].sum() + decided(draft, *policy, **more)  # noqa: B023

            log_ref = log_p("reference", [0.1] * 3, [1, 1, 1], 0.05)
            assert pool.log_ref[b, j] == pytest.approx(log_ref, abs=5e-3)
            with_titles = -np.inf if draft.spelled else by_kind["context"][own].sum()
            only = np.eye(3)
            terms = {
                "reference": (2, log_p("reference", [0] * 3, [0] * 3)),
                "guided": (4, log_p("reference", [0.35] * 3, [1, 1, 1], 0.05)),
                **{
                    f"single:{i}:{p}": (1, log_p("reference", [p, 1, 1], only[i]))
                    for i in range(3)
                    for p in (1, 0.5)
                },
                "context": (
                    12,
                    with_titles + log_p("context", [0.35] * 3, [1, 1, 1], own_words=True),
                ),
            }
            assert sum(count for count, _ in terms.values()) == 24
            mixed = [np.log(count / 24) + log for count, log in terms.values()]
            assert pool.log_gen[b, j] == pytest.approx(np.logaddexp.reduce(mixed), abs=5e-3)
            for i in range(3):
                shares = np.where(np.arange(3) == i, 0.9, 0.05)
                theirs = log_p(f"advertiser:{i}", [0.35] * 3, shares, 0.05)
                ratio = pool.extras["log_ratios"][b, j, i]
                assert ratio == pytest.approx(theirs - log_ref, abs=1e-2)
    assert inline > 1
    assert spelled > 0


def test_the_balance_heuristic_has_no_outliers(spied):
    """A weight is at most M over the number of replies by a policy like the reference's."""
    pool, spy = spied
    weights = np.exp(pool.log_weights)
    for b in range(3):
        for j, (_, draft) in enumerate(spy.replies(b)):
            none, guided = 24 / 2, 24 / 4
            if draft.mentions:
                assert weights[b, j] <= guided * (0.9 / 0.65) ** 3 + 1e-9
            else:
                assert weights[b, j] <= none * 0.9 ** draft.at.count(None) + 1e-9
    assert pool.effective_sample_size.min() > 2


def test_an_advertiser_like_the_reference_has_no_log_ratio(engine, spied, monkeypatch):
    likewise = "advertiser:1"

    def asked(kind, request):
        return prompt("reference" if kind == likewise else kind, request)

    def policy(i, design, ads):
        return reference(design, ads) if i == 1 else on_behalf_of(i, design, ads)

    monkeypatch.setattr(writing, "prompt", asked)
    monkeypatch.setattr(writing, "on_behalf_of", policy)
    pool = record(requests(WORDS), engine, USERS, MIXTURE)
    ratios, others = pool.extras["log_ratios"], spied[0].extras["log_ratios"]
    assert abs(ratios[:, :, 1]).max() < 5e-3
    np.testing.assert_allclose(ratios[:, :, [0, 2]], others[:, :, [0, 2]], atol=5e-3)
    assert np.abs(others).min(axis=(0, 1)).max() > 1e-3
    np.testing.assert_array_equal(pool.log_gen, spied[0].log_gen)


def test_log_ratios_change_nothing_else(engine, spied):
    pool = record(requests(WORDS), engine, USERS, replace(MIXTURE, log_ratios=False))
    assert not pool.extras
    np.testing.assert_array_equal(pool.log_ref, spied[0].log_ref)
    np.testing.assert_array_equal(pool.log_gen, spied[0].log_gen)
    assert pool.replies.equals(spied[0].replies)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_same_seed_same_pool(engine, generation):
    design = replace(MIXTURE, replies=7, generation=generation)
    first, again, other = (
        record(requests(WORDS), engine, USERS, design, seed=seed) for seed in (5, 5, 6)
    )
    assert again.content_hash == first.content_hash
    assert again.replies.equals(first.replies)
    assert other.content_hash != first.content_hash


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("ads", [0, 1, 3])
def test_small_numbers(engine, generation, ads):
    for replies in (1, 2, 5):
        design = replace(MIXTURE, replies=replies, generation=generation)
        pool = record(requests(WORDS[:ads]), engine, USERS, design)
        assert pool.shape == (3, replies, ads)
        assert pool.extras["log_ratios"].shape == (3, replies, ads)
        for array in (pool.log_weights, pool.extras["log_ratios"], *describe(pool).values()):
            assert np.isfinite(array).all()
        if generation == "reference" or (ads == 0 and generation == "guided"):
            np.testing.assert_array_equal(pool.log_weights, 0)
