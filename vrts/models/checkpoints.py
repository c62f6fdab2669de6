"""What a checkpoint of a module holds: the trained parameters, and no others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vrts.models.policy import Policy
from vrts.types import InputError

TRAINED_WITH = "trained_with"
"""Key in a checkpoint of the policy's options of that name."""


def keep_trained(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Drop frozen weights from a checkpoint; they stay in the policy's own folder.

    Args:
        module: what the checkpoint was made of.
        checkpoint: Lightning's; its ``state_dict`` is replaced.
    """
    trained = _trained_keys(module)
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {k: v for k, v in state.items() if k in trained}


def keep_trained_only(module: nn.Module) -> None:
    """Leave frozen weights out of a module's state, where the strategy saves it before it asks."""

    def drop(owner: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for name in state.keys() - {prefix + key for key in _trained_keys(owner)}:
            del state[name]

    module.register_state_dict_post_hook(drop)


def check_same_model(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Refuse the checkpoint of another model.

    Args:
        module: what the checkpoint is to be loaded into.
        checkpoint: Lightning's.

    Raises:
        InputError: tensors are missing, superfluous or of another shape.
    """
    have = {k: tuple(v.shape) for k, v in checkpoint["state_dict"].items()}
    named = dict(module.named_parameters(remove_duplicate=False))
    want = {k: tuple(named[k].shape) for k in _trained_keys(module)}
    differing = sorted(k for k in have.keys() | want.keys() if have.get(k) != want.get(k))
    if differing:
        k = differing[0]
        raise InputError(
            f"--ckpt_path: the checkpoint is of another model or LoRA setting: "
            f"{len(differing)} tensors differ, the first {k}: {have.get(k)} in the "
            f"checkpoint, {want.get(k)} in model.policy"
        )


def check_same_options(policy: Policy, checkpoint: Mapping[str, Any]) -> None:
    """Refuse trained weights that would be another model with the policy's options.

    Args:
        policy: loaded.
        checkpoint: Lightning's.

    Raises:
        InputError: an option differs from that of the run that wrote the checkpoint.
    """
    have = policy.trained_with
    for name, value in checkpoint.get(TRAINED_WITH, {}).items():
        if have.get(name) != value:
            raise InputError(
                f"--ckpt_path: the checkpoint was trained with {name} {value}, but model.policy "
                f"has {have.get(name)}; give --model.policy.init_args.{name}={value}"
            )


def check_sharded(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a file whose optimizer states do not fit a sharded run.

    Args:
        path: of the file.
        checkpoint: Lightning's.

    Raises:
        InputError: it was written without sharding.
    """
    if any(state["state"] for state in checkpoint.get("optimizer_states", [])):
        raise InputError(
            f"--ckpt_path: {path} is of a run that was not sharded: its optimizer states do not "
            "fit; resume with that run's trainer.strategy, or start over "
            "from its exported model (model.policy.init_args.path)"
        )


def _trained_keys(module: nn.Module) -> set[str]:
    """Names of the trained parameters, tied ones under each of their names."""
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if parameter.requires_grad}
