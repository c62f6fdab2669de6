"""Ending a training run early without losing what it has learnt."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_info

from vrts.callbacks.checkpoints.step_checkpoint import validation_follows
from vrts.callbacks.signals import ENDING, Termination
from vrts.files.writing import make_folder
from vrts.models.strategies.fully_sharded import finish_saves

SIGNALS = (signal.SIGINT, *ENDING)
FILE_NAME = "last.ckpt"
"""Found by ``--ckpt_path last``."""


class SaveOnInterrupt(Callback):
    """On Ctrl-C, SIGTERM or SIGHUP, finishes the step, saves ``last.ckpt`` and ends the run.

    Where a validation follows the step, it is made first: a resumed run leaves it out. A
    signal to any one process is enough.
    A second signal ends the run at once, and the last regular checkpoint is what remains.

    Before the first training batch is there, the first signal ends the run at once: there is
    nothing to save.

    Args:
        dirpath: folder of the checkpoint; that of the Trainer's ModelCheckpoint where null.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath
        self._signal: int | None = None
        self._trainer: Trainer | None = None
        """From the start of training on."""
        self._before = -1
        """Index of the last batch of the run that is resumed."""
        self._termination = Termination(SIGNALS, self._on_signal)

    def begin(self) -> None:
        """Take over the signals; ``vrts fit`` does so before it reads questions."""
        self._signal = None
        self._trainer = None
        self._termination.take_over()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the signals, and make the folder: not only when the checkpoint is to be saved.

        Comes after all other callbacks, so that what they know is saved.

        Raises:
            InputError: it cannot be made.
        """
        if stage == "fit":
            self.begin()
        if stage == "fit" and self.dirpath is not None and trainer.is_global_zero:
            make_folder(Path(self.dirpath), "SaveOnInterrupt.dirpath")
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        # a new list: the old one is being gone through
        trainer.callbacks = [*(c for c in callbacks if c is not self), self]  # type: ignore[attr-defined]

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over again: Lightning has installed its own handlers by now.

        Its one for SIGTERM calls this callback's, but has all processes exchange a number before,
        for which they would have to be at the same place.
        """
        self._termination.take_over()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over again, where there was no sanity check."""
        self._trainer, self._before = trainer, trainer.fit_loop.total_batch_idx
        self._termination.take_over()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop, if a signal came; not yet where a validation follows."""
        if not validation_follows(trainer):
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and stop, if a signal came before the validation or in it."""
        if not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        """Save and stop, if a signal came to any process."""
        stop = trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)
        if not stop:
            return
        path = self.path(trainer)
        trainer.save_checkpoint(path)
        finish_saves(trainer.strategy)
        rank_zero_info(f"Interrupted: saved {path}; resume with --ckpt_path {path}")
        raise KeyboardInterrupt

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self._restore(trainer)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number
        name = signal.Signals(number).name
        trainer = self._trainer
        if trainer is None or trainer.fit_loop.total_batch_idx == self._before:
            rank_zero_info(
                f"\nReceived {name} before the first training step: the run ends at once; there is "
                "nothing to save yet"
            )
            raise KeyboardInterrupt
        rank_zero_info(
            f"\nReceived {name}: finishing this step, then saving. Once more ends the run at once."
        )

    def _restore(self, trainer: Trainer) -> None:
        had = self._termination.give_back()
        self._trainer = None
        # Lightning gives back what it found, which was this callback's
        trainer._signal_connector._original_handlers.update(had)

    def path(self, trainer: Trainer) -> Path:
        """Where to save, the same on every rank."""
        if self.dirpath is not None:
            return Path(self.dirpath) / FILE_NAME
        checkpoint = cast(ModelCheckpoint | None, trainer.checkpoint_callback)
        folder = checkpoint.dirpath if checkpoint else None
        return Path(folder or trainer.default_root_dir) / FILE_NAME
