"""Attention of the vision tower: all windows of one size in one SDPA call.

Outside its flash attention path, transformers attends window after window in a Python loop, which
is thousands of small kernels for a video. Here windows are batched by length. The result is the
same: windows do not see each other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AttentionInterface

# "flash" in the name makes transformers hand over all windows at once, with their boundaries.
BATCHED_WINDOWS = "vrts_flash_windows"
"""Name under which the attention is known to transformers."""


def batched_window_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within windows.

    Query, key and value are ``[1, heads, S, dim]``, the windows one after the other;
    `cu_seq_lens_q` is int ``[windows + 1]``, where they start and end. What else transformers
    passes to flash attention is ignored.

    Returns:
        ``[1, S, heads, dim]``, and None for the attention weights.
    """
    lengths = cu_seq_lens_q.diff()
    kinds = [length for length in lengths.unique().tolist() if length > 0]  # smaller at edges
    if len(kinds) == 1:
        return _attend(query[0], key[0], value[0], kinds[0], scaling).transpose(0, 1)[None], None
    out = torch.empty_like(query[0])
    for length in kinds:
        starts = cu_seq_lens_q[:-1][lengths == length]
        index = (starts[:, None] + torch.arange(length, device=starts.device)).flatten()
        q, k, v = query[0][:, index], key[0][:, index], value[0][:, index]
        out = out.index_copy(1, index, _attend(q, k, v, length, scaling))
    return out.transpose(0, 1)[None], None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, length: int, scaling: float
) -> torch.Tensor:
    """Attention ``[heads, S, dim]`` within windows of one length."""
    # [windows, heads, length, dim]
    q, k, v = (x.unflatten(1, (-1, length)).transpose(0, 1) for x in (query, key, value))
    out = F.scaled_dot_product_attention(q, k, v, scale=scaling)
    return out.transpose(0, 1).flatten(1, 2)


AttentionInterface.register(BATCHED_WINDOWS, batched_window_attention)
