"""Rows of annotation files, each with its place, and all bad rows reported together."""

import json
import math
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrts.answers import is_correct
from vrts.types import InputError, Question

SHOWN = 5
"""Bad rows that an error message spells out; the rest is counted."""
SIGNATURES = {
    "VideoR1Reader": {"problem_id", "problem", "problem_type", "solution", "path"},
    "VideoRTSReader": {"problem", "solution", "video", "qid"},
    "MMVUReader": {"video", "question", "choices", "answer", "question_type", "metadata"},
    "VideoHolmesReader": {"Question ID", "video ID", "Question", "Options", "Answer"},
    "VideoMMEReader": {"video_id", "videoID", "question_id", "task_type", "question", "options"},
    "LongVideoBenchReader": {"video_path", "candidates", "correct_choice", "subtitle_path"},
    "CGBenchReader": {"qid", "video_uid", "question", "choices", "right_answer"},
}  # fmt: skip
"""Fields by which rows of a reader's files are known."""
HAS = "the row has"


@dataclass(frozen=True, slots=True)
class Record:
    """One row of an annotation file."""

    source: str
    """``file:line``, or ``file: item number`` of a JSON array."""
    fields: dict[str, Any]

    def text(self, key: str) -> str:
        """Return a field that must be there and hold text or a number, as stripped text.

        Raises:
            InputError: the field is missing, empty, or neither text nor a number.
        """
        value = self.fields.get(key)
        if _is_nothing(value):
            raise self._missing(key)
        text = as_text(value, key)
        if not text:
            raise InputError(f"field {key!r} is empty")
        return text

    def number(self, key: str) -> float:
        """Return a field that must be there and hold a finite number, or text of one.

        Raises:
            InputError: the field is missing, or no finite number.
        """
        value = self.fields.get(key)
        if _is_nothing(value):
            raise self._missing(key)
        try:
            number = float(as_text(value, key))
        except ValueError:  # an InputError is one
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"field {key!r} must be a number, got {value!r}")
        return number

    def texts(self, key: str) -> list[str]:
        """Return a field that holds a list of texts or numbers; none where it is absent or null.

        Raises:
            InputError: the field holds something else.
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
        """Whether a field holds something; null, NaN, blank text and ``[]`` are nothing."""
        value = self.fields.get(key)
        return not _is_nothing(value) and value not in ([], {}) and str(value).strip() != ""

    def _missing(self, key: str) -> InputError:
        there = (
            "" if key in self.fields else f"; {HAS} {textwrap.shorten(', '.join(self.fields), 200)}"
        )
        return InputError(f"field {key!r} is missing{there}")


def as_text(value: Any, key: str) -> str:
    """Return what a field holds, text or a number, as stripped text.

    Raises:
        InputError: it is something else; true and false are no numbers, nor are NaN and infinity.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, str) or is_whole or (isinstance(value, float) and math.isfinite(value)):
        return str(value).strip()
    got = value if isinstance(value, bool | float) else type(value).__name__
    raise InputError(f"field {key!r} must be text, got {got}")


