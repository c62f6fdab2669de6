"""What a card can do, measured, and what a step must do, counted."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.common import seconds


def matmul_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """Floating point operations a second of a square matrix product."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    repeats = 10
    return 2.0 * size**3 * repeats / seconds(lambda: [a @ b for _ in range(repeats)], 5, device)


def bandwidth(num_bytes: int, device: torch.device) -> float:
    """Bytes a second of device memory: the better one of a copy and of a sum, which only reads."""
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    repeats = 5
    copy_s = seconds(lambda: [target.copy_(source) for _ in range(repeats)], 5, device)
    sum_s = seconds(lambda: [source.sum() for _ in range(repeats)], 5, device)
    size = source.nbytes * repeats
    return max(2 * size / copy_s, size / sum_s)


def decode_bytes(policy: Any, P: int, G: int, L: float) -> float:
    """Bytes that a decoding step reads at least: all matrices, and keys and values.

    Args:
        policy: whose language model decodes.
        P: prompt tokens of the one question.
        G: rows.
        L: tokens that each row holds, on average over the steps.
    """
    text = policy.base.config.text_config
    weights = [*policy.base.model.language_model.layers.parameters(), policy.base.lm_head.weight]
    head_dim = text.hidden_size // text.num_attention_heads
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim
    size = policy.base.lm_head.weight.element_size()
    return float(sum(w.nbytes for w in weights) + token * size * (P + G * L))


def update_flops(policy: Any, P: int, G: int, L: int) -> float:
    """Floating point operations of log-probs with gradient, the prompt forwarded once.

    Those of the model: what gradient checkpointing computes again does not count, nor does the
    vision tower. Backward is twice forward.

    Args:
        policy: whose language model is updated.
        P: prompt tokens of the one question.
        G: completions.
        L: tokens of each, of which the last one is not forwarded.
    """
    text = policy.base.config.text_config
    layers = policy.base.model.language_model.layers
    matrices = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
    head = 2 * policy.base.lm_head.weight.numel() * G * L
    attention = attention_flops(text, P, G, L)
    return float(3 * (2 * matrices * (P + G * (L - 1)) + attention + head))


def attention_flops(text: Any, P: int, G: int, L: int) -> float:
    """Of attention alone, forward: two products over every pair of tokens that see each other.

    Args:
        text: configuration of the language model.
        P: prompt tokens.
        G: completions.
        L: tokens of each, of which the last one is not forwarded.
    """
    pairs = P * P / 2 + G * (L - 1) * P + G * (L - 1) ** 2 / 2
    return float(4 * text.hidden_size * text.num_hidden_layers * pairs)
