"""What a model was trained with, as plain JSON values: for its card, and for its checkpoints."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, Trainer

from vrts.data.datamodule import VideoQADataModule
from vrts.files.fingerprints import class_name, public_attributes
from vrts.models.module import VideoQAModule
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import InputError

PACKAGES = ("vrts", "torch", "transformers", "peft", "lightning")
MAX_ITEMS = 50
"""Of a list that is an option."""


def training_facts(
    trainer: Trainer, module: VideoQAModule, data: LightningDataModule | None
) -> dict[str, Any]:
    """Describe a run: recipe, data, versions and what was wrong with its rewards.

    Nothing of it names a folder of this machine: of paths the last part is kept.

    Args:
        trainer: with its number of processes.
        module: whose policy is loaded.
        data: of the run.
    """
    return {
        "base_model": base_model(module),
        "recipe": _recipe(trainer, module, data),
        "data": _data(data),
        "versions": versions(),
        "warning": module.reward_watch.warning(),
    }


def base_model(module: VideoQAModule) -> str | None:
    """The hub id of the model that training began with, or the name of its folder."""
    about = module.policy.fingerprint()
    path = about.get("base") or about.get("path")
    return Path(path).resolve().name if path and Path(path).exists() else path


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _recipe(
    trainer: Trainer, module: VideoQAModule, data: LightningDataModule | None
) -> dict[str, Any]:
    """Options of training by name."""
    found: dict[str, Any] = {
        "objective": module.objective,
        "rewards": module.rewards,
        "reference": module.reference,
        "temporal": module.temporal,
        "num_generations": module.num_generations,
        "num_groups": module.num_groups,
        "max_new_tokens": module.max_new_tokens,
        "temperature": module.temperature,
        "micro_batch_size": module.micro_batch_size,
        "updates_per_rollout": module.updates_per_rollout,
        "mask_truncated": module.mask_truncated,
        **_optimizer(trainer, module),
        "max_grad_norm": module.max_grad_norm,
        "precision": trainer.precision,
        "processes": trainer.world_size,
        "seed": module.seed,
    }
    if isinstance(data, VideoQADataModule):
        found |= {
            "questions_per_step": data.batch_size * trainer.world_size,
            "num_frames": data.num_frames,
            "sampler": data.sampler,
            "resolution": data.resolution,
        }
    if isinstance(module.policy, TransformersPolicy):
        found |= {
            "lora": module.policy.lora,
            "freeze_vision": module.policy.freeze_vision,
            "dtype": str(module.policy.base.dtype).removeprefix("torch."),
            "prompt": module.policy.fingerprint()["prompt"],
        }
    return {name: plain(value) for name, value in found.items()}


def _optimizer(trainer: Trainer, module: VideoQAModule) -> dict[str, Any]:
    """The optimizer with its learning rate, and the schedule."""
    made: Any = trainer.optimizers or module.configure_optimizers()
    if isinstance(made, dict):
        optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    else:
        optimizer = made[0] if isinstance(made, list) else made
        configs = trainer.lr_scheduler_configs if isinstance(made, list) else []
        scheduler = configs[0].scheduler if configs else None
    options = {"lr", "weight_decay", "betas", "momentum"} & optimizer.defaults.keys()
    return {
        "optimizer": {
            "class": class_name(optimizer),
            **{name: optimizer.defaults[name] for name in sorted(options)},
        },
        "lr_scheduler": None if scheduler is None else class_name(scheduler),
    }


def _data(data: LightningDataModule | None) -> dict[str, Any]:
    """Reader, file and number of questions for each set of questions that training uses."""
    found: dict[str, Any] = {}
    if not isinstance(data, VideoQADataModule):
        return found
    for name in ("train", "val"):
        reader = data.readers[name]
        if reader is None:
            continue
        path = public_attributes(reader).get("path")
        found[name] = {
            "reader": class_name(reader),
            "file": None if path is None else Path(str(path)).name,
            "num_questions": _count(data, name),
        }
    return found


def _count(data: VideoQADataModule, name: str) -> int | None:
    """Number of questions; None where they were not read."""
    try:
        return len(data.questions(name))
    except InputError:
        return None


def plain(value: Any, depth: int = 3) -> Any:
    """A value as JSON has it; of an object its class and its public options.

    Args:
        value: of any kind: options may be a user's own objects.
        depth: of objects in objects; what lies deeper is told by its class alone.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)  # also of restricted types, which a checkpoint could not be read with
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, str):
        return Path(value).name if Path(value).is_absolute() else str(value)
    if isinstance(value, Path):
        return value.name
    if isinstance(value, list | tuple) and len(value) > MAX_ITEMS:
        return f"{len(value)} items"
    if isinstance(value, list | tuple):
        return [plain(item, depth) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth) for key, item in value.items()}
    name = class_name(value)
    if depth == 0 or not (dataclasses.is_dataclass(value) or _is_option(value)):
        return {"class": name}
    options = public_attributes(value)
    return {"class": name, **{key: plain(item, depth - 1) for key, item in options.items()}}


def _is_option(value: object) -> bool:
    """Whether an object's attributes are options, and no weights or threads."""
    return not type(value).__module__.startswith(("torch", "builtins", "_thread"))
