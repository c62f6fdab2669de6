"""What a command reports last: where its results are, and why it stopped early."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from rich.console import Console
from rich.text import Text

from vrts.callbacks.trainer import callbacks_of, model_checkpoints
from vrts.terminal import printable


@runtime_checkable
class HasResults(Protocol):
    """A callback that writes files or folders."""

    def results(self, trainer: Trainer) -> list[Path]:
        """Return their paths, also of those that are not written."""


def tell_results(trainer: Trainer) -> None:
    """Print, from the first rank, why a run stopped early and where its files and folders are."""
    if not trainer.is_global_zero:
        return
    callbacks = callbacks_of(trainer)
    for callback in callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            tell(f"stopped early: {callback.stopping_reason_message}")
    found = [path for c in callbacks if isinstance(c, HasResults) for path in c.results(trainer)]
    found += [Path(c.dirpath) for c in model_checkpoints(trainer) if c.dirpath]
    found += [Path(logger.log_dir) for logger in trainer.loggers if logger.log_dir]
    shown = dict.fromkeys(str(path) for path in found if path.exists())
    if shown:
        tell(f"results: {', '.join(shown)}")


def tell(message: str) -> None:
    """Print a message as it is: paths in it are not markup."""
    Console().print(Text(printable(message)), soft_wrap=True)
