"""What is told at the start of a training run, without refusing it."""

import warnings
from datetime import timedelta

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.callbacks.runs import make_data, make_module, make_trainer, questions, scripted
from vrts.callbacks.step_checkpoint import StepCheckpoint
from vrts.models.checks import warn_of_checkpoints_within_a_step
from vrts.models.objectives import GRPO
from vrts.types import InputError


class OwnCheckpoint(ModelCheckpoint):
    """Saves when Lightning's does."""


def told(act):
    """Warnings about checkpoints, each as often as it is given."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        act()
    return [str(w.message) for w in found if "in the middle of an optimizer step" in str(w.message)]


@pytest.mark.parametrize(
    ("callbacks", "accumulate", "name"),
    [
        ([ModelCheckpoint(every_n_train_steps=5)], 2, "ModelCheckpoint"),
        ([OwnCheckpoint(every_n_train_steps=1)], 4, "OwnCheckpoint"),
        ([ModelCheckpoint(train_time_interval=timedelta(0))], 2, "ModelCheckpoint"),
        (
            [StepCheckpoint(), *(ModelCheckpoint(every_n_train_steps=n) for n in (1, 2))],
            2,
            "ModelCheckpoint",
        ),
        ([ModelCheckpoint(every_n_train_steps=5)], 1, None),
        ([StepCheckpoint(every_n_steps=5)], 2, None),
        ([ModelCheckpoint(monitor="val/accuracy", save_on_train_epoch_end=False)], 2, None),
        ([], 2, None),
    ],
)
def test_checkpoints_within_a_step(tmp_path, callbacks, accumulate, name):
    trainer = make_trainer(tmp_path, callbacks, accumulate_grad_batches=accumulate)
    messages = told(lambda: warn_of_checkpoints_within_a_step(trainer))
    assert len(messages) == (name is not None)
    for message in messages:
        assert f"{name} with every_n_train_steps" in message
        assert f"trainer.accumulate_grad_batches is {accumulate}" in message
        assert "StepCheckpoint" in message


def test_a_run_tells_of_them_once(tmp_path):
    """Before weights are loaded: this run is refused by a later check."""
    trainer = make_trainer(
        tmp_path, [ModelCheckpoint(every_n_train_steps=1)], accumulate_grad_batches=2
    )
    module = make_module(scripted(), objective=GRPO(beta=0))
    data = make_data(train=questions("nowhere.mp4", 2), val=questions("nowhere.mp4", 2))
    trainer.val_check_interval = 3

    def fit():
        with pytest.raises(InputError, match="val_check_interval is 3"):
            trainer.fit(module, datamodule=data)

    assert len(told(fit)) == 1
