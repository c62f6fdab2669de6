"""Curves of a training run: ``curves.png``."""

from __future__ import annotations

import logging
from typing import Any

from lightning import LightningModule, Trainer

from vrts.callbacks.monitoring.curve_plot import Point, write_curves
from vrts.callbacks.monitoring.run_file import RunFile
from vrts.callbacks.trainer import logged_metrics
from vrts.types import InputError

_log = logging.getLogger(__name__)

POINTS = "curves"
"""Key in checkpoints."""


class CurveWriter(RunFile):
    """Draws a run's training metrics into ``curves.png``, also if the run is interrupted.

    The curves have all metrics of each optimizer step, as loggers get them. Checkpoints contain
    them, so that a resumed run draws the steps before it too.

    Args:
        output_dir: folder to write to; ``trainer.default_root_dir`` where null.
    """

    file_name = "curves.png"

    def __init__(self, output_dir: str | None = None) -> None:
        super().__init__(output_dir)
        self.points: list[Point] = []
        """Metrics by name, with ``step``: steps made, from 1 on."""
        self._training = False
        self._learning_rate: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the folder; raises as `RunFile.setup`."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.points = []

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the points."""
        checkpoint[POINTS] = list(self.points)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Load the points of the steps before."""
        self.points = list(checkpoint.get(POINTS, []))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to draw."""
        self._training = True

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the step's learning rate, before the schedule moves on."""
        optimizers = trainer.optimizers
        self._learning_rate = float(optimizers[0].param_groups[0]["lr"]) if optimizers else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the step."""
        values = logged_metrics(trainer, "train/")
        self.points.append({"step": trainer.global_step, "lr": self._learning_rate, **values})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the results of a validation."""
        if self._training and not trainer.sanity_checking:
            self.points.append({"step": trainer.global_step, **logged_metrics(trainer, "val/")})

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Draw what there is; a failure here must not hide why the run ends."""
        try:
            self._draw(trainer)
        except OSError as error:
            _log.warning("cannot draw the curves: %s", error)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw the curves, after other callbacks have saved the model.

        Raises:
            InputError: the image cannot be written.
        """
        try:
            self._draw(trainer)
        except OSError as error:
            raise InputError(
                f"CurveWriter.output_dir: cannot write the curves ({error}); the model is saved"
            ) from error

    def _draw(self, trainer: Trainer) -> None:
        """Draw once for each training run."""
        was_training, self._training = self._training, False
        if was_training and trainer.is_global_zero and self.points:
            write_curves(self.path(trainer), self.points)
