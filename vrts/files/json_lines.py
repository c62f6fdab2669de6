"""JSON Lines of interrupted and resumed runs: the last line of a file may be incomplete."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vrts.files.writing import file_error_context, replacing, to_disk
from vrts.types import InputError

Step = dict[str, Any]  # a line with ``step``, of a training run


def whole_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield ``file:line`` and each line with its line break, without an incomplete last line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield f"{path}:{number}", line


def cut_torn_line(path: Path) -> None:
    """Cut off an incomplete last line."""
    size = sum(len(line) for _, line in whole_lines(path))
    with path.open("r+b") as file:
        file.truncate(size)


def json_line(value: Mapping[str, Any]) -> str:
    """Return plain JSON values as a line with its line break."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append lines of plain JSON values and flush them to disk; the file need not exist.

    Raises:
        OSError: they cannot be written, or not all of them; it names the file.
    """
    with file_error_context(path), path.open("a", encoding="utf-8") as file:
        file.writelines(map(json_line, lines))
        to_disk(file)


def append_steps(path: Path, lines: Iterable[Step]) -> None:
    """Append lines of a training run; raises `InputError` if they cannot be written."""
    try:
        append_lines(path, lines)
    except OSError as error:
        raise _unwritable(path, error) from error


def read_steps(path: Path) -> Iterator[Step]:
    """Yield the lines of a training run; raises `InputError` at one that vrts did not write."""
    for source, line in whole_lines(path):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict) or not isinstance(value.get("step"), int):
            raise InputError(f"{source}: not a line that vrts fit wrote; remove the file")
        yield value


def keep_steps(path: Path, last_step: int) -> None:
    """Drop an incomplete line, and those after ``last_step``, which a resumed run makes again.

    Raises:
        InputError: a complete line that vrts did not write, or the file cannot be replaced; it is
            unchanged then.
    """
    try:
        with replacing(path, "w", encoding="utf-8") as file:
            file.writelines(json_line(s) for s in read_steps(path) if s["step"] <= last_step)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write {path} ({error.strerror}); checkpoints saved before are complete: fix this, "
        "then give the same command again with --ckpt_path last"
    )
