"""The files that callbacks write, and what a command reports last: where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from rich.console import Console
from rich.text import Text

from vrts.callbacks.trainer import callbacks_of
from vrts.files.writing import check_no_folder, make_folder
from vrts.terminal import printable


@runtime_checkable
class HasResults(Protocol):
    """A callback that writes files or folders."""

    def results(self, trainer: Trainer) -> list[Path]:
        """Return their paths, also of those that are not written."""


class RunFile(Callback):
    """A callback that writes one file of a training run, from the first rank.

    Args:
        output_dir: folder to write to; ``trainer.default_root_dir`` where null.
    """

    file_name: str

    def __init__(self, output_dir: str | None = None) -> None:
        self.output_dir = output_dir

    def path(self, trainer: Trainer) -> Path:
        """Return where the file goes."""
        return Path(self.output_dir or trainer.default_root_dir) / self.file_name

    def results(self, trainer: Trainer) -> list[Path]:
        """See `HasResults`."""
        return [self.path(trainer)]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the folder; raises `InputError` if it or the file cannot be written."""
        if stage == "fit" and trainer.is_global_zero:
            option = f"{type(self).__name__}.output_dir"
            make_folder(self.path(trainer).parent, option)
            check_no_folder(self.path(trainer), option)


def report_results(trainer: Trainer) -> None:
    """Print, from the first rank, why a run stopped early and where its files and folders are."""
    if not trainer.is_global_zero:
        return
    for stop in callbacks_of(trainer, EarlyStopping):
        if stop.stopping_reason_message:
            report(f"stopped early: {stop.stopping_reason_message}")
    writers = [c for c in callbacks_of(trainer, Callback) if isinstance(c, HasResults)]
    found = [path for writer in writers for path in writer.results(trainer)]
    found += [Path(c.dirpath) for c in callbacks_of(trainer, ModelCheckpoint) if c.dirpath]
    found += [Path(logger.log_dir) for logger in trainer.loggers if logger.log_dir]
    shown = dict.fromkeys(str(path) for path in found if path.exists())
    if shown:
        report(f"results: {', '.join(shown)}")


def report(message: str) -> None:
    """Print a message as it is: paths in it are not markup."""
    Console().print(Text(printable(message)), soft_wrap=True)
