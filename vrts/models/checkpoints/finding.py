"""Finding complete checkpoints."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_warn

from vrts.files.writing import OLD, PART
from vrts.types import InputError

SHARDS, REST = ".metadata", "meta.pt"
"""Files that are written last into the folder of a sharded run's checkpoint, in this order."""


def is_complete(path: Path) -> bool:
    """Whether a checkpoint, a file or the folder of a sharded run, was written to its end.

    Of a file the zip directory, which comes last, and the list of tensors are read.
    """
    if path.is_dir():
        return (path / SHARDS).is_file() and is_complete(path / REST)
    try:
        with zipfile.ZipFile(path) as file:
            records = [name for name in file.namelist() if name.endswith("/data.pkl")]
            return any(file.read(name) for name in records)
    except (OSError, zipfile.BadZipFile):
        return False


def surviving(path: Path) -> Path:
    """Where a checkpoint is now; not at `path` if a run was killed while it replaced a folder.

    A folder cannot be replaced atomically: for a moment there are only the older one, moved aside,
    and the newer one, complete, under the name that it was written with.
    """
    if not path.exists():
        for end in (PART, OLD):
            other = path.with_name(path.name + end)
            if other.is_dir() and is_complete(other):
                return other
    return path


def newest(folders: Sequence[Path]) -> Path | None:
    """Find the checkpoint to resume from: the newest complete one of those named ``last``.

    Where none of them is complete, the newest complete one of any name is taken. Incomplete ones
    are skipped with a warning. None where there are no checkpoints at all.

    Raises:
        InputError: there are some, and none of them is complete.
    """
    paths = [path for folder in folders for path in folder.glob("*.ckpt*")]
    found = {
        path.with_name(path.name.removesuffix(PART).removesuffix(OLD))
        for path in paths
        if path.suffix == ".ckpt" or (path.is_dir() and path.suffix in (PART, OLD))
    }
    ordered = sorted(
        (surviving(path) for path in found),
        key=lambda path: (path.name.startswith("last"), _saved_ns(path)),
        reverse=True,
    )
    ordered = [path for path in ordered if path.exists()]
    for path in ordered:
        if is_complete(path):
            return path
        rank_zero_warn(f"--ckpt_path last: skipped {path}, which is damaged or incomplete")
    if ordered:
        raise InputError(
            f"--ckpt_path last: no checkpoint in {ordered[0].parent} is complete; give the path of "
            "another one, or start over without --ckpt_path"
        )
    return None


def _saved_ns(path: Path) -> int:
    """When a checkpoint was written; 0 where it is not there."""
    file = path / SHARDS if path.is_dir() else path
    return file.stat().st_mtime_ns if file.exists() else 0
