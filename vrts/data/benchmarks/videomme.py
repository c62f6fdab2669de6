"""Reader of Video-MME."""

import os
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
from jsonargparse.typing import PositiveInt

from vrts.data.benchmarks.subtitles import Cue, cues_at, read_srt, without_repeats
from vrts.data.readers.fields import bare_options, check_folder
from vrts.data.readers.records import Record
from vrts.data.readers.rows import BenchmarkReader
from vrts.data.video.timeline import open_video
from vrts.types import InputError, Question

SUBTITLES = "This video's subtitles are listed below:\n"
"""Head of the subtitles in the official prompt."""
DURATIONS = ("short", "medium", "long")
SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm")


class VideoMMEReader(BenchmarkReader):
    """Video-MME's parquet file, 2,700 questions about 900 videos, with or without subtitles.

    A row is ``{"video_id": "001", "duration": "short", "domain", "sub_category", "url", "videoID",
    "question_id": "001-1", "task_type", "question", "options": ["A. x", …], "answer": "A"}``; the
    video is ``<videoID>.mp4``. JSON with these fields is read as well. The breakdown is by
    ``duration``, ``domain``, ``sub_category``, ``task`` and ``duration x domain x task``.

    Subtitles stand before the question under the head of the official prompt. The benchmark asks
    for those that are on at the frames which the model sees. A question has the same text at
    every level here, so they are those at ``subtitle_frames`` frames, evenly spaced from the
    first to the last; a video without a file of subtitles has none.

    Source: huggingface.co/datasets/lmms-lab/Video-MME; github.com/BradyFU/Video-MME, README
    (arXiv 2405.21075); videomme task of lmms-eval.

    Args:
        path: The annotation file.
        video_root: Folder of the videos, or the one above their folder ``data``; the annotation
            file's folder where it is null.
        limit: Use only that many questions, the first ones. All rows are checked all the same.
        subtitles: Folder of ``<videoID>.srt``; null is the setting without subtitles.
        subtitle_frames: Frames whose subtitles are shown; null shows all subtitles of the video.
    """

    max_frames: ClassVar[int | None] = 128
    folders = ("", "data", "videos")

    def __init__(
        self,
        path: str,
        video_root: str | None = None,
        limit: PositiveInt | None = None,
        subtitles: str | None = None,
        subtitle_frames: PositiveInt | None = 128,
    ) -> None:
        super().__init__(path, video_root, limit)
        self.subtitles = None if subtitles is None else str(subtitles)
        self.subtitle_frames = None if subtitle_frames is None else int(subtitle_frames)
        self._subtitle_texts: dict[str, str] = {}

    def read(self) -> list[Question]:
        """Return the questions in the order of the file; raises as `Reader.read` says.

        Raises:
            InputError: also where not a single video has subtitles, though a folder is given.
        """
        check_folder(self.subtitles, "subtitles", "subtitles")
        self._subtitle_texts.clear()
        questions = super().read()
        if self.subtitles and not any(SUBTITLES in question.text for question in questions):
            raise InputError(
                f"{self.subtitles}: no subtitles of any video of {self.path}; set subtitles to "
                "the folder that holds <videoID>.srt"
            )
        return questions

    def _parse(self, record: Record) -> Question:
        video = record.text("videoID")
        duration = record.text("duration")
        if duration not in DURATIONS:
            raise InputError(f"unknown duration {duration!r}; one of {', '.join(DURATIONS)}")
        domain, task = record.text("domain"), record.text("task_type")
        place = self._find_video(*(video + suffix for suffix in SUFFIXES))
        return self._question(
            record,
            id=record.text("question_id"),
            text=self._subtitle_text(video, place) + record.text("question"),
            video=place,
            options=bare_options(record.texts("options")),
            answer=record.text("answer"),
            answer_key="answer",
            breakdown={
                "duration": duration,
                "domain": domain,
                "sub_category": record.text("sub_category"),
                "task": task,
                "duration x domain x task": f"{duration} x {domain} x {task}",
            },
            used=("question_id", "question", "options", "answer"),
        )

    def _subtitle_text(self, video: str, place: str) -> str:
        """Subtitles of a video as the part of the prompt before the question."""
        if self.subtitles is None:
            return ""
        if video not in self._subtitle_texts:
            file = Path(self.subtitles) / f"{video}.srt"
            # not Path.exists, which raises for a name that no file can have
            has_some = os.path.exists(file)  # noqa: PTH110
            cues = self._shown(read_srt(file) if has_some else [], place)
            lines = "".join(f"{cue.text}\n" for cue in cues)
            self._subtitle_texts[video] = SUBTITLES + lines if lines else ""
        return self._subtitle_texts[video]

    def _shown(self, cues: list[Cue], place: str) -> list[Cue]:
        if self.subtitle_frames is None:
            return without_repeats(cues)
        duration_s = container_duration_s(place) or max((cue.end_s for cue in cues), default=0.0)
        return cues_at(cues, np.linspace(0, duration_s, self.subtitle_frames).tolist())


def container_duration_s(path: str) -> float | None:
    """Length that a video's container states in seconds, or None where there is none."""
    try:
        with open_video(path) as container:
            return container.duration / 1_000_000 if container.duration else None
    except (av.FFmpegError, OSError, ValueError):
        return None
