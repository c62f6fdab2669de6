"""Writing what is whole or not there: folders that are fit to write to, files that are replaced."""

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
"""Ends of the names of what is being written, of what is being replaced, and of what is being
removed."""

PROBE = bytes(4096)
"""What is written to find out whether there is room: a name alone fits on a full disk."""


def make_folder(folder: Path, option: str) -> Path:
    """Make a folder where it is missing, before the run has cost anything.

    Args:
        folder: to write to later.
        option: that names it, for the message.

    Raises:
        InputError: it cannot be made or written to.
    """
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


def check_file(file: Path, option: str) -> None:
    """See that nothing but a file stands where one is written later.

    Args:
        file: its place, in a folder that `make_folder` has made.
        option: that names the folder, for the message.

    Raises:
        InputError: a folder stands there.
    """
    if file.is_dir():
        raise InputError(
            f"{option}: {file} is a folder, in the place of a file that the run writes; move it "
            "away, or give another folder"
        )


@contextmanager
def replacing(
    path: Path, mode: str = "wb", *, writer: str = "", durable: bool = True, **options: Any
) -> Iterator[IO[Any]]:
    """Context in which to write a file that takes the place of an older one when it is whole.

    It is written beside, under the same name with `PART` at its end. What an error leaves of that
    is removed; the older file is as it was.

    Args:
        path: of the file.
        mode: that it is opened with.
        writer: tells this one from others that may write the same file at the same time.
        durable: whether it is on the disk itself before it counts. Otherwise a machine that loses
            its power may leave a damaged file, which suits what can be made again.
        options: of `open`.

    Raises:
        OSError: it cannot be written; it names a file, which that of a full disk does not.
    """
    part = path.with_name(f"{path.name}{writer}{PART}")
    try:
        with naming_file(part):
            with part.open(mode, **options) as file:
                yield file
                if durable:
                    to_disk(file)
            part.replace(path)
            if durable:
                names_to_disk(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # the next one writes over it
            part.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write plain JSON values for people too, whole or not at all; raises as `replacing`."""
    with replacing(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Context in which an `OSError` names a file, which that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def to_disk(file: IO[Any]) -> None:
    """Put what was written to a file on the disk itself."""
    file.flush()
    os.fsync(file.fileno())


def names_to_disk(folder: Path) -> None:
    """Put the names of a folder's files on the disk itself."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(folder: Path, fresh: Path, old: Path) -> None:
    """Let a folder that is whole take the place of another one.

    A folder cannot be replaced at once: where the process is killed between the two renames, there
    are only the older one, moved aside, and the newer one under the name that it was written with.

    Args:
        folder: the name; there need be nothing, and it may be a file or a link.
        fresh: the newer one.
        old: where the older one is meanwhile; what is there is deleted.
    """
    delete(old)
    if folder.exists() or folder.is_symlink():
        folder.replace(old)
    fresh.replace(folder)
    names_to_disk(folder.parent)
    delete(old)


def delete(path: Path) -> None:
    """Delete a folder, a file, or a link to one.

    Args:
        path: of it; there need be nothing.
    """
    if path.is_file() or path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
