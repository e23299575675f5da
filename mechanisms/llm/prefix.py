"""Attention over a prompt that many replies share, computed and stored once.

R replies to one prompt have the same prompt keys and values. Instead of repeating that cache R
times, and copying all of it at every step, this module keeps one copy per prompt (P, heads, L, d)
and a preallocated buffer of each reply's own keys (rows, heads, S, d), rows = P·R. A query scores
against both, one softmax runs over the joined scores, and the two value sums add up: exact
attention, as in Hydragen (Juravsky et al. 2024, arXiv 2402.05099), in plain matrix products.
It enters any decoder of transformers through its public attention interface.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "admarket_shared_prefix"


@dataclass(eq=False)
class SharedPrefixCache:
    """Keys and values of P prompts (`prefix_*`) and of the P·R replies to them (`own_*`).

    Attributes:
        prefix_mask: (P, L) True at real prompt tokens, False at padding.
        padded: whether there is any padding.
        own_length: reply tokens stored so far.
    """

    layers: int
    prefix_mask: Tensor
    padded: bool
    own_length: int = 0
    prefix_keys: list[Tensor] = field(default_factory=list)
    prefix_values: list[Tensor] = field(default_factory=list)
    own_keys: list[Tensor] = field(default_factory=list)
    own_values: list[Tensor] = field(default_factory=list)

    def open(self, replies: int, capacity: int) -> None:
        """Make room for `replies` replies per prompt, of up to `capacity` tokens.

        Called when the prompts have run, and again for the next replies to the same prompts.
        """
        self.own_length = 0
        self.own_keys, self.own_values = [], []
        for keys in self.prefix_keys:
            P, heads, _, d = keys.shape
            for own in (self.own_keys, self.own_values):
                own.append(keys.new_zeros(P * replies, heads, capacity, d))

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object):
        """Store new keys and values (called by each attention layer); return what is attended."""
        if not self.own_keys:
            self.prefix_keys.append(keys.contiguous())
            self.prefix_values.append(values.contiguous())
            return keys, values
        end = self.own_length + keys.shape[2]
        self.own_keys[layer][:, :, self.own_length : end] = keys
        self.own_values[layer][:, :, self.own_length : end] = values
        return self.own_keys[layer][:, :, :end], self.own_values[layer][:, :, :end]

    def keep(self, prompts: Tensor, rows: Tensor) -> None:
        """Drop all prompts and replies but those listed, in their order."""
        self.prefix_mask = self.prefix_mask[prompts]
        for layer in range(self.layers):
            self.prefix_keys[layer] = self.prefix_keys[layer][prompts]
            self.prefix_values[layer] = self.prefix_values[layer][prompts]
            self.own_keys[layer] = self.own_keys[layer][rows]
            self.own_values[layer] = self.own_values[layer][rows]

    def get_seq_length(self, *_: object) -> int:
        """Not used: positions and masks are always given."""
        return 0


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared: SharedPrefixCache | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Transformers' attention function: (rows, heads, T, d) in, (rows, T, heads, d) out."""
    groups = query.shape[1] // key.shape[1]
    if shared is None or not shared.own_keys:
        out = torch.nn.functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(groups, dim=1),
            value.repeat_interleave(groups, dim=1),
            attn_mask=attention_mask,
            scale=scaling,
        )
        return out.transpose(1, 2).contiguous(), None

    prefix_key = shared.prefix_keys[module.layer_idx]
    prefix_value = shared.prefix_values[module.layer_idx]
    P, kv_heads, L, d = prefix_key.shape
    rows, _, T, _ = query.shape
    R, S = rows // P, key.shape[2]
    # Rows of one prompt and heads of one group stand together, so that the prompt's keys are read
    # by one matrix product for all of them.
    q = (query * scaling).reshape(P, R, kv_heads, groups * T, d)
    q_prefix = q.transpose(1, 2).reshape(P * kv_heads, R * groups * T, d)
    to_prefix = torch.bmm(q_prefix, prefix_key.view(P * kv_heads, L, d).transpose(1, 2))
    to_own = torch.matmul(q.view(rows, kv_heads, groups * T, d), key.transpose(2, 3))
    scores = query.new_empty(P, R, kv_heads, groups, T, L + S, dtype=torch.float32)
    scores[..., :L] = to_prefix.view(P, kv_heads, R, groups, T, L).transpose(1, 2)
    scores[..., L:] = to_own.view(P, R, kv_heads, groups, T, S)
    if shared.padded:
        hidden = ~shared.prefix_mask[:, None, None, None, None, :]
        scores[..., :L].masked_fill_(hidden, float("-inf"))
    if T > 1:
        future = torch.ones(T, S, dtype=torch.bool, device=query.device).triu(S - T + 1)
        scores[..., L:].masked_fill_(future, float("-inf"))

    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    on_prefix = weights[..., :L].transpose(1, 2).reshape(P * kv_heads, R * groups * T, L)
    from_prefix = torch.bmm(on_prefix, prefix_value.view(P * kv_heads, L, d))
    from_prefix = from_prefix.view(P, kv_heads, R, groups, T, d).transpose(1, 2)
    on_own = weights[..., L:].reshape(rows, kv_heads, groups * T, S)
    from_own = torch.matmul(on_own, value).view(P, R, kv_heads, groups, T, d)
    out = (from_prefix + from_own).reshape(rows, kv_heads * groups, T, d)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