def _is_nothing(value: Any) -> bool:
    """Whether a value is null or NaN, with which tables of numbers say the same."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def check_file(path: str) -> None:
    """Raise `InputError` if there is no such annotation file."""
    # not Path's methods, which raise for a name that no file can have, such as a too long one
    if not os.path.exists(path):  # noqa: PTH110
        raise InputError(f"{path}: no such file; give the path of an annotation file")
    if not os.path.isfile(path):  # noqa: PTH113
        raise InputError(f"{path}: is not a file; give the path of an annotation file")


def read_text(path: str) -> str:
    """Return the text of a file.

    Raises:
        InputError: no such file, a folder, not readable, not UTF-8, or empty.
    """
    check_file(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not text.strip():
        raise InputError(f"{path}: is empty; it should hold one row a question")
    return text


def iterate_json(path: str, text: str) -> Iterator[tuple[str, Any]]:
    """Yield each item of a JSON array, or each line of JSON Lines, with its place.

    The place is ``file: item 3`` (the first is item 1) or ``file:line``. A text that is one object
    gives the rows in it: the one list of objects that it has (``{"annotations": [...]}``), its
    values (``{id: {...}}``, the key as their ``id``), or itself. A value that is not valid JSON
    comes as an `InputError` in place of the value; so does an array or an object as a whole.
    """
    if text.lstrip().startswith("[") or _is_one_object(text):
        found = parse_json(text)
        if isinstance(found, InputError):
            yield path, found
            return
        try:
            rows = found if isinstance(found, list) else _rows_of(found)
        except InputError as error:
            yield path, error
            return
        if rows == [found]:
            yield f"{path}:1", found
            return
        yield from ((f"{path}: item {number}", row) for number, row in enumerate(rows, start=1))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", parse_json(line)


def parse_json(text: str) -> Any:
    """Return the value of a JSON text, with an `InputError` in the place of what is wrong in it.

    An object with a key that occurs twice is wrong, and so are objects around it; of such a key
    JSON would silently take the last.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        return InputError(f"not valid JSON ({error})")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any] | InputError:
    """Make an object of its keys and values."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in value if keys.count(key) > 1)
        return InputError(f"field {twice!r} is there twice")
    for held in value.values():
        for item in held if isinstance(held, list) else [held]:
            if isinstance(item, InputError):
                return item
    return value


def _is_one_object(text: str) -> bool:
    """Whether a text is one JSON object, also one that is damaged, rather than JSON Lines."""
    lines = [line for line in text.splitlines() if line.strip()][:2]
    if not lines[0].lstrip().startswith("{"):
        return False
    try:
        json.loads(lines[0])
    except (ValueError, RecursionError):
        return len(lines) > 1 and not lines[1].startswith("{")
    return len(lines) == 1


def _rows_of(value: dict[str, Any]) -> list[Any]:
    """The rows of one JSON object; see `iterate_json`."""
    lists = [
        item for item in value.values()
        if isinstance(item, list) and item and all(isinstance(row, dict) for row in item)
    ]  # fmt: skip
    if any(isinstance(value.get(key), str) for key in ("question", "problem", "Question")):
        return [value]
    if len(lists) == 1:
        return lists[0]
    if value and all(isinstance(item, dict) for item in value.values()):
        return [{"id": key} | row for key, row in value.items()]
    keys = textwrap.shorten(", ".join(value), 200)
    raise InputError(
        f"the file is one JSON object with the keys {keys}, in which there are no rows; expected "
        "an array of rows, a row a line, or one list of rows"
    )


def _other_reader(row: dict[str, Any]) -> str:
    """Return words about the reader whose files have such rows, if there is one."""
    fits = [name for name, fields in SIGNATURES.items() if fields <= row.keys()]
    return f", or read the file with {fits[0]}" if fits else ""


def _check_text(question: Question) -> None:
    """Raise `InputError` if a text has a lone surrogate, which JSON can spell.

    Tokenizers take none, nor does a file in UTF-8, to which categories are written too.
    """
    q = question
    try:
        texts = [q.id, q.text, q.video, *q.options, q.gold, q.metadata]
        json.dumps(texts, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"text that is no Unicode ({error.reason})") from error


def parse_questions(
    path: str,
    rows: Iterable[tuple[str, Any]],
    parse: Callable[[Record], Question | None],
) -> list[Question]:
    """Turn rows into questions, and report every bad row at once.

    Args:
        path: The file, for messages.
        rows: ``(place, value)``, as `iterate_json` yields them.
        parse: Makes a question of a record, or None for a record to leave out. It raises
            `InputError` with what is wrong.

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
            is_correct(None, question)  # a gold answer that cannot be one is a bad row
            if question.id in questions:
                first = questions[question.id].source
                raise InputError(f"id {question.id!r} is already taken by {first}")
            questions[question.id] = question
        except InputError as error:
            problems.append(f"{source}: {error}")
            if isinstance(value, dict) and HAS in str(error):
                hint = hint or _other_reader(value)
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
