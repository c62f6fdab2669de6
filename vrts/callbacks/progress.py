"""How far a run is, and how it is going."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from jsonargparse.typing import NonNegativeFloat
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from vrts.callbacks.prediction.writer import PredictionWriter
from vrts.data.datamodule import VideoQADataModule
from vrts.files.predictions import read_predictions
from vrts.types import Prediction


@dataclass(slots=True)
class Tally:
    """What the questions so far come to."""

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
        """Failures, mean frames of the deciding rounds and accuracy, where there are any."""
        parts = [f"{self.failed} failed"]
        if self.done > self.failed:
            parts.append(f"{self.num_frames / (self.done - self.failed):.1f} frames")
        if self.scored:
            parts.append(f"accuracy {100 * self.right / self.scored:.1f} %")
        return ", ".join(parts)


class PredictionProgress(Callback):
    """Shows questions done, failures, mean frames, accuracy so far and the time left.

    On a terminal it is a bar; elsewhere it is a line now and then. A resumed run counts what
    was decided before. Of several processes the first one shows its own share. It takes the place
    of Lightning's bar (``trainer.enable_progress_bar: false``).

    Args:
        line_every_s: seconds from one line to the next where there is no terminal; 0 prints none.
    """

    def __init__(self, line_every_s: NonNegativeFloat = 30.0) -> None:
        self.line_every_s = float(line_every_s)
        self._clock: Callable[[], float] = time.monotonic
        self._tally = Tally()
        self._before = self._total = 0
        self._start_s = self._line_s = 0.0
        self._title = ""
        self._console = Console()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what is decided already, and what is left for this process."""
        if not trainer.is_global_zero:
            return
        self._tally = Tally()
        writers = [c for c in trainer.callbacks if isinstance(c, PredictionWriter)]  # type: ignore[attr-defined]
        for found in read_predictions(writers[0].folder.predictions_path) if writers else []:
            self._tally.add(found)
        self._before = self._tally.done
        data = cast(VideoQADataModule, trainer.datamodule)  # type: ignore[attr-defined]
        left = len(data.questions("predict")) - self._before
        share = len(range(0, left, trainer.world_size))
        self._total = self._before + share
        several = trainer.world_size > 1
        self._title = f"process 1 of {trainer.world_size}, its share" if several else "questions"
        self._start_s = self._line_s = self._clock()
        self._console = Console()
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(self._title, total=self._total, status="")
            self._bar.start()
            self._show()

    def on_predictions(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Prediction]
    ) -> None:
        """Count what was decided."""
        if not trainer.is_global_zero:
            return
        for prediction in predictions:
            self._tally.add(prediction)
        self._show()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the last state of the bar on the terminal."""
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        self._stop()

    def status(self) -> str:
        """What is shown beside the number of questions done."""
        left_s = time_left_s(
            self._tally.done - self._before,
            self._total - self._tally.done,
            self._clock() - self._start_s,
        )
        text = self._tally.text()
        return text if left_s is None else f"{text}, {clock_text(left_s)} left"

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._tally.done, status=self.status())
        elif self.line_every_s and self._clock() - self._line_s >= self.line_every_s:
            self._line_s = self._clock()
            done = f"{self._tally.done} of {self._total}"
            self._console.print(f"{self._title}: {done}, {self.status()}", soft_wrap=True)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class FitProgress(Callback):
    """Prints a line of training now and then, where there is no terminal for Lightning's bar.

    A line has the step, loss and reward as they were logged last, seconds a step, validation and
    saving included, and the time left. One comes after the first step, and one after the last.

    Args:
        line_every_s: seconds from one line to the next; 0 prints none.
    """

    def __init__(self, line_every_s: NonNegativeFloat = 60.0) -> None:
        self.line_every_s = float(line_every_s)
        self._clock: Callable[[], float] = time.monotonic
        self._first_step = self._line_step = 0
        self._start_s = self._line_s = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count, from the step that the run resumes after."""
        self._first_step = self._line_step = trainer.global_step
        self._start_s = self._line_s = self._clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line where its turn has come."""
        is_first = self._line_step == self._first_step < trainer.global_step
        if is_first or self._clock() - self._line_s >= self.line_every_s:
            self._print(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print how it came out."""
        self._print(trainer)

    def _print(self, trainer: Trainer) -> None:
        """Print a line, unless that of this step is printed."""
        console, step = Console(), trainer.global_step
        silent = console.is_terminal or not self.line_every_s or not trainer.is_global_zero
        if silent or step == self._line_step:
            return
        self._line_s, self._line_step = self._clock(), step
        num_steps, elapsed_s = step - self._first_step, self._line_s - self._start_s
        logged = {
            name: trainer.callback_metrics.get(key)
            for name, key in (("loss", "train/loss"), ("reward", "train/reward/total"))
        }
        parts = [f"{name} {value:.4g}" for name, value in logged.items() if value is not None]
        parts.append(f"{elapsed_s / num_steps:.1f} s a step")
        total = trainer.estimated_stepping_batches
        if math.isinf(total):
            console.print(f"step {step}: {', '.join(parts)}", soft_wrap=True)
            return
        left_s = time_left_s(num_steps, max(int(total) - step, 0), elapsed_s)
        if left_s:
            parts.append(f"{clock_text(left_s)} left")
        console.print(f"step {step} of {total}: {', '.join(parts)}", soft_wrap=True)


def time_left_s(num_done: int, num_left: int, elapsed_s: float) -> float | None:
    """Seconds that what is left will take at the mean speed of what is done, if there is any.

    Args:
        num_done: by this run; what was done before tells nothing of its speed.
        num_left: still to come.
        elapsed_s: since this run began.
    """
    return elapsed_s / num_done * num_left if num_done else None


def clock_text(seconds: float) -> str:
    """Hours, minutes and seconds: ``1:02:03``, or ``2:03`` below an hour."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
