"""Writing a model, or its adapter, as a Hugging Face folder."""

from __future__ import annotations

import copy
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from torch import nn

from vrts.models.sharding import full_state
from vrts.models.vlm.loading import is_adapted
from vrts.models.vlm.older_names import add_older_names
from vrts.types import InputError

if TYPE_CHECKING:
    from peft import PeftModel

MAX_ROUNDING = 0.05
"""Share of a merged update that rounding may change without a warning."""

_log = logging.getLogger(__name__)


def save_model(model: Any, processor: Any, folder: Path, merge: bool, is_sharded: bool) -> None:
    """Write weights or adapter as safetensors, generation config and processor.

    Merged weights keep the dtype that the base model is held in. In bfloat16 a small update is
    partly rounded away; the log reports how much.

    Args:
        model: transformers' model, or peft's around it. It stays as it is.
        processor: of the model.
        folder: to write to.
        merge: write a model with its adapter merged in, in place of the adapter.
        is_sharded: each process holds a part of the weights; all of them have to call this, the
            first one writes.

    Raises:
        InputError: the adapter cannot be merged, or the folder cannot be written to.
    """
    merge = merge and is_adapted(model)
    if merge:
        from vrts.models.vlm.saving import check_mergeable, merge_adapters  # with peft

        model = model.get_base_model()
        check_mergeable(model)
    elif is_adapted(model):
        _name_base(model)
    state = full_state(model) if is_sharded else dict(model.state_dict())
    if not state:
        return  # another process writes
    if merge:
        rounding, dtype = merge_adapters(model, state), str(model.dtype).removeprefix("torch.")
        _log.log(
            logging.WARNING if rounding > MAX_ROUNDING else logging.INFO,
            "merged the adapter: rounding to %s changed the update by %.2g %%; the adapter alone "
            "is exact, and so is merging where model.policy.init_args.dtype is float32",
            dtype,
            100 * rounding,
        )
    try:
        _check_space(folder, model, state)
        model.save_pretrained(folder, state_dict=state)
        base: Any = model.get_base_model() if is_adapted(model) else model
        base.generation_config.save_pretrained(folder)
        processor.save_pretrained(folder)
        add_older_names(folder)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot write the model to {folder}: {error}; make room or give another folder, then "
            "write it from the run's checkpoint with vrts export"
        ) from error


def _name_base(model: PeftModel) -> None:
    """Let the adapter name its base model as it is found from any working directory."""
    for config in model.peft_config.values():
        base = str(config.base_model_name_or_path)
        config.base_model_name_or_path = str(Path(base).resolve() if Path(base).is_dir() else base)


def _check_space(folder: Path, model: Any, state: dict[str, torch.Tensor]) -> None:
    """Find out before anything is written whether it fits.

    Raises:
        OSError: it does not.
    """
    written = state
    if is_adapted(model):
        written = {name: tensor for name, tensor in state.items() if "lora_" in name}
    # tied weights are written once
    sizes = {t.untyped_storage().data_ptr(): t.numel() * t.element_size() for t in written.values()}
    needed = sum(sizes.values())
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"it takes {_size(needed)}, and {_size(free)} are free")


def _size(num_bytes: float) -> str:
    """Bytes in the unit in which they are a number of few digits."""
    for unit in ("bytes", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.4g} GB"


def check_mergeable(base: nn.Module) -> None:
    """Find out whether `merge_adapters` can do its work, before weights are gathered for it.

    Args:
        base: a model with adapter layers in place.

    Raises:
        InputError: modules other than the adapter are trained, or it adapts weights that the model
            uses in a second place, where the merged ones would be wrong.
    """
    uses = Counter(id(p) for _, p in base.named_parameters(remove_duplicate=False))
    for name, module in base.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise InputError(f"merge: {name} is not a low-rank adapter; write the adapter instead")
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
        state: its unsharded weights, which `base` may hold only parts of. Comes out with the names
            and weights of a model without adapters.

    Returns:
        How much of the update that rounding took or added, as a share: the norm of all rounding
        errors over the norm of the update. About 1 means that it is lost.

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
