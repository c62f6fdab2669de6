"""What a model was trained with, as plain JSON values: for its card, and for its checkpoints."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, Trainer

from vrts.data.datamodule import VideoQADataModule
from vrts.files.fingerprints import class_name, describe, public_attributes
from vrts.models.module import VideoQAModule
from vrts.models.vlm.policy import TransformersPolicy
from vrts.types import InputError

PACKAGES = ("vrts", "torch", "transformers", "peft", "lightning")
MODULE_OPTIONS = (
    "objective", "rewards", "reference", "temporal", "num_generations", "num_groups",
    "max_new_tokens", "temperature", "micro_batch_size", "updates_per_rollout", "mask_truncated",
)  # fmt: skip
MAX_ITEMS = 50
"""Longest list that is recorded item by item."""


def training_facts(
    trainer: Trainer, module: VideoQAModule, data: LightningDataModule | None
) -> dict[str, Any]:
    """Describe a run: base model, recipe, data, versions, and any warning about its rewards.

    No folder of this machine is named: only the last part of a path is kept. The policy is loaded.
    """
    about = module.policy.fingerprint()
    base = about.get("base") or about.get("path")
    return {
        # a hub id, or the name of a folder
        "base_model": Path(base).resolve().name if base and Path(base).exists() else base,
        "recipe": _recipe(trainer, module, data),
        "data": _data(data) if isinstance(data, VideoQADataModule) else {},
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "warning": module.reward_watch.warning(),
    }


def _recipe(
    trainer: Trainer, module: VideoQAModule, data: LightningDataModule | None
) -> dict[str, Any]:
    """Options of training by name."""
    found: dict[str, Any] = {
        **{name: getattr(module, name) for name in MODULE_OPTIONS},
        **_optimizer(module),
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


def _optimizer(module: VideoQAModule) -> dict[str, Any]:
    """The optimizer with its learning rate, and the schedule, as they are at the first step."""
    optimizer: Any = module.configure_optimizers()
    scheduler = None
    if isinstance(optimizer, dict):
        optimizer, scheduler = optimizer["optimizer"], optimizer["lr_scheduler"]["scheduler"]
    options = {"lr", "weight_decay", "betas", "momentum"} & optimizer.defaults.keys()
    return {
        "optimizer": {
            "class": class_name(optimizer),
            **{name: optimizer.defaults[name] for name in sorted(options)},
        },
        "lr_scheduler": None if scheduler is None else class_name(scheduler),
    }


def _data(data: VideoQADataModule) -> dict[str, Any]:
    """Reader, file and number of questions of each set that training uses."""
    found: dict[str, Any] = {}
    for name in ("train", "val"):
        reader = data.readers[name]
        if reader is None:
            continue
        path = public_attributes(reader).get("path")
        try:
            num_questions: int | None = len(data.questions(name))
        except InputError:
            num_questions = None  # `vrts export` does not need the files
        found[name] = {
            "reader": class_name(reader),
            "file": None if path is None else Path(str(path)).name,
            "num_questions": num_questions,
        }
    return found


def plain(value: Any) -> Any:
    """Describe an object without folders of this machine, and with long lists as their length."""
    return _shortened(describe(value, depth=3))


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        too_many = len(value) > MAX_ITEMS
        return f"{len(value)} items" if too_many else list(map(_shortened, value))
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
