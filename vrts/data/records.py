"""Rows of annotation files, each with its place, and all bad rows reported together."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrts.answers import is_correct
from vrts.types import InputError, Question

SHOWN = 5
"""Bad rows that an error message spells out; the rest is counted."""


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
            raise InputError(f"field {key!r} is missing")
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
            raise InputError(f"field {key!r} is missing")
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
        return not _is_nothing(value) and value != [] and str(value).strip() != ""


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

    The place is ``file: item 3`` (the first is item 1) or ``file:line``. A value that is not valid
    JSON comes as an `InputError` in place of the value; so does an array as a whole.
    """
    if text.lstrip().startswith("["):
        items = parse_json(text)
        if isinstance(items, InputError):
            yield path, items
            return
        yield from ((f"{path}: item {number}", item) for number, item in enumerate(items, start=1))
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
    if problems:
        more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        noun = "row" if len(problems) == 1 else "rows"
        raise InputError(
            f"{path}: {len(problems)} bad {noun}; correct or remove them:\n  "
            + "\n  ".join(problems[:SHOWN])
            + more
        )
    if not questions:
        raise InputError(f"{path}: holds no video question")
    return list(questions.values())
