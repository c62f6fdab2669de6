"""Reader of LongVideoBench."""

from pathlib import Path
from typing import ClassVar

from vrts.data.readers.fields import bare_options
from vrts.data.readers.records import Record
from vrts.data.readers.subtitles import (
    SubtitledReader,
    cues_at,
    read_longvideobench,
    without_repeats,
)
from vrts.types import InputError, Question, letters

SUBTITLES = "Subtitles of the video, each with the second at which it begins:\n"


class LongVideoBenchReader(SubtitledReader):
    """LongVideoBench's ``lvb_val.json`` or its parquet, with or without subtitles.

    A row is ``{"id", "video_path", "question", "candidates": [text, …], "correct_choice": 0,
    "subtitle_path", "duration_group": 15 | 60 | 600 | 3600, "question_category",
    "topic_category", "starting_timestamp_for_subtitles", "duration"}``; the parquet has ``option0``
    to ``option4`` ("N/A" for none) instead of ``candidates``. The test file, without answers, can
    be read too. The breakdown is by ``duration_group``, ``question_category`` and
    ``topic_category``.

    The official loader puts each subtitle between the frames around it, and leaves out those shown
    at no frame. A video is one block of the prompt here, so the same subtitles come before the
    question, each with its time. They are those at ``subtitle_frames`` frames, so a question has
    the same text at every level. A subtitle without an end lasts until the clip ends; the official
    loader ends it too early by the clip's offset in its source.

    Source: huggingface.co/datasets/longvideobench/LongVideoBench;
    github.com/longvideobench/LongVideoBench ``longvideobench_dataset.py`` (arXiv 2407.15754).
    """

    max_frames: ClassVar[int | None] = 128
    folders = ("", "videos")

    def _parse(self, record: Record) -> Question:
        options = bare_options(self._candidates(record))
        return self._question(
            record,
            id=record.text("id"),
            text=self._subtitle_text(record) + record.text("question"),
            video=self._find_video(record.text("video_path")),
            options=options,
            answer=self._answer(record, letters(options)),
            answer_key="correct_choice",
            breakdown={
                key: record.text(key)
                for key in ("duration_group", "question_category", "topic_category")
            },
        )

    @staticmethod
    def _candidates(record: Record) -> list[str]:
        if "candidates" in record.fields:
            return record.texts("candidates")
        keys = [f"option{i}" for i in range(5)]
        options = [record.text(key) if record.has(key) else "N/A" for key in keys]
        while options and options[-1] == "N/A":
            options.pop()
        if "N/A" in options:
            raise InputError(f"field 'option{options.index('N/A')}' is missing before later ones")
        return options

    @staticmethod
    def _answer(record: Record, names: str) -> str | None:
        choice = record.fields.get("correct_choice")
        if choice is None or choice == -1:
            return None
        if type(choice) is not int or not 0 <= choice < len(names):
            raise InputError(
                f"correct_choice is {choice!r}, expected 0 to {len(names) - 1}, or -1 or null "
                "where it is not known"
            )
        return names[choice]

    def _subtitle_text(self, record: Record) -> str:
        """Subtitles of the clip, which come before the question."""
        if self.subtitles is None:
            return ""
        start_s = record.number("starting_timestamp_for_subtitles")
        duration_s = record.number("duration")
        file = Path(self.subtitles) / record.text("subtitle_path")
        cues = read_longvideobench(file, start_s, duration_s)
        if self.subtitle_frames is None:
            shown = without_repeats(c for c in cues if c.end_s > 0 and c.start_s < duration_s)
        else:
            frames = max(1, min(self.subtitle_frames, int(duration_s)))
            times = [duration_s / frames * i for i in range(frames)]
            shown = cues_at(cues, times, at_least_s=1.0)  # as in the official loader
        lines = "".join(f"[{max(cue.start_s, 0.0):.1f}] {cue.text}\n" for cue in shown)
        return SUBTITLES + lines if lines else ""
