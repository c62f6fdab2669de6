"""Reader of CG-Bench."""

from typing import ClassVar

from vrts.data.readers.base import RowReader
from vrts.data.readers.fields import bare_options
from vrts.data.readers.records import Record
from vrts.types import Question


class CGBenchReader(RowReader):
    """CG-Bench's ``cgbench.json``, ``cgbench_mini.json`` and ``cgbench_hard.json``.

    A row is ``{"qid", "video_uid", "question", "choices": [text, …], "answer": text,
    "right_answer": letter, "duration", "clue_intervals", "domain", "sub_category"}``; the video is
    ``<video_uid>.mp4``. The breakdown is by ``domain`` and ``sub_category``, if they are given.

    Source: huggingface.co/datasets/CG-Bench/CG-Bench, github.com/CG-Bench/CG-Bench
    ``run/utils.py``, task ``long_acc`` (arXiv 2412.12075), without its answer format and its
    optional subtitles and frame times.
    """

    max_frames: ClassVar[int | None] = 128
    folders = ("", "cg_videos_720p", "cg_videos")

    def _parse(self, record: Record) -> Question:
        answer = record.text("right_answer")
        if record.has("answer"):  # its text must not be that of another option
            answer = f"{answer}. {record.text('answer')}"
        return self._question(
            record,
            id=record.text("qid"),
            text=record.text("question"),
            video=self._find_video(f"{record.text('video_uid')}.mp4"),
            options=bare_options(record.texts("choices")),
            answer=answer,
            answer_key="right_answer",
            breakdown={k: record.text(k) for k in ("domain", "sub_category") if record.has(k)},
        )
