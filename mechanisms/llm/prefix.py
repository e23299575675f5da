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
    _mask: tuple[tuple, Tensor] | None = None

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
        self.prefix_mask, self._mask = self.prefix_mask[prompts], None
        for layer in range(self.layers):
            self.prefix_keys[layer] = self.prefix_keys[layer][prompts]
            self.prefix_values[layer] = self.prefix_values[layer][prompts]
            self.own_keys[layer] = self.own_keys[layer][rows]
            self.own_values[layer] = self.own_values[layer][rows]

    def mask_of_whole(self, rows: int, T: int, S: int, groups: int, dtype: torch.dtype) -> Tensor:
        """(rows, 1, groups * T, L + S) what is added to scores: -inf for padding and the future.

        The same in every layer, so it is made once per pass.
        """
        key = (rows, T, S, groups, dtype)
        if self._mask is None or self._mask[0] != key:
            P, L = self.prefix_mask.shape
            device = self.prefix_mask.device
            seen = torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)
            own = seen.repeat(groups, 1).expand(rows, 1, groups * T, S)
            prefix = self.prefix_mask.repeat_interleave(rows // P, dim=0)[:, None, None]
            allowed = torch.cat([prefix.expand(rows, 1, groups * T, L), own], dim=3)
            mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
            self._mask = (key, mask.masked_fill_(~allowed, float("-inf")))
        return self._mask[1]

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
    if T > 1:
        return _attend_whole(shared, query, key, value, prefix_key, prefix_value, scaling), None
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

    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    on_prefix = weights[..., :L].transpose(1, 2).reshape(P * kv_heads, R * groups * T, L)
    from_prefix = torch.bmm(on_prefix, prefix_value.view(P * kv_heads, L, d))
    from_prefix = from_prefix.view(P, kv_heads, R, groups, T, d).transpose(1, 2)
    on_own = weights[..., L:].reshape(rows, kv_heads, groups * T, S)
    from_own = torch.matmul(on_own, value).view(P, R, kv_heads, groups, T, d)
    out = (from_prefix + from_own).reshape(rows, kv_heads * groups, T, d)
    return out.transpose(1, 2).contiguous(), None


def _attend_whole(
    shared: SharedPrefixCache,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    scaling: float | None,
) -> Tensor:
    """T > 1 tokens of every reply at once (scoring), by a kernel that keeps no scores in memory.

    Copying the prompt's keys to every reply costs little here: each is read by T queries.
    """
    P, kv_heads, _, d = prefix_key.shape
    rows, heads, T, _ = query.shape
    groups = heads // kv_heads
    keys, values = (
        torch.cat([prefix.repeat_interleave(rows // P, dim=0), own], dim=2)
        for prefix, own in ((prefix_key, key), (prefix_value, value))
    )
    out = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(rows, kv_heads, groups * T, d),
        keys,
        values,
        attn_mask=shared.mask_of_whole(rows, T, key.shape[2], groups, query.dtype),
        scale=scaling,
    )
    return out.reshape(rows, heads, T, d).transpose(1, 2).contiguous()


AttentionInterface.register(NAME, attend)
