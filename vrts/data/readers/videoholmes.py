"""Reader of Video-Holmes."""

from typing import ClassVar

from vrts.data.readers.base import RowReader
from vrts.data.readers.fields import bare_options, keyed_options
from vrts.data.readers.records import Record
from vrts.types import InputError, Question

TASKS = ("SR", "IMC", "TCI", "TA", "MHR", "PAR", "CTI")
"""Social reasoning, intention and motive chaining, temporal causal inference, timeline analysis,
multimodal hint reasoning, physical anomaly reasoning, core theme inference."""


class VideoHolmesReader(RowReader):
    """Video-Holmes's JSON: ``test_Video-Holmes.json`` and the files of single videos.

    A row is ``{"video ID", "Question ID", "Question Type", "Question", "Options": {"A": …},
    "Answer": "A", "Explanation"}``; the video is ``<video ID>.mp4``. The id of a question is
    ``<video ID>-<Question ID>``. The breakdown is by ``task``.

    Source: github.com/TencentARC/Video-Holmes, ``evaluate.py`` (arXiv 2505.21374), which reads an
    answer that starts with none of the letters as the first letter in it; ours does not.
    """

    max_frames: ClassVar[int | None] = 128
    folders = ("", "videos_cropped", "videos", "videos/videos_cropped")

    def _parse(self, record: Record) -> Question:
        video = record.text("video ID")
        task = record.text("Question Type")
        if task not in TASKS:
            raise InputError(f"unknown Question Type {task!r}; one of {', '.join(TASKS)}")
        return self._question(
            record,
            id=f"{video}-{record.text('Question ID')}",
            text=record.text("Question"),
            video=self._find_video(f"{video}.mp4"),
            options=bare_options(keyed_options(record, "Options")),
            answer=record.text("Answer"),
            answer_key="Answer",
            breakdown={"task": task},
        )
