"""All folders that a training run writes to, seen to before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from vrts.callbacks.folders import check_file, make_folder
from vrts.callbacks.interruption import FILE_NAME
from vrts.callbacks.step_checkpoint import StepCheckpoint


def check_run_folders(trainer: Trainer) -> None:
    """Make the folders of a training run, and see that there is room in them.

    Lightning's loggers and checkpoint callbacks find out when they first write, which may be hours
    later, and name no option. Callbacks of vrts with folders of their own see to these in `setup`.

    Args:
        trainer: before it has begun. Processes other than the first write nothing.

    Raises:
        InputError: a folder cannot be made or written to, or there is one in the place of a
            checkpoint file.
    """
    if not trainer.is_global_zero:
        return
    for folder, option in _folders(trainer):
        if "://" not in folder:
            make_folder(Path(folder), option)
    for keeper in trainer.checkpoint_callbacks:
        # written anew in its place; other names are new ones, or have a number added
        if isinstance(keeper, StepCheckpoint) and keeper.dirpath and _writes_files(trainer):
            check_file(Path(keeper.dirpath) / FILE_NAME, "StepCheckpoint.dirpath")


def _folders(trainer: Trainer) -> list[tuple[str, str]]:
    """Folders of Lightning's writers, with the options that name them."""
    loggers = [(getattr(logger, "root_dir", None), "trainer.logger") for logger in trainer.loggers]
    keepers = [
        (keeper.dirpath, f"{type(keeper).__name__}.dirpath")
        for keeper in trainer.checkpoint_callbacks
        if isinstance(keeper, ModelCheckpoint)
    ]
    root = (trainer.default_root_dir, "trainer.default_root_dir")
    return [(str(folder), option) for folder, option in (root, *loggers, *keepers) if folder]


def _writes_files(trainer: Trainer) -> bool:
    """Whether a checkpoint is a file, and not the folder that sharded training writes."""
    return isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
