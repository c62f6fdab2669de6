"""All folders that a training run writes to, seen to before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from vrts.callbacks.checkpoints.interruption import FILE_NAME, SaveOnInterrupt
from vrts.callbacks.checkpoints.step_checkpoint import StepCheckpoint
from vrts.callbacks.export.callback import ExportPretrained
from vrts.callbacks.export.folder import MANIFEST
from vrts.callbacks.monitoring.completion_log import CompletionLog
from vrts.callbacks.monitoring.curves import CurveWriter
from vrts.files.writing import check_file, make_folder
from vrts.models.checkpoints.finding import is_complete
from vrts.types import InputError


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
        # written again in its place; other names are new ones, or have a number added
        if isinstance(keeper, StepCheckpoint) and keeper.dirpath and _writes_files(trainer):
            check_file(Path(keeper.dirpath) / FILE_NAME, "StepCheckpoint.dirpath")


def check_no_other_run(trainer: Trainer, ckpt_path: str | Path | None) -> None:
    """Refuse to replace what another training run has left, where it is not that one's resumption.

    Args:
        trainer: before it has begun.
        ckpt_path: of the checkpoint that the run resumes from, if it does.

    Raises:
        InputError: a folder of the run has checkpoints, curves, completions or a model in it, and
            the checkpoint is none of these.
    """
    if not trainer.is_global_zero:
        return
    folders = _checkpoint_folders(trainer)
    # not its links resolved: last.ckpt may name a checkpoint that lies elsewhere
    own = [folder.resolve() for folder in folders]
    if ckpt_path in ("last", "best", "hpc") or (
        ckpt_path is not None and Path(ckpt_path).parent.resolve() in own
    ):
        return
    left = [path for folder in folders for path in sorted(folder.glob("*.ckpt*"))]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CurveWriter | CompletionLog):
            left.append(callback.path(trainer))
        elif isinstance(callback, ExportPretrained):
            left.append(callback.folder(trainer) / MANIFEST)
    found = next((path for path in left if path.is_file() or is_complete(path)), None)
    if found is not None:
        raise InputError(
            f"trainer.default_root_dir: {found} is of another training run, which this one would "
            "replace; resume that one with --ckpt_path last, give another folder, or set "
            "--overwrite true"
        )


def _checkpoint_folders(trainer: Trainer) -> list[Path]:
    """Folders that checkpoints of the run go to."""
    keepers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    savers = [c for c in trainer.callbacks if isinstance(c, SaveOnInterrupt)]  # type: ignore[attr-defined]
    return [Path(c.dirpath) for c in keepers if c.dirpath] + [
        c.path(trainer).parent for c in savers
    ]


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
