"""Layers of transformers in fewer kernels, or in less memory, with the same result."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.checkpoint import checkpoint


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
        model: of transformers, with norms that multiply by their weight.
    """
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm).__name__.endswith("RMSNorm") and not isinstance(norm, nn.RMSNorm):
                weight: nn.Parameter = norm.weight  # type: ignore[assignment]
                eps: float = norm.variance_epsilon  # type: ignore[assignment]
                fused = FusedRMSNorm(weight.shape, eps, device="meta")
                fused.weight = weight
                setattr(parent, name, fused.train(norm.training))


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
        layers: of transformers, which have an ``mlp``.
        chunk_size: tokens.
    """
    for layer in layers:
        mlp: Any = layer.mlp
        kind = type(mlp)
        mlp.__class__ = type(kind.__name__, (ChunkedMLP, kind), {})
        mlp.chunk_size = chunk_size


class PatchProduct(nn.Conv3d):
    """A convolution whose input is one patch, as large as the kernel.

    Convolution kernels of CPUs and GPUs are made for large images: this product takes a seventh of
    their time on a CPU.
    """

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Map ``[patches, C, frames, height, width]`` to ``[patches, D, 1, 1, 1]``."""
        out = F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)
        return out[..., None, None, None]


def multiply_patches(projection: nn.Module) -> None:
    """Let a vision tower's convolution of patches be a `PatchProduct`.

    Parameters stay as they are, by name, shape and place.
    """
    assert isinstance(projection, nn.Conv3d)
    assert projection.kernel_size == projection.stride
    projection.__class__ = PatchProduct


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


def fuse_rotation(language: nn.Module) -> None:
    """Let a decoder's attention layers rotate new tokens by `rotate`. Idempotent.

    Args:
        language: of transformers; the function is replaced in its module, for all models of it.
    """
    modeling = vars(sys.modules[type(language).__module__])
    original = modeling["apply_rotary_pos_emb"]
    if getattr(original, "in_fewer_kernels", False):
        return

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

    apply_rotary_pos_emb.in_fewer_kernels = True  # type: ignore[attr-defined]
    modeling["apply_rotary_pos_emb"] = apply_rotary_pos_emb
