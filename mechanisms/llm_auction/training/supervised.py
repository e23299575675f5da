"""Supervised stages: likelihood of the replies that a teacher draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mechanisms.llm_auction.training.packing import TOKENS, batches
from mechanisms.llm_auction.training.policy import Policy
from mechanisms.llm_auction.training.streams import seeded
from mechanisms.llm_auction.training.targets import Example
from mechanisms.llm_auction.training.trainer import Log, Schedule, Trainer


def learn(
    policy: Policy,
    draw: Callable[[np.random.Generator], Example],
    schedule: Schedule,
    folder: Path | None,
    key: Sequence[int],
    say: Callable[[Log], None] = lambda _: None,
) -> list[Log]:
    """Minimise `−Σ_j weight_j·Σ_t weight_jt·log π_θ(token t of reply j)` over examples.

    They are drawn afresh in every step.

    Args:
        policy: trained in place.
        draw: an example from a random generator.
        schedule: see `Schedule`.
        folder: where the state is kept, and taken up again; None to keep none.
        key: seed and purpose; example i of step k comes from the stream (*key, k, i).
        say: told the log of each step.
    """
    trainer = Trainer(policy, schedule, folder)

    def step(k: int) -> Log:
        examples = [draw(seeded(*key, k, i)) for i in range(schedule.batch)]
        total = counted = 0.0
        for part in batches([each.pack for each in examples], TOKENS):
            mine = [examples[i] for i in part]
            each, _ = policy.token_log_probs([example.pack for example in mine])
            weights = _weights(mine).to(each.device)
            loss = -(weights * each).sum() / len(examples)
            loss.backward()
            total += float(loss.detach())
            counted += float(weights.sum()) / len(examples)
        return {"loss": total, "loss_per_token": total / counted}

    return trainer.run(step, say)


def _weights(examples: Sequence[Example]) -> Tensor:
    """(T,) weight of each reply token: of its reply, times its own."""
    found = []
    for example in examples:
        lengths = [len(reply) for reply in example.pack.replies]
        found.append(np.repeat(example.weights, lengths) * example.tokens)
    return torch.tensor(np.concatenate(found), dtype=torch.float32)
