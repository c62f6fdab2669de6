"""Records: rows of annotation files with checked fields, all bad ones reported together."""

import json
import math
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vrts.answers import is_correct
from vrts.types import InputError, Question

SHOWN = 5  # bad rows that an error message lists; the rest is counted
SIGNATURES = {
    "VideoR1Reader": {"problem_id", "problem", "problem_type", "solution", "path"},
    "VideoRTSReader": {"problem", "solution", "video", "qid"},
    "MMVUReader": {"video", "question", "choices", "answer", "question_type", "metadata"},
    "VideoHolmesReader": {"Question ID", "video ID", "Question", "Options", "Answer"},
    "VideoMMEReader": {"video_id", "videoID", "question_id", "task_type", "question", "options"},
    "LongVideoBenchReader": {"video_path", "candidates", "correct_choice", "subtitle_path"},
    "CGBenchReader": {"qid", "video_uid", "question", "choices", "right_answer"},
}  # fmt: skip
"""Fields by which the rows of a reader's files are recognised."""
HAS = "the row has"


@dataclass(frozen=True, slots=True)
class Record:
    """One row of an annotation file."""

    source: str  # ``file:line``, or ``file: item number`` of a JSON array
    fields: dict[str, Any]

    def text(self, key: str) -> str:
        """Return a required field of text or a number, as stripped text.

        Raises:
            InputError: the field is missing, empty, or neither text nor a number.
        """
        text = as_text(self._required(key), key)
        if not text:
            raise InputError(f"field {key!r} is empty")
        return text

    def number(self, key: str) -> float:
        """Return a required field of a finite number, or text of one.

        Raises:
            InputError: the field is missing, or not a finite number.
        """
        value = self._required(key)
        try:
            number = float(as_text(value, key))
        except ValueError:  # an InputError is one
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"field {key!r} must be a number, got {value!r}")
        return number

    def nullable(self, key: str) -> Any:
        """Return a field that may be null; raises `InputError` if it is missing."""
        if key not in self.fields:
            raise InputError(f"field {key!r} is missing; use null where it is not known")
        return self.fields[key]

    def texts(self, key: str) -> list[str]:
        """Return a list of texts or numbers; empty if it is absent or null.

        Raises:
            InputError: the field has something else.
        """
        values = self.fields.get(key)
        if values is None:
            return []
        try:
            if isinstance(values, list):
                return [as_text(value, key) for value in values]
        except InputError as error:
            raise InputError(f"field {key!r} must be a list of texts: {error}") from error
        raise InputError(f"field {key!r} must be a list of texts")

    def has(self, key: str) -> bool:
        """Whether a field has a value; null, NaN, blank text and ``[]`` are none."""
        value = self.fields.get(key)
        return not _is_nothing(value) and value not in ([], {}) and str(value).strip() != ""

    def _required(self, key: str) -> Any:
        value = self.fields.get(key)
        if _is_nothing(value):
            present = textwrap.shorten(", ".join(self.fields), 200)
            there = "" if key in self.fields else f"; {HAS} {present}"
            raise InputError(f"field {key!r} is missing{there}")
        return value


def as_text(value: Any, key: str) -> str:
    """Return text or a finite number as stripped text; raises `InputError` for anything else."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, str) or is_integer or (isinstance(value, float) and math.isfinite(value)):
        return str(value).strip()
    got = value if isinstance(value, bool | float) else type(value).__name__
    raise InputError(f"field {key!r} must be text, got {got}")


def _is_nothing(value: Any) -> bool:
    """Whether a value is null, or NaN, which is null in tables of numbers."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _check_text(question: Question) -> None:
    """Raise `InputError` for lone surrogates, valid in JSON but not in UTF-8 and tokenizers."""
    q = question
    try:
        texts = [q.id, q.text, q.video, *q.options, q.gold, q.metadata]
        json.dumps(texts, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"text that is not valid Unicode ({error.reason})") from error


def parse_questions(
    path: str,
    rows: Iterable[tuple[str, Any]],
    parse: Callable[[Record], Question | None],
) -> list[Question]:
    """Turn rows of `iterate_rows` into questions, and report all bad rows together.

    ``parse`` returns None for a record to leave out, and raises `InputError` for a bad one.

    Raises:
        InputError: bad rows, ids that occur twice, or no question at all.
    """
    questions: dict[str, Question] = {}
    problems: list[str] = []
    hint = ""
    for source, value in rows:
        try:
            if isinstance(value, InputError):
                raise value
            if not isinstance(value, dict):
                raise InputError(f"expected a JSON object, got {type(value).__name__}")
            question = parse(Record(source, value))
            if question is None:
                continue
            _check_text(question)
            is_correct(None, question)  # raises for an invalid gold answer
            if question.id in questions:
                first = questions[question.id].source
                raise InputError(f"id {question.id!r} is already taken by {first}")
            questions[question.id] = question
        except InputError as error:
            problems.append(f"{source}: {error}")
            if isinstance(value, dict) and HAS in str(error):
                fits = (name for name, keys in SIGNATURES.items() if keys <= value.keys())
                hint = hint or next((f", or read the file with {name}" for name in fits), "")
    if problems:
        more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        noun = "row" if len(problems) == 1 else "rows"
        raise InputError(
            f"{path}: {len(problems)} bad {noun}; correct or remove them{hint}:\n  "
            + "\n  ".join(problems[:SHOWN])
            + more
        )
    if not questions:
        raise InputError(f"{path}: holds no video question")
    return list(questions.values())
