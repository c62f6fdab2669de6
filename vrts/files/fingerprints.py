"""What a file holds and how an object is set up, as plain JSON values to compare runs by."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from vrts.digests import sampled_digest


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def video_digest(path: Path) -> str:
    """Return what tells a video's content from others, in hexadecimal, after little reading.

    As `sampled_digest`, with a large file's time of change: another version of such a file is
    missed only where it has the same size, the same time of change to the nanosecond and the same
    blocks. A copy that does not keep the time of change counts as another file.

    Raises:
        OSError: it cannot be read.
    """
    return sampled_digest(path, with_time=True)


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
