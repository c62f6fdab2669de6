"""Reader of LongVideoBench."""

from pathlib import Path
from typing import ClassVar

from jsonargparse.typing import PositiveInt

from vrts.data.benchmarks.subtitles import cues_at, read_longvideobench, without_repeats
from vrts.data.readers.fields import bare_options, check_folder
from vrts.data.readers.records import Record
from vrts.data.readers.rows import BenchmarkReader
from vrts.types import InputError, Question, letters

SUBTITLES = "Subtitles of the video, each with the second at which it begins:\n"


class LongVideoBenchReader(BenchmarkReader):
    """LongVideoBench's ``lvb_val.json`` or the parquet of it, with or without subtitles.

    A row is ``{"id", "video_path", "question", "candidates": [text, …], "correct_choice": 0,
    "subtitle_path", "duration_group": 15 | 60 | 600 | 3600, "question_category",
    "topic_category", "starting_timestamp_for_subtitles", "duration"}``; the parquet has ``option0``
    to ``option4``, "N/A" where there is none, in place of ``candidates``. The test file without
    answers is read as well. The breakdown is by ``duration_group``, ``question_category`` and
    ``topic_category``.

    The official loader puts each subtitle between the frames around it, and leaves out those that
    no frame falls into. A video is one block of the prompt here and text cannot stand inside it,
    so the same subtitles come before the question in order, each with its time. Which ones
    follows from ``subtitle_frames`` frames, as a question has the same text at every level. A
    subtitle without an end is on until the clip ends; the official loader ends it too early by
    the clip's offset in its source.

    Source: huggingface.co/datasets/longvideobench/LongVideoBench;
    github.com/longvideobench/LongVideoBench ``longvideobench_dataset.py`` (arXiv 2407.15754).

    Args:
        path: The annotation file.
        video_root: Folder of the videos, or the one above their folder ``videos``; the annotation
            file's folder where it is null.
        limit: Use only that many questions, the first ones. All rows are checked all the same.
        subtitles: Folder of the subtitle files; null leaves subtitles out.
        subtitle_frames: Frames whose subtitles are shown; null shows all subtitles of the clip.
    """

    max_frames: ClassVar[int | None] = 128
    folders = ("", "videos")

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

    def read(self) -> list[Question]:
        """Return the questions in the order of the file; raises as `Reader.read` says."""
        check_folder(self.subtitles, "subtitles", "subtitles")
        return super().read()

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
            used=("id", "question", "candidates", *(f"option{i}" for i in range(5))),
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
                f"correct_choice is {choice!r}, expected 0 to {len(names) - 1}, or -1 or nothing "
                "where it is not known"
            )
        return names[choice]

    def _subtitle_text(self, record: Record) -> str:
        """Subtitles of a question's clip as the part of the prompt before the question."""
        if self.subtitles is None:
            return ""
        start_s = record.number("starting_timestamp_for_subtitles")
        duration_s = record.number("duration")
        file = Path(self.subtitles) / record.text("subtitle_path")
        cues = read_longvideobench(file, start_s, duration_s)
        if self.subtitle_frames is None:
            shown = [cue for cue in cues if cue.end_s > 0 and cue.start_s < duration_s]
            shown = without_repeats(shown)
        else:
            frames = max(1, min(self.subtitle_frames, int(duration_s)))
            times = [duration_s / frames * i for i in range(frames)]
            shown = cues_at(cues, times, at_least_s=1.0)  # as the official loader does it
        lines = "".join(f"[{max(cue.start_s, 0.0):.1f}] {cue.text}\n" for cue in shown)
        return SUBTITLES + lines if lines else ""
