"""JSON Lines of interrupted and resumed runs: the last line of a file may be torn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vrts.files.writing import naming_file, replacing, to_disk
from vrts.types import InputError

Step = dict[str, Any]
"""A line with ``step``, of a training run."""


def whole_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield ``file:line`` and the text of each line, its line break included.

    What an interrupted write left behind the last line break is passed over.

    Args:
        path: of the file.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield f"{path}:{number}", line


def cut_torn_line(path: Path) -> None:
    """Cut off what an interrupted write left behind the last line break.

    Args:
        path: of the file.
    """
    size = sum(len(line) for _, line in whole_lines(path))
    with path.open("r+b") as file:
        file.truncate(size)


def json_line(value: Mapping[str, Any]) -> str:
    """Return plain JSON values as a line with its line break."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append lines, on the disk itself.

    Args:
        path: of the file, made where it is missing.
        lines: plain JSON values.

    Raises:
        OSError: they cannot be written, or not all of them; it names the file.
    """
    with naming_file(path), path.open("a", encoding="utf-8") as file:
        file.writelines(map(json_line, lines))
        to_disk(file)


def append_steps(path: Path, lines: Iterable[Step]) -> None:
    """Append lines of a training run.

    Args:
        path: of the file.
        lines: plain JSON values, each with ``step``.

    Raises:
        InputError: they cannot be written. What there is of a torn line is dropped by `keep_steps`.
    """
    try:
        append_lines(path, lines)
    except OSError as error:
        raise _unwritable(path, error) from error


def read_steps(path: Path) -> Iterator[Step]:
    """Yield the lines of a training run.

    Args:
        path: of the file.

    Raises:
        InputError: a whole line that is not one of ours.
    """
    for source, line in whole_lines(path):
        try:
            value = json.loads(line)
            is_step = isinstance(value, dict) and isinstance(value.get("step"), int)
        except ValueError:
            is_step = False
        if not is_step:
            raise InputError(f"{source}: not a line that vrts fit wrote; remove the file")
        yield value


def keep_steps(path: Path, last_step: int) -> int:
    """Drop the lines of later steps, which are made again, and what a kill left of a line.

    Args:
        path: of the file; replaced as a whole.
        last_step: of the lines that are kept.

    Returns:
        The step of the last line that is kept; 0 where there is none.

    Raises:
        InputError: a whole line that is not one of ours; or the file cannot be written, and is as
            it was.
    """
    last = 0
    try:
        with replacing(path, "w", encoding="utf-8") as file:
            for line in read_steps(path):
                if line["step"] <= last_step:
                    file.write(json_line(line))
                    last = line["step"]
    except OSError as error:
        raise _unwritable(path, error) from error
    return last


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write {path} ({error.strerror}); checkpoints saved before are whole: put this "
        "right, then give the same command again with --ckpt_path last"
    )
