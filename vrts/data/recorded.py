"""Reader of the questions of an earlier prediction run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vrts.data.fields import MAX_OPTIONS, gold_answer
from vrts.data.readers import PROBLEM_TYPES, Reader
from vrts.data.records import Record, check_file, parse_questions
from vrts.types import InputError, ProblemType, Question


class RecordedReader(Reader):
    """The questions of a ``predictions.jsonl``, without their annotation file and their videos.

    Args:
        path: ``predictions.jsonl`` of a run of ``vrts predict``.
    """

    def __init__(self, path: str) -> None:
        self.path = str(path)

    def read(self) -> list[Question]:
        """Return the questions in the order of the file; raises as `Reader.read` says."""
        check_file(self.path)
        return parse_questions(self.path, _iterate(self.path), _parse)


def _iterate(path: str) -> Iterator[tuple[str, Any]]:
    """Yield ``(file:line, value)`` line by line: a long run's file need not fit into memory."""
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield f"{path}:{number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"{path}:{number}", InputError(f"not valid JSON ({error})")


def _parse(record: Record) -> Question:
    name = record.text("problem_type")
    if name.lower() not in PROBLEM_TYPES:
        raise InputError(f"unknown problem_type {name!r}; one of {', '.join(PROBLEM_TYPES)}")
    problem_type = PROBLEM_TYPES[name.lower()]
    options = tuple(record.texts("options"))
    breakdown = record.fields.get("breakdown")
    if not isinstance(breakdown, dict) or not all(isinstance(c, str) for c in breakdown.values()):
        raise InputError("field 'breakdown' must be an object of name to category")
    if not all(options):
        raise InputError(f"option {options.index('') + 1} is empty")
    if problem_type is ProblemType.MULTIPLE_CHOICE and not 2 <= len(options) <= MAX_OPTIONS:
        raise InputError(f"a multiple choice needs 2 to {MAX_OPTIONS} options, got {len(options)}")
    return Question(
        id=record.text("id"),
        text=record.text("question"),
        video=record.text("video"),
        problem_type=problem_type,
        options=options,
        answer=gold_answer(record.fields.get("answer"), problem_type, options, "answer"),
        source=record.source,
        metadata={"breakdown": breakdown},
    )
