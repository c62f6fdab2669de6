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
from vrts.callbacks.signals import ENDING, SignalHandlers
from vrts.callbacks.trainer import move_last
from vrts.models.strategies.fully_sharded import finish_saves

SIGNALS = (signal.SIGINT, *ENDING)
FILE_NAME = "last.ckpt"
"""Found by ``--ckpt_path last``."""


class SaveOnInterrupt(Callback):
    """On Ctrl-C, SIGTERM or SIGHUP, finishes the step, saves ``last.ckpt`` and ends the run.

    A signal to any one process is enough. If a validation follows the step, it is run before: a
    resumed run would leave it out. A second signal, or one before the first step, ends the run at
    once, and the last regular checkpoint remains.

    The run ends by KeyboardInterrupt: after ``trainer.should_stop`` Lightning would validate once
    more and call `on_train_end`, where the model is exported as that of a complete run.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._trainer: Trainer | None = None
        """Set while training."""
        self._previous_batch = -1
        """Index of the last batch before this run."""
        self._handlers = SignalHandlers(SIGNALS, self._on_signal)

    def begin(self) -> None:
        """Install the handlers; ``vrts fit`` does so before it reads questions."""
        self._signal = self._trainer = None
        self._handlers.install()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install the handlers."""
        if stage == "fit":
            self.begin()
        move_last(trainer, self)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the handlers that Lightning has installed by now.

        Its SIGTERM handler calls ours, but broadcasts before, which needs all ranks at one place.
        """
        self._handlers.install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handlers, also without a sanity check."""
        self._trainer, self._previous_batch = trainer, trainer.fit_loop.total_batch_idx
        self._handlers.install()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save and stop after a signal, unless a validation follows."""
        if not validation_follows(trainer):
            self._stop_if_signalled(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and stop after a signal before the validation or in it."""
        if not trainer.sanity_checking:
            self._stop_if_signalled(trainer)

    def _stop_if_signalled(self, trainer: Trainer) -> None:
        """Save and stop on all ranks, if one of them got a signal."""
        if not trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False):
            return
        path = self.path(trainer)
        trainer.save_checkpoint(path)
        finish_saves(trainer.strategy)
        rank_zero_info(f"Interrupted: saved {path}; resume with --ckpt_path {path}")
        raise KeyboardInterrupt

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the handlers; Lightning's teardown has put ours back."""
        self._handlers.restore()
        self._trainer = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Restore the handlers, also those that Lightning is about to put back: they are ours."""
        # no hook comes after Lightning's teardown here, and nothing public changes what it restores
        trainer._signal_connector._original_handlers.update(self._handlers.restore())
        self._trainer = None

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number
        name, trainer = signal.Signals(number).name, self._trainer
        if trainer is None or trainer.fit_loop.total_batch_idx == self._previous_batch:
            rank_zero_info(
                f"\nReceived {name} before the first training step: the run ends at once; there is "
                "nothing to save yet"
            )
            raise KeyboardInterrupt
        rank_zero_info(
            f"\nReceived {name}: finishing this step, then saving. Once more ends the run at once."
        )

    def path(self, trainer: Trainer) -> Path:
        """Where to save, the same on every rank: in the folder of the first ModelCheckpoint."""
        checkpoint = cast(ModelCheckpoint | None, trainer.checkpoint_callback)
        return Path((checkpoint and checkpoint.dirpath) or trainer.default_root_dir) / FILE_NAME
