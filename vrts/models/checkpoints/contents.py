"""What a checkpoint of a module holds: the trained parameters, and no others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vrts.models.policy import Policy
from vrts.types import InputError

FORMAT = 1
"""Version of the checkpoints that are written and resumed from. It is raised by every change after
which a run could not resume from an earlier checkpoint as if nothing had happened."""

FORMAT_KEY, TRAINED_WITH, BASE = "vrts_format", "trained_with", "base_model"
"""Keys in a checkpoint: `FORMAT`, the policy's `trained_with`, and name and content of the model
that training started from."""


def identity(policy: Policy) -> dict[str, Any]:
    """What a checkpoint records of itself, for `check_format` and `check_same_policy`."""
    return {
        FORMAT_KEY: FORMAT,
        TRAINED_WITH: policy.trained_with,
        BASE: {"name": _name(policy), "content": policy.base_content},
    }


def check_format(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    """Raise InputError where a checkpoint, at that path, has another version's format."""
    found = checkpoint.get(FORMAT_KEY, 0)
    if found != FORMAT:
        age = "an earlier" if found < FORMAT else "a later"
        raise InputError(
            f"--ckpt_path: {path} was written by {age} version of vrts (format {found}, this one "
            f"resumes from format {FORMAT}); finish the run with that version, or write its model "
            "with vrts export and start from that (model.policy.init_args.path)"
        )


def keep_trained(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Drop frozen weights from a checkpoint; they stay in the policy's own folder."""
    trained = _trained_keys(module)
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {k: v for k, v in state.items() if k in trained}


def keep_trained_only(module: nn.Module) -> None:
    """Leave frozen weights out of a module's state, for strategies that save it themselves."""

    def drop(owner: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for name in state.keys() - {prefix + key for key in _trained_keys(owner)}:
            del state[name]

    module.register_state_dict_post_hook(drop)


def check_same_model(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Refuse to load the checkpoint of another model into a module.

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


def check_same_policy(policy: Policy, checkpoint: Mapping[str, Any]) -> None:
    """Refuse trained weights that would be another model with the policy's base or options.

    Raises:
        InputError: the run that wrote the checkpoint started from another model, or had another
            option.
    """
    base = checkpoint.get(BASE) or {}
    content = policy.base_content
    if base.get("content") and content and base["content"] != content:
        raise InputError(
            f"--ckpt_path: the checkpoint was trained from {base['name']} (content "
            f"{base['content'][:12]}), but model.policy is {_name(policy)} (content "
            f"{content[:12]}), whose weights differ; give the folder or hub id of the former as "
            "--model.policy.init_args.path"
        )
    have = policy.trained_with
    for name, value in checkpoint.get(TRAINED_WITH, {}).items():
        if have.get(name) != value:
            raise InputError(
                f"--ckpt_path: the checkpoint was trained with {name} {value}, but model.policy "
                f"has {have.get(name)}; give --model.policy.init_args.{name}={value}"
            )


def check_sharded(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Raise InputError where a file's optimizer states do not fit a sharded run."""
    if any(state["state"] for state in checkpoint.get("optimizer_states", [])):
        raise InputError(
            f"--ckpt_path: {path} is of a run that was not sharded: its optimizer states do not "
            "fit; resume with that run's trainer.strategy, or start over "
            "from its exported model (model.policy.init_args.path)"
        )


def _name(policy: Policy) -> str | None:
    """The hub id of a policy's base model, or the name of its folder."""
    if not policy.sources:
        return None
    base = policy.sources[-1]
    return Path(base).resolve().name if Path(base).exists() else base


def _trained_keys(module: nn.Module) -> set[str]:
    """Names of the trained parameters, tied ones under each of their names."""
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if parameter.requires_grad}
