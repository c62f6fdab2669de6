"""Curves of a training run: ``curves.png``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from vrts.callbacks.monitoring.curve_plot import Point, write_curves
from vrts.files.writing import check_file, make_folder
from vrts.types import InputError

_log = logging.getLogger(__name__)

FILE_NAME = "curves.png"

POINTS = "curves"
"""Key in checkpoints."""


class CurveWriter(Callback):
    """Draws a run's training metrics into ``curves.png``, also where the run is interrupted.

    They have all metrics of each optimizer step, as loggers get them. Checkpoints hold them, so
    that a resumed run draws the steps before it too.

    Args:
        output_dir: folder to write to; ``trainer.default_root_dir`` where null.
    """

    def __init__(self, output_dir: str | None = None) -> None:
        self.output_dir = output_dir
        self.points: list[Point] = []
        """Metrics by name, with ``step``: steps made, from 1 on."""
        self._training = False
        self._last_step = 0
        self._learning_rate: float | None = None

    def results(self, trainer: Trainer) -> list[Path]:
        """Return the image."""
        return [self.path(trainer)]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the folder.

        Raises:
            InputError: it cannot be made, or a folder is in the place of a file.
        """
        if stage != "fit":
            return
        self.points = []
        if trainer.is_global_zero:
            make_folder(self.path(trainer).parent, "CurveWriter.output_dir")
            check_file(self.path(trainer), "CurveWriter.output_dir")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step that the run resumes after."""
        self._training, self._last_step = True, trainer.global_step

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the points, with that of the newest step, which is not complete yet."""
        points = list(self.points)
        if self._training and trainer.global_step > self._last_step:
            points.append(self._point(trainer, leave_out="train/update_s"))
        checkpoint[POINTS] = points

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the points of the steps before."""
        self.points = list(checkpoint.get(POINTS, []))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the step before: the module logs its last metrics after callbacks were called."""
        self._note_step(trainer)
        optimizers = trainer.optimizers
        self._learning_rate = float(optimizers[0].param_groups[0]["lr"]) if optimizers else None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step before."""
        self._note_step(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what validation found."""
        if not self._training or trainer.sanity_checking:
            return
        values = _values(trainer, "val/")  # on all processes, since a metric may be synchronised
        self.points.append({"step": trainer.global_step, **values})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step before."""
        self._note_step(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Draw what there is; the reason why the run ends is not to be hidden by another."""
        if not self._training or not trainer.is_global_zero:
            return
        try:
            # an interruption comes before the module has logged how long this step's update took
            self._note_step(trainer, leave_out="train/update_s")
            self._draw(trainer)
        except OSError as error:
            _log.warning("cannot draw the curves: %s", error)
        self._training = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw the curves, after other callbacks have saved the model.

        Raises:
            InputError: the image cannot be written.
        """
        if not self._training or not trainer.is_global_zero:
            return
        self._training = False
        try:
            self._draw(trainer)
        except OSError as error:
            raise InputError(
                f"CurveWriter.output_dir: cannot write the curves ({error}); the model is saved"
            ) from error

    def _note_step(self, trainer: Trainer, leave_out: str = "") -> None:
        """Add the newest step, if it was not yet."""
        if not self._training or trainer.global_step <= self._last_step:
            return
        self._last_step = trainer.global_step
        self.points.append(self._point(trainer, leave_out))

    def _point(self, trainer: Trainer, leave_out: str) -> Point:
        """Metrics of the newest step."""
        values = {k: v for k, v in _values(trainer, "train/").items() if k != leave_out}
        return {"step": trainer.global_step, "lr": self._learning_rate, **values}

    def _draw(self, trainer: Trainer) -> None:
        if self.points:
            write_curves(self.path(trainer), self.points)

    def path(self, trainer: Trainer) -> Path:
        """Where the curves go."""
        return Path(self.output_dir or trainer.default_root_dir) / FILE_NAME


def _values(trainer: Trainer, prefix: str) -> Mapping[str, float]:
    """Newest logged metrics whose names begin so."""
    metrics = trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items() if name.startswith(prefix)}
