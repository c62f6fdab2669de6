"""Files with a JSON line for each step, of runs that are interrupted and go on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vrts.types import InputError


def step_of(path: Path, number: int, line: bytes) -> int:
    """Return the step that a line is about.

    Args:
        path: of the file, to name it.
        number: of the line.
        line: a JSON object with ``step``.

    Raises:
        InputError: it is none.
    """
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        step = None
    if not isinstance(step, int):
        raise InputError(f"{path}:{number}: not a line that vrts fit wrote; remove the file")
    return step


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append lines, and say which file it was where that fails.

    Args:
        path: of the file.
        lines: plain JSON values.

    Raises:
        InputError: they cannot be written. What there is of a torn line is dropped by `keep_steps`.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    except OSError as error:
        raise _unwritable(path, error) from error


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
    temporary = path.with_name(path.name + ".part")
    last = 0
    try:
        with path.open("rb") as old, temporary.open("wb") as new:
            for number, line in enumerate(old, start=1):
                if line.endswith(b"\n") and (step := step_of(path, number, line)) <= last_step:
                    new.write(line)
                    last = step
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error
    return last


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write {path} ({error.strerror}); checkpoints saved before are whole: put this "
        "right, then give the same command again with --ckpt_path last"
    )
