"""The best checkpoint of a run, as its checkpoints record it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrts.models.checkpoints.finding import REST, is_complete
from vrts.models.checkpoints.reading import read_file
from vrts.types import InputError

WATCHED = "val/"
"""Beginning of the names of validation's metrics."""


@dataclass(frozen=True, slots=True)
class Best:
    """What a ModelCheckpoint that watches validation has found best."""

    path: Path
    metric: str
    value: float


def recorded_best(checkpoint: Mapping[str, Any], path: Path) -> Best | None:
    """What a checkpoint records of itself, where it was the best when it was saved."""
    return next((best for best in _recorded_bests(checkpoint) if best.path.name == path.name), None)


def find_best(folder: Path) -> Path:
    """Find the best checkpoint in a run's folder, as the newest of its checkpoints records it.

    The folder may have been moved.

    Raises:
        InputError: none is recorded, or it is gone.
    """
    found: list[tuple[int, Path]] = []
    for path in filter(is_complete, folder.glob("*.ckpt")):
        checkpoint = read_file(path / REST if path.is_dir() else path)
        if (best := next(_recorded_bests(checkpoint), None)) is not None:
            found.append((int(checkpoint["global_step"]), best.path))
    if not found:
        raise InputError(
            f"--ckpt_path best: no checkpoint in {folder} records a best one; --config "
            "configs/validate.yaml keeps it, else give the path of a checkpoint, or last"
        )
    _, recorded = max(found, key=lambda item: item[0])
    best_path = folder / recorded.name
    if not is_complete(best_path):
        raise InputError(
            f"--ckpt_path best: {best_path}, which is recorded as the best, is missing or damaged; "
            "give the path of another checkpoint, or last"
        )
    return best_path


def _recorded_bests(checkpoint: Mapping[str, Any]) -> Iterator[Best]:
    """What each ModelCheckpoint that monitors validation has found, where it had any."""
    for state in checkpoint.get("callbacks", {}).values():
        metric = str(state.get("monitor"))
        if metric.startswith(WATCHED) and state.get("best_model_path"):
            yield Best(Path(state["best_model_path"]), metric, float(state["best_model_score"]))
