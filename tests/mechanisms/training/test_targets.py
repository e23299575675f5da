"""What is taught: the ideal rule's distribution over replies, and demonstrations."""

import numpy as np
import pytest

from mechanisms.errors import BadInput
from mechanisms.llm_auction.reward import ResponseReward
from mechanisms.llm_auction.training.streams import seeded
from mechanisms.llm_auction.training.targets import PoolTeacher, bare, token_weights
from mechanisms.mentions import parse
from mechanisms.recording import Request
from tests.tiny_llm import ADS

REWARD = ResponseReward()


@pytest.fixture
def teacher(policy, pool, requests):
    return PoolTeacher(policy, pool, requests, beta=3.0, reward=REWARD)


def test_distilled_examples_average_to_the_ideal_rule(policy, pool, requests):
    """Over draws at fixed bids, each reply's mean weight is its probability."""
    teacher = PoolTeacher(policy, pool, requests, beta=3.0, reward=REWARD)
    bids = np.array([20, 90, 55])
    wanted = teacher.ideal(0, bids)
    total = np.zeros(len(wanted))
    rng = np.random.default_rng(0)
    draws = 4000
    for _ in range(draws):
        chosen, weights = teacher.targets(0, bids, rng)
        total[chosen] += weights
        assert weights.sum() == pytest.approx(1)
    # groups below 2 % are left out
    np.testing.assert_allclose(total / draws, wanted, atol=0.03)


def test_a_reply_that_breaks_off_is_taught_less(policy, pool, requests):
    bids = np.array([20, 90, 55])
    mild, strict = (
        PoolTeacher(policy, pool, requests, 3.0, ResponseReward(unfinished=u)) for u in (0.0, 1.0)
    )
    for teacher in (mild, strict):
        teacher.complete = np.arange(pool.shape[1]) > np.zeros((len(requests), 1))  # all but one
    assert strict.ideal(0, bids)[0] < mild.ideal(0, bids)[0]


def test_the_ideal_rule_reads_bids_as_the_llm_does(teacher):
    np.testing.assert_allclose(
        teacher.ideal(0, np.array([10, 20, 40])), teacher.ideal(0, np.array([25, 50, 100]))
    )


def test_shares_of_an_ad_rise_with_its_bid(teacher, pool):
    shown = pool.exposure[0, :, 1]
    shares = [teacher.ideal(0, np.array([100, bid, 50]))[shown].sum() for bid in range(1, 101, 9)]
    assert (np.diff(shares) > 0).all()


def test_demonstrations_show_one_ad_and_follow_no_bid(teacher, policy):
    for i in range(40):
        example = teacher.demonstration(seeded(1, i))
        text = policy.tokenizer.decode(example.pack.replies[0])
        assert len(parse(text, ADS).ads) == 1
        assert parse(text, ADS).malformed == 0


def test_the_same_seed_draws_the_same(teacher):
    for draw in (teacher.demonstration, teacher.distilled):
        one, two = draw(seeded(3, 4)), draw(seeded(3, 4))
        assert one.pack == two.pack
        np.testing.assert_array_equal(one.weights, two.weights)
        assert draw(seeded(3, 5)).pack != one.pack


def test_taglines_are_left_to_the_user(pool):
    request = Request("q", "Tea?", "u", "A user.", ADS, range(3))
    text = "Try @CloudRest Mattress@[Ad-1] (the bed that cools), or not (the bed that cools)."
    assert bare(text, request) == "Try @CloudRest Mattress@[Ad-1], or not (the bed that cools)."


def test_a_pool_of_other_requests_is_refused(policy, pool, requests):
    with pytest.raises(BadInput, match="all its requests"):
        PoolTeacher(policy, pool, requests[:2], beta=1.0, reward=REWARD)


def test_tokens_count_where_something_is_decided(policy, requests):
    text = "Drink tea. You could try @Tea Pot@[Ad-2], which is good! Sleep well."
    tokens = policy.reply(text)
    weights = token_weights(policy, text, tokens, requests[0], 0.1)
    full = "".join(
        policy.tokenizer.decode([token])
        for token, weight in zip(tokens, weights, strict=True)
        if weight == 1
    )
    assert "You could try @Tea Pot@[Ad-2]" in full
    assert "which" not in full
    assert weights[-1] == 1  # the end of turn
    assert set(weights) == {0.1, 1.0}
    assert (token_weights(policy, text, tokens, requests[0], 1.0) == 1).all()


def test_a_broken_mention_counts_as_prose(policy, requests):
    text = "Drink warm tea and try @Tea Pot@[Ad-1], which is good."
    weights = token_weights(policy, text, policy.reply(text), requests[0], 0.1)
    assert (weights == 1).sum() == 2  # its beginning and its end
