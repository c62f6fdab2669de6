"""Readers: annotation files to questions, one class a format."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

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
from vrts.data.readers.records import Record, iterate_json, parse_questions, read_text
from vrts.files.fingerprints import class_name, describe, file_digest, public_attributes
from vrts.types import InputError, ProblemType, Question

PROBLEM_TYPES = {kind.value.lower(): kind for kind in ProblemType}
"""Problem types by the names of Video-R1's files, in lower case."""


class Reader(ABC):
    """Reads the questions of one annotation file."""

    @abstractmethod
    def read(self) -> list[Question]:
        """Return the questions in the order of the file.

        Raises:
            InputError: a missing file or folder, bad rows (all of them, with file and line), or
                none of the videos exists.
        """

    def fingerprint(self) -> dict[str, Any]:
        """Return what the questions depend on, as plain JSON values: class, options, files.

        Options are the public attributes. One that names a file stands with the file's name and a
        digest of its content, since the same file may lie elsewhere in a later run. ``limit`` is
        left out: how many questions are asked changes none of them.
        """
        options = {key: _with_digest(item) for key, item in public_attributes(self).items()}
        options.pop("limit", None)
        return {"class": class_name(self), **options}


def checked(reader: Reader) -> list[Question]:
    """Read the questions of a reader, which may be a user's.

    Raises:
        InputError: as `Reader.read`, or it gives something else, or an id twice.
    """
    name, questions = type(reader).__name__, reader.read()
    remedy = f"{name}.read() must return a list of vrts.types.Question"
    if not isinstance(questions, list | tuple):
        raise InputError(f"{name} gave {type(questions).__name__}; {remedy}")
    seen: set[str] = set()
    for place, question in enumerate(questions):
        if not isinstance(question, Question):
            raise InputError(f"{name} gave {type(question).__name__} at place {place}; {remedy}")
        if question.id in seen:
            raise InputError(
                f"{name} gave the id {question.id!r} twice, again at place {place}; give each "
                "question an id of its own"
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


class VideoR1Reader(Reader):
    """Video-R1-style JSON or JSON Lines, which Video-RTS's evaluation files share.

    A row is ``{"problem_id", "problem", "data_type", "problem_type", "options": ["A. x", …] or
    null, "solution": "<answer>A</answer>" or null, "path"}``. Problem types are those of
    `vrts.types.ProblemType`. ``start_s`` and ``end_s`` narrow the question to a part of its video,
    in seconds. ``path`` may be a folder of frames, whose rate a field ``fps`` tells. Further
    fields go to the metadata.

    Args:
        path: The annotation file.
        video_root: Folder of the videos: relative paths are placed under it whole, absolute ones
            by their file name. Without it, relative paths start at the annotation file's folder.
        limit: Use only that many questions, the first ones. All rows are checked all the same.
        skip_images: Leave out rows whose ``data_type`` is ``image``; otherwise ``path`` names a
            image there, which the model sees as one.
    """

    def __init__(
        self,
        path: str,
        video_root: str | None = None,
        limit: PositiveInt | None = None,
        skip_images: bool = False,
    ) -> None:
        self.path = str(path)
        self.video_root = None if video_root is None else str(video_root)
        self.limit = limit
        self.skip_images = skip_images

    def read(self) -> list[Question]:
        """Return the questions in the order of the file; raises as `Reader.read` says."""
        check_folder(self.video_root, "video_root")
        rows = iterate_json(self.path, read_text(self.path))
        questions = parse_questions(self.path, rows, self._parse)[: self.limit]
        check_videos(questions, self.path, self.video_root)
        return questions

    def _parse(self, record: Record) -> Question | None:
        data_type = record.fields.get("data_type", "video")
        if data_type not in ("video", "image"):
            raise InputError(f"data_type is {data_type!r}; only 'video' and 'image' can be read")
        if data_type == "image" and self.skip_images:
            return None
        name = record.text("problem_type")
        problem_type = PROBLEM_TYPES.get(name.lower())
        if problem_type is None:
            raise InputError(f"unknown problem_type {name!r}; one of {', '.join(PROBLEM_TYPES)}")
        if "solution" not in record.fields:
            raise InputError("field 'solution' is missing; use null where it is not known")
        options = self._options(record, problem_type)
        start_s, end_s = time_window(record)
        if data_type == "image" and (record.has("start_s") or record.has("end_s")):
            raise InputError("data_type is 'image', but start_s or end_s is given; remove one")
        check_frame_rate(record)
        used = {"problem_id", "problem", "options", "solution", "path", "start_s", "end_s"}
        return Question(
            id=record.text("problem_id"),
            text=record.text("problem"),
            video=place_video(record.text("path"), self.video_root, self.path),
            problem_type=problem_type,
            options=options,
            gold=gold_answer(record.fields["solution"], problem_type, options),
            source=record.source,
            metadata={key: value for key, value in record.fields.items() if key not in used},
            is_image=data_type == "image",
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


class VideoRTSReader(Reader):
    r"""The training JSON Lines that Video-RTS publishes, made from CG-Bench.

    A row is ``{"problem": "question\nA. yellow\nB. green\n", "solution": "<answer>G.</answer>",
    "video": "/foreign/folder/id.mp4", "qid": 16}``: multiple choice throughout. The id of a
    question is ``<video id>-<qid>``, since ``qid`` alone occurs more than once.

    Args:
        path: The annotation file.
        video_root: Folder that holds the videos by their file names, whatever folder the file
            names. Without it the paths are used as they are.
        video_map: Clip files to use in place of videos, by video id (file name without or with
            its suffix) or ``"*"`` for all others; a dict or a JSON file of one. Relative clips
            are under ``video_root`` where that is given. This lets a few clips try the file.
        limit: Use only that many questions, the first ones. All rows are checked all the same.
    """

    def __init__(
        self,
        path: str,
        video_root: str | None = None,
        video_map: dict[str, str] | str | None = None,
        limit: PositiveInt | None = None,
    ) -> None:
        self.path = str(path)
        self.video_root = None if video_root is None else str(video_root)
        self.video_map = video_map
        self.limit = limit

    def read(self) -> list[Question]:
        """Return the questions in the order of the file; raises as `Reader.read` says."""
        check_folder(self.video_root, "video_root")
        clips = load_video_map(self.video_map)
        rows = iterate_json(self.path, read_text(self.path))
        questions = parse_questions(self.path, rows, lambda record: self._parse(record, clips))
        questions = questions[: self.limit]
        check_videos(questions, self.path, self.video_root)
        return questions

    def _parse(self, record: Record, clips: Mapping[str, str]) -> Question:
        problem = record.text("problem")
        if "solution" not in record.fields:
            raise InputError("field 'solution' is missing; use null where it is not known")
        lines = problem.split("\n")
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
        used = {"problem", "solution", "video"}
        return Question(
            id=f"{name.stem}-{record.text('qid')}",
            text=text,
            video=self._place(video, name, clips),
            options=options,
            gold=gold_answer(record.fields["solution"], ProblemType.MULTIPLE_CHOICE, options),
            source=record.source,
            metadata={key: value for key, value in record.fields.items() if key not in used},
        )

    def _place(self, video: str, name: PurePosixPath, clips: Mapping[str, str]) -> str:
        for key in (name.stem, name.name, "*"):
            if key in clips:
                clip = Path(clips[key])
                return str(clip if self.video_root is None else Path(self.video_root) / clip)
        return re_root(video, self.video_root)
