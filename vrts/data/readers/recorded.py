"""Reader of the questions of an earlier prediction run."""

from dataclasses import replace
from pathlib import Path

from vrts.data.readers.base import Reader
from vrts.data.readers.fields import check_options, gold_answer
from vrts.data.readers.records import Record, parse_questions
from vrts.data.readers.tables import check_file, parse_json
from vrts.files.json_lines import whole_lines
from vrts.files.predictions import prediction_from_json
from vrts.types import ProblemType, Question


class RecordedReader(Reader):
    """The questions of a ``predictions.jsonl``, without their annotation file and their videos.

    Args:
        path: ``predictions.jsonl`` of a run of ``vrts predict``.
    """

    def __init__(self, path: str) -> None:
        self.path = str(path)

    def read(self) -> list[Question]:
        """Return the questions in the order of the file; raises as `Reader.read`."""
        check_file(self.path)
        # line by line: the file of a long run need not fit into memory
        rows = ((source, parse_json(line)) for source, line in whole_lines(Path(self.path)))
        return parse_questions(self.path, rows, _parse)


def _parse(record: Record) -> Question:
    """The question of a line, checked as others are: people may have corrected it."""
    for key in ("id", "question", "video"):
        record.text(key)  # present and not empty
    question = prediction_from_json(record.fields, record.source).question
    kind, options = question.problem_type, question.options
    if options or kind is ProblemType.MULTIPLE_CHOICE:
        check_options(options)
    return replace(question, gold=gold_answer(question.gold, kind, options, "gold"))
