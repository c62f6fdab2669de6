"""Reader of one question from the command line."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vrts.data.readers.base import Reader
from vrts.data.readers.fields import strip_letters
from vrts.files.fingerprints import class_name, sampled_digest
from vrts.types import InputError, ProblemType, Question


class SingleQuestionReader(Reader):
    """One question about one video or image, without an annotation file.

    Args:
        video: The file.
        question: The question's text.
        options: Texts of the options of a multiple-choice question, with or without their letters;
            null for a free-form answer.
    """

    def __init__(self, video: str, question: str, options: Sequence[str] | None = None) -> None:
        self.video = str(video)
        self.question = str(question)
        self.options = None if options is None else list(options)

    def read(self) -> list[Question]:
        """Return the question; raises `InputError` without a file, a text or valid options."""
        if not os.path.exists(self.video):
            raise InputError(f"data.video: {self.video}: no such file; give the path of a video")
        if not self.question.strip():
            raise InputError("data.question is empty; give what to ask about the video")
        try:
            options = () if self.options is None else strip_letters(self.options)
        except InputError as error:
            raise InputError(f"data.options: {error}") from error
        return [
            Question(
                id=Path(self.video).name,
                text=self.question.strip(),
                video=self.video,
                problem_type=ProblemType.MULTIPLE_CHOICE if options else ProblemType.FREE_FORM,
                options=options,
                source="data.question",
            )
        ]

    def fingerprint(self) -> dict[str, Any]:
        """Return what the answer depends on; a long film is not read completely for it."""
        path = Path(self.video)
        is_folder = path.is_dir()  # of frames
        content = None if is_folder else sampled_digest(path, with_time=True)
        return {
            "class": class_name(self),
            "video": self.video if is_folder else f"{path.name} {content}",
            "question": self.question,
            "options": self.options,
        }
