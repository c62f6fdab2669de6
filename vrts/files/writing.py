"""Folders that a run writes to, made before the run has cost anything."""

from __future__ import annotations

import os
from pathlib import Path

from vrts.types import InputError

PROBE = bytes(4096)
"""What is written to find out whether there is room: a name alone fits on a full disk."""


def make_folder(folder: Path, option: str) -> Path:
    """Make a folder where it is missing.

    Args:
        folder: to write to later.
        option: that names it, for the message.

    Raises:
        InputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_probe(folder / ".vrts")
    except OSError as error:
        raise InputError(
            f"{option}: cannot use {folder} ({error}); put that right, or give another folder"
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


def _write_probe(probe: Path) -> None:
    """Write to the disk itself, and leave nothing behind."""
    try:
        with probe.open("wb") as file:
            file.write(PROBE)
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)
