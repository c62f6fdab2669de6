"""What kills leave: copies of a folder from each moment at which a process changes files.

SIGKILL leaves files as they are, so a copy that is made before a file is opened for writing,
renamed or removed is what a kill at that moment leaves. Where a file is put on the disk with
`os.fsync`, a second copy has lost the end of what was written to it: as when the power fails.
"""

import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class _Copies:
    """Copies of a folder, none of which is like another."""

    def __init__(self, folder: Path, to: Path) -> None:
        self.folder, self.to = folder, to
        self.copies: list[Path] = []
        self._known: set[bytes] = set()
        self._synced: dict[Path, int] = {}
        self._lock = threading.RLock()
        self._is_copying = False

    def copy(self, name: str = "", num_bytes: int | None = None) -> None:
        """Copy the folder as it is, but one file of it cut off after so many bytes."""
        with self._lock:
            if self._is_copying or not self.folder.exists():
                return
            self._is_copying = True
            try:
                fresh = self.to / str(len(self.copies))
                shutil.copytree(self.folder, fresh, symlinks=True)
                if num_bytes is not None:
                    os.truncate(fresh / name, num_bytes)
                if (digest := _digest(fresh)) in self._known:
                    shutil.rmtree(fresh)
                else:
                    self._known.add(digest)
                    self.copies.append(fresh)
            finally:
                self._is_copying = False

    def sync(self, descriptor: int) -> None:
        """Copy before a file is put on the disk, with half and with all of what is new in it."""
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_file() and self.folder in path.parents:
            size, before = path.stat().st_size, self._synced.get(path, 0)
            self._synced[path] = size
            if before < size:
                self.copy(str(path.relative_to(self.folder)), (before + size) // 2)
        self.copy()


def _digest(folder: Path) -> bytes:
    """Names, kinds and contents of all that is in a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        content = str(path.readlink()).encode() if path.is_symlink() else b""
        if not content and path.is_file():
            content = path.read_bytes()
        kind = path.is_symlink(), path.is_dir(), len(content)
        found.update(f"{path.relative_to(folder)}\n{kind}\n".encode() + content)
    return found.digest()


_active: list[_Copies] = []


def _hear(event: str, args: tuple[Any, ...]) -> None:
    """Called by Python before each of the things that it audits; there is no way to end that."""
    if _active and (event in CHANGES or (event == "open" and args[2] & WRITING)):
        _active[-1].copy()


@contextmanager
def copied_at_changes(folder: Path, to: Path) -> Iterator[list[Path]]:
    """Copy a folder whenever this process is about to change a file, while in the context.

    Args:
        folder: Need not exist yet.
        to: Where copies are made. Only different ones stay.
    """
    if not hasattr(sys, "_hears_changes"):
        sys.addaudithook(_hear)
        sys._hears_changes = True  # type: ignore[attr-defined]
    to.mkdir()
    watched, fsync = _Copies(folder, to), os.fsync

    def copy_and_sync(file: Any) -> None:
        watched.sync(file if isinstance(file, int) else file.fileno())
        fsync(file)

    _active.append(watched)
    try:
        with mock.patch("os.fsync", copy_and_sync):
            yield watched.copies
    finally:
        _active.remove(watched)
        watched.copy()
