"""Reader of one's own questions."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from vrts.data.benchmarks.benchmark import BenchmarkReader
from vrts.data.fields import (
    check_frame_rate,
    gold_answer,
    place_video,
    strip_letters,
    time_window,
)
from vrts.data.readers import PROBLEM_TYPES
from vrts.data.records import Record
from vrts.types import InputError, ProblemType, Question, letters

WINDOW = ("start_s", "end_s")
OPTION_COLUMN = re.compile(r"([A-Z])|[Oo]ption(?:[ _]([A-Za-z])|[ _]?(\d{1,2}))")


class PlainReader(BenchmarkReader):
    """A table of one's own questions: CSV, JSON Lines, a JSON array or parquet.

    Columns, of which only two have to be there:

    - ``video``: the file, or a folder of frames; relative paths start at ``video_root`` or else
      at the table's folder;
    - ``question``;
    - ``options``: a list of texts (in CSV a JSON list, or texts with ``|`` between them), or a
      column for each: ``A``, ``B``, … or ``option_a``, … or ``option_1``, …;
    - ``answer``: the letter or the text of an option, a number or a text; empty where unknown;
    - ``type``: ``multiple choice``, ``numerical`` or ``free-form``; where it is empty, a question
      with options is multiple choice and another one free-form;
    - ``id``: the row's number where the table has none;
    - ``start_s`` and ``end_s``: the part of the video that the question is about, in seconds;
    - ``fps``: the rate of a folder of frames;
    - ``category``: becomes the breakdown. Further columns go to the metadata.

    Example:
        A file ``mine.csv``::

            video,question,A,B,answer
            clips/kitchen.mp4,What does she pick up?,a cup,a book,B
            clips/kitchen.mp4,How many people are there?,,,

    Args:
        path: The table; ``.csv`` and ``.tsv`` name their columns in the first line.
        video_root: Folder of the videos; the table's folder where it is null.
        limit: Use only that many questions, the first ones. All rows are checked all the same.
    """

    max_frames: ClassVar[int | None] = None
    _number = 0

    def read(self) -> list[Question]:
        """Return the questions in the order of the file; raises as `Reader.read` says."""
        self._number = 0
        return super().read()

    def _parse(self, record: Record) -> Question:
        self._number += 1
        options, columns = self._options(record)
        problem_type = self._type(record, bool(options))
        start_s, end_s = time_window(record)
        check_frame_rate(record)
        question = self._question(
            record,
            id=record.text("id") if record.has("id") else str(self._number),
            text=record.text("question"),
            video=place_video(record.text("video"), self.video_root, self.path),
            problem_type=problem_type,
            options=options,
            answer=self._answer(record, problem_type, options),
            answer_key="answer",
            breakdown={"category": record.text("category")} if record.has("category") else {},
            used=("id", "question", "video", "options", "answer", "type", *WINDOW, *columns),
        )
        return replace(question, start_s=start_s, end_s=end_s)

    @staticmethod
    def _options(record: Record) -> tuple[tuple[str, ...], list[str]]:
        """Option texts without letters, and the columns that they are in."""
        columns = {key: match for key in record.fields if (match := OPTION_COLUMN.fullmatch(key))}
        filled = [key for key in columns if record.has(key)]
        if record.has("options") and filled:
            raise InputError(f"both 'options' and {filled[0]!r} are given; use one of them")
        if filled:
            places = {_place(columns[key]): key for key in filled}
            if len(places) < len(filled) or sorted(places) != list(range(len(places))):
                raise InputError(f"options are in {', '.join(filled)}, expected A, B, C or 1, 2, 3")
            texts = [record.text(places[place]) for place in sorted(places)]
        elif isinstance(value := record.fields.get("options"), str) and value.strip():
            texts = _split(value)
        else:
            texts = record.texts("options")
        return (strip_letters(texts) if texts else ()), list(columns)

    @staticmethod
    def _type(record: Record, has_options: bool) -> ProblemType:
        if not record.has("type"):
            return ProblemType.MULTIPLE_CHOICE if has_options else ProblemType.FREE_FORM
        name = record.text("type").lower()
        problem_type = PROBLEM_TYPES.get(name)
        if problem_type is None:
            raise InputError(f"unknown type {name!r}; one of {', '.join(ProblemType)}")
        if has_options != (problem_type is ProblemType.MULTIPLE_CHOICE):
            raise InputError(
                f"type is {name!r}, but there are {'' if has_options else 'no '}options"
            )
        return problem_type

    @staticmethod
    def _answer(record: Record, problem_type: ProblemType, options: Sequence[str]) -> str | None:
        """The gold answer; for the text of an option, its letter."""
        if not record.has("answer"):
            return None
        answer = record.text("answer")
        if problem_type is not ProblemType.MULTIPLE_CHOICE:
            return answer
        same = [i for i, text in enumerate(options) if text.casefold() == answer.casefold()]
        if not same:
            return answer
        by_text = letters(options)[same[0]]
        is_letter = len(answer) == 1 and answer.upper() in letters(options)
        if len(same) > 1 or (is_letter and answer.upper() != by_text):
            raise InputError(f"answer {answer!r} names more than one option; give a letter")
        return gold_answer(by_text, problem_type, options, "answer")


def _place(match: re.Match[str]) -> int:
    """Which option a column holds, from 0."""
    letter = match[1] or match[2]
    return ord(letter.upper()) - ord("A") if letter else int(match[3]) - 1


def _split(text: str) -> list[str]:
    """Options of one cell: a JSON list, or texts with bars between them."""
    if not text.lstrip().startswith("["):
        return text.split("|")
    try:
        return Record("", {"options": json.loads(text)}).texts("options")
    except ValueError as error:
        raise InputError(f"field 'options' is not a valid JSON list ({error})") from error
