"""Folders of exported models: complete or not there, and never in the place of anything else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vrts.files.writing import make_folder
from vrts.types import InputError

MANIFEST = "vrts.json"
"""In every exported folder: what it is, and which files belong to it."""

WAIT_S = 600
"""How long a trained model waits for another export to its folder, which takes minutes at most."""


def prepare_target(folder: Path, option: str) -> None:
    """Find out before the long work whether an export can go to a folder.

    Args:
        folder: that the model will have. Its parent is made where it is missing.
        option: that names it, for the message.

    Raises:
        InputError: it holds something else than an earlier export, cannot be written, or another
            process is exporting to it.
    """
    folder = folder.resolve()
    make_folder(folder.parent, option)
    with _alone(folder, 0, option):
        earlier = _earlier(folder)
        if earlier.exists() and not folder.exists():
            earlier.replace(folder)  # an export was killed between its two renames
    reason = _reason_to_keep(folder)
    if reason:
        raise InputError(f"{option}: {folder} {reason}; give another folder")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Context in which to write a folder that gets its name, and its manifest, when it is whole.

    One process at a time: others wait, and then replace it.

    Args:
        folder: as given to `prepare_target`.

    Yields:
        An empty folder beside it to write to. It is removed where an error leaves the context.

    Raises:
        InputError: meanwhile something else has come to the folder; the place beside it cannot be
            written; or another process writes there for longer than `WAIT_S`.
    """
    folder = folder.resolve()
    with _alone(folder, WAIT_S, "cannot write the model"), _swapped_in(folder) as part:
        yield part


@contextmanager
def _alone(folder: Path, wait_s: float, what: str) -> Iterator[None]:
    """Context in which no other process exports to a folder.

    Args:
        folder: absolute.
        wait_s: how long to wait for another one, in seconds.
        what: begins the message.

    Raises:
        InputError: there still is another one; or the lock cannot be made.
    """
    lock = FileLock(folder.with_name(f".{folder.name}.vrts-lock"))
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise InputError(
            f"{what}: another export to {folder} is under way; wait for its end and write the "
            "model from its run's checkpoint with vrts export, or give another folder"
        ) from error
    except (OSError, NotImplementedError) as error:  # the latter where files cannot be locked
        raise InputError(f"{what}: cannot use {folder.parent} ({error}); {_REMEDY}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _swapped_in(folder: Path) -> Iterator[Path]:
    """Context in which to write what then takes the place of a folder that nobody else writes."""
    part, earlier = partial_folder(folder), _earlier(folder)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    except OSError as error:
        raise InputError(f"cannot write the model to {part} ({error}); {_REMEDY}") from error
    try:
        yield part
        _share(part)
        _sync(part)
        reason = _reason_to_keep(folder)
        if reason:
            raise InputError(f"cannot write the model: {folder} {reason}; move that away")
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
    if folder.exists():
        folder.replace(earlier)
    part.replace(folder)
    shutil.rmtree(earlier, ignore_errors=True)


def partial_folder(folder: Path) -> Path:
    """Where a folder is written before it is whole."""
    folder = folder.resolve()
    return folder.with_name(f".{folder.name}.vrts-part")


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Write what is known about the model, with the names of all files of the folder.

    Args:
        folder: with everything else in it.
        facts: plain JSON values.
    """
    names = sorted([path.name for path in folder.iterdir()] + [MANIFEST])
    text = json.dumps({**facts, "files": names}, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


_REMEDY = (
    "put that right or give another folder, then write the model from the run's checkpoint with "
    "vrts export"
)


def _earlier(folder: Path) -> Path:
    """Where an earlier export is for as long as it takes to rename the new one."""
    return folder.with_name(f".{folder.name}.vrts-earlier")


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
    """Give files the permissions of any new file: safetensors' are for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
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
