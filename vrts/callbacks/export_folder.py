"""Folders of exported models: complete or not there, and never in the place of anything else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from vrts.files.writing import make_folder
from vrts.types import InputError

MANIFEST = "vrts.json"
"""In every exported folder: what it is, and which files belong to it."""

_REMEDY = (
    "fix this or give another folder, then write the model from the run's checkpoint with vrts "
    "export"
)


def prepare_target(folder: Path, option: str) -> None:
    """Find out before the long work whether an export can go to a folder.

    Args:
        folder: that the model will have. Its parent is made where it is missing.
        option: that names it, for the message.

    Raises:
        InputError: it holds something other than an earlier export, or cannot be written.
    """
    folder = folder.resolve()
    make_folder(folder.parent, option)
    for left in folder.parent.glob(f".{folder.name}.vrts-*"):
        rank_zero_warn(f"{left} is left of an export that was killed; delete it")
    reason = _reason_to_keep(folder)
    if reason:
        raise InputError(f"{option}: {folder} {reason}; give another folder")


@contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """Context in which to write a folder that gets its name when it is complete.

    Args:
        folder: as given to `prepare_target`.

    Yields:
        An empty folder next to it to write to. It is removed where an error leaves the context.

    Raises:
        InputError: meanwhile something else has come to the folder; or the place next to it cannot
            be written.
    """
    folder = folder.resolve()
    try:
        part = Path(mkdtemp(prefix=f".{folder.name}.vrts-", dir=folder.parent))
    except OSError as error:
        raise InputError(f"cannot write the model to {folder} ({error}); {_REMEDY}") from error
    try:
        yield part
        _share(part)
        _sync(part)
        reason = _reason_to_keep(folder)
        if reason:
            raise InputError(f"cannot write the model: {folder} {reason}; move that away")
        if folder.exists():
            # of an export that is killed between these two lines both folders are complete
            folder.replace(part.with_name(part.name + "-old"))
        part.replace(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(part.with_name(part.name + "-old"), ignore_errors=True)


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Write what is known about the model, with the names of all files of the folder.

    Args:
        folder: with everything else in it.
        facts: plain JSON values.
    """
    names = sorted([path.name for path in folder.iterdir()] + [MANIFEST])
    text = json.dumps({**facts, "files": names}, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


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


def _share(folder: Path) -> None:
    """Give a folder and its files the usual permissions: these are for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)


def _sync(folder: Path) -> None:
    """Have files on the disk before a rename makes them count."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
