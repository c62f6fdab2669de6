"""Base classes of readers, which turn annotation files into questions."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse.typing import PositiveInt

from vrts.data.readers.fields import check_folder, check_videos, gold_answer
from vrts.data.readers.records import Record, parse_questions
from vrts.data.readers.tables import iterate_rows
from vrts.files.fingerprints import class_name, describe, file_digest, public_attributes
from vrts.types import InputError, ProblemType, Question


class Reader(ABC):
    """Reads the questions of one annotation file. Plug-in point ``data.train`` and the like."""

    @abstractmethod
    def read(self) -> list[Question]:
        """Return the questions in the order of the file.

        Raises:
            InputError: a missing file or folder, bad rows (all of them, with file and line), or
                none of the videos exists.
        """

    def fingerprint(self) -> dict[str, Any]:
        """Return what the questions depend on, as plain JSON values: class, options, files.

        Options are the public attributes. A file is given by its name and the digest of its
        content, since it may have moved in a later run. ``limit`` is left out: it changes no
        question.
        """
        # a subclass that is not a dataclass has more attributes than its base has fields
        options = public_attributes(self) | vars(self)
        names = [name for name in options if name != "limit" and not name.startswith("_")]
        return {"class": class_name(self)} | {name: _with_digest(options[name]) for name in names}


def checked(reader: Reader) -> list[Question]:
    """Read the questions of a reader, which may be a custom one.

    Raises:
        InputError: as `Reader.read`, or it returns something else, or an id twice.
    """
    name, questions = type(reader).__name__, reader.read()
    remedy = f"{name}.read() must return a list of vrts.types.Question"
    if not isinstance(questions, list | tuple):
        raise InputError(f"{name} gave {type(questions).__name__}; {remedy}")
    seen: set[str] = set()
    for index, question in enumerate(questions):
        if not isinstance(question, Question):
            raise InputError(f"{name} gave {type(question).__name__} at index {index}; {remedy}")
        if question.id in seen:
            raise InputError(
                f"{name} gave the id {question.id!r} twice, again at index {index}; give each "
                "question an unique id"
            )
        seen.add(question.id)
    return list(questions)


def _with_digest(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_digest(item) for item in value]
    if isinstance(value, str | Path) and os.path.isfile(value):
        return f"{Path(value).name} sha256:{file_digest(Path(value))}"
    return describe(value)


@dataclass
class RowReader(Reader):
    """Reads a file in which each row is one question.

    Args:
        path: The annotation file.
        video_root: Folder of the videos; the annotation file's folder if null.
        limit: Use only the first questions. All rows are checked nevertheless.
    """

    max_frames: ClassVar[int | None] = None
    """Most frames of a video in Video-RTS's evaluation (arXiv 2507.06485); None is no limit."""
    folders: ClassVar[tuple[str, ...]] = ("",)
    """Folders under ``video_root`` in which videos are searched for, since downloads differ."""

    path: str
    video_root: str | None = None
    limit: PositiveInt | None = field(default=None, kw_only=True)

    def read(self) -> list[Question]:
        """Return the questions in the order of the file; raises as `Reader.read`."""
        check_folder(self.video_root, "video_root")
        questions = self._arrange(parse_questions(self._name(), self._rows(), self._parse))
        check_videos(questions[: self.limit], self._name(), self.video_root)
        return questions[: self.limit]

    def _name(self) -> str:
        """The source of the rows, for messages."""
        return self.path

    def _arrange(self, questions: list[Question]) -> list[Question]:
        """Return the questions in their final order."""
        return questions

    def _rows(self) -> Iterator[tuple[str, Any]]:
        """Yield ``(file:line, row)``; a bad row is an `InputError`."""
        return iterate_rows(self.path)

    @abstractmethod
    def _parse(self, record: Record, /) -> Question | None:
        """Make a question of a row, or None to leave it out; raises `InputError` for a bad row."""

    def _find_video(self, *names: str) -> str:
        """Return the first of these files that exists, or where the first one would be."""
        root = Path(self.path).parent if self.video_root is None else Path(self.video_root)
        places = [root / folder / name for folder in self.folders for name in names]
        found = (place for place in places if os.path.exists(place))
        return str(next(found, places[0]))

    def _question(
        self,
        record: Record,
        *,
        id: str,
        text: str,
        video: str,
        breakdown: dict[str, str],
        options: Sequence[str] = (),
        answer: object = None,
        answer_key: str = "answer",
        problem_type: ProblemType = ProblemType.MULTIPLE_CHOICE,
    ) -> Question:
        """Make a question of a benchmark; ``answer_key`` is the answer's field, for messages."""
        return Question(
            id=id,
            text=text,
            video=video,
            problem_type=problem_type,
            options=tuple(options),
            gold=gold_answer(answer, problem_type, options, answer_key),
            source=record.source,
            metadata=record.fields | {"max_frames": self.max_frames, "breakdown": breakdown},
        )
