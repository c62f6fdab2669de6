"""When a training run is validated."""

from __future__ import annotations

from lightning import Trainer


def validation_follows(trainer: Trainer) -> bool:
    """Whether the batch that has just been trained on is followed by a validation.

    Only where ``trainer.val_check_interval`` counts batches, as `check_validation` asks for, is
    this known before.

    Args:
        trainer: in a callback's ``on_train_batch_end``.
    """
    interval = getattr(trainer, "val_check_interval", None)  # has none by time
    if not isinstance(interval, int) or trainer.check_val_every_n_epoch is not None:
        return False
    # Lightning asks for batches where there are none, too
    is_possible = trainer.enable_validation and any(trainer.num_val_batches)
    return is_possible and (trainer.fit_loop.total_batch_idx + 1) % interval == 0
