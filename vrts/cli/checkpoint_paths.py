"""Which checkpoint a run resumes from, and where it keeps its own."""

from __future__ import annotations

import zipfile
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from vrts.models.checkpoints.best import find_best
from vrts.models.checkpoints.contents import check_format
from vrts.models.checkpoints.finding import REST, is_complete, newest, surviving
from vrts.models.checkpoints.reading import listed_weights, read_contents, read_file
from vrts.models.strategies.fully_sharded import FullySharded
from vrts.types import InputError


def keep_in_run_folder(trainer: Any) -> None:
    """Have checkpoints saved in the run's folder, where ``--ckpt_path last`` finds them again.

    ModelCheckpoint's own default is a new folder for each start of a run. The configuration of the
    Trainer is changed.
    """
    for arguments in _arguments_of_keepers(trainer):
        if not arguments.get("dirpath"):
            arguments.dirpath = str(_run_folder(trainer))


def find_checkpoint(config: Any, subcommand: str) -> None:
    """Find out before the weights are loaded whether there is a checkpoint.

    Args:
        config: of a subcommand; its ``last`` or ``best`` is replaced by what that is.
        subcommand: only ``fit`` may begin without a checkpoint.

    Raises:
        InputError: there is none, or a damaged one.
    """
    if config.get("weights_only") is False:
        raise InputError(
            "--weights_only: code in a checkpoint is never run; leave it null (a custom callback "
            "has to keep tensors and plain values only)"
        )
    config.weights_only = True
    given = config.get("ckpt_path")
    if given == "best":
        config.ckpt_path = str(find_best(_run_folder(config.trainer)))
    if given == "last":
        config.ckpt_path = _find_last(config.trainer, subcommand)
        if config.ckpt_path is None:
            config.overwrite = True  # what the run has left so far, which is not a checkpoint
    if config.get("ckpt_path") in (None, "hpc") or "://" in str(given):
        return
    path = surviving(Path(str(config.ckpt_path)))
    if not path.exists():
        raise InputError(
            f"--ckpt_path: no checkpoint {path}; give a file that fit wrote (in the checkpoints "
            "folder of its run), or last for the newest one"
        )
    if not is_complete(path):
        raise InputError(
            f"--ckpt_path: {path} is not a checkpoint, or a damaged one; give another, or last for "
            "the newest one that is complete"
        )
    if path.is_file():
        _check_sums(path)
    _check_content(path, subcommand)
    config.ckpt_path = str(path)


def _check_content(path: Path, subcommand: str) -> None:
    """Raise `InputError` if a checkpoint lacks what Lightning needs, or holds more than tensors."""
    found = read_file(path / REST if path.is_dir() else path)
    if path.is_dir():
        contents = read_contents(path)
        names = contents.state_dict_metadata
        found |= {"state_dict": listed_weights(contents)}
        found["optimizer_states"] = [name for name in names if name.startswith("optimizer_")]
    needed = ["state_dict", "pytorch-lightning_version"]
    if subcommand == "fit":
        needed += ["loops", "optimizer_states"]
    missing = [name for name in needed if not found.get(name)]
    if missing and missing[0] in ("loops", "optimizer_states"):
        raise InputError(
            f"--ckpt_path: {path} holds weights alone and no {missing[0]}, so training cannot "
            "resume from it; write its model with vrts export and start from that "
            "(model.policy.init_args.path)"
        )
    if missing:
        raise InputError(
            f"--ckpt_path: {path} is not a checkpoint of vrts fit: it has no {missing[0]}; give "
            "another"
        )
    if subcommand == "fit":
        check_format(path, found)


@rank_zero_only
def _check_sums(path: Path) -> None:
    """Raise `InputError` if a file does not match its checksums: `torch.load` does not verify them.

    It takes reading all of it, which one process does for all.
    """
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
    if damaged is not None:
        raise InputError(
            f"--ckpt_path: {path} is damaged: {damaged} in it does not match its checksum; give "
            "another"
        )


def check_kind(path: str | None, strategy: Strategy) -> None:
    """Raise `InputError` if a checkpoint is a folder, and the strategy reads files only."""
    if path and Path(path).is_dir() and not isinstance(strategy, FullySharded):
        raise InputError(
            f"--ckpt_path: {path} is a folder, as sharded training (FSDP2) writes it, but "
            f"trainer.strategy is {type(strategy).__name__}; put --config configs/fsdp.yaml after "
            "the others"
        )


def _find_last(trainer: Any, subcommand: str) -> str | None:
    """Find the newest checkpoint that is complete, in the folders that callbacks save to."""
    keepers = _arguments_of_keepers(trainer)
    paths = sorted({Path(given.dirpath) for given in keepers if given.get("dirpath")})
    paths = paths or [_run_folder(trainer)]
    found = newest(paths)
    if found is not None:
        return str(found)
    where = ", ".join(map(str, paths))
    if subcommand != "fit":
        raise InputError(f"--ckpt_path last: no checkpoint in {where}; give the path of one")
    rank_zero_info(
        f"--ckpt_path last: no checkpoint in {where} yet, so the run starts from the beginning"
    )
    return None


def _arguments_of_keepers(trainer: Any) -> list[Namespace]:
    """Arguments of the callbacks that save checkpoints, in the configuration of the Trainer."""
    return [
        callback.init_args
        for callback in trainer.callbacks or []
        if issubclass(resolve_name(callback.class_path), ModelCheckpoint)
    ]


def _run_folder(trainer: Any) -> Path:
    return Path(trainer.default_root_dir or ".") / "checkpoints"
