"""Reader of tables of custom questions."""

import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vrts.data.readers.base import RowReader
from vrts.data.readers.fields import (
    PROBLEM_TYPES,
    check_frame_rate,
    gold_answer,
    keyed_options,
    place_video,
    strip_letters,
    time_window,
)
from vrts.data.readers.records import Record
from vrts.types import InputError, ProblemType, Question, letters

NAMES = {
    "video": ("video", "video_path", "video_name", "video_id", "q_uid"),
    "question": ("question",),
    "options": ("options", "candidates", "choices", "option"),
    "answer": ("answer", "correct_answer"),
    "answer_id": (
        "answer_id", "answer_idx", "answer_index", "correct_idx", "correct_index", "correct_choice",
    ),
    **{name: (name,) for name in ("type", "id", "start_s", "end_s", "fps", "category")},
}  # fmt: skip
"""Column names of published files by their name here; the first one with a value counts."""
OPTION_COLUMN = re.compile(
    r"([A-Z])|(?:[Oo]ption|[Cc]hoice)(?:[ _]([A-Za-z])|[ _]?(\d{1,2}))|a(\d{1,2})"
)
LOOKS_LIKE_OPTIONS = re.compile(r"option|choice|candidate|distractor|alternative|\bopts?\b", re.I)
NUMBERED = re.compile(r"(.+?)[ _]?(\d{1,2}|[a-eA-E])")
SUFFIXES = ("", ".mp4", ".mkv", ".webm", ".avi", ".mov")


