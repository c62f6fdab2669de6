"""Merging adapters into copies of the weights that they adapt; the model itself stays as it is."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from vrts.types import InputError


def check_mergeable(base: nn.Module) -> None:
    """Find out whether `merge_adapters` can do its work, before weights are gathered for it.

    Args:
        base: a model with adapter layers in place.

    Raises:
        InputError: modules are trained beside the adapter, or it adapts weights that the model
            uses in a second place, where the merged ones would be wrong.
    """
    uses = Counter(id(p) for _, p in base.named_parameters(remove_duplicate=False))
    for name, module in base.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise InputError(f"merge: {name} is no low-rank adapter; write the adapter instead")
        if isinstance(module, BaseTunerLayer):
            shared = [p for p in module.get_base_layer().parameters() if uses[id(p)] > 1]
            if shared:
                raise InputError(
                    f"merge: the adapter changes {name}, whose weights the model uses in a second "
                    "place too; write the adapter instead"
                )


@torch.no_grad()
def merge_adapters(base: nn.Module, state: dict[str, torch.Tensor]) -> float:
    """Replace adapted weights in a state by merged ones, on the CPU.

    Each is added up in float32 and then rounded once to the dtype of the weight it replaces.

    Args:
        base: a model with adapter layers in place, which is left alone.
        state: its whole weights, which `base` may hold only parts of. Comes out with the names and
            weights of a model without adapters.

    Returns:
        How much of the update that rounding took or added, as a share: the norm of all rounding
        errors over the norm of the update. About 1 says that it is lost.

    Raises:
        InputError: merged weights are not finite.
    """
    errors = updates = 0.0
    for name, layer in list(base.named_modules()):
        if not isinstance(layer, BaseTunerLayer):
            continue
        assert isinstance(layer, nn.Module)
        held = {key: state.pop(f"{name}.{key}") for key in layer.state_dict()}
        whole = {
            id(value): nn.Parameter(held[key].to(torch.float32, copy=True), requires_grad=False)
            for key, value in layer.state_dict(keep_vars=True).items()
        }
        merged = copy.deepcopy(layer, dict(whole))  # with whole weights in the place of its own
        try:
            merged.merge(safe_merge=True)
        except ValueError as error:
            raise InputError(f"merge: {name}: {error}") from error
        for key, exact in merged.get_base_layer().state_dict().items():
            old = held[f"base_layer.{key}"]
            new = exact.to(old.dtype)
            errors += float((new.float() - exact).square().sum())
            updates += float((exact - old.float()).square().sum())
            state[f"{name}.{key}"] = new.cpu()
    return (errors / updates) ** 0.5 if updates else 0.0
