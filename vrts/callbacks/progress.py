"""How far a run is, how it is going, and how long it will take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from jsonargparse.typing import NonNegativeFloat
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from vrts.callbacks.prediction.writer import PredictionWriter
from vrts.callbacks.trainer import callbacks_of, data_of
from vrts.files.predictions import read_predictions
from vrts.types import Prediction


@dataclass(slots=True)
class Tally:
    """Running totals of the questions so far."""

    done: int = 0
    failed: int = 0
    num_frames: int = 0
    scored: int = 0
    right: int = 0

    def add(self, prediction: Prediction) -> None:
        """Count a question."""
        self.done += 1
        self.failed += prediction.error is not None
        self.num_frames += prediction.num_frames if prediction.error is None else 0
        self.scored += prediction.correct is not None
        self.right += bool(prediction.correct)

    def text(self) -> str:
        """Failures, mean frames of the deciding rounds and accuracy, if there are any."""
        parts = [f"{self.failed} failed"]
        if self.done > self.failed:
            parts.append(f"{self.num_frames / (self.done - self.failed):.1f} frames")
        if self.scored:
            parts.append(f"accuracy {100 * self.right / self.scored:.1f} %")
        return ", ".join(parts)


class PredictionProgress(Callback):
    """Shows questions done, failures, mean frames, accuracy so far and the time left.

    On a terminal it is a bar, elsewhere a line now and then. A resumed run counts what was decided
    before. Of several processes the first one shows its own share. It replaces Lightning's bar
    (``trainer.enable_progress_bar: false``).

    Args:
        line_every_s: seconds from one line to the next without a terminal; 0 prints none.
    """

    def __init__(self, line_every_s: NonNegativeFloat = 30.0) -> None:
        self.line_every_s = float(line_every_s)
        self._clock: Callable[[], float] = time.monotonic
        self._tally = Tally()
        self._done_before = self._total = 0
        self._start_s = self._line_s = 0.0
        self._title = ""
        self._bar: Progress | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what is decided already, and what is left for this process."""
        if not trainer.is_global_zero:
            return
        self._tally = Tally()
        for writer in callbacks_of(trainer, PredictionWriter)[:1]:
            for found in read_predictions(writer.folder.predictions_path):
                self._tally.add(found)
        self._done_before = self._tally.done
        left = len(data_of(trainer).questions("predict")) - self._done_before
        self._total = self._done_before + math.ceil(left / trainer.world_size)
        several = trainer.world_size > 1
        self._title = f"process 1 of {trainer.world_size}, its share" if several else "questions"
        self._start_s = self._line_s = self._clock()
        if (console := Console()).is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                console=console,
            )
            self._bar.add_task(self._title, total=self._total, status="")
            self._bar.start()
            self._show()

    def on_predictions(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Prediction]
    ) -> None:
        """Count what was decided."""
        if trainer.is_global_zero:
            for prediction in predictions:
                self._tally.add(prediction)
            self._show()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the last state of the bar on the terminal, and give that back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Give the terminal back."""
        self.on_predict_end(trainer, pl_module)

    def _show(self) -> None:
        now_s, done = self._clock(), self._tally.done
        status = self._tally.text()
        left = time_left(done - self._done_before, self._total - done, now_s - self._start_s)
        if left is not None:
            status += f", {left} left"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, status=status)
        elif self.line_every_s and now_s - self._line_s >= self.line_every_s:
            self._line_s = now_s
            Console().print(f"{self._title}: {done} of {self._total}, {status}", soft_wrap=True)


class FitProgress(Callback):
    """Prints a line of training now and then, if there is no terminal for Lightning's bar.

    A line has the step, the newest loss and reward, seconds a step (with validation and saving) and
    the time left. There is one after the first step and one after the last.

    Args:
        line_every_s: seconds from one line to the next; 0 prints none.
    """

    def __init__(self, line_every_s: NonNegativeFloat = 60.0) -> None:
        self.line_every_s = float(line_every_s)
        self._clock: Callable[[], float] = time.monotonic
        self._first_step = self._line_step = 0
        self._start_s = self._line_s = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count, from the step that the run resumes after."""
        self._first_step = self._line_step = trainer.global_step
        self._start_s = self._line_s = self._clock()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Print a line if it is time."""
        is_first = self._line_step == self._first_step < trainer.global_step
        if is_first or self._clock() - self._line_s >= self.line_every_s:
            self._print(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last step."""
        self._print(trainer)

    def _print(self, trainer: Trainer) -> None:
        """Print a line, unless that of this step is printed."""
        console, step = Console(), trainer.global_step
        silent = console.is_terminal or not self.line_every_s or not trainer.is_global_zero
        if silent or step == self._line_step:
            return
        self._line_s, self._line_step = self._clock(), step
        num_steps, elapsed_s = step - self._first_step, self._line_s - self._start_s
        keys = {"loss": "train/loss", "reward": "train/reward/total"}
        metrics = trainer.callback_metrics
        parts = [f"{name} {metrics[key]:.4g}" for name, key in keys.items() if key in metrics]
        parts.append(f"{elapsed_s / num_steps:.1f} s a step")
        total, of = trainer.estimated_stepping_batches, ""
        if math.isfinite(total):
            of = f" of {total}"
            num_left = int(total) - step
            if num_left > 0:
                parts.append(f"{time_left(num_steps, num_left, elapsed_s)} left")
        console.print(f"step {step}{of}: {', '.join(parts)}", soft_wrap=True)


def time_left(num_done: int, num_left: int, elapsed_s: float) -> timedelta | None:
    """Time left, to the second, at the mean speed of this run so far; None if nothing is done."""
    return timedelta(seconds=round(elapsed_s / num_done * num_left)) if num_done else None
