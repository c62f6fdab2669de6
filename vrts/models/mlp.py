"""Feed-forward layers that take their tokens a chunk at a time, for less memory.

With gradient checkpointing, what an update holds at most is one decoder layer recomputed, and most
of that are the feed-forward's wide activations and their gradients. In chunks, which are
recomputed once more, those of one chunk exist.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class ChunkedMLP(nn.Module):
    """Mixed into a feed-forward layer's own class, see `chunk_mlps`."""

    chunk_size: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer's own class computes.

        Args:
            x: ``[rows, tokens, D]``.
        """
        plain = super().forward
        if x.shape[1] <= self.chunk_size:
            return plain(x)  # type: ignore[no-any-return]
        # in chunks without a gradient too: policy and reference have to round alike
        keeps = torch.is_grad_enabled() and self.training
        parts = x.split(self.chunk_size, dim=1)
        return torch.cat(
            [checkpoint(plain, p, use_reentrant=False) if keeps else plain(p) for p in parts], 1
        )


def chunk_mlps(layers: nn.ModuleList, chunk_size: int) -> None:
    """Let decoder layers forward and recompute their feed-forward chunk by chunk.

    The result is the same; gradients are summed in another order. Their names stay, and so does
    what is found by them: adapters, shards and checkpoints.

    Args:
        layers: of transformers' Qwen2-VL family, which have an ``mlp``.
        chunk_size: tokens.
    """
    for layer in layers:
        mlp: Any = layer.mlp
        kind = type(mlp)
        mlp.__class__ = type(kind.__name__, (ChunkedMLP, kind), {})
        mlp.chunk_size = chunk_size
