"""Folders that a run writes to, made before the run has cost anything."""

from __future__ import annotations

from pathlib import Path

from vrts.types import InputError


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
        probe = folder / ".vrts"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{option}: cannot use {folder} ({error}); give another folder") from error
    return folder
