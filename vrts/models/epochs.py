"""Epochs of runs that go on from a checkpoint."""

from __future__ import annotations

from lightning import Trainer


def leave_finished_epoch(trainer: Trainer) -> None:
    """Let the next epoch be a new one after a checkpoint of an epoch's last batch.

    Lightning counts that epoch as finished, and then takes the next one for the rest of it: it
    calls no hook that the epoch starts, and counts one start less than ends. A run that goes on
    from a checkpoint of *that* epoch would train one epoch too many.

    Args:
        trainer: at the start of training, its counters restored.
    """
    loop = trainer.fit_loop
    batches = loop.epoch_loop
    if (
        loop.restarted_mid_epoch
        and batches.restarted_on_train_batch_end
        and batches.batch_progress.is_last_batch
    ):
        loop.reset_restart_stage()
