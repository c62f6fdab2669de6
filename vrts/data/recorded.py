"""Reader of the questions of an earlier prediction run."""

from vrts.data.fields import gold_answer
from vrts.data.readers import PROBLEM_TYPES, Reader
from vrts.data.records import Record, iterate_json, parse_questions, read_text
from vrts.types import InputError, Question


class RecordedReader(Reader):
    """The questions of a ``predictions.jsonl``, without their annotation file and their videos.

    Args:
        path: ``predictions.jsonl`` of a run of ``vrts predict``.
    """

    def __init__(self, path: str) -> None:
        self.path = str(path)

    def read(self) -> list[Question]:
        """Return the questions in the order of the file; raises as `Reader.read` says."""
        return parse_questions(self.path, iterate_json(self.path, read_text(self.path)), _parse)


def _parse(record: Record) -> Question:
    name = record.text("problem_type")
    if name.lower() not in PROBLEM_TYPES:
        raise InputError(f"unknown problem_type {name!r}; one of {', '.join(PROBLEM_TYPES)}")
    problem_type = PROBLEM_TYPES[name.lower()]
    options = tuple(record.texts("options"))
    breakdown = record.fields.get("breakdown")
    if not isinstance(breakdown, dict):
        raise InputError("field 'breakdown' must be an object of name to category")
    return Question(
        id=record.text("id"),
        text=record.text("question"),
        video=record.text("video"),
        problem_type=problem_type,
        options=options,
        answer=gold_answer(record.fields.get("answer"), problem_type, options, "answer"),
        source=record.source,
        metadata={"breakdown": breakdown},
    )
