"""Stopping a run that finds nothing to train on, instead of calling its end a success."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lightning import Trainer

from vrts.terminal import printable
from vrts.types import InputError, Sample

_log = logging.getLogger(__name__)

PATIENCE = 20
"""Batches without any usable video after which a run that has had none ends."""


class Patience:
    """Waits for the first usable sample of a run."""

    def __init__(self) -> None:
        self.satisfied = False
        """Whether there has been one."""
        self._last_reason: str | None = None

    def usable(self, samples: Sequence[Sample]) -> list[Sample]:
        """Samples that have a clip; the others are named in the log."""
        for sample in samples:
            if sample.clip is None:
                self._last_reason = sample.error
                _log.warning(printable(f"skipped question {sample.question.id}: {sample.error}"))
        return [sample for sample in samples if sample.clip is not None]

    def check(self, found: bool, num_batches: int, trainer: Trainer) -> None:
        """Give up where it has taken too long; every process has to ask.

        Args:
            found: whether there was a usable sample on this process.
            num_batches: that the run has seen.
            trainer: of the run.

        Raises:
            InputError: none of the first batches had a usable sample, on any process.
        """
        if self.satisfied:
            return
        self.satisfied = trainer.strategy.reduce_boolean_decision(found, all=False)
        num_expected = int(trainer.num_training_batches)
        if trainer.max_steps > 0:
            num_expected = min(num_expected, trainer.max_steps)
        if num_batches >= min(PATIENCE, num_expected):
            self.check_end(num_batches)

    def check_end(self, num_batches: int) -> None:
        """Give up at the end.

        Args:
            num_batches: that the run has seen.

        Raises:
            InputError: none of them had a usable sample.
        """
        if not self.satisfied:
            raise InputError(
                f"none of the first {num_batches} training batches had a usable video; the last "
                f"reason: {self._last_reason}"
            )
