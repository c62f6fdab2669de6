"""LoRA in decoding, with few kernels.

peft computes ``base(x) + B(A(x)) * scaling`` layer by layer, with casts around it: under autocast
11 small kernels for each adapted matrix. A decoding step has 196 of these for a 7B model, and is
bound by kernel launches. Here an adapter is added in the kernel of its second product, and layers
that read the same input (q, k and v; gate and up) share the first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from vrts.models.quantizing import quantization_states
from vrts.types import InputError

SAME_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
    ("out_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)
"""Names of linear layers of one parent that read the same tensor, in the order they are called."""


def share_products(model: nn.Module) -> list[SharedInput]:
    """Let the plain LoRA layers of a replica in eval mode run in few kernels, without gradient.

    Layers that do more (dropout, several adapters, variants such as DoRA) are left as they are.
    What is returned has to `refresh` when the weights have changed.
    """
    groups: list[SharedInput] = []
    for parent in model.modules():
        for names in SAME_INPUT:
            layers = [getattr(parent, name, None) for name in names]
            if all(_is_plain(layer) for layer in layers):
                groups.append(SharedInput(layers))
    return groups


def _is_plain(layer: Any) -> bool:
    """Whether a layer is the sum of a linear one and one low-rank product, of one dtype."""
    adapters = getattr(layer, "lora_A", None)
    if not adapters or layer.disable_adapters or layer.merged or layer.lora_variant:
        return False
    if len(layer.active_adapters) != 1 or layer.active_adapters[0] not in adapters:
        return False
    name = layer.active_adapters[0]
    dropout, A, B = layer.lora_dropout[name], layer.lora_A[name], layer.lora_B[name]
    base = layer.get_base_layer().weight
    return (
        (isinstance(dropout, nn.Identity) or not dropout.training)
        and type(A) is nn.Linear
        and type(B) is nn.Linear
        and B.bias is None
        and A.weight.dtype == B.weight.dtype
        and (A.weight.dtype == base.dtype or not base.is_floating_point())  # 4-bit weights
    )


class SharedInput:
    """Adapted layers that are called one after the other with the same tensor."""

    def __init__(self, layers: list[Any]) -> None:
        name = layers[0].active_adapters[0]
        self._weights = [layer.lora_A[name].weight for layer in layers]
        self._A = torch.cat(self._weights).detach()  # [sum of ranks, D]
        self._ranks = [len(weight) for weight in self._weights]
        self._B = [layer.lora_B[name] for layer in layers]
        self._scaling = [layer.scaling[name] for layer in layers]
        self._base = [layer.get_base_layer() for layer in layers]
        self._input: torch.Tensor | None = None
        self._low: tuple[torch.Tensor, ...] = ()
        for i, layer in enumerate(layers):
            layer.forward = self.forward_of(i)

    def move(self, device: torch.device) -> None:
        """Move what is not a parameter."""
        self._A = self._A.to(device)

    @torch.no_grad()
    def refresh(self) -> None:
        """Concatenate the first factors again, in place."""
        torch.cat(self._weights, out=self._A)

    def forward_of(self, i: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """The forward of one of the layers."""

        def forward(x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self._base[i](x)
            if self._input is not x:  # the first of the layers that read it
                low = x.to(self._A.dtype).flatten(0, -2) @ self._A.T  # [rows, sum of ranks]
                self._input, self._low = x, low.split(self._ranks, dim=-1)
            rows = out.view(-1, out.shape[-1])
            # `self._B[i].weight` as it is now: moving a replica gives it other memory
            low, B = self._low[i].to(out.dtype), self._B[i].weight.to(out.dtype)
            rows.addmm_(low, B.T, alpha=self._scaling[i])  # in place: addmm() copies `out` first
            if i == len(self._base) - 1:
                self._input, self._low = None, ()
            return out

        return forward


def merge_layers(model: nn.Module) -> list[MergedLayer]:
    """Let the LoRA layers of a replica run on weights with their adapter added.

    What is returned has to `refresh` when the weights have changed.

    Raises:
        InputError: the weights are in 4 bits.
    """
    if quantization_states(model):
        raise InputError(
            "model.engine: merge_lora cannot add an adapter to 4-bit weights; set merge_lora: "
            "false, or model.policy.init_args.quantize: null"
        )
    peft = sys.modules.get("peft")
    kind = peft.tuners.tuners_utils.BaseTunerLayer if peft else ()
    return [MergedLayer(module) for module in model.modules() if isinstance(module, kind)]


class MergedLayer:
    """An adapted layer as one matrix, which is rounded to the base's dtype."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._base = layer.get_base_layer()
        self._merged = torch.empty_like(self._base.weight)
        nothing = torch.zeros((), device=self._base.weight.device)
        self.norms = (nothing, nothing)
        """Squared norms of the rounding error, and of the adapter's update."""
        layer.forward = self._forward

    def move(self, device: torch.device) -> None:
        """Move the matrix."""
        self._merged = self._merged.to(device)

    @torch.no_grad()
    def refresh(self) -> None:
        """Merge again, in place, from the base's own weights."""
        update = sum(self._layer.get_delta_weight(n).float() for n in self._layer.active_adapters)
        exact = self._base.weight.float() + update
        self._merged.copy_(exact)
        self.norms = (self._merged.float() - exact).square().sum(), update.square().sum()

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._merged, self._base.bias)
