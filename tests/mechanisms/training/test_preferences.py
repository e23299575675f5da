"""Winners, losers, and what is learned from them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechanisms.llm_auction.training.online import advantages, policy_loss
from mechanisms.llm_auction.training.preferences import dpo_loss, preferences

FIT = np.ones((2, 3), dtype=bool)
REWARDS = st.lists(st.floats(-50, 100), min_size=2, max_size=6)


@given(rewards=REWARDS, margin=st.floats(0, 20))
def test_the_winner_is_best_and_losers_are_further_below_than_the_margin(rewards, margin):
    rewards = np.array([rewards])
    replies = [[[k] for k in range(rewards.size)]]
    for found in preferences([[1, 2]], replies, rewards, margin, rewards > -np.inf):
        best, *losers = (reply[0] for reply in found.pack.replies)
        assert rewards[0, best] == rewards.max()
        assert (rewards.max() - rewards[0, losers] > margin).all()
        np.testing.assert_array_equal(found.margins, rewards.max() - rewards[0, losers])
        left = set(range(rewards.size)) - {best, *losers}
        assert all(rewards.max() - rewards[0, k] <= margin for k in left)


def test_requests_without_a_loser_teach_nothing_and_words_count_once():
    replies = [[[1], [2], [3]], [[1], [2], [2]]]
    found = preferences([[0], [0]], replies, np.array([[5.0, 4, 3], [30, 1, 1]]), 10.0, FIT)
    assert len(found) == 1
    assert found[0].pack.replies == [[1], [2]]


def test_a_broken_reply_never_wins():
    rewards = np.array([[-40.0, -80.0]])
    assert not preferences([[0]], [[[1], [2]]], rewards, 10.0, np.array([[False, False]]))
    assert preferences([[0]], [[[1], [2]]], rewards, 10.0, np.array([[True, False]]))


def test_dpo_of_two_pairs_by_hand():
    now, start = torch.tensor([-10.0, -30.0, -22.0]), torch.tensor([-12.0, -28.0, -23.0])
    lengths = torch.tensor([5, 7, 6])
    loss = dpo_loss(now, lengths, start, [2], beta=0.1, likelihood=0.5)
    margins = [0.1 * (2 - -2), 0.1 * (2 - 1)]
    wanted = sum(math.log(1 + math.exp(-m)) for m in margins) / 2 + 0.5 * 10 / 5
    assert float(loss.value) == pytest.approx(wanted)
    assert loss.margin == pytest.approx(sum(margins) / 2)
    assert (loss.correct, loss.pairs, loss.winner) == (1.0, 2, 2.0)
    assert loss.loser == pytest.approx(-0.5)
    assert loss.kl == pytest.approx(-1 / 3)


def test_where_training_starts_the_loss_knows_nothing():
    start = torch.tensor([-3.0, -50.0])
    loss = dpo_loss(start, torch.tensor([3, 9]), start, [1], beta=0.1, likelihood=0.0)
    assert float(loss.value) == pytest.approx(math.log(2))


def test_dpo_pulls_winners_up_and_losers_down():
    now = torch.tensor([-10.0, -30.0], requires_grad=True)
    start, lengths = torch.tensor([-10.0, -30.0]), torch.tensor([5, 5])
    dpo_loss(now, lengths, start, [1], beta=0.1, likelihood=0.0).value.backward()
    np.testing.assert_allclose(now.grad, [-0.05, 0.05])  # beta * sigma(0)


def test_advantages_keep_what_a_bid_is_worth():
    """A click at a bid of 95 teaches more than one at 3, by the ratio of the bids."""
    rewards = np.zeros((2, 5))
    rewards[0, 0], rewards[1, 0] = 95, 3
    found = advantages(rewards)
    np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-9)
    np.testing.assert_allclose(found[0] / found[1], 95 / 3)
    np.testing.assert_allclose(advantages(7 * rewards + 11), found, rtol=1e-6)


def test_equal_rewards_teach_nothing():
    assert not advantages(np.full((2, 5), 7.0)).any()


def test_policy_gradient_where_nothing_has_moved():
    """On the sampled policy the gradient is that of REINFORCE: −A_k/K for each token."""
    now = torch.tensor([-2.0, -4.0, -1.0], requires_grad=True)
    reply, gains = torch.tensor([0, 0, 1]), torch.tensor([1.0, -1.0])
    still = now.detach()
    loss, said = policy_loss(now, reply, still, still, gains, clip=0.2, kl=0.1)
    loss.backward()
    np.testing.assert_allclose(now.grad, [-0.5, -0.5, 0.5], rtol=1e-6)
    assert said["kl"] == 0
    assert said["clipped"] == 0


def test_beyond_the_clip_nothing_more_is_gained():
    sampled, reply = torch.tensor([-2.0, -1.0]), torch.tensor([0, 0])
    now = torch.tensor([-1.5, -1.0], requires_grad=True)  # ratio e^0.5 at the first token
    loss, said = policy_loss(now, reply, sampled, now.detach(), torch.ones(1), clip=0.2, kl=0.0)
    loss.backward()
    np.testing.assert_allclose(now.grad, [0, -1])
    assert said["clipped"] == 0.5


def test_the_divergence_is_estimated_without_bias():
    """Tokens of a three-letter policy, drawn from it; the closed form is per token."""
    rng = torch.Generator().manual_seed(0)
    now, start = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.4, 0.4, 0.2])
    tokens = torch.multinomial(now.expand(20_000, 3), 30, replacement=True, generator=rng)
    reply = torch.arange(20_000).repeat_interleave(30)
    log_now, log_start = now.log()[tokens].flatten(), start.log()[tokens].flatten()
    _, said = policy_loss(log_now, reply, log_now, log_start, torch.zeros(20_000), clip=0.2, kl=1.0)
    wanted = 30 * float((now * (now / start).log()).sum())
    assert said["kl"] == pytest.approx(wanted, rel=0.02)
