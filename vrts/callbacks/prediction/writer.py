"""Writing predictions as they are decided, so that an interrupted run resumes where it was."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from rich.console import Console

from vrts.callbacks.metrics.summary import check_answered, summarise
from vrts.callbacks.metrics.tables import metrics_tables
from vrts.callbacks.prediction.folder import PredictionFolder
from vrts.callbacks.prediction.sparse_to_dense import SparseToDense
from vrts.callbacks.results import report
from vrts.callbacks.signals import SignalHandlers
from vrts.callbacks.trainer import callbacks_of, check_on_rank_zero, data_of
from vrts.files.fingerprints import folder_digests, sampled_digest
from vrts.files.predictions import read_predictions
from vrts.files.writing import write_json
from vrts.models.module import VideoQAModule
from vrts.types import InputError, Prediction


class PredictionWriter(Callback):
    """Writes ``predictions.jsonl``, one line a question as soon as it is decided.

    At the end come ``metrics.json`` and a table; questions that ``trainer.limit_predict_batches``
    leaves out are counted there as ``num_left_out``. A run into a folder with predictions of the
    same settings continues after them; other settings are refused. Each process but the first
    writes to its own file, which the first one merges.

    Args:
        output_dir: folder to write to, made if it is missing; ``trainer.default_root_dir`` where
            null.
        baseline: ``predictions.jsonl`` of an earlier run on the same questions, for the gain in the
            metrics. For VideoMMMU's knowledge gain, that of the adaptation track read with
            ``question_only``. Null for none.
    """

    def __init__(self, output_dir: str | None = None, baseline: str | None = None) -> None:
        self.output_dir = output_dir
        self.folder = PredictionFolder(Path(output_dir or "."), {})
        """That of the run from `setup` on."""
        self.baseline = None if baseline is None else Path(baseline)
        self.checkpoint: str | None = None
        """Whose weights replace the policy's own; ``vrts predict`` sets it: Lightning does so after
        `setup`."""
        self.is_unfinished = False
        """Whether questions are left for this run."""
        self._levels: list[int] = []
        self._num_questions = 0
        self._parent_pid = 0
        self._handlers = SignalHandlers()
        self._baseline_correct: dict[str, bool] | None = None
        self._metrics: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find what an earlier run has decided, and leave it out of this one.

        Raises:
            InputError: the folder cannot be written to, or contains predictions of other settings
                or other questions; or the baseline is missing or has none of the questions.
        """
        if stage != "predict":
            return
        self._parent_pid = os.getppid()
        data = data_of(trainer)
        plan = next(iter(callbacks_of(trainer, SparseToDense)), None)
        if plan is not None:
            plan.setup(trainer, pl_module, stage)  # the fingerprints need it, wherever it is listed
        self._levels = plan.levels if plan else [data.num_frames]
        places = {question.id: i for i, question in enumerate(data.questions("predict"))}
        self._num_questions = len(places)
        self.folder = PredictionFolder(Path(self.output_dir or trainer.default_root_dir), places)
        if self.baseline is not None:
            self._baseline_correct = _read_baseline(self.baseline, places)
        settings = {
            **cast(VideoQAModule, pl_module).fingerprint(),
            **data.fingerprint(),
            "precision": str(trainer.precision),
            "checkpoint": _digest(self.checkpoint),
            **(plan.fingerprint() if plan else {"levels": self._levels, "num_samples": 1}),
        }
        check_on_rank_zero(trainer, lambda: self.folder.lock(settings))
        decided = self.folder.decided()
        data.exclude(decided)
        self.is_unfinished = len(decided) < len(places)
        if decided and trainer.is_global_zero:
            count = f"{len(decided)} of {len(places)}"
            report(f"{self.folder.predictions_path}: {count} are already decided")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove metrics of an earlier run with fewer questions, and let SIGTERM interrupt."""
        self._handlers.install()
        if trainer.is_global_zero and self.is_unfinished:
            self.folder.metrics_path.unlink(missing_ok=True)

    def on_predictions(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Prediction]
    ) -> None:
        """Append predictions; raises `RuntimeError` if the first process has ended."""
        if not trainer.is_global_zero and os.getppid() != self._parent_pid:
            # nobody would merge them, and a run resumed in this folder must be the only one
            raise RuntimeError("the first process of this run has exited, so this one stops too")
        self.folder.append(predictions, trainer.global_rank)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a signal not interrupt the rest, which takes little time."""
        self._handlers.restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Report what an interrupted run leaves: its lines, and no metrics."""
        self._handlers.restore()
        self.folder.release()
        is_interrupted = isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero
        if is_interrupted and self._num_questions:
            report(
                f"Interrupted: {self.folder.num_decided()} of {self._num_questions} questions "
                f"are decided and kept in {self.folder.predictions_path}; the same command "
                f"continues after them, and writes {self.folder.metrics_path.name} at the end"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Merge what the processes wrote; write the metrics and show them."""
        if stage != "predict":
            return
        trainer.strategy.barrier("vrts predicted")
        if not trainer.is_global_zero:
            return
        metrics = summarise(self.folder.predictions(), self._levels, self._baseline_correct)
        if num_left_out := self._num_questions - metrics["num_questions"]:
            metrics["num_left_out"] = num_left_out  # by trainer.limit_predict_batches
        write_json(self.folder.metrics_path, metrics)
        Console().print(metrics_tables(metrics))
        self._metrics = metrics
        self.folder.release()

    def results(self, trainer: Trainer) -> list[Path]:
        """See `HasResults`."""
        return [self.folder.predictions_path, self.folder.metrics_path]

    def check_answered(self) -> None:
        """Raise `InputError` if every question failed. Call it after all outputs are written."""
        if self._metrics is not None:  # as on the other ranks
            check_answered(self._metrics, str(self.folder.predictions_path))


def _read_baseline(path: Path, ids: Collection[str]) -> dict[str, bool]:
    """Whether each question was right in a ``predictions.jsonl`` that has some of these ids."""
    option = "PredictionWriter.baseline"
    try:
        known = {p.question.id: p.correct for p in read_predictions(path) if p.correct is not None}
    except InputError as error:
        raise InputError(f"{option}: {error}") from error
    if known.keys().isdisjoint(ids):
        raise InputError(
            f"{option}: {path} has no answer to any question of data.predict; give another"
        )
    return known


def _digest(checkpoint: str | None) -> str | dict[str, str] | None:
    """Digest of a checkpoint's file or files; of a remote one its address."""
    if checkpoint is None or "://" in checkpoint:
        return checkpoint
    path = Path(checkpoint)
    return folder_digests(path) if path.is_dir() else sampled_digest(path)
