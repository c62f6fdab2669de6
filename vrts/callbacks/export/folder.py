"""Folders of exported models: complete or not there, and never in the place of anything else."""

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
"""In every exported folder: what it is, and which files belong to it."""


def prepare_target(folder: Path, option: str) -> None:
    """Find out before the long work whether an export can go to a folder.

    Args:
        folder: that the model will have. Its parent is made where it is missing.
        option: that names it, for the message.

    Raises:
        InputError: it holds something else than an earlier export, or cannot be written.
    """
    folder = folder.resolve()
    make_folder(folder.parent, option)
    if _earlier(folder).exists() and not folder.exists():
        _earlier(folder).replace(folder)  # an export was killed between its two renames
    reason = _reason_to_keep(folder)
    if reason:
        raise InputError(f"{option}: {folder} {reason}; give another folder")


@contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """Context in which to write a folder that gets its name, and its manifest, when it is whole.

    Args:
        folder: as given to `prepare_target`. One process at a time exports to it.

    Yields:
        An empty folder beside it to write to. It is removed where an error leaves the context.

    Raises:
        InputError: meanwhile something else has come to the folder, or the place beside it cannot
            be written.
    """
    folder = folder.resolve()
    part = partial_folder(folder)
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
    replace_folder(folder, part, _earlier(folder))


def partial_folder(folder: Path) -> Path:
    """Where a folder is written before it is whole."""
    folder = folder.resolve()
    return folder.with_name(f".{folder.name}{PART}")


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Write what is known about the model, with the names of all files of the folder.

    Args:
        folder: with everything else in it.
        facts: plain JSON values.
    """
    names = sorted([path.name for path in folder.iterdir()] + [MANIFEST])
    write_json(folder / MANIFEST, {**facts, "files": names})


def _earlier(folder: Path) -> Path:
    """Where an earlier export is for as long as it takes to rename the new one."""
    return folder.with_name(f".{folder.name}{OLD}")


def _reason_to_keep(folder: Path) -> str | None:
    """Why a folder must not be replaced; None where it may be, or is not there."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        return "is a file"
    if folder.is_mount():
        return "is a mount point, which cannot be replaced as a whole"
    found = {path.name for path in folder.iterdir()}
    if not found:
        return None
    try:
        files = set(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"holds something else than an earlier export: it has no {MANIFEST} that tells so"
    other = sorted(found - files)
    return f"holds {other[0]}, which no export wrote" if other else None


def _finish(folder: Path) -> None:
    """Have files on the disk before a rename makes them count, for all who may read a new file."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)  # safetensors' are for their owner alone
        with path.open("rb") as file:
            to_disk(file)
    names_to_disk(folder)
