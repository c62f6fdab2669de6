"""Curves of a training run: ``curves.png``, and the numbers behind it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from vrts.callbacks.curve_plot import write_curves
from vrts.files.json_lines import Step, append_steps, keep_steps, read_steps
from vrts.files.writing import check_file, make_folder
from vrts.types import InputError

_log = logging.getLogger(__name__)

STATE = "unwritten_curves"
"""Key in checkpoints."""


class CurveWriter(Callback):
    """Draws a run's training metrics into ``curves.png``, also where the run is interrupted.

    ``curves.jsonl`` gets a line at each optimizer step as soon as it is made, with all metrics,
    as loggers get them. ``step`` counts steps made, from 1 on. A run that
    goes on from a checkpoint drops what lies behind it; one that begins anew, everything.

    Args:
        output_dir: folder to write to; ``trainer.default_root_dir`` where null.
    """

    def __init__(self, output_dir: str | None = None) -> None:
        self.output_dir = output_dir
        self._training = False
        self._last_step = 0
        self._learning_rate: float | None = None
        self._unwritten: Step = {}

    def results(self, trainer: Trainer) -> list[Path]:
        """Return the picture."""
        return [self._picture(trainer)]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the folder.

        Raises:
            InputError: it cannot be made, or a folder stands in the place of a file.
        """
        if stage == "fit" and trainer.is_global_zero:
            make_folder(self._folder(trainer), "CurveWriter.output_dir")
            for file in (self._path(trainer), self._picture(trainer)):
                check_file(file, "CurveWriter.output_dir")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the lines of the steps that this run goes on after.

        Raises:
            InputError: the file is not one of ours.
        """
        self._training, self._last_step = True, trainer.global_step
        if not trainer.is_global_zero:
            return
        path = self._path(trainer)
        path.touch()
        written = keep_steps(path, self._last_step)
        if self._unwritten and written < self._unwritten["step"]:
            self._append(trainer, self._unwritten)
        self._unwritten = {}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the line of the step that was made, which is not written until the next begins."""
        if self._training and trainer.global_step > self._last_step:
            checkpoint[STATE] = self._point(trainer, leave_out="train/update_s")

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note that line, which a run that was killed may not have come to write."""
        self._unwritten = checkpoint.get(STATE, {})

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write the step before: the module logs its last metrics after callbacks were asked."""
        self._write_step(trainer)
        optimizers = trainer.optimizers
        self._learning_rate = float(optimizers[0].param_groups[0]["lr"]) if optimizers else None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the step before."""
        self._write_step(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what validation found."""
        if not self._training or trainer.sanity_checking:
            return
        values = _values(trainer, "val/")  # on all processes, since a metric may be synchronised
        self._append(trainer, {"step": trainer.global_step, **values})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the step before."""
        self._write_step(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Draw what there is; the reason why the run ends is not to be hidden by another."""
        if not self._training or not trainer.is_global_zero:
            return
        try:
            # an interruption comes before the module has logged how long this step's update took
            self._write_step(trainer, leave_out="train/update_s")
            self._draw(trainer)
        except (OSError, InputError) as error:
            _log.warning("cannot draw the curves: %s", error)
        self._training = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw the curves, after other callbacks have saved the model.

        Raises:
            InputError: the picture cannot be written.
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

    def _write_step(self, trainer: Trainer, leave_out: str = "") -> None:
        """Append the newest step, if there is one that was not written."""
        if not self._training or trainer.global_step <= self._last_step:
            return
        self._last_step = trainer.global_step
        self._append(trainer, self._point(trainer, leave_out))

    def _point(self, trainer: Trainer, leave_out: str) -> Step:
        """Metrics of the newest step."""
        values = {k: v for k, v in _values(trainer, "train/").items() if k != leave_out}
        return {"step": trainer.global_step, "lr": self._learning_rate, **values}

    def _append(self, trainer: Trainer, point: Step) -> None:
        if trainer.is_global_zero:
            append_steps(self._path(trainer), [point])

    def _draw(self, trainer: Trainer) -> None:
        steps = list(read_steps(self._path(trainer)))
        if steps:
            write_curves(self._picture(trainer), steps)

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.output_dir or trainer.default_root_dir)

    def _path(self, trainer: Trainer) -> Path:
        return self._folder(trainer) / "curves.jsonl"

    def _picture(self, trainer: Trainer) -> Path:
        return self._folder(trainer) / "curves.png"


def _values(trainer: Trainer, prefix: str) -> Mapping[str, float]:
    """Newest logged metrics whose names begin so."""
    metrics = trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items() if name.startswith(prefix)}
