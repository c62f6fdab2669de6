"""Writing predictions as they are decided, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from filelock import BaseFileLock, FileLock, Timeout
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.text import Text

from vrts.callbacks.densify import densifiers_before
from vrts.callbacks.failures import check_answered
from vrts.callbacks.records import (
    Line,
    prediction_line,
    read_lines,
    read_other_run,
    without_texts,
)
from vrts.callbacks.summary import summarise
from vrts.callbacks.tables import metrics_tables
from vrts.callbacks.termination import Termination
from vrts.data.datamodule import VideoQADataModule
from vrts.models.module import VideoQAModule
from vrts.terminal import printable
from vrts.types import InputError, Prediction


class PredictionWriter(Callback):
    """Writes ``predictions.jsonl``, one line a question as soon as it is decided.

    At the end come ``metrics.json`` and a table. A run into a folder that holds predictions of
    the same settings goes on after them; other settings are refused. Processes other than the
    first write to files of their own, which the first one merges.

    Args:
        output_dir: folder to write to, made where it is missing; ``trainer.default_root_dir``
            where null.
        before: ``predictions.jsonl`` of an earlier run on the same questions, whose accuracy the
            gain in the metrics is over. For VideoMMMU's knowledge gain, that of the adaptation
            track read with ``question_only``. Null for none.
    """

    def __init__(self, output_dir: str | None = None, before: str | None = None) -> None:
        self.output_dir = Path(output_dir or ".")
        self.before = None if before is None else Path(before)
        self._follows_trainer = output_dir is None
        self._levels: list[int] = []
        self._places: dict[str, int] = {}
        self._parent = 0
        self._termination = Termination()
        self._lock: BaseFileLock | None = None
        self._right_before: dict[str, bool] | None = None
        self._metrics: dict[str, Any] | None = None
        self.is_unfinished = False
        """Whether questions are left for this run."""

    @property
    def predictions_path(self) -> Path:
        """Where the lines go."""
        return self.output_dir / "predictions.jsonl"

    @property
    def metrics_path(self) -> Path:
        """Where the metrics go."""
        return self.output_dir / "metrics.json"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find what an earlier run has decided, and leave it out of this one.

        Raises:
            InputError: the folder cannot be written to, or holds predictions of other settings or
                of other questions; the run before is not there or has none of the questions; or the
                densifier comes after this callback.
        """
        if stage != "predict":
            return
        if self._follows_trainer:
            self.output_dir = Path(trainer.default_root_dir)
        self._parent = os.getppid()
        data = cast(VideoQADataModule, trainer.datamodule)  # type: ignore[attr-defined]
        densifiers = densifiers_before(trainer, self)
        self._levels = densifiers[0].levels if densifiers else [data.num_frames]
        self._places = {question.id: i for i, question in enumerate(data.questions("predict"))}
        self._right_before = None if self.before is None else self._read_before(self.before)
        settings = {
            **cast(VideoQAModule, pl_module).fingerprint(),
            **data.fingerprint(),
            "precision": str(trainer.precision),
            **(
                densifiers[0].fingerprint()
                if densifiers
                else {"levels": self._levels, "num_samples": 1}
            ),
        }
        # all processes raise what the first one found, so that none waits for it in vain
        problem = self._prepare(settings) if trainer.is_global_zero else None
        problem = trainer.strategy.broadcast(problem)
        if problem:
            raise InputError(problem)
        decided = [str(line["id"]) for line in read_lines(self.predictions_path)]
        self._check_known(decided)
        data.exclude(decided)
        self.is_unfinished = len(decided) < len(self._places)
        if decided and trainer.is_global_zero:
            total = len(self._places)
            count = f"{len(decided)} of {total}"
            _tell(f"{self.predictions_path}: {count} are decided already")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove metrics of an earlier run with fewer questions, which would pass for this one's.

        From now on SIGTERM is an interruption too.
        """
        self._termination.take_over()
        if trainer.is_global_zero and self.is_unfinished:
            self.metrics_path.unlink(missing_ok=True)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the batch's predictions.

        Raises:
            RuntimeError: the process that started this one is gone, and nobody would merge them.
        """
        if not trainer.is_global_zero and os.getppid() != self._parent:
            # a run that goes on in this folder must not find another one writing
            raise RuntimeError("the first process of this run is gone, so this one ends too")
        predictions: list[Prediction] = outputs
        path = self.predictions_path if trainer.is_global_zero else self._part(trainer.global_rank)
        text = "".join(_to_text(prediction_line(p)) for p in predictions)
        _write(path, text, "a")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let what follows be finished: it takes little time."""
        self._termination.give_back()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Tell what an interrupted run leaves: its lines, and no metrics of a part."""
        self._termination.give_back()
        self._release()
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero and self._places:
            # other processes may be writing: lines are counted, and nothing is repaired
            paths = [path for path in (self.predictions_path, *self._parts()) if path.exists()]
            done = sum(map(_num_whole_lines, paths))
            _tell(
                f"Interrupted: {done} of {len(self._places)} questions are decided and kept in "
                f"{self.predictions_path}; the same command goes on after them, and writes "
                f"{self.metrics_path.name} at the end"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Merge what the processes wrote; write the metrics and show them."""
        if stage != "predict":
            return
        trainer.strategy.barrier("vrts predicted")
        if not trainer.is_global_zero:
            return
        if self._parts():
            self._merge()
        lines = self._in_order(map(without_texts, read_lines(self.predictions_path)))
        metrics = summarise(lines, self._levels, self._right_before)
        _write_atomically(self.metrics_path, json.dumps(metrics, indent=2) + "\n")
        Console().print(metrics_tables(metrics))
        self._metrics = metrics
        self._release()

    def check_answered(self) -> None:
        """See that the run came to something; for after all that it writes is written.

        Raises:
            InputError: there were questions, and every one failed.
        """
        if self._metrics is not None:  # of other processes than the first there are none
            check_answered(self._metrics, str(self.predictions_path))

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _prepare(self, settings: dict[str, Any]) -> str | None:
        """Make the folder, see that it belongs to these settings, and merge what is there.

        Returns:
            What is wrong, or None.
        """
        path = self.output_dir / "settings.json"
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.output_dir / ".lock")
            self._lock.acquire(timeout=0)
            if self.metrics_path.is_dir():
                raise ValueError(f"{self.metrics_path.name} is a folder there")
            has_lines = self.predictions_path.exists() and self.predictions_path.stat().st_size
            if has_lines and not path.exists():
                raise ValueError(f"it holds predictions, but no {path.name} that tells of what")
            if not path.exists():
                _write_atomically(path, json.dumps(settings, indent=2) + "\n")
            found = _read_settings(path)
            self.predictions_path.open("a").close()  # found out now rather than after a batch
            self._merge()
        except Timeout:
            return f"{self.output_dir}: another run writes here; wait, or give another folder"
        except (OSError, ValueError) as error:
            return (
                str(error)
                if isinstance(error, InputError)
                else f"PredictionWriter.output_dir: cannot use {self.output_dir} ({error}); "
                "give another folder"
            )
        now = json.loads(json.dumps(settings))
        changed = [
            f"{key} {found.get(key)!r} -> {now.get(key)!r}"
            for key in sorted(found.keys() | now.keys())
            if found.get(key) != now.get(key)
        ]
        if not changed:
            return None
        return (
            f"{self.output_dir}: holds predictions of other settings ({'; '.join(changed)}); "
            "give another output_dir, or delete the folder to begin anew"
        )

    def _check_known(self, decided: list[str]) -> None:
        unknown = [name for name in decided if name not in self._places]
        if unknown:
            raise InputError(
                f"{self.predictions_path}: holds {len(unknown)} questions that data.predict does "
                f"not, {unknown[0]!r} first; give another output_dir"
            )

    def _read_before(self, path: Path) -> dict[str, bool]:
        """Whether each question was right in the run before."""
        option = "PredictionWriter.before"
        known = {
            str(line["id"]): bool(line["correct"])
            for line in read_other_run(path, option)
            if line["correct"] is not None
        }
        if known.keys().isdisjoint(self._places):
            raise InputError(
                f"{option}: {path} has no answer to any question of data.predict; give another"
            )
        return known

    def _part(self, rank: int) -> Path:
        return self.output_dir / f"predictions.rank{rank}.jsonl"

    def _parts(self) -> list[Path]:
        """What processes other than the first wrote and is not merged yet."""
        return sorted(self.output_dir.glob("predictions.rank*.jsonl"))

    def _merge(self) -> None:
        """Bring the lines of all processes into one file, each question once and in order."""
        parts = self._parts()
        ids = Counter(str(line["id"]) for line in read_lines(self.predictions_path))
        if not parts and ids.total() == len(ids):
            return
        lines: dict[str, Line] = {}
        for path in (self.predictions_path, *parts):
            for line in read_lines(path):
                lines.setdefault(line["id"], line)
        text = "".join(map(_to_text, self._in_order(lines.values())))
        _write_atomically(self.predictions_path, text)
        for path in parts:
            path.unlink()

    def _in_order(self, lines: Iterable[Line]) -> list[Line]:
        """Lines in the order of the questions, whichever process decided them and when."""
        return sorted(lines, key=lambda line: self._places.get(line["id"], len(self._places)))


def _tell(message: str) -> None:
    """Print a message with paths in it, which are no markup."""
    Console().print(Text(printable(message)), soft_wrap=True)


def _num_whole_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(text.endswith(b"\n") for text in file)


def _to_text(line: Line) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not what vrts predict wrote")
    return found


def _write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    _write(temporary, text, "w")
    temporary.replace(path)


def _write(path: Path, text: str, mode: str) -> None:
    """Write to the disk itself; an `OSError` names the file."""
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
