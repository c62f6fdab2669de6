"""Norms as one kernel: transformers' are six or seven, which add up in a decoding step."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class FusedRMSNorm(nn.RMSNorm):
    """RMS norm in the dtype of its input, where the weight has the same.

    Autocast on CUDA runs `rms_norm` in float32: it would copy input and weight, and what reads the
    result would copy that back. The kernel computes in float32 inside anyway.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Norm over the last dimension."""
        same = x.dtype == self.weight.dtype
        with torch.autocast(x.device.type, enabled=False) if same else nullcontext():
            return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)


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
                fused = FusedRMSNorm(weight.shape, eps, device="meta")
                fused.weight = weight
                setattr(parent, name, fused.train(norm.training))
