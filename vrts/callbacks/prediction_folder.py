"""The files of a prediction run, which belong to its settings and to one run at a time."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from vrts.callbacks.records import Line, read_lines, without_texts
from vrts.types import InputError


class PredictionFolder:
    """``predictions.jsonl``, ``settings.json`` and ``metrics.json`` of a run.

    Processes other than the first write lines to files of their own until these are merged.

    Args:
        path: of the folder.
        places: place of each question by its id, which merged lines are ordered by.
    """

    def __init__(self, path: Path, places: Mapping[str, int]) -> None:
        self.path = path
        self._places = places
        self._lock: BaseFileLock | None = None

    @property
    def predictions_path(self) -> Path:
        """Where the lines go."""
        return self.path / "predictions.jsonl"

    @property
    def metrics_path(self) -> Path:
        """Where the metrics go."""
        return self.path / "metrics.json"

    def take(self, settings: dict[str, Any]) -> str | None:
        """Make the folder, see that it belongs to these settings, and merge what is there.

        No other run can take it until `release`.

        Args:
            settings: what predictions depend on, as plain JSON values.

        Returns:
            What is wrong, or None.
        """
        path = self.path / "settings.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock")
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
            self.merge()
        except Timeout:
            return f"{self.path}: another run writes here; wait, or give another folder"
        except (OSError, ValueError) as error:
            return (
                str(error)
                if isinstance(error, InputError)
                else f"PredictionWriter.output_dir: cannot use {self.path} ({error}); "
                "give another folder"
            )
        changed = _differences(found, json.loads(json.dumps(settings)))
        if not changed:
            return None
        return (
            f"{self.path}: holds predictions of other settings ({'; '.join(changed)}); "
            "give another output_dir, or delete the folder to begin anew"
        )

    def release(self) -> None:
        """Let another run take it; harmless twice."""
        if self._lock is not None:
            self._lock.release()

    def decided(self) -> list[str]:
        """Ids of the questions that have a line.

        Raises:
            InputError: one of them is no question of this run.
        """
        ids = [str(line["id"]) for line in read_lines(self.predictions_path)]
        unknown = [name for name in ids if name not in self._places]
        if unknown:
            raise InputError(
                f"{self.predictions_path}: holds {len(unknown)} questions that data.predict does "
                f"not, {unknown[0]!r} first; give another output_dir"
            )
        return ids

    def append(self, lines: Iterable[Line], rank: int) -> None:
        """Write lines to the disk itself.

        Args:
            lines: that were decided.
            rank: of the process that did.
        """
        path = self.predictions_path if rank == 0 else self._part(rank)
        _write(path, "".join(map(_to_text, lines)), "a")

    def merge(self) -> None:
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

    def lines(self) -> list[Line]:
        """Merge what the processes wrote; all lines in order, without their texts."""
        if self._parts():
            self.merge()
        return self._in_order(map(without_texts, read_lines(self.predictions_path)))

    def num_whole_lines(self) -> int:
        """Lines of all processes; others may be writing, so nothing is repaired or merged."""
        paths = [path for path in (self.predictions_path, *self._parts()) if path.exists()]
        return sum(map(_num_whole_lines, paths))

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write ``metrics.json``, whole or not at all."""
        _write_atomically(self.metrics_path, json.dumps(metrics, indent=2) + "\n")

    def _part(self, rank: int) -> Path:
        return self.path / f"predictions.rank{rank}.jsonl"

    def _parts(self) -> list[Path]:
        """What processes other than the first wrote and is not merged yet."""
        return sorted(self.path.glob("predictions.rank*.jsonl"))

    def _in_order(self, lines: Iterable[Line]) -> list[Line]:
        """Lines in the order of the questions, whichever process decided them and when."""
        return sorted(lines, key=lambda line: self._places.get(line["id"], len(self._places)))


def _differences(found: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How settings differ, by key."""
    return [
        f"{key} {found.get(key)!r} -> {now.get(key)!r}"
        for key in sorted(found.keys() | now.keys())
        if found.get(key) != now.get(key)
    ]


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
