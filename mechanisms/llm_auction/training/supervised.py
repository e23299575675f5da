"""Supervised stages: likelihood of the replies that a teacher draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

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
    """Minimise `−Σ_j weight_j·log π_θ(reply_j)` over examples drawn afresh in every step.

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
        total = tokens = 0.0
        for part in batches([each.pack for each in examples], TOKENS):
            sums, lengths = policy.log_probs([examples[i].pack for i in part])
            weights = torch.tensor(
                np.concatenate([examples[i].weights for i in part]),
                dtype=torch.float32,
                device=sums.device,
            )
            loss = -(weights * sums).sum() / len(examples)
            loss.backward()
            total += float(loss.detach())
            tokens += float((weights * lengths).sum()) / len(examples)
        return {"loss": total, "loss_per_token": total / tokens}

    return trainer.run(step, say)
