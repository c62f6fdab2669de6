"""Questions of an earlier run, from its lines."""

import json

import pytest

from vrts.data.readers.recorded import RecordedReader
from vrts.types import InputError, ProblemType, Question

LINE = {
    "id": "q1",
    "gold": "B",
    "answer": None,
    "correct": False,
    "question": "Which?",
    "options": ["A. Lincoln", "J. Adams"],
    "problem_type": "multiple choice",
    "video": "gone.mp4",
    "breakdown": {"duration": "short"},
    "rounds": [],
    "status": "failed",
    "error": "lost",
}


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RecordedReader(str(path))


def test_questions_come_as_they_were_asked(tmp_path):
    path = tmp_path / "predictions.jsonl"
    number = LINE | {"id": "2", "options": [], "problem_type": "numerical", "gold": None}
    first, second = write(path, LINE, number).read()
    assert first == Question(
        "q1",
        "Which?",
        "gone.mp4",
        options=("A. Lincoln", "J. Adams"),
        gold="B",
        source=f"{path}:1",
        metadata={"breakdown": {"duration": "short"}},
    )
    assert (second.problem_type, second.gold) == (ProblemType.NUMERICAL, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": "C"}, "'C' is none of the letters AB"),
        ({"problem_type": "riddle"}, "unknown problem_type 'riddle'"),
        ({"video": None}, "field 'video' is missing"),
        ({"breakdown": []}, "field 'breakdown' must be dict"),
        ({"options": "A"}, "field 'options' must be list"),
    ],
)
def test_bad_lines_are_named(tmp_path, change, message):
    reader = write(tmp_path / "p.jsonl", LINE, LINE | {"id": "q2"} | change)
    with pytest.raises(InputError, match=rf"p\.jsonl:2: .*{message}"):
        reader.read()
