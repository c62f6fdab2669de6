"""All folders that a training run writes to, checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from vrts.callbacks.checkpoints.interruption import FILE_NAME, SaveOnInterrupt
from vrts.callbacks.checkpoints.step_checkpoint import StepCheckpoint
from vrts.callbacks.export.callback import ExportPretrained
from vrts.callbacks.export.folder import MANIFEST
from vrts.callbacks.results import RunFile
from vrts.callbacks.trainer import callbacks_of
from vrts.files.writing import check_no_folder, make_folder
from vrts.models.checkpoints.finding import is_complete
from vrts.types import InputError


def check_run_folders(trainer: Trainer) -> None:
    """Make the folders of a training run on the first rank, and check that there is room in them.

    Lightning's loggers and checkpoint callbacks find out when they first write, which may be hours
    later, and name no option. Callbacks of vrts with a folder check it in `setup`.

    Raises:
        InputError: a folder cannot be made or written to, or is in the place of a checkpoint file.
    """
    if not trainer.is_global_zero:
        return
    folders: list[tuple[Any, str]] = [(trainer.default_root_dir, "trainer.default_root_dir")]
    folders += [(getattr(logger, "root_dir", None), "trainer.logger") for logger in trainer.loggers]
    folders += [
        (keeper.dirpath, f"{type(keeper).__name__}.dirpath")
        for keeper in callbacks_of(trainer, ModelCheckpoint)
    ]
    for folder, option in folders:
        if folder and "://" not in str(folder):
            make_folder(Path(folder), option)
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        return  # a sharded checkpoint is a folder
    for keeper in callbacks_of(trainer, StepCheckpoint):
        # only last.ckpt is written again: other names are new ones, or get a number
        if keeper.dirpath:
            check_no_folder(Path(keeper.dirpath) / FILE_NAME, "StepCheckpoint.dirpath")


def check_no_other_run(trainer: Trainer, ckpt_path: str | Path | None) -> None:
    """Refuse to replace the files of another training run, unless this one resumes it.

    Raises:
        InputError: a folder of the run contains checkpoints, curves, completions or a model, and
            `ckpt_path` is none of these.
    """
    if not trainer.is_global_zero:
        return
    keepers = callbacks_of(trainer, ModelCheckpoint)
    folders = [Path(keeper.dirpath) for keeper in keepers if keeper.dirpath]
    folders += [stop.path(trainer).parent for stop in callbacks_of(trainer, SaveOnInterrupt)]
    # only the folder is resolved: last.ckpt may link to a checkpoint elsewhere
    own = [folder.resolve() for folder in folders]
    if ckpt_path in ("last", "best", "hpc") or (
        ckpt_path is not None and Path(ckpt_path).parent.resolve() in own
    ):
        return
    left = [path for folder in folders for path in sorted(folder.glob("*.ckpt*"))]
    left += [callback.path(trainer) for callback in callbacks_of(trainer, RunFile)]
    left += [c.folder(trainer) / MANIFEST for c in callbacks_of(trainer, ExportPretrained)]
    found = next((path for path in left if path.is_file() or is_complete(path)), None)
    if found is not None:
        raise InputError(
            f"trainer.default_root_dir: {found} is of another training run, which this one would "
            "replace; resume that one with --ckpt_path last, give another folder, or set "
            "--overwrite true"
        )
