"""Reader of the questions of an earlier prediction run."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vrts.data.readers.base import Reader
from vrts.data.readers.fields import MAX_OPTIONS, gold_answer
from vrts.data.readers.records import Record, check_file, parse_questions
from vrts.files.json_lines import whole_lines
from vrts.files.predictions import prediction_from_json
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
    for source, line in whole_lines(Path(path)):
        try:
            yield source, json.loads(line)
        except (ValueError, RecursionError) as error:
            yield source, InputError(f"not valid JSON ({error})")


def _parse(record: Record) -> Question:
    """The question of a line, which people may have corrected: it is checked as others are."""
    for key in ("id", "question", "video"):
        record.text(key)  # is there, and not empty
    question = prediction_from_json(record.fields, record.source).question
    kind, options = question.problem_type, question.options
    if not all(options):
        raise InputError(f"option {options.index('') + 1} is empty")
    if kind is ProblemType.MULTIPLE_CHOICE and not 2 <= len(options) <= MAX_OPTIONS:
        raise InputError(f"a multiple choice needs 2 to {MAX_OPTIONS} options, got {len(options)}")
    return replace(question, gold=gold_answer(question.gold, kind, options, "gold"))
