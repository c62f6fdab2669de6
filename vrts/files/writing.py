"""Atomic writes: a file or folder is complete, or as it was before."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vrts.types import InputError

PART, OLD, GONE = ".part", ".old", ".gone"
"""Suffixes of what is being written, what is being replaced and what is being removed."""

PROBE = bytes(4096)  # written to see whether there is room: an empty file fits on a full disk


def make_folder(folder: Path, option: str) -> Path:
    """Make a folder for later output and check that it can be written to, else `InputError`."""
    probe = folder / ".vrts"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with probe.open("wb") as file:
                file.write(PROBE)
                to_disk(file)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{option}: cannot use {folder} ({error}); fix this, or give another folder"
        ) from error
    return folder


def check_no_folder(file: Path, option: str) -> None:
    """Raise `InputError` if there is a folder where a file will be written."""
    if file.is_dir():
        raise InputError(
            f"{option}: {file} is a folder, in the place of a file that the run writes; move it "
            "away, or give another folder"
        )


@contextmanager
def replacing(
    path: Path, mode: str = "wb", *, writer: str = "", durable: bool = True, **options: Any
) -> Iterator[IO[Any]]:
    """Context in which to write a file that replaces an older one atomically at its end.

    It is written to a file next to it with the suffix `PART`, which is removed after an error.

    Args:
        path: The file.
        mode: As for `open`.
        writer: Distinguishes writers that may write the same file at the same time.
        durable: Whether to flush to disk before replacing. Otherwise a power failure may leave a
            damaged file, which is acceptable for what can be made again.
        options: Of `open`.

    Raises:
        OSError: it cannot be written; the error names a file.
    """
    part = path.with_name(f"{path.name}{writer}{PART}")
    try:
        with file_error_context(part):
            with part.open(mode, **options) as file:
                yield file
                if durable:
                    to_disk(file)
            part.replace(path)
            if durable:
                names_to_disk(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # the next write replaces it
            part.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write plain JSON values atomically and indented; raises as `replacing`."""
    with replacing(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")


@contextmanager
def file_error_context(path: Path) -> Iterator[None]:
    """Name a file in an `OSError` that names none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def to_disk(file: IO[Any]) -> None:
    """Flush what was written to a file to disk."""
    file.flush()
    os.fsync(file.fileno())


def names_to_disk(folder: Path) -> None:
    """Flush a folder's entries to disk: without this a renamed file may be lost."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(folder: Path, fresh: Path, old: Path) -> None:
    """Replace a folder by a complete new one.

    Folders cannot be replaced atomically: if the process is killed between the two renames, there
    are the old one under ``old`` and the new one under ``fresh``.

    Args:
        folder: The name; it may be absent, a file or a link.
        fresh: The new folder.
        old: Where the old one is meanwhile; what is there is deleted.
    """
    delete(old)
    if folder.exists() or folder.is_symlink():
        folder.replace(old)
    fresh.replace(folder)
    names_to_disk(folder.parent)
    delete(old)


def delete(path: Path) -> None:
    """Delete a folder, a file, or a link to one, if it exists."""
    if path.is_file() or path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
