"""What a card can do, measured, and what a step must do, counted."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.common import random_completions, seconds
from vrts.models.families.prompt import VideoPrompt
from vrts.models.vlm.policy import TransformersPolicy


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


def update_flops(policy: TransformersPolicy, prompt: VideoPrompt, G: int, L: int) -> float:
    """Floating point operations of log-probs with gradient, as vrts counts them.

    Args:
        policy: whose language model is updated.
        prompt: forwarded once.
        G: completions.
        L: tokens of each.
    """
    return policy.workload([prompt], [random_completions([L] * G, 256)]).update_flops
