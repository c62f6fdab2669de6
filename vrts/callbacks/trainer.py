"""What callbacks read from the Trainer and do with it, typed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from lightning import Callback, Trainer

from vrts.data.datamodule import VideoQADataModule
from vrts.types import InputError

C = TypeVar("C")


def callbacks_of(trainer: Trainer, kind: type[C]) -> list[C]:
    """Return the callbacks of a run that are of a class."""
    return [c for c in trainer.callbacks if isinstance(c, kind)]  # type: ignore[attr-defined]


def data_of(trainer: Trainer) -> VideoQADataModule:
    """Return the data module of a run."""
    return cast(VideoQADataModule, trainer.datamodule)  # type: ignore[attr-defined]


def logged_metrics(trainer: Trainer, prefix: str) -> dict[str, float]:
    """Return the newest metrics whose names begin so; synchronised, so call it on all ranks."""
    metrics = trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items() if name.startswith(prefix)}


def move_last(trainer: Trainer, callback: Callback) -> None:
    """Call a callback after all others, so that it saves their newest state; in its `setup`."""
    # a new list: Lightning is iterating over the old one
    others = [c for c in callbacks_of(trainer, Callback) if c is not callback]
    trainer.callbacks = [*others, callback]  # type: ignore[attr-defined]


def check_on_rank_zero(trainer: Trainer, check: Callable[[], None]) -> None:
    """Run a check on the first rank and raise its `InputError` on all: none waits for it in vain.

    All ranks have to call it.
    """
    problem = None
    if trainer.is_global_zero:
        try:
            check()
        except InputError as error:
            problem = str(error)
    problem = trainer.strategy.broadcast(problem)
    if problem:
        raise InputError(problem)
