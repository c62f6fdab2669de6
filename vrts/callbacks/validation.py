"""When a training run is validated."""

from __future__ import annotations

from lightning import Trainer


def validation_follows(trainer: Trainer) -> bool:
    """Whether the batch that has just been trained on is followed by a validation.

    Args:
        trainer: in a callback's ``on_train_batch_end``.
    """
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    if not loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
        return False
    # Lightning begins one at the end of an epoch even where there is nothing to ask
    loop.epoch_loop.val_loop.setup_data()
    return not loop.epoch_loop.val_loop.skip
