"""What callbacks do with the Trainer."""

from types import SimpleNamespace

import pytest
import torch
from lightning import Callback

from vrts.callbacks.trainer import check_on_rank_zero, logged_metrics, move_last
from vrts.types import InputError


def trainer(rank, found=None):
    """One of several ranks; the first one broadcasts what it found."""
    return SimpleNamespace(
        is_global_zero=rank == 0,
        strategy=SimpleNamespace(broadcast=lambda own: own if rank == 0 else found),
    )


def test_what_the_first_rank_finds_is_raised_on_all():
    ran = []

    def check():
        ran.append(True)
        raise InputError("no room")

    for rank in (0, 1):
        with pytest.raises(InputError, match="no room"):
            check_on_rank_zero(trainer(rank, "no room"), check)
    assert len(ran) == 1, "other ranks check nothing"
    for rank in (0, 1):
        check_on_rank_zero(trainer(rank), lambda: None)


def test_a_callback_moves_last_while_callbacks_are_called():
    first, second, third = callbacks = [Callback(), Callback(), Callback()]
    run = SimpleNamespace(callbacks=callbacks)
    called = []
    for callback in run.callbacks:
        called.append(callback)
        if callback is first:
            move_last(run, first)
    assert called == [first, second, third], "each is called once"
    assert run.callbacks == [second, third, first]


def test_metrics_are_taken_by_prefix():
    metrics = {"train/loss": torch.tensor(0.5), "val/accuracy": torch.tensor(1.0)}
    assert logged_metrics(SimpleNamespace(callback_metrics=metrics), "train/") == {
        "train/loss": 0.5
    }
