"""Choosing tokens for many replies at once, each from a random stream of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechanisms.llm.base import END, Guide, Sample


@dataclass(eq=False)
class Row:
    """One reply being written: `forced` waits to be written, `uniforms` drives the choices."""

    prompt: int
    index: int
    uniforms: NDArray[np.float64]
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    was_forced: list[bool] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)
    ended: bool = False
    done: bool = False

    def take(self, token: int, log_prob: float, end_token: int, guide: Guide | None) -> None:
        """Write the token chosen, and ask the guide what comes next."""
        forced = bool(self.queue)
        if forced:
            self.queue.pop(0)
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        self.was_forced.append(forced)
        self.ended = not forced and token == end_token
        self.done = self.ended or len(self.tokens) == len(self.uniforms)
        if guide is None or forced or self.done:
            return
        order = guide.step(self.prompt, self.index, self.tokens)
        if isinstance(order, str):
            if order != END:
                raise ValueError(f"a guide returns tokens or END, not {order!r}")
            self.done = True
        else:
            self.queue = list(order)

    def sample(self) -> Sample:
        """The reply as it stands."""
        return Sample(
            tokens=np.array(self.tokens, dtype=np.int64),
            log_probs=np.array(self.log_probs),
            forced=np.array(self.was_forced, dtype=bool),
            ended=self.ended,
        )


def choose(logits: Tensor, rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Draw (or force) the next token of each row; returns ids and log-probabilities (rows,).

    Inverse-CDF sampling with one uniform number a row, in two levels (blocks, then within the
    block), since a cumulative sum over the whole vocabulary is slow.
    """
    width = 192
    count, vocabulary = logits.shape
    peak = logits.amax(dim=1, keepdim=True)
    mass = torch.exp(logits - peak)
    if spare := -vocabulary % width:
        mass = torch.nn.functional.pad(mass, (0, spare))
    mass = mass.view(count, -1, width)
    blocks = mass.sum(dim=2).double().cumsum(dim=1)
    total = blocks[:, -1]
    u = [0.0 if row.done else row.uniforms[len(row.tokens)] for row in rows]
    target = torch.tensor(u, dtype=torch.float64, device=logits.device) * total
    block = (blocks <= target[:, None]).sum(dim=1).clamp_(max=blocks.shape[1] - 1)
    every = torch.arange(count, device=logits.device)
    within = mass[every, block].double()
    below = torch.where(block > 0, blocks[every, (block - 1).clamp(min=0)], 0.0)
    inside = within.cumsum(dim=1) + below[:, None]
    offset = (inside <= target[:, None]).sum(dim=1)
    # Rounding may leave the target beyond a block's last token with mass: take that token.
    last = width - 1 - (within > 0).int().flip(1).argmax(dim=1)
    ids = block * width + torch.minimum(offset, last)
    forced = [i for i, row in enumerate(rows) if row.queue]
    if forced:
        ids[forced] = torch.tensor([rows[i].queue[0] for i in forced], device=ids.device)
    log_probs = logits[every, ids] - peak[:, 0] - torch.log(total).float()
    return ids, log_probs


def compact(rows: list[Row], prompts: int) -> tuple[Tensor, Tensor] | None:
    """Which prompts and rows to keep, running rows first; None where little would be saved."""
    per = len(rows) // prompts
    running = np.array([not row.done for row in rows]).reshape(prompts, per)
    counts = running.sum(axis=1)
    keep, width = np.flatnonzero(counts), int(counts.max())
    if len(keep) * width > 0.8 * len(rows):
        return None
    order = np.argsort(~running[keep], axis=1, kind="stable")[:, :width]
    return torch.as_tensor(keep), torch.as_tensor((keep[:, None] * per + order).ravel())
