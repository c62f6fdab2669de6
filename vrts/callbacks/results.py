"""What a command ends with: where its results are, and why it stopped early."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from rich.console import Console
from rich.text import Text

from vrts.terminal import printable


@runtime_checkable
class HasResults(Protocol):
    """A callback that leaves files or folders."""

    def results(self, trainer: Trainer) -> list[Path]:
        """Return their paths; those that there are count."""


def tell_results(trainer: Trainer) -> None:
    """Print why a run stopped early, and which files and folders it leaves.

    Args:
        trainer: of a run that has ended; the first process prints.
    """
    if not trainer.is_global_zero:
        return
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            tell(f"stopped early: {callback.stopping_reason_message}")
    found = [path for c in callbacks if isinstance(c, HasResults) for path in c.results(trainer)]
    found += [
        Path(str(k.dirpath)) for k in callbacks if isinstance(k, ModelCheckpoint) and k.dirpath
    ]
    found += [Path(logger.log_dir) for logger in trainer.loggers if logger.log_dir]
    shown = dict.fromkeys(str(path) for path in found if path.exists())
    if shown:
        tell(f"results: {', '.join(shown)}")


def tell(message: str) -> None:
    """Print a message with paths in it, which are no markup."""
    Console().print(Text(printable(message)), soft_wrap=True)
