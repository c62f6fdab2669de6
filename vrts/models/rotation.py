"""Rotary embeddings in decoding: six kernels a layer instead of transformers' ten.

Importing this puts them in place.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of ``x[i]`` and ``x[i + dim / 2]``; in lower precision rounded less often.

    Args:
        x: ``[..., dim]``.
        cos: of the angles, each of them twice, ``[..., dim]``.
        sin: like `cos`.
    """
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


def _fewer_kernels(modeling: Any) -> None:
    """Let the attention layers of a transformers module rotate new tokens by `rotate`."""
    original = modeling.apply_rotary_pos_emb

    def apply_rotary_pos_emb(
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        unsqueeze_dim: int = 1,
    ) -> Any:
        # A decoding step. In others policy and reference must round alike, with and without grad.
        if torch.is_grad_enabled() or q.shape[-2] != 1:
            return original(q, k, cos, sin, unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return rotate(q, cos, sin), rotate(k, cos, sin)

    vars(modeling)[apply_rotary_pos_emb.__name__] = apply_rotary_pos_emb


for _modeling in (modeling_qwen2_5_vl, modeling_qwen2_vl):
    _fewer_kernels(_modeling)
