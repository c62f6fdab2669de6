"""Reader of Video-MME."""

import os
from pathlib import Path
from typing import ClassVar

import av
import numpy as np

from vrts.data.readers.fields import bare_options
from vrts.data.readers.records import Record
from vrts.data.readers.subtitles import (
    Cue,
    SubtitledReader,
    cues_at,
    read_srt,
    without_repeats,
)
from vrts.data.video.timeline import open_video
from vrts.types import InputError, Question

SUBTITLES = "This video's subtitles are listed below:\n"  # heading of the official prompt
DURATIONS = ("short", "medium", "long")
SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm")


class VideoMMEReader(SubtitledReader):
    """Video-MME's parquet file, 2,700 questions about 900 videos, with or without subtitles.

    A row is ``{"video_id": "001", "duration": "short", "domain", "sub_category", "url", "videoID",
    "question_id": "001-1", "task_type", "question", "options": ["A. x", …], "answer": "A"}``; the
    video is ``<videoID>.mp4``. JSON with these fields can be read too. The breakdown is by
    ``duration``, ``domain``, ``sub_category``, ``task`` and ``duration x domain x task``.

    Subtitles come before the question under the heading of the official prompt, which has those
    shown at the frames that the model sees. A question has the same text at every level here, so
    they are those at ``subtitle_frames`` frames, evenly spaced from the first to the last; a video
    without a file ``<videoID>.srt`` has none.

    Source: huggingface.co/datasets/lmms-lab/Video-MME; github.com/BradyFU/Video-MME, README
    (arXiv 2405.21075); videomme task of lmms-eval.
    """

    max_frames: ClassVar[int | None] = 128
    folders = ("", "data", "videos")

    def read(self) -> list[Question]:
        """Return the questions in the order of the file; raises as `Reader.read`.

        Raises:
            InputError: also if a subtitle folder is given and none of the videos has subtitles.
        """
        self._subtitle_texts: dict[str, str] = {}
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
            breakdown={
                "duration": duration,
                "domain": domain,
                "sub_category": record.text("sub_category"),
                "task": task,
                "duration x domain x task": f"{duration} x {domain} x {task}",
            },
        )

    def _subtitle_text(self, video: str, place: str) -> str:
        """Subtitles of a video, which come before the question."""
        if self.subtitles is None:
            return ""
        if video not in self._subtitle_texts:
            file = Path(self.subtitles) / f"{video}.srt"
            exists = os.path.exists(file)
            cues = self._shown(read_srt(file) if exists else [], place)
            lines = "".join(f"{cue.text}\n" for cue in cues)
            self._subtitle_texts[video] = SUBTITLES + lines if lines else ""
        return self._subtitle_texts[video]

    def _shown(self, cues: list[Cue], place: str) -> list[Cue]:
        if self.subtitle_frames is None:
            return without_repeats(cues)
        duration_s = container_duration_s(place) or max((cue.end_s for cue in cues), default=0.0)
        return cues_at(cues, np.linspace(0, duration_s, self.subtitle_frames).tolist())


def container_duration_s(path: str) -> float | None:
    """Length that a video's container states in seconds, or None if it states none."""
    try:
        with open_video(path) as container:
            return container.duration / 1_000_000 if container.duration else None
    except (av.FFmpegError, OSError, ValueError):
        return None
