"""Which checkpoint a run goes on from, and where it keeps its own."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from vrts.models.best import find_best
from vrts.models.latest import is_complete, newest, surviving
from vrts.types import InputError

KEEPERS = (".ModelCheckpoint", ".StepCheckpoint")
"""Ends of the class paths of callbacks whose checkpoints stay in the run's folder."""

FOLDER_STRATEGIES = ("FullySharded", "ModelParallel", "FSDP", "fsdp", "DeepSpeed", "deepspeed")
"""In the names of those whose checkpoints may be folders."""


def keep_in_run_folder(trainer: Any) -> None:
    """Have checkpoints saved in the run's folder where no other is given.

    ModelCheckpoint's own default is a new folder for each start of a run.

    Args:
        trainer: its configuration, which is changed.
    """
    for callback in trainer.callbacks or []:
        arguments = callback.get("init_args") or {}
        if callback.class_path.endswith(KEEPERS) and not arguments.get("dirpath"):
            callback.init_args.dirpath = str(_run_folder(trainer))


def find_checkpoint(config: Any, subcommand: str) -> None:
    """Find out before the weights are loaded whether there is a checkpoint.

    Args:
        config: of a subcommand; its ``last`` or ``best`` is replaced by what that is.
        subcommand: only ``fit`` may begin without a checkpoint.

    Raises:
        InputError: there is none, or a damaged one.
    """
    given = config.get("ckpt_path")
    if given == "best":
        config.ckpt_path = str(find_best(_run_folder(config.trainer)))
    if given == "last":
        config.ckpt_path = _find_last(config.trainer, subcommand)
    if config.get("ckpt_path") in (None, "last", "hpc") or "://" in str(given):
        return
    path = surviving(Path(str(config.ckpt_path)))
    if not path.exists():
        raise InputError(
            f"--ckpt_path: no checkpoint {path}; give a file that fit wrote (in the checkpoints "
            "folder of its run), or last for the newest one"
        )
    if path.is_file() and not is_complete(path):
        raise InputError(
            f"--ckpt_path: {path} is no checkpoint, or a damaged one; give another, or last for "
            "the newest one that is complete"
        )
    if path.is_file():
        _check_sums(path)
        if config.get("weights_only") is not False:  # the user's word for unpickling it
            _check_content(path, subcommand)
    config.ckpt_path = str(path)


def _check_content(path: Path, subcommand: str) -> None:
    """Refuse a file of torch's that is no checkpoint, or not enough of one.

    Raises:
        InputError: it lacks what Lightning needs.
        pickle.UnpicklingError: it would have to be unpickled.
    """
    found = torch.load(path, "cpu", mmap=True, weights_only=True)
    needed = ["state_dict", "pytorch-lightning_version"]
    if subcommand == "fit":
        needed += ["loops", "optimizer_states"]
    missing = [name for name in needed if not isinstance(found, dict) or not found.get(name)]
    if missing[:1] == ["optimizer_states"] or missing[:1] == ["loops"]:
        raise InputError(
            f"--ckpt_path: {path} holds weights alone and no {missing[0]}, so training cannot go "
            "on from it; write its model with vrts export and begin from that "
            "(model.policy.init_args.path)"
        )
    if missing:
        raise InputError(
            f"--ckpt_path: {path} is no checkpoint of vrts fit: it has no {missing[0]}; give "
            "another"
        )


@rank_zero_only
def _check_sums(path: Path) -> None:
    """See that a file's bytes are those that were written, which `torch.load` does not.

    It takes reading all of it, which one process does for all.

    Raises:
        InputError: they are not.
    """
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
    if damaged is not None:
        raise InputError(
            f"--ckpt_path: {path} is damaged: {damaged} in it does not match its checksum; give "
            "another"
        )


def check_kind(config: Any) -> None:
    """Refuse a sharded checkpoint where the strategy cannot read it.

    Args:
        config: of a subcommand.

    Raises:
        InputError: the checkpoint is a folder, and the strategy knows files only.
    """
    path = config.get("ckpt_path")
    strategy = config.trainer.strategy
    name = str(getattr(strategy, "class_path", strategy))
    if path and Path(path).is_dir() and not any(kind in name for kind in FOLDER_STRATEGIES):
        raise InputError(
            f"--ckpt_path: {path} is a folder, as sharded training (FSDP) writes it, but "
            f"trainer.strategy is {name}; put --config configs/fsdp.yaml behind the others"
        )


def _find_last(trainer: Any, subcommand: str) -> str | None:
    """Find the newest checkpoint that is complete, in the folders that callbacks save to."""
    keepers = (*KEEPERS, ".SaveOnInterrupt")
    callbacks = [c for c in trainer.callbacks or [] if c.class_path.endswith(keepers)]
    folders = [(callback.get("init_args") or {}).get("dirpath") for callback in callbacks]
    paths = sorted({Path(folder) for folder in folders if folder})
    if not paths and subcommand == "fit":
        return "last"  # Lightning's own ModelCheckpoint knows where it saves
    paths = paths or [_run_folder(trainer)]
    found = newest(paths)
    if found is not None:
        return str(found)
    where = ", ".join(map(str, paths))
    if subcommand != "fit":
        raise InputError(f"--ckpt_path last: no checkpoint in {where}; give the path of one")
    rank_zero_info(f"--ckpt_path last: no checkpoint in {where} yet, so the run begins anew")
    return None


def _run_folder(trainer: Any) -> Path:
    return Path(trainer.default_root_dir or ".") / "checkpoints"
