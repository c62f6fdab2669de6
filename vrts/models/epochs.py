"""Epochs of runs that go on from a checkpoint."""

from __future__ import annotations

from typing import Any

from lightning import Trainer


def leave_finished_epoch(trainer: Trainer) -> None:
    """Let the next epoch be a new one after a checkpoint that has all batches of an epoch.

    Lightning 2.6 takes it for the rest of that epoch. After a checkpoint of the last batch it calls
    no hook that the epoch starts, and counts one start less than ends: a run that goes on from a
    checkpoint of *that* epoch would train one too many. After one that was written when the epoch
    had ended, under ``max_steps``, it would train a single batch and count it as an epoch.

    Args:
        trainer: at the start of training, its counters restored.
    """
    loop = trainer.fit_loop
    batches = loop.epoch_loop
    if not batches.restarting or not batches.batch_progress.is_last_batch:
        return
    if loop.restarted_mid_epoch and batches.restarted_on_train_batch_end:
        loop.reset_restart_stage()  # counted as ended by Lightning
        return
    if loop.restarted_on_epoch_end:
        loop.epoch_progress.increment_completed()
    counts: Any = loop.epoch_progress.current
    if counts.ready == counts.started == counts.processed == counts.completed:
        loop.reset_restart_stage()
        batches.restarting = False
        batches.reset_restart_stage()
