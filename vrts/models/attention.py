"""Attention that computes a prompt once for all completions that share it.

Two layouts of one language-model forward:

- `PackedLayout`: one row holds, question after question, a prompt and its completions. Prompt
  tokens attend causally to their prompt; completion tokens to the whole prompt and causally to
  their own completion. No padding is computed and the prompt is forwarded once, so the gradient
  of all completions flows back through it in one pass.
- `DecodeLayout`: N rows of one new token each. The prompt's keys and values are stored once a
  question and read once for its G rows; each row has its own completion keys and values.

Both are exact: the result is that of a plain forward of every ``prompt + completion`` on its own.
A layout travels to the attention layers as the keyword argument `layout`, which transformers
passes on untouched (unlike a cache, which gradient checkpointing drops).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

SHARED_PREFIX = "vrts_shared_prefix"
"""Name under which the attention is known to transformers (``attn_implementation``)."""


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    """SDPA over ``[1, heads, tokens, dim]`` with grouped keys; causal where no mask is given."""
    groups = query.shape[1] // key.shape[1]
    return F.scaled_dot_product_attention(
        query,
        key.repeat_interleave(groups, dim=1),
        value.repeat_interleave(groups, dim=1),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
    )


@dataclass
class PackedLayout:
    """Where each prompt and its completions lie in a packed row of ``S`` tokens."""

    prompt_lengths: Sequence[int]
    """P of each of the B questions."""
    completion_lengths: Sequence[Sequence[int]]
    """Forwarded tokens of each question's completions; an empty list for a prefill."""
    device: torch.device
    prompt_kv: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = field(default_factory=dict)
    """Filled by a prefill: for each layer, keys and values ``[heads, P, dim]`` of each prompt."""
    keep_prompt_kv: bool = False
    """Whether to fill `prompt_kv`."""

    def __post_init__(self) -> None:
        """Build each question's completion mask once for all layers."""
        self._masks = [
            self._completion_mask(p, lengths) if sum(lengths) else None
            for p, lengths in zip(self.prompt_lengths, self.completion_lengths, strict=True)
        ]

    def _completion_mask(self, prompt_length: int, lengths: Sequence[int]) -> torch.Tensor:
        """Bool ``[tokens, P + tokens]`` of one question's completion tokens."""
        owner = torch.repeat_interleave(torch.tensor(list(lengths), device=self.device))
        own = (owner[:, None] == owner[None, :]).tril()
        return F.pad(own, (prompt_length, 0), value=True)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Attention of the packed row.

        Args:
            layer: index of the decoder layer.
            query: ``[1, heads, S, dim]``, rotated.
            key: ``[1, kv_heads, S, dim]``, rotated.
            value: ``[1, kv_heads, S, dim]``.
            scaling: factor of the scores.

        Returns:
            ``[1, S, heads, dim]``.
        """
        outputs: list[torch.Tensor] = []
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        start = 0
        for length, lengths, mask in zip(
            self.prompt_lengths, self.completion_lengths, self._masks, strict=True
        ):
            middle, end = start + length, start + length + sum(lengths)
            prompt, completion, whole = slice(start, middle), slice(middle, end), slice(start, end)
            k, v = key[:, :, prompt], value[:, :, prompt]
            outputs.append(_attend(query[:, :, prompt], k, v, mask=None, scaling=scaling))
            if self.keep_prompt_kv:
                kept.append((k[0], v[0]))
            if mask is not None:
                q = query[:, :, completion]
                outputs.append(
                    _attend(q, key[:, :, whole], value[:, :, whole], mask=mask, scaling=scaling)
                )
            start = end
        if self.keep_prompt_kv:
            self.prompt_kv[layer] = kept
        return torch.cat(outputs, dim=2).transpose(1, 2)


class DecodeLayout:
    """Keys and values for decoding: one copy of each prompt, one completion a row."""

    def __init__(self, prefill: PackedLayout, num_samples: int, max_new_tokens: int) -> None:
        """Take over a prefill's keys and values.

        Args:
            prefill: layout of a finished prefill of B prompts.
            num_samples: G, rows a question.
            max_new_tokens: tokens to make room for.
        """
        lengths = torch.tensor(list(prefill.prompt_lengths), device=prefill.device)
        columns = torch.arange(int(lengths.max()), device=prefill.device)
        self._padding = columns[None, :] >= lengths[:, None]  # [B, P]
        self._prefix: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer, kept in prefill.prompt_kv.items():
            keys, values = zip(*kept, strict=True)
            # [B, kv_heads, P, dim], zeros on the right of shorter prompts
            self._prefix[layer] = (_pad(keys, len(columns)), _pad(values, len(columns)))
            kv_heads, _, dim = keys[0].shape
            shape = (len(keys), num_samples, kv_heads, max_new_tokens, dim)
            self._own[layer] = (keys[0].new_zeros(shape), keys[0].new_zeros(shape))
        self._num_samples = num_samples
        self.step = 0
        """Tokens that each row holds already."""

    def keep(self, questions: torch.Tensor, samples: torch.Tensor) -> None:
        """Go on with some of the rows.

        Args:
            questions: int64 ``[B']``, which of the questions, ascending.
            samples: int64 ``[B', G']``, which samples of each.
        """
        if len(questions) < len(self._padding):
            self._padding = self._padding[questions]
            self._prefix = {n: (k[questions], v[questions]) for n, (k, v) in self._prefix.items()}
        index = (questions[:, None], samples)
        self._own = {n: (k[index], v[index]) for n, (k, v) in self._own.items()}
        self._num_samples = samples.shape[1]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Attention of one new token a row.

        Args:
            layer: index of the decoder layer.
            query: ``[N, heads, 1, dim]``, rotated.
            key: ``[N, kv_heads, 1, dim]``, rotated.
            value: ``[N, kv_heads, 1, dim]``.
            scaling: factor of the scores.

        Returns:
            ``[N, 1, heads, dim]``.
        """
        prefix_keys, prefix_values = self._prefix[layer]
        own_keys, own_values = self._own[layer]
        B, kv_heads, P, dim = prefix_keys.shape
        G, heads = self._num_samples, query.shape[1]
        own_keys[:, :, :, self.step] = key.view(B, G, kv_heads, dim)
        own_values[:, :, :, self.step] = value.view(B, G, kv_heads, dim)
        own_keys = own_keys[:, :, :, : self.step + 1]
        own_values = own_values[:, :, :, : self.step + 1]

        q = query.view(B, G, kv_heads, heads // kv_heads, dim) * scaling
        # The G rows of a question read its prompt's keys in one product.
        shared = q.transpose(1, 2).reshape(B, kv_heads, -1, dim)
        on_prefix = (shared @ prefix_keys.transpose(-1, -2)).masked_fill(
            self._padding[:, None, None], float("-inf")
        )
        on_prefix = on_prefix.view(B, kv_heads, G, -1, P).transpose(1, 2)
        scores = torch.cat([on_prefix, q @ own_keys.transpose(-1, -2)], dim=-1)
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        on_prefix, on_own = weights.split([P, self.step + 1], dim=-1)
        shared = on_prefix.transpose(1, 2).reshape(B, kv_heads, -1, P) @ prefix_values
        out = shared.view(B, kv_heads, G, -1, dim).transpose(1, 2) + on_own @ own_values
        result: torch.Tensor = out.reshape(B * G, 1, heads, dim)
        return result


def _pad(tensors: Sequence[torch.Tensor], length: int) -> torch.Tensor:
    """Stack ``[heads, P_b, dim]`` tensors, zero-padded to `length` tokens."""
    return torch.stack([F.pad(x, (0, 0, 0, length - x.shape[1])) for x in tensors])


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    layout: PackedLayout | DecodeLayout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function of the language model; plain SDPA where no layout is given.

    The signature is that of transformers' attention functions (5.17 to 5.24).

    Returns:
        ``[rows, tokens, heads, dim]``, and None for the attention weights.
    """
    if layout is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    layer = module.layer_idx
    assert isinstance(layer, int)
    return layout.attend(layer, query, key, value, scaling), None


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
