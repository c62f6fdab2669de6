"""Reader of MMVU."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import ClassVar

from vrts.data.readers.base import RowReader
from vrts.data.readers.fields import bare_options, keyed_options
from vrts.data.readers.records import Record
from vrts.types import InputError, ProblemType, Question

TYPES = {
    "multiple-choice": ProblemType.MULTIPLE_CHOICE,
    "open-ended": ProblemType.FREE_FORM,
}
DISCIPLINES = {
    "Science": "Astronomy, Biology, Chemistry, Electromagnetism, Geography, Materials Science, "
    "Mechanics, Modern Physics, Neurobiology, Thermodynamics",
    "Engineering": "Biomedical Engineering, Civil Engineering, Computer Science, Electrical "
    "Engineering, Electronics and Communication, Mechanical Engineering",
    "Healthcare": "Basic Medicine, Clinical Medicine, Dentistry, Pharmacy, Preventive Medicine",
    "Humanities and Social Science": "Art, Economics, History, Law, Literature, Management",
}
"""Subjects of each discipline, as in the mmvu task of lmms-eval."""
DISCIPLINE_OF = {
    subject: discipline
    for discipline, subjects in DISCIPLINES.items()
    for subject in subjects.split(", ")
}


@dataclass
class MMVUReader(RowReader):
    """MMVU's ``validation.json``: 625 multiple choice questions and 375 open ones.

    A row is ``{"id", "video": "https://…/videos/Art/0.mp4", "question_type", "metadata":
    {"subject": …}, "question", "choices": {"A": …}, "answer"}``; open questions have empty choices.
    The parquet of lmms-lab/MMVU, with a ``video_path`` and no ``metadata``, can be read too.
    The breakdown is by ``discipline``, ``subject`` and ``type``. Published results on "MMVU (mc)"
    are those of the multiple choice.

    Source: github.com/yale-nlp/MMVU (arXiv 2501.12380). There GPT-4o judges the answers; here an
    open answer must equal the gold text after `normalise_text`, so open results are lower and not
    comparable. In seven rows the subject is not the folder of the video; the subject counts.

    Args:
        video_root: Folder that holds the folders of subjects (``Art/0.mp4``) or their parent
            ``videos``; the annotation file's folder if null.
        multiple_choice_only: Leave out the open questions.
    """

    max_frames: ClassVar[int | None] = 64
    folders = ("", "videos")

    multiple_choice_only: bool = False

    def _parse(self, record: Record) -> Question | None:
        name = record.text("question_type")
        if name not in TYPES:
            raise InputError(f"unknown question_type {name!r}; one of {', '.join(TYPES)}")
        multiple_choice = TYPES[name] is ProblemType.MULTIPLE_CHOICE
        choices = keyed_options(record, "choices")
        if choices and not multiple_choice:
            raise InputError("question_type is 'open-ended', but there are choices; correct one")
        video = PurePosixPath(record.text("video_path" if record.has("video_path") else "video"))
        subject = self._subject(record, video)
        question = self._question(
            record,
            id=record.text("id"),
            text=record.text("question"),
            video=self._find_video(f"{video.parent.name}/{video.name}"),
            problem_type=TYPES[name],
            options=bare_options(choices) if multiple_choice else (),
            answer=record.text("answer"),
            breakdown={
                "discipline": DISCIPLINE_OF[subject],
                "subject": subject,
                "type": "multiple choice" if multiple_choice else "open",
            },
        )
        return None if self.multiple_choice_only and not multiple_choice else question

    @staticmethod
    def _subject(record: Record, video: PurePosixPath) -> str:
        details = record.fields.get("metadata")
        if not isinstance(details, dict | None):
            raise InputError("field 'metadata' must be an object with a subject")
        subject = str((details or {}).get("subject") or video.parent.name).replace("_", " ").strip()
        if subject not in DISCIPLINE_OF:
            raise InputError(f"unknown subject {subject!r}; one of {', '.join(DISCIPLINE_OF)}")
        return subject
