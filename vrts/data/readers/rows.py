"""What the readers of benchmarks share."""

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse.typing import PositiveInt

from vrts.data.readers.base import Reader
from vrts.data.readers.fields import check_folder, check_videos, gold_answer
from vrts.data.readers.records import Record, parse_questions
from vrts.data.readers.tables import iterate_rows
from vrts.types import ProblemType, Question


class BenchmarkReader(Reader):
    """Reads one file of rows, each of them one question.

    Args:
        path: The annotation file.
        video_root: Folder of the videos; the annotation file's folder where it is null.
        limit: Use only that many questions, the first ones. All rows are checked all the same.
    """

    max_frames: ClassVar[int | None] = None
    """Most frames of a video in Video-RTS's evaluation (arXiv 2507.06485); None is no limit."""
    folders: ClassVar[tuple[str, ...]] = ("",)
    """Folders under ``video_root`` where videos are looked for, since downloads differ."""

    def __init__(
        self, path: str, video_root: str | None = None, limit: PositiveInt | None = None
    ) -> None:
        self.path = str(path)
        self.video_root = None if video_root is None else str(video_root)
        self.limit = limit

    def read(self) -> list[Question]:
        """Return the questions in the order of the file; raises as `Reader.read` says."""
        check_folder(self.video_root, "video_root")
        questions = self._arrange(parse_questions(self._name(), self._rows(), self._parse))
        check_videos(questions[: self.limit], self._name(), self.video_root)
        return questions[: self.limit]

    def _name(self) -> str:
        """What is read, for messages."""
        return self.path

    def _arrange(self, questions: list[Question]) -> list[Question]:
        """Put the questions in the order in which they are asked."""
        return questions

    def _rows(self) -> Iterator[tuple[str, Any]]:
        """Yield ``(file:line, row)``; a bad row is an `InputError`."""
        return iterate_rows(self.path)

    @abstractmethod
    def _parse(self, record: Record) -> Question | None:
        """Make a question of a row, or None to leave it out.

        Raises:
            InputError: what is wrong with the row.
        """

    def _find_video(self, *names: str) -> str:
        """Return the first of these files that exists, or where the first one would be."""
        root = Path(self.path).parent if self.video_root is None else Path(self.video_root)
        places = [root / folder / name for folder in self.folders for name in names]
        # not Path.exists, which raises for a name that no file can have, such as a too long one
        found = (place for place in places if os.path.exists(place))  # noqa: PTH110
        return str(next(found, places[0]))

    def _question(
        self,
        record: Record,
        *,
        id: str,
        text: str,
        video: str,
        answer_key: str,
        used: Sequence[str],
        breakdown: Mapping[str, str],
        options: Sequence[str] = (),
        answer: object = None,
        problem_type: ProblemType = ProblemType.MULTIPLE_CHOICE,
    ) -> Question:
        """Make a question, its gold answer checked.

        Args:
            record: The row.
            id: Unique in the file.
            text: The question, with what belongs to it.
            video: Path of the video.
            answer_key: Name of the answer's field, for messages.
            used: Fields that need not be repeated in the metadata.
            breakdown: Category by name.
            options: Their texts without letters.
            answer: The gold answer: a letter of an option, a text, or None where it is not known.
            problem_type: How it is to be answered.
        """
        rest = {key: value for key, value in record.fields.items() if key not in used}
        return Question(
            id=id,
            text=text,
            video=video,
            problem_type=problem_type,
            options=tuple(options),
            gold=gold_answer(answer, problem_type, options, answer_key),
            source=record.source,
            metadata=rest | {"max_frames": self.max_frames, "breakdown": dict(breakdown)},
        )
