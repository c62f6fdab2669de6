"""Digests of files and plain descriptions of objects, by which runs are compared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

NUM_BLOCKS, BLOCK_BYTES = 16, 256 * 1024  # what `sampled_digest` reads of a large file


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_digest(path: Path, with_time: bool = False) -> str:
    """Return a digest of a file, in hexadecimal, that is fast for large files too; raises OSError.

    Up to 4 MiB it is the SHA-256 of the content, above that of the size and of 16 blocks spread
    from start to end: reading all would take minutes from a slow disk. `with_time` adds a large
    file's modification time. A changed file is then missed only if size, time to the nanosecond and
    blocks are the same; a copy that does not keep the time counts as another file.
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
    """Return the `sampled_digest` of a folder's files by name, subfolders left out."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    return {file.name: sampled_digest(file) for file in files}


def json_digest(value: Any) -> str:
    """Return the SHA-256 of plain JSON values, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def describe(value: Any, depth: int = 8) -> Any:
    """Return an object as plain JSON values: its class and its public attributes or fields.

    Objects nested deeper than `depth` are their classes alone, and so are torch's and Python's own,
    whose attributes are weights, threads and the like.
    """
    if value is None or isinstance(value, bool):
        return value
    # subclasses, such as restricted types of jsonargparse, could not be read from a checkpoint
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(item, depth) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [describe(item, depth) for item in value]
        return items if isinstance(value, list | tuple) else sorted(items, key=str)
    is_foreign = type(value).__module__.startswith(("torch", "builtins", "_thread"))
    has_options = depth > 0 and (dataclasses.is_dataclass(value) or not is_foreign)
    options = public_attributes(value) if has_options else {}
    return {"class": class_name(value), **describe(options, depth - 1)}


def yaml_line(value: Any) -> str:
    """Write plain JSON values for people, on one line as in a configuration."""
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9
    )
    return str(text).removesuffix("\n").removesuffix("\n...")


def class_name(value: object) -> str:
    """Return the name of an object's class, with its module if that is not in vrts."""
    kind = type(value)
    is_own = kind.__module__.startswith("vrts.")
    return kind.__name__ if is_own else f"{kind.__module__}.{kind.__qualname__}"


def public_attributes(value: object) -> dict[str, Any]:
    """Return an object's attributes without a leading underscore; of a dataclass, its fields."""
    if dataclasses.is_dataclass(value):
        found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        found = dict(getattr(value, "__dict__", {}))
    return {key: item for key, item in found.items() if not key.startswith("_")}
