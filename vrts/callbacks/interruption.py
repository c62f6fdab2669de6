"""Ending a training run early without losing what it has learnt."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_info

from vrts.callbacks.folders import make_folder
from vrts.callbacks.validation import validation_follows
from vrts.models.module import VideoQAModule

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FILE_NAME = "last.ckpt"
"""Found by ``--ckpt_path last``."""


class SaveOnInterrupt(Callback):
    """On Ctrl-C or SIGTERM, finishes the step, saves ``last.ckpt`` and ends the run.

    A checkpoint from between two steps resumes exactly; one from the middle of a step would not.
    Where a validation follows the step, it is made first: a run that goes on leaves it out. A
    signal to any one process is enough.
    A second signal ends the run at once, and the last regular checkpoint is what remains.

    Args:
        dirpath: folder of the checkpoint; that of the Trainer's ModelCheckpoint where null.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath
        self._signal: int | None = None
        self._step = 0
        self._may_stop = False
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the folder, rather than find out when the checkpoint is to be saved.

        Comes after all other callbacks, so that what they know is saved.

        Raises:
            InputError: it cannot be made.
        """
        if stage == "fit" and self.dirpath is not None and trainer.is_global_zero:
            make_folder(Path(self.dirpath), "SaveOnInterrupt.dirpath")
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        # a new list: the old one is being gone through
        trainer.callbacks = [*(c for c in callbacks if c is not self), self]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals; Lightning has installed its own handlers by now."""
        self._step = trainer.global_step
        self._signal = None
        self._may_stop = False
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop, if a signal came and this is a place from which a run can go on.

        Not yet where a validation follows.
        """
        stepped = trainer.global_step != self._step
        self._step = trainer.global_step
        rollout_used_up = (batch_idx + 1) % cast(VideoQAModule, pl_module).updates_per_rollout == 0
        self._may_stop = stepped and rollout_used_up
        if not validation_follows(trainer):
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and stop, if a signal came before the validation or in it."""
        if not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        """Save and stop, if a signal came to any process and a run can go on from here."""
        if not self._may_stop:
            return
        stop = trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)
        if not stop:
            return
        path = self._path(trainer)
        trainer.save_checkpoint(path)
        trainer.strategy.checkpoint_io.teardown()  # where it writes in the background: to its end
        rank_zero_info(f"Interrupted: saved {path}; go on with --ckpt_path {path}")
        raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self._restore()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number
        rank_zero_info(
            f"\nReceived {signal.Signals(number).name}: finishing this step, then saving. "
            "Once more ends the run at once."
        )

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _path(self, trainer: Trainer) -> Path:
        """Where to save, the same on every rank."""
        if self.dirpath is not None:
            return Path(self.dirpath) / FILE_NAME
        checkpoint = cast(ModelCheckpoint | None, trainer.checkpoint_callback)
        folder = checkpoint.dirpath if checkpoint else None
        return Path(folder or trainer.default_root_dir) / FILE_NAME
