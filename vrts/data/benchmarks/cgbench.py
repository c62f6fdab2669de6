"""Reader of CG-Bench."""

from typing import ClassVar

from vrts.data.readers.fields import bare_options
from vrts.data.readers.records import Record
from vrts.data.readers.rows import BenchmarkReader
from vrts.types import InputError, Question, letters


class CGBenchReader(BenchmarkReader):
    """CG-Bench's ``cgbench.json``, ``cgbench_mini.json`` and ``cgbench_hard.json``.

    A row is ``{"qid", "video_uid", "question", "choices": [text, …], "answer": text,
    "right_answer": letter, "duration", "clue_intervals", "domain", "sub_category"}``; the video is
    ``<video_uid>.mp4``. The breakdown is by ``domain`` and ``sub_category``, where they are given.

    Source: huggingface.co/datasets/CG-Bench/CG-Bench, github.com/CG-Bench/CG-Bench
    ``run/utils.py``, task ``long_acc`` (arXiv 2412.12075). Its prompt adds an answer format, which
    is the template's part here, and at will subtitles and frame times, which are left out.
    """

    max_frames: ClassVar[int | None] = 128
    folders = ("", "cg_videos_720p", "cg_videos")

    def _parse(self, record: Record) -> Question:
        options = bare_options(record.texts("choices"))
        breakdown = {key: record.text(key) for key in ("domain", "sub_category") if record.has(key)}
        question = self._question(
            record,
            id=record.text("qid"),
            text=record.text("question"),
            video=self._find_video(f"{record.text('video_uid')}.mp4"),
            options=options,
            answer=record.text("right_answer"),
            answer_key="right_answer",
            breakdown=breakdown,
            used=("question", "choices", "right_answer"),
        )
        self._check_answer(record, question)
        return question

    @staticmethod
    def _check_answer(record: Record, question: Question) -> None:
        """Raise `InputError` if letter and text of the answer name different options."""
        if not record.has("answer"):
            return
        answer = record.text("answer").casefold()
        named = [
            letter
            for letter, text in zip(letters(question.options), question.options, strict=True)
            if text.casefold() == answer
        ]
        if named and question.gold not in named:
            raise InputError(
                f"right_answer is {question.gold!r}, but the answer's text is option {named[0]}"
            )
