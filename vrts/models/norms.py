"""Norms as one kernel: transformers' are six or seven, which add up in a decoding step."""

from __future__ import annotations

from torch import nn


def fuse_norms(model: nn.Module) -> None:
    """Put torch's RMS norm in the place of transformers', with the same parameters.

    It computes the same in float32. In lower precision it rounds once instead of twice, and
    float64 stays float64, which transformers' version takes to float32 and back.

    Args:
        model: of transformers' Qwen2-VL family.
    """
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm).__name__.endswith("RMSNorm") and not isinstance(norm, nn.RMSNorm):
                weight: nn.Parameter = norm.weight  # type: ignore[assignment]
                eps: float = norm.variance_epsilon  # type: ignore[assignment]
                fused = nn.RMSNorm(weight.shape, eps, device="meta")
                fused.weight = weight
                setattr(parent, name, fused.train(norm.training))
