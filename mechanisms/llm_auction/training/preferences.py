"""Preferences among replies to one request, and the loss that learns from them.

Winner and losers (LLM-Auction, arXiv 2512.10551): of K sampled replies the winner has the highest
reward, the losers are all whose reward is more than δ below it. DPO (Rafailov et al. 2023, arXiv
2305.18290), with Δ(y) = log π_θ(y) − log π_start(y):

    L = −log σ(β·(Δ(winner) − Δ(loser))) − γ·log π_θ(winner) / |winner|

The second term keeps the winner likely (Pang et al. 2024, arXiv 2404.19733): without it small LLMs
lower both, and forget the format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mechanisms.llm_auction.training.packing import Pack
from mechanisms.pool import Bools, Floats


@dataclass(frozen=True)
class Preference:
    """A winner (first reply of the pack) and its losers (the others).

    Attributes:
        pack: prompt and replies.
        margins: (losers,) by how much their rewards are lower.
    """

    pack: Pack
    margins: Floats


def preferences(
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[Sequence[int]]],
    rewards: Floats,
    margin: float,
    well_formed: Bools,
) -> list[Preference]:
    """What K samples of each request teach.

    Requests without a loser teach nothing, nor do those whose best reply breaks the format: it
    should not become more likely.

    Args:
        prompts: (B) token ids.
        replies: (B, K) token ids.
        rewards: (B, K).
        margin: δ, in the unit of the rewards.
        well_formed: (B, K) no marker of the reply is broken.
    """
    found = []
    for prompt, row, reward, fit in zip(prompts, replies, rewards, well_formed, strict=True):
        best = int(reward.argmax())
        if not fit[best]:
            continue
        losers = np.flatnonzero(reward[best] - reward > margin)
        # The same words twice are one loser.
        distinct = {tuple(row[k]): k for k in losers[::-1]}
        losers = np.array(sorted(distinct.values()), dtype=int)
        if len(losers):
            pack = Pack(prompt, [row[best], *(row[k] for k in losers)])
            found.append(Preference(pack, reward[best] - reward[losers]))
    return found


class Loss(NamedTuple):
    """DPO's loss of a batch and what it saw.

    Attributes:
        value: to go back through.
        correct: share of pairs whose winner has gained on its loser.
        margin: mean of β·(Δ(winner) − Δ(loser)), the implicit reward.
        winner: mean Δ(winner), in nats.
        loser: mean Δ(loser), in nats.
        kl: mean −Δ of all replies compared, which the starting policy wrote: an estimate of
            KL(π_start ‖ π_θ) that leaves out replies near the winner, in nats a reply.
        pairs: number of pairs.
    """

    value: Tensor
    correct: float
    margin: float
    winner: float
    loser: float
    kl: float
    pairs: int


def dpo_loss(
    log_probs: Tensor,
    lengths: Tensor,
    start: Tensor,
    losers: Sequence[int],
    beta: float,
    likelihood: float,
) -> Loss:
    """The loss, averaged over pairs within a request and summed over requests.

    Args:
        log_probs: (K,) of the replies of all requests, each winner before its losers.
        lengths: (K,) their tokens.
        start: (K,) log-probabilities under the policy that the epoch started from.
        losers: how many each request has.
        beta: β.
        likelihood: γ, weight of the winner's likelihood.
    """
    gained = log_probs - start
    at, total = 0, log_probs.new_zeros(())
    margins, winners, beaten = [], [], []
    for count in losers:
        winner, losing = gained[at], gained[at + 1 : at + 1 + count]
        margin = beta * (winner - losing)
        total = total - logsigmoid(margin).mean() - likelihood * log_probs[at] / lengths[at]
        margins.append(margin.detach())
        winners.append(winner.detach())
        beaten.append(losing.detach())
        at += 1 + count
    every = torch.cat(margins)
    return Loss(
        total,
        float((every > 0).float().mean()),
        float(every.mean()),
        float(torch.stack(winners).mean()),
        float(torch.cat(beaten).mean()),
        float(-gained.detach().mean()),
        len(every),
    )
