"""LoRA in decoding: as few kernels as its products need.

peft computes ``base(x) + B(A(x)) * scaling`` layer by layer, with casts of the input and the result
around it: under autocast 11 small kernels for each adapted matrix. A decoding step has 196 of them
for a 7B model, and launching kernels is what bounds it. Here an adapter is added in the kernel of
its second product, and layers that read the same input (q, k and v; gate and up) share the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""Names of linear layers of one parent that read the same tensor, in the order of their use."""


@contextmanager
def merged_products(model: nn.Module) -> Iterator[None]:
    """Context in which plain LoRA layers run in few kernels, without gradient.

    The first factors of layers with the same input are copied side by side when it is entered:
    weights must not change within. Layers that do more than plain LoRA (dropout, several adapters,
    variants such as DoRA) are left as they are.

    Args:
        model: with or without adapters, inside of `sampling_mode.cast_linears` where that is used.
    """
    changed: list[nn.Module] = []
    try:
        for parent in model.modules():
            for names in SAME_INPUT:
                group = [getattr(parent, name, None) for name in names]
                layers = [layer for layer in group if _is_plain(layer)]
                if layers and len(layers) == len(names):
                    shared = _SharedInput(layers)
                    for i, layer in enumerate(layers):
                        layer.forward = shared.forward_of(i)
                        changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.forward  # the method of its class again


def _is_plain(layer: Any) -> bool:
    """Whether a layer is the sum of a linear one and of one low-rank product, of one dtype."""
    adapters = getattr(layer, "lora_A", None)
    if not adapters or layer.disable_adapters or layer.merged or layer.lora_variant:
        return False
    if len(layer.active_adapters) != 1 or layer.active_adapters[0] not in adapters:
        return False
    name = layer.active_adapters[0]
    dropout, A, B = layer.lora_dropout[name], layer.lora_A[name], layer.lora_B[name]
    return (
        (isinstance(dropout, nn.Identity) or not dropout.training)
        and type(A) is nn.Linear
        and type(B) is nn.Linear
        and B.bias is None
        and A.weight.dtype == B.weight.dtype == layer.get_base_layer().weight.dtype
    )


class _SharedInput:
    """Adapted layers that are called one after the other with the same tensor."""

    def __init__(self, layers: list[Any]) -> None:
        name = layers[0].active_adapters[0]
        weights = [layer.lora_A[name].weight for layer in layers]
        self._A = torch.cat(weights).detach()  # [sum of ranks, D]
        self._ranks = [len(weight) for weight in weights]
        self._B = [layer.lora_B[name].weight.detach().T for layer in layers]
        self._scaling = [layer.scaling[name] for layer in layers]
        self._base = [layer.get_base_layer() for layer in layers]
        self._input: torch.Tensor | None = None
        self._low: tuple[torch.Tensor, ...] = ()

    def forward_of(self, i: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """The forward of one of the layers."""

        def forward(x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self._base[i](x)
            if self._input is not x:
                low = x.to(self._A.dtype).flatten(0, -2) @ self._A.T
                self._input, self._low = x, low.split(self._ranks, dim=-1)
            rows = out.view(-1, out.shape[-1])
            # in place, since else the kernel's result begins as a copy of `out`
            low, B = self._low[i].to(out.dtype), self._B[i].to(out.dtype)
            rows.addmm_(low, B, alpha=self._scaling[i])
            if i == len(self._base) - 1:
                self._input, self._low = None, ()
            return out

        return forward
