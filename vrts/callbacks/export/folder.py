"""Folders of exported models: complete or missing, and never in the place of anything else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vrts.files.writing import (
    OLD,
    PART,
    delete,
    make_folder,
    names_to_disk,
    replace_folder,
    to_disk,
    write_json,
)
from vrts.types import InputError

MANIFEST = "vrts.json"
"""In every exported folder: what it is, and the names of its files."""


def prepare_target(folder: Path, option: str) -> None:
    """Check before the long work whether an export can go to a folder, which an option names.

    Raises:
        InputError: it contains something else than an earlier export, or cannot be written.
    """
    folder = folder.resolve()
    make_folder(folder.parent, option)
    earlier = _neighbour(folder, OLD)
    if earlier.exists() and not folder.exists():
        earlier.replace(folder)  # an export was killed between its two renames
    reason = _reason_to_keep(folder)
    if reason:
        raise InputError(f"{option}: {folder} {reason}; give another folder")


@contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write to, which takes the place of `folder` when it is complete.

    It is next to `folder`, and is removed after an error. `folder` went through `prepare_target`,
    and one process at a time exports to it.

    Raises:
        InputError: something else is in the folder by now, or the one next to it cannot be made.
    """
    folder = folder.resolve()
    part = _neighbour(folder, PART)
    try:
        delete(part)
        part.mkdir()
    except OSError as error:
        raise InputError(
            f"cannot write the model to {part} ({error}); fix this or give another folder, "
            "then write the model from the run's checkpoint with vrts export"
        ) from error
    try:
        yield part
        _finish(part)
        reason = _reason_to_keep(folder)
        if reason:
            raise InputError(f"cannot write the model: {folder} {reason}; move that away")
    except BaseException:
        delete(part)
        raise
    replace_folder(folder, part, _neighbour(folder, OLD))


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Write plain JSON values about the model, with the names of all files of its full folder."""
    names = sorted([path.name for path in folder.iterdir()] + [MANIFEST])
    write_json(folder / MANIFEST, {**facts, "files": names})


def _neighbour(folder: Path, suffix: str) -> Path:
    return folder.with_name(f".{folder.name}{suffix}")


def _reason_to_keep(folder: Path) -> str | None:
    """Why a folder must not be replaced; None if it may be, or does not exist."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        return "is a file"
    if folder.is_mount():
        return "is a mount point, which cannot be replaced"
    found = {path.name for path in folder.iterdir()}
    if not found:
        return None
    try:
        files = set(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"holds something else than an earlier export: it has no {MANIFEST}"
    other = sorted(found - files)
    return f"holds {other[0]}, which no export wrote" if other else None


def _finish(folder: Path) -> None:
    """Flush files to the disk before a rename makes them count, with a new file's permissions."""
    umask = os.umask(0)  # setting it is the only way to read it
    os.umask(umask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)  # safetensors makes its files readable by their owner alone
        with path.open("rb") as file:
            to_disk(file)
    names_to_disk(folder)
