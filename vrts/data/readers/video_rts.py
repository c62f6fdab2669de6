"""Readers of Video-RTS's files: Video-R1's rows for evaluation, and its training questions."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vrts.data.readers.base import RowReader
from vrts.data.readers.fields import (
    OPTION,
    PROBLEM_TYPES,
    check_frame_rate,
    gold_answer,
    place_video,
    re_root,
    strip_letters,
    time_window,
)
from vrts.data.readers.records import Record
from vrts.data.readers.tables import parse_json, read_text
from vrts.types import InputError, ProblemType, Question


@dataclass
class VideoR1Reader(RowReader):
    """Video-R1-style JSON or JSON Lines, which Video-RTS's evaluation files share.

    A row is ``{"problem_id", "problem", "data_type", "problem_type", "options": ["A. x", …] or
    null, "solution": "<answer>A</answer>" or null, "path"}``. Problem types are those of
    `vrts.types.ProblemType`. ``start_s`` and ``end_s`` limit the question to a part of its video,
    in seconds. ``path`` may be a folder of frames, whose rate is in a field ``fps``.

    Args:
        video_root: Folder of the videos: relative paths are appended to it, of absolute ones only
            the file name. Without it, relative paths start at the annotation file's folder.
        skip_images: Leave out rows whose ``data_type`` is ``image``; otherwise their ``path`` is
            an image.
    """

    skip_images: bool = False

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


@dataclass
class VideoRTSReader(RowReader):
    r"""The training JSON Lines that Video-RTS publishes, made from CG-Bench.

    A row is ``{"problem": "question\nA. yellow\nB. green\n", "solution": "<answer>G.</answer>",
    "video": "/foreign/folder/id.mp4", "qid": 16}``, always multiple choice. The id of a question is
    ``<video id>-<qid>``, since ``qid`` alone is not unique.

    Args:
        video_root: Folder that holds the videos by their file names, whatever folder the rows
            have. Without it the paths are used as they are.
        video_map: Clip files that replace videos, by video id (file name with or without suffix) or
            ``"*"`` for all others; a dict or a JSON file of one. Relative clips are under
            ``video_root`` if that is given. So a few clips are enough to try the file.
    """

    video_map: dict[str, str] | str | None = None

    def read(self) -> list[Question]:
        """Return the questions in the order of the file; raises as `Reader.read`."""
        self._clips = self._load_map()
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

    def _load_map(self) -> dict[str, str]:
        if not isinstance(self.video_map, str):
            return self.video_map or {}
        value = parse_json(read_text(self.video_map))
        if isinstance(value, InputError):
            raise InputError(f"{self.video_map}: {value}")
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise InputError(
                f"{self.video_map}: video_map must be a JSON object of video id to clip path"
            )
        return value
