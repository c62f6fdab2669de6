"""Log-probs at chosen positions from hidden states, in chunks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint


def suppress(logits: torch.Tensor, suppressed: torch.Tensor) -> torch.Tensor:
    """Put suppressed tokens at minus infinity.

    Args:
        logits: ``[N, V]``.
        suppressed: int64 token ids.
    """
    return logits.index_fill(-1, suppressed, float("-inf"))


def token_logprobs(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    suppressed: torch.Tensor,
    temperature: float,
    chunk_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-prob of each target and entropy of its distribution.

    Logits exist for `chunk_size` positions at a time; backward computes them again.

    Args:
        hidden: ``[M, D]``, the hidden states that predict the targets.
        targets: int64 ``[M]``.
        head: maps ``[m, D]`` to logits ``[m, V]``.
        suppressed: int64 token ids that are never sampled.
        temperature: logits are divided by it.
        chunk_size: positions in one chunk.

    Returns:
        float32 ``[M]`` log-probs, and float32 ``[M]`` entropies in nats without gradient.
    """

    def chunk(h: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = suppress(head(h).float() / temperature, suppressed)
        logprobs = logits.log_softmax(-1)
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs.index_fill(-1, suppressed, 0.0)).sum(-1)
        return logprobs.gather(-1, t[:, None])[:, 0], entropy

    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    for h, t in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True):
        if torch.is_grad_enabled() and h.requires_grad:
            parts.append(checkpoint(chunk, h, t, use_reentrant=False))
        else:
            parts.append(chunk(h, t))
    logprobs, entropy = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropy)
