"""The files of a prediction run, which belong to one set of settings and one run at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vrts.files.json_lines import cut_torn_line, whole_lines
from vrts.files.predictions import (
    FILE_NAME,
    METRICS_NAME,
    SETTINGS_NAME,
    StoredPredictions,
    append_predictions,
    read_predictions,
    without_texts,
    write_predictions,
)
from vrts.files.writing import write_json
from vrts.types import InputError, Prediction


class PredictionFolder:
    """``predictions.jsonl``, ``settings.json`` and ``metrics.json`` of a run.

    Each process but the first writes lines to its own file until these are merged.

    Args:
        path: of the folder.
        places: index of each question by its id, which merged lines are ordered by.
    """

    def __init__(self, path: Path, places: Mapping[str, int]) -> None:
        self.path = path
        self.predictions_path = path / FILE_NAME
        self.metrics_path = path / METRICS_NAME
        self._places = places
        self._lock = FileLock(path / ".lock")

    def lock(self, settings: dict[str, Any]) -> None:
        """Make the folder, check that it belongs to these settings, and merge its files.

        The settings are all that predictions depend on, as plain JSON values.

        Raises:
            InputError: another run writes to it, its predictions are of other settings, or it
                cannot be written to.
        """
        path = self.path / SETTINGS_NAME
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            if self.metrics_path.is_dir():
                raise ValueError(f"{self.metrics_path.name} is a folder there")
            self.predictions_path.open("a").close()  # fails now rather than after a batch
            if not path.exists():
                if self.predictions_path.stat().st_size:
                    raise ValueError(f"it holds predictions, but no {path.name}")
                write_json(path, settings)
            found = _read_settings(path)
            cut_torn_line(self.predictions_path)
            self.merge()
        except Timeout as error:
            raise InputError(
                f"{self.path}: another run writes here; wait, or give another folder"
            ) from error
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(
                f"PredictionWriter.output_dir: cannot use {self.path} ({error}); "
                "give another folder"
            ) from error
        now = json.loads(json.dumps(settings))
        changed = [
            f"{key} {found.get(key)!r} -> {now.get(key)!r}"
            for key in sorted(found.keys() | now.keys())
            if found.get(key) != now.get(key)
        ]
        if changed:
            raise InputError(
                f"{self.path}: holds predictions of other settings ({'; '.join(changed)}); "
                "give another output_dir, or delete the folder to start over"
            )

    def release(self) -> None:
        """Let another run lock it; idempotent."""
        self._lock.release()

    def decided(self) -> list[str]:
        """Return the ids of the lines; raises `InputError` if one is not a question of this run."""
        ids = [p.question.id for p in read_predictions(self.predictions_path)]
        unknown = [id for id in ids if id not in self._places]
        if unknown:
            raise InputError(
                f"{self.predictions_path}: holds {len(unknown)} questions that data.predict does "
                f"not, {unknown[0]!r} first; give another output_dir"
            )
        return ids

    def append(self, predictions: Iterable[Prediction], rank: int) -> None:
        """Write predictions of a rank, flushed to the disk."""
        part = self.path / f"predictions.rank{rank}.jsonl"
        append_predictions(self.predictions_path if rank == 0 else part, predictions)

    def merge(self) -> None:
        """Merge the lines of all processes into one file, each question once and in order.

        Texts stay on the disk: those of a long run take much memory.
        """
        paths = [self.predictions_path, *self._parts()]
        found = [p.question.id for path in paths for p in read_predictions(path)]
        ids = sorted(dict.fromkeys(found), key=lambda id: self._places.get(id, len(self._places)))
        if len(paths) == 1 and ids == found:
            return
        stored = [StoredPredictions(path) for path in paths]
        merged = (next(p for one in stored if (p := one.get(id)) is not None) for id in ids)
        write_predictions(self.predictions_path, merged)
        for path in paths[1:]:
            path.unlink()

    def predictions(self) -> list[Prediction]:
        """Merge the files, and return all predictions in order, without their texts."""
        self.merge()
        return list(map(without_texts, read_predictions(self.predictions_path)))

    def num_decided(self) -> int:
        """Count the lines of all processes; nothing is merged, since others may be writing."""
        paths = [path for path in (self.predictions_path, *self._parts()) if path.exists()]
        return sum(1 for path in paths for _ in whole_lines(path))

    def _parts(self) -> list[Path]:
        """Files of processes other than the first that are not merged yet."""
        return sorted(self.path.glob("predictions.rank*.jsonl"))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not what vrts predict wrote")
    return found
