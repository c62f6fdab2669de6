"""Reader of VideoMMMU."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse.typing import PositiveInt

from vrts.answers import DEFAULT_TOLERANCE, extract_number, numbers_match
from vrts.data.readers.base import RowReader
from vrts.data.readers.fields import bare_options
from vrts.data.readers.records import Record
from vrts.data.readers.tables import iterate_rows, parse_json, read_text
from vrts.types import InputError, ProblemType, Question

TRACKS = ("perception", "comprehension", "adaptation")
DISCIPLINES = {
    "Art": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Medicine": "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine "
    "Pharmacy Public_Health",
    "Humanities": "History Literature Psychology Sociology",
    "Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics "
    "Energy_and_Power Materials Mechanical_Engineering",
}
"""Subjects of each discipline; the disciplines are the folders of the videos."""
DISCIPLINE_OF = {
    subject: discipline
    for discipline, subjects in DISCIPLINES.items()
    for subject in subjects.split()
}
ADAPTATION_PROMPT = (
    "You should watch and learn the video content. Then apply what you learned to answer the "
    "following {kind} question. The image for this question is at the end of the video.\n"
)
"""The official prompt before a question of the adaptation track."""


class VideoMMMUReader(RowReader):
    """VideoMMMU's three tracks, from the JSON on GitHub or from the parquet on the hub.

    The JSON is ``{"Adaptation": {"0": row, …}}``, one track a file. A row is ``{"id":
    "validation_Math_15", "question", "options": [text, …], "answer", "question_type"}``. Parquet
    rows have no track: it is in the name of the file or of a folder above it, as in
    ``Adaptation/test-00000-of-00001.parquet``. The id of a question is ``<track>-<id>``, since a
    video has the same id in all tracks.
    The breakdown is by ``track``, ``discipline``, ``track x discipline``, ``subject`` and ``type``.

    Questions of the adaptation track come with the official text about the image at the end of
    the video, which ``<image 1>`` refers to. For the knowledge gain, ``question_only`` reads the
    same questions, under the same ids, with the short videos of the image alone; the gain is
    (accuracy - accuracy before) / (1 - accuracy before).

    Ambiguous cases:

    - ``question_type`` is missing in the perception and comprehension tracks and null in one row of
      adaptation (``validation_Accounting_13``). Such a row with options is multiple choice; the
      official code treats the latter as open and hides its ten options.
    - An open question with a numerical answer (18 of 20) is numerical. The official code searches
      the gold number among all numbers of the response, rounded to two decimals; here the one
      number of the answer may differ by 0.01, or by 1% below 1.
    - Two open ones require a letter in the image and are free-form.
    - ``validation_Math_15`` has the gold ``['24/7', '3.429', '3.43]``, a damaged list. The official
      code compares with that text, so no answer can be right. Here the numbers of such a list must
      be equal within 0.01, and the first one is the answer.
    - Options like ``M: $57,000; N: …`` begin with letters that are text, and some occur twice.

    Source: github.com/videommmu/VideoMMMU, huggingface.co/datasets/lmms-lab/VideoMMMU, videommmu
    task of lmms-eval (arXiv 2501.13826).

    Args:
        path: The annotation file, or several, such as those of the three tracks: the questions
            about one video are then adjacent, so that it is decoded once.
        video_root: Folder that holds the videos ``<id>.mp4`` or folders of disciplines with them;
            the first annotation file's folder if null.
        limit: Use only the first questions. All rows are checked nevertheless.
        question_only: Take the videos ``<id>_image.mp4``, in ``video_root`` or its folder
            ``question_only``. Only for the adaptation track.
    """

    max_frames: ClassVar[int | None] = 64

    def __init__(
        self,
        path: str | list[str],
        video_root: str | None = None,
        limit: PositiveInt | None = None,
        question_only: bool = False,
    ) -> None:
        self.paths = [str(file) for file in path] if isinstance(path, list) else [str(path)]
        if not self.paths:
            raise InputError("VideoMMMUReader: path is empty; give one annotation file or more")
        super().__init__(self.paths[0], video_root, limit=limit)
        self.question_only = question_only

    def _name(self) -> str:
        return ", ".join(self.paths)

    def _arrange(self, questions: list[Question]) -> list[Question]:
        """Move the questions about a video to the first one."""
        by_video: dict[str, list[Question]] = {}
        for question in questions:
            by_video.setdefault(question.video, []).append(question)
        return [question for group in by_video.values() for question in group]

    def _rows(self) -> Iterator[tuple[str, Any]]:
        for path in self.paths:
            if Path(path).suffix.lower() == ".json":
                yield from iterate_tracks(path, read_text(path))
                continue
            track = track_of(path)
            for source, row in iterate_rows(path):
                yield source, row | {"track": track} if isinstance(row, dict) else row

    def _parse(self, record: Record) -> Question:
        track, name = record.text("track").lower(), record.text("id")
        if track not in TRACKS:
            raise InputError(f"unknown track {track!r}; one of {', '.join(TRACKS)}")
        if self.question_only and track != "adaptation":
            raise InputError(f"track is {track}, but question_only is for adaptation only")
        subject = "_".join(name.split("_")[1:-1])
        if subject not in DISCIPLINE_OF:
            raise InputError(f"id {name!r} names no known subject, as validation_Math_15 does")
        options = record.texts("options")
        multiple_choice = is_multiple_choice(record, bool(options))
        answer = record.text("answer")
        problem_type = ProblemType.MULTIPLE_CHOICE
        if not multiple_choice:
            problem_type, answer = open_answer(answer)
        discipline = DISCIPLINE_OF[subject]
        shown = "question_only" if self.question_only else track
        return self._question(
            record,
            id=f"{track}-{name}",
            text=self._prompt(track, multiple_choice) + record.text("question"),
            video=self._place(name, discipline),
            problem_type=problem_type,
            options=bare_options(options) if multiple_choice else (),
            answer=answer,
            breakdown={
                "track": shown,
                "discipline": discipline,
                "track x discipline": f"{shown} x {discipline}",
                "subject": subject,
                "type": "multiple choice" if multiple_choice else "open",
            },
        )

    def _prompt(self, track: str, multiple_choice: bool) -> str:
        if track != "adaptation" or self.question_only:
            return ""
        kind = "multi-choice" if multiple_choice else "open-ended"
        return ADAPTATION_PROMPT.format(kind=kind)

    def _place(self, name: str, discipline: str) -> str:
        if self.question_only:
            return self._find_video(f"{name}_image.mp4", f"question_only/{name}_image.mp4")
        return self._find_video(f"{discipline}/{name}.mp4", f"{name}.mp4")


def iterate_tracks(path: str, text: str) -> Iterator[tuple[str, Any]]:
    """Yield ``(position, row)`` of ``{"Track": {"0": row, …}}``, each row with its ``track``.

    If the text is damaged, an `InputError` takes the place of the rows.
    """
    tracks = parse_json(text)
    if isinstance(tracks, InputError):
        yield path, tracks
    elif isinstance(tracks, dict) and all(isinstance(rows, dict) for rows in tracks.values()):
        for track, rows in tracks.items():
            for key, row in rows.items():
                row = row | {"track": track} if isinstance(row, dict) else row
                yield f"{path}: {track} {key}", row
    else:
        yield path, InputError('expected {"Track": {"0": row, …}}')


def track_of(path: str) -> str:
    """Return the track in a file's name or in that of the nearest folder; else `InputError`."""
    for part in reversed(Path(path).parts):
        for track in TRACKS:
            if track in part.lower():
                return track
    raise InputError(
        f"{path}: its track is not known; let the file or its folder have perception, "
        "comprehension or adaptation in its name"
    )


def is_multiple_choice(record: Record, has_options: bool) -> bool:
    """Whether a row is multiple choice, by its type or else its options, which must agree."""
    name = str(record.fields.get("question_type") or "").lower()
    if name in {"", "none", *TRACKS}:
        return has_options
    if name not in {"multiple-choice", "open"}:
        raise InputError(f"unknown question_type {name!r}; multiple-choice or open")
    if has_options != (name == "multiple-choice"):
        raise InputError(
            f"question_type is {name!r}, but there are {'' if has_options else 'no '}options"
        )
    return has_options


def open_answer(answer: str) -> tuple[ProblemType, str]:
    """Return the problem type and the gold answer of an open question.

    Raises:
        InputError: a list of answers that are not the same number.
    """
    if not answer.startswith("["):
        number = extract_number(answer) if re.fullmatch(r"[-+\d.,/eE]+", answer) else None
        return (ProblemType.FREE_FORM if number is None else ProblemType.NUMERICAL), answer
    parts = [part.strip(" '\"") for part in answer.strip("[]").split(",")]
    values = [extract_number(part) for part in parts]
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(parts) or not all(
        numbers_match(value, numbers[0], DEFAULT_TOLERANCE) for value in numbers
    ):
        raise InputError(f"answer {answer!r} is a list of different answers; give one")
    return ProblemType.NUMERICAL, parts[0]