@dataclass
class PlainReader(RowReader):
    """A table of custom questions: CSV, JSON Lines, JSON or parquet.

    Columns, of which only ``video`` and ``question`` are required:

    - ``video``: the file, or a folder of frames; relative to ``video_root`` or else to the table's
      folder; the suffix is optional;
    - ``question``;
    - ``options``: a list of texts (in CSV a JSON list, or texts separated by ``|``), or a column
      for each: ``A``, ``B``, … or ``option_a``, … or ``option_1``, … or ``option 0``, … or
      ``a0``, …;
    - ``answer``: the letter or the text of an option, a number or a text; empty if unknown;
    - ``answer_id``: the index of the right option, counted from 0, as is a number in ``answer`` if
      the columns of the options are numbered from 0;
    - ``type``: ``multiple choice``, ``numerical`` or ``free-form``; by default multiple choice if
      there are options, else free-form. Other values are a category;
    - ``id``: by default the number of the row;
    - ``start_s`` and ``end_s``: the part of the video that the question is about, in seconds;
    - ``fps``: the rate of a folder of frames;
    - ``category``: becomes the breakdown.

    The names in MLVU, STAR, NExT-QA, the Perception Test and EgoSchema are known (``candidates``,
    ``choices``, ``video_id``, ``answer_idx``, …); others are given by ``columns``. A row without
    options that has something like them under another name is refused.

    Example:
        A file ``mine.csv``::

            video,question,A,B,answer
            clips/kitchen.mp4,What does she pick up?,a cup,a book,B
            clips/kitchen.mp4,How many people are there?,,,

    Args:
        path: The table; ``.csv`` and ``.tsv`` have a header line.
        video_root: Folder of the videos; the table's folder if null.
        columns: Column names of the file by their name here; for ``options`` also a list with a
            column for each option. Example: ``{question: query, options: [x, y]}``.
    """

    columns: dict[str, str | list[str]] | None = None

    def __post_init__(self) -> None:
        """Raise `InputError` for a name that is not known here."""
        for name, column in (self.columns or {}).items():
            if name not in NAMES or (isinstance(column, list) and name != "options"):
                raise InputError(
                    f"columns: {name!r}: {column!r} is not understood; give a name of the file's "
                    f"for any of {', '.join(NAMES)}, and for options also a list of names"
                )

    def read(self) -> list[Question]:
        """Return the questions in the order of the file; raises as `Reader.read`."""
        self._number = 0
        self._seen: dict[str, None] = {}
        return super().read()

    def _rows(self) -> Iterator[tuple[str, Any]]:
        """Yield rows; if a row is a video with a list of its questions, each of these."""
        for source, row in super()._rows():
            questions = _questions_of(row) if isinstance(row, dict) else None
            if questions is None:
                yield source, row
            else:
                yield from ((source, {"video": row["id"]} | item) for item in questions)

    def _parse(self, row: Record) -> Question:
        self._number += 1
        self._seen |= dict.fromkeys(row.fields)
        record = self._renamed(row)
        options, is_from_0 = self._options(record)
        if not options and not record.has("type"):
            self._check_no_options(record, row)
        problem_type, category = self._type(record, bool(options))
        start_s, end_s = time_window(record)
        check_frame_rate(record)
        breakdown = {"category": record.text("category")} if record.has("category") else {}
        breakdown |= {} if category is None else {"type": category}
        question = self._question(
            record,
            id=record.text("id") if record.has("id") else str(self._number),
            text=record.text("question"),
            video=self._video(record.text("video")),
            problem_type=problem_type,
            options=options,
            answer=self._answer(record, problem_type, options, is_from_0),
            breakdown=breakdown,
        )
        return replace(question, start_s=start_s, end_s=end_s)

    def _arrange(self, questions: list[Question]) -> list[Question]:
        columns = (self.columns or {}).values()
        given = [name for c in columns for name in ([c] if isinstance(c, str) else c)]
        if absent := [name for name in given if name not in self._seen]:
            raise InputError(
                f"{self.path}: columns names {absent[0]!r}, which no row has; the rows have "
                f"{textwrap.shorten(', '.join(self._seen), 200)}"
            )
        return questions

    def _renamed(self, record: Record) -> Record:
        """The row under the names used here."""
        fields = dict(record.fields)
        for name, known in NAMES.items():
            given = (self.columns or {}).get(name)
            if isinstance(given, list):
                fields[name] = [fields.pop(column) for column in given if record.has(column)]
                continue
            filled = [column for column in ((given,) if given else known) if record.has(column)]
            if name == "options" and len(filled) > 1:
                raise InputError(
                    f"both {filled[0]!r} and {filled[1]!r} are given; use one of them, or set "
                    "columns"
                )
            if filled and filled[0] != name:
                fields[name] = fields.pop(filled[0])
        return Record(record.source, fields)

    def _video(self, name: str) -> str:
        path = place_video(name, self.video_root, self.path)
        found = (path + suffix for suffix in SUFFIXES if os.path.exists(path + suffix))
        return next(found, path)

    @staticmethod
    def _options(record: Record) -> tuple[tuple[str, ...], bool]:
        """Option texts without letters, and whether their columns count from 0."""
        columns = {key: match for key in record.fields if (match := OPTION_COLUMN.fullmatch(key))}
        filled = [key for key in columns if record.has(key)]
        if record.has("options") and filled:
            raise InputError(f"both 'options' and {filled[0]!r} are given; use one of them")
        value, is_from_0 = record.fields.get("options"), False
        if filled:
            places = {_place(columns[key]): key for key in filled}
            is_from_0 = -1 in places
            order = sorted(places)
            expected = list(range(order[0], order[0] + len(filled)))
            if order != expected or order[0] > 0:
                raise InputError(f"options are in {', '.join(filled)}, expected A, B, C or 1, 2, 3")
            texts = [record.text(places[place]) for place in order]
        elif isinstance(value, str) and value.strip():
            texts = _split(value)
        elif isinstance(value, dict) and record.has("options"):
            texts = keyed_options(record, "options")
        else:
            if isinstance(value, list):  # STAR's {"choice_id": 0, "choice": "The closet."}
                value = [_choice_text(item) for item in value]
            texts = Record(record.source, {"options": value}).texts("options")
        return (strip_letters(texts) if texts else ()), is_from_0

    @staticmethod
    def _check_no_options(record: Record, row: Record) -> None:
        """Raise `InputError` if a row without options has a field that looks like them."""
        rest = {k: v for k, v in record.fields.items() if record.has(k) and k not in NAMES}
        answer = record.fields.get("answer")
        numbered: dict[str, list[str]] = {}
        for key, value in rest.items():
            if (match := NUMBERED.fullmatch(key)) and isinstance(value, str):
                numbered.setdefault(match[1].strip(" _"), []).append(key)
        found = [
            key for key, value in rest.items()
            if (LOOKS_LIKE_OPTIONS.search(key) and not isinstance(value, bool | int | float))
            or (isinstance(value, list) and answer is not None and answer in value)
            or (isinstance(value, dict) and sorted(value) == list(letters(list(value)))[:26])
        ]  # fmt: skip
        found += [key for keys in numbered.values() if len(keys) > 1 for key in keys]
        if record.has("answer_id"):
            found += [key for key in NAMES["answer_id"] if row.has(key)] or ["answer_id"]
        if found:
            raise InputError(
                f"has no options, but {', '.join(map(repr, found))}; name the columns of the "
                "options (columns: {options: …}), or give a type such as free-form"
            )

    @staticmethod
    def _type(record: Record, has_options: bool) -> tuple[ProblemType, str | None]:
        """The problem type, and the column's value if that is a category."""
        named = record.text("type") if record.has("type") else ""
        problem_type = PROBLEM_TYPES.get(named.lower())
        if problem_type is None:
            guessed = ProblemType.MULTIPLE_CHOICE if has_options else ProblemType.FREE_FORM
            return guessed, named or None
        if has_options != (problem_type is ProblemType.MULTIPLE_CHOICE):
            raise InputError(
                f"type is {named.lower()!r}, but there are {'' if has_options else 'no '}options"
            )
        return problem_type, None

    @staticmethod
    def _answer(
        record: Record, problem_type: ProblemType, options: Sequence[str], is_from_0: bool
    ) -> str | None:
        """The gold answer; for the index or the text of an option, its letter."""
        by_id = None
        if record.has("answer_id"):
            by_id = _letter_at(record.text("answer_id"), options, "answer_id")
        if not record.has("answer"):
            return by_id
        answer = record.text("answer")
        if problem_type is not ProblemType.MULTIPLE_CHOICE:
            return answer
        if is_from_0 and answer.isdecimal():
            return _letter_at(answer, options, "answer")
        same = [i for i, text in enumerate(options) if text.casefold() == answer.casefold()]
        if not same and answer.isdecimal():
            raise InputError(
                f"answer {answer!r} is none of the letters {letters(options)} nor an option; if it "
                "is an index counted from 0, set columns: {answer_id: answer}"
            )
        by_text = letters(options)[same[0]] if same else None
        is_letter = len(answer) == 1 and answer.upper() in letters(options)
        if len(same) > 1 or (same and is_letter and answer.upper() != by_text):
            raise InputError(f"answer {answer!r} names more than one option; give a letter")
        found = gold_answer(by_text or answer, problem_type, options, "answer")
        if by_id not in (None, found):
            raise InputError(f"answer {answer!r} is {found}, but answer_id is {by_id}")
        return found


