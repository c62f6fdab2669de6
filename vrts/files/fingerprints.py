"""What files and objects are told apart by, as plain JSON values."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

NUM_BLOCKS, BLOCK_BYTES = 16, 256 * 1024
"""Of a large file that `sampled_digest` reads."""


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_digest(path: Path, with_time: bool = False) -> str:
    """Return a digest of a file, in hexadecimal, after little reading.

    Of a file of up to 4 MiB it is the SHA-256 of the whole. Of a larger one it is that of its size
    and of 16 blocks from head to tail: reading all of it would take minutes from a slow disk.

    Args:
        path: of the file.
        with_time: whether a large file's time of change counts too. Another version of it is then
            missed only where size, time to the nanosecond and blocks are the same; a copy that
            does not keep the time counts as another file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
        if state.st_size <= NUM_BLOCKS * BLOCK_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        changed = f"{state.st_mtime_ns} " if with_time else ""
        digest = hashlib.sha256(f"{state.st_size} {changed}".encode())
        last = state.st_size - BLOCK_BYTES
        for i in range(NUM_BLOCKS):
            file.seek(last * i // (NUM_BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def folder_digests(folder: Path, pattern: str = "*") -> dict[str, str]:
    """Return the `sampled_digest` of each file of a folder, by name.

    Args:
        folder: its subfolders are left out.
        pattern: of the names.

    Raises:
        OSError: one cannot be read.
    """
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    return {file.name: sampled_digest(file) for file in files}


def json_digest(value: Any) -> str:
    """Return the SHA-256 of plain JSON values, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def describe(value: Any) -> Any:
    """Return an object as plain JSON values: its class and its public attributes, or its fields.

    Plain values stay what they are. What an object keeps under names that begin with an
    underscore does not count: it is no option.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        # restricted types of jsonargparse are numbers too
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [describe(item) for item in value]
        return items if isinstance(value, list | tuple) else sorted(items, key=str)
    return {"class": class_name(value), **describe(public_attributes(value))}


def class_name(value: object) -> str:
    """Return the name of an object's class; one from outside of vrts with its module."""
    kind = type(value)
    return kind.__name__ if kind.__module__.startswith("vrts.") else _full_name(kind)


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def public_attributes(value: object) -> dict[str, Any]:
    """Return an object's attributes that are no private ones; of a dataclass, its fields."""
    if dataclasses.is_dataclass(value):
        found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        found = dict(getattr(value, "__dict__", {}))
    return {key: item for key, item in found.items() if not key.startswith("_")}
