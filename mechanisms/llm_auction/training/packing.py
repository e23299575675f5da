"""Several replies to one prompt as one row, so that a training step runs the prompt once.

A row is `prompt, reply 1, reply 2, ...`. Each reply takes up its positions behind the prompt, sees
the prompt and itself, and no other reply: its log-probability is that of a row of its own. Prompts
of an auction are three times as long as the replies, so this halves the work and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PAD = 0  # any id will do: only padding attends to padding
TOKENS = 2200
"""Padded tokens in one pass of training: memory, not speed, asks for a limit."""


@dataclass(frozen=True)
class Pack:
    """A prompt and replies to it, in token ids; replies end with the end-of-turn token."""

    prompt: Sequence[int]
    replies: Sequence[Sequence[int]]

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return len(self.prompt) + sum(map(len, self.replies))


@dataclass(frozen=True, eq=False)
class Rows:
    """Packs as tensors: rows B, longest row L, reply tokens T in all, replies K in all.

    Attributes:
        ids: (B, L) token ids.
        positions: (B, L).
        mask: (B, 1, L, L) True where a token (third axis) attends to another (last axis).
        before: (T,) index into the flattened (B · L) tokens: where each reply token is predicted.
        targets: (T,) the reply tokens.
        reply: (T,) which of the K replies each belongs to, pack-major.
        count: K.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    before: Tensor
    targets: Tensor
    reply: Tensor
    count: int


def rows_of(packs: Sequence[Pack]) -> Rows:
    """`Rows` of some packs."""
    B, L = len(packs), max(pack.length for pack in packs)
    ids = torch.full((B, L), PAD)
    positions = torch.zeros((B, L), dtype=torch.long)
    segment = torch.full((B, L), -1)
    before, targets, reply, count = [], [], [], 0
    for b, pack in enumerate(packs):
        P = at = len(pack.prompt)
        ids[b, :P] = torch.tensor(pack.prompt)
        positions[b, :P] = torch.arange(P)
        segment[b, :P] = 0
        for number, tokens in enumerate(pack.replies, start=1):
            T = len(tokens)
            ids[b, at : at + T] = torch.tensor(tokens)
            positions[b, at : at + T] = torch.arange(P, P + T)
            segment[b, at : at + T] = number
            before += [b * L + P - 1, *range(b * L + at, b * L + at + T - 1)][:T]
            targets += list(tokens)
            reply += [count] * T
            count += 1
            at += T
    own = segment[:, :, None] == segment[:, None, :]
    mask = (own | (segment == 0)[:, None, :]) & torch.ones(L, L, dtype=torch.bool).tril()
    return Rows(
        ids,
        positions,
        mask[:, None],
        torch.tensor(before),
        torch.tensor(targets),
        torch.tensor(reply),
        count,
    )


def batches(packs: Sequence[Pack], tokens: int) -> list[list[int]]:
    """Indices of packs in batches of at most `tokens` padded tokens, of like length."""
    order = sorted(range(len(packs)), key=lambda i: (packs[i].length, i))
    found: list[list[int]] = []
    for i in order:
        if found and (len(found[-1]) + 1) * packs[i].length <= tokens:
            found[-1].append(i)
        else:
            found.append([i])
    return found