def _place(match: re.Match[str]) -> int:
    """Index of the option in a column, which is from -1 on if columns are numbered from 0."""
    letter = match[1] or match[2]
    return ord(letter.upper()) - ord("A") if letter else int(match[3] or match[4]) - 1


def _letter_at(place: str, options: Sequence[str], key: str) -> str:
    """The letter of the option at an index."""
    if not place.isdecimal() or int(place) >= len(options):
        raise InputError(f"{key} is {place!r}; give an index from 0 to {len(options) - 1}")
    return letters(options)[int(place)]


def _choice_text(item: Any) -> Any:
    """The text of an option that is an object, such as ``{"choice_id": 0, "choice": "red"}``."""
    if not isinstance(item, Mapping):
        return item
    texts = [item[key] for key in ("choice", "option", "text") if isinstance(item.get(key), str)]
    return texts[0] if len(texts) == 1 else item


def _questions_of(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The questions of a row that is a video, as in the Perception Test, or None."""
    if "question" in row or "id" not in row:
        return None
    lists = [
        value for value in row.values()
        if isinstance(value, list) and value
        and all(isinstance(item, dict) and "question" in item for item in value)
    ]  # fmt: skip
    if len(lists) != 1:
        return None
    # ids are unique within a video, not within the file
    return [{key: v for key, v in item.items() if key != "id"} for item in lists[0]]


def _split(text: str) -> list[str]:
    """Options of one cell: a JSON list, or texts separated by bars."""
    if not text.lstrip().startswith("["):
        return text.split("|")
    try:
        return Record("", {"options": json.loads(text)}).texts("options")
    except ValueError as error:
        raise InputError(f"field 'options' is not a valid JSON list ({error})") from error
