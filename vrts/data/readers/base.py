"""Readers: annotation files to questions, one class per format."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from jsonargparse.typing import PositiveInt

from vrts.data.readers.fields import (
    OPTION,
    check_folder,
    check_frame_rate,
    check_videos,
    gold_answer,
    load_video_map,
    place_video,
    re_root,
    strip_letters,
    time_window,
)
from vrts.data.readers.records import Record, parse_questions
from vrts.data.readers.tables import iterate_rows
from vrts.files.fingerprints import class_name, describe, file_digest, public_attributes
from vrts.types import InputError, ProblemType, Question

PROBLEM_TYPES = {kind.value.lower(): kind for kind in ProblemType}
"""By the names of Video-R1's files, in lower case."""


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
        options = {key: _with_digest(item) for key, item in public_attributes(self).items()}
        options.pop("limit", None)
        return {"class": class_name(self), **options}


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
    # not Path.is_file, which raises for a text that no file can be named, such as a long question
    if isinstance(value, str | Path) and os.path.isfile(value):  # noqa: PTH113
        return f"{Path(value).name} sha256:{file_digest(Path(value))}"
    return describe(value)


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

    def __init__(
        self, path: str, video_root: str | None = None, limit: PositiveInt | None = None
    ) -> None:
        self.path = str(path)
        self.video_root = None if video_root is None else str(video_root)
        self.limit = limit

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


class VideoR1Reader(RowReader):
    """Video-R1-style JSON or JSON Lines, which Video-RTS's evaluation files share.

    A row is ``{"problem_id", "problem", "data_type", "problem_type", "options": ["A. x", …] or
    null, "solution": "<answer>A</answer>" or null, "path"}``. Problem types are those of
    `vrts.types.ProblemType`. ``start_s`` and ``end_s`` limit the question to a part of its video,
    in seconds. ``path`` may be a folder of frames, whose rate is in a field ``fps``.

    Args:
        path: The annotation file.
        video_root: Folder of the videos: relative paths are appended to it, of absolute ones only
            the file name. Without it, relative paths start at the annotation file's folder.
        limit: Use only the first questions. All rows are checked nevertheless.
        skip_images: Leave out rows whose ``data_type`` is ``image``; otherwise their ``path`` is
            an image.
    """

    def __init__(
        self,
        path: str,
        video_root: str | None = None,
        limit: PositiveInt | None = None,
        skip_images: bool = False,
    ) -> None:
        super().__init__(path, video_root, limit)
        self.skip_images = skip_images

    def _parse(self, record: Record) -> Question | None:
        data_type = record.fields.get("data_type", "video")
        if data_type not in ("video", "image"):
            raise InputError(f"data_type is {data_type!r}; only 'video' and 'image' can be read")
        is_image = data_type == "image"
        if is_image and self.skip_images:
            return None
        name = record.text("problem_type")
        problem_type = PROBLEM_TYPES.get(name.lower())
        if problem_type is None:
            raise InputError(f"unknown problem_type {name!r}; one of {', '.join(PROBLEM_TYPES)}")
        options = self._options(record, problem_type)
        start_s, end_s = time_window(record)
        if is_image and (record.has("start_s") or record.has("end_s")):
            raise InputError("data_type is 'image', but start_s or end_s is given; remove one")
        check_frame_rate(record)
        return Question(
            id=record.text("problem_id"),
            text=record.text("problem"),
            video=place_video(record.text("path"), self.video_root, self.path),
            problem_type=problem_type,
            options=options,
            gold=gold_answer(record.nullable("solution"), problem_type, options),
            source=record.source,
            metadata=record.fields,
            is_image=is_image,
            start_s=start_s,
            end_s=end_s,
        )

    @staticmethod
    def _options(record: Record, problem_type: ProblemType) -> tuple[str, ...]:
        options = record.fields.get("options") or []
        if problem_type is not ProblemType.MULTIPLE_CHOICE:
            if options:
                raise InputError(f"problem_type is {problem_type.value!r}, but there are options")
            return ()
        if not isinstance(options, list) or not all(isinstance(text, str) for text in options):
            raise InputError("field 'options' must be a list of texts")
        return strip_letters(options)


class VideoRTSReader(RowReader):
    r"""The training JSON Lines that Video-RTS publishes, made from CG-Bench.

    A row is ``{"problem": "question\nA. yellow\nB. green\n", "solution": "<answer>G.</answer>",
    "video": "/foreign/folder/id.mp4", "qid": 16}``, always multiple choice. The id of a question is
    ``<video id>-<qid>``, since ``qid`` alone is not unique.

    Args:
        path: The annotation file.
        video_root: Folder that holds the videos by their file names, whatever folder the rows
            have. Without it the paths are used as they are.
        video_map: Clip files that replace videos, by video id (file name with or without suffix) or
            ``"*"`` for all others; a dict or a JSON file of one. Relative clips are under
            ``video_root`` if that is given. So a few clips are enough to try the file.
        limit: Use only the first questions. All rows are checked nevertheless.
    """

    def __init__(
        self,
        path: str,
        video_root: str | None = None,
        video_map: dict[str, str] | str | None = None,
        limit: PositiveInt | None = None,
    ) -> None:
        super().__init__(path, video_root, limit)
        self.video_map = video_map
        self._clips: dict[str, str] = {}

    def read(self) -> list[Question]:
        """Return the questions in the order of the file; raises as `Reader.read`."""
        self._clips = load_video_map(self.video_map)
        return super().read()

    def _parse(self, record: Record) -> Question:
        lines = record.text("problem").split("\n")
        first = next((i for i, line in enumerate(lines) if OPTION.fullmatch(line)), len(lines))
        text = "\n".join(lines[:first]).strip()
        if not text:
            raise InputError("field 'problem' has no question before its options")
        if first == len(lines):
            raise InputError("field 'problem' has no options; expected lines like 'A. yellow'")
        option_lines = [line for line in lines[first:] if line.strip()]
        if odd := [line for line in option_lines if not OPTION.fullmatch(line)]:
            raise InputError(f"field 'problem' has the line {odd[0]!r} among its options")
        options = strip_letters(option_lines)
        video = record.text("video")
        name = PurePosixPath(video.replace("\\", "/"))
        return Question(
            id=f"{name.stem}-{record.text('qid')}",
            text=text,
            video=self._place(video, name),
            options=options,
            gold=gold_answer(record.nullable("solution"), ProblemType.MULTIPLE_CHOICE, options),
            source=record.source,
            metadata=record.fields,
        )

    def _place(self, video: str, name: PurePosixPath) -> str:
        for key in (name.stem, name.name, "*"):
            if key in self._clips:
                clip = Path(self._clips[key])
                return str(clip if self.video_root is None else Path(self.video_root) / clip)
        return re_root(video, self.video_root)
