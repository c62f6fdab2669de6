from collections import Counter

import pytest

from vrts.data.readers.mmvu import DISCIPLINE_OF, MMVUReader
from vrts.types import InputError, ProblemType

URL = "https://huggingface.co/datasets/yale-nlp/MMVU/resolve/main/videos/Art/0.mp4"
CHOICE = {
    "id": "validation_1",
    "video": URL,
    "youtube_url": "https://www.youtube.com/watch?v=x",
    "question_type": "multiple-choice",
    "metadata": {"subject": "Computer Science", "rationale": "…"},
    "question": "Which one?",
    "choices": {"A": "one", "B": "two", "C": "three", "D": "four", "E": "five"},
    "answer": "C",
}
OPEN = CHOICE | {
    "id": "validation_0",
    "question_type": "open-ended",
    "metadata": {"subject": "Art"},
    "choices": dict.fromkeys("ABCDE", ""),
    "answer": "Dolly Zoom",
}


def test_multiple_choice_and_open(write, touch):
    first, second = MMVUReader(write([CHOICE, OPEN]), touch("Art/0.mp4")).read()
    assert (first.id, first.text, first.gold) == ("validation_1", "Which one?", "C")
    assert first.options == ("one", "two", "three", "four", "five")
    assert first.video == second.video
    assert first.video.endswith("videos/Art/0.mp4")
    assert first.metadata["max_frames"] == MMVUReader.max_frames == 64
    assert first.metadata["youtube_url"] == CHOICE["youtube_url"]
    assert first.metadata["breakdown"] == {
        "discipline": "Engineering", "subject": "Computer Science", "type": "multiple choice",
    }  # fmt: skip
    assert (second.problem_type, second.options) == (ProblemType.FREE_FORM, ())
    assert second.gold == "Dolly Zoom"
    assert second.metadata["breakdown"]["type"] == "open"


def test_multiple_choice_only_checks_the_open_ones_too(write, touch):
    videos = touch("Art/0.mp4")
    reader = MMVUReader(write([OPEN, CHOICE]), videos, multiple_choice_only=True)
    assert [question.id for question in reader.read()] == ["validation_1"]
    path = write([OPEN | {"answer": ""}, CHOICE])
    with pytest.raises(InputError, match=r": item 1: field 'answer' is empty"):
        MMVUReader(path, videos, multiple_choice_only=True).read()


def test_labels_left_in_the_texts_are_taken_off_and_the_gold_counts_places(write, touch):
    choices = {"A": "A. p", "B": "B. q", "C": "D. r", "D": "E. s", "E": "F. t"}
    path = write([CHOICE | {"choices": choices, "answer": "D"}])
    (question,) = MMVUReader(path, touch("Art/0.mp4")).read()
    assert question.options == ("p", "q", "r", "s", "t")
    assert question.gold == "D"


@pytest.mark.parametrize("folder", ["Art", "videos/Art"])
def test_parquet_with_video_paths(write, touch, folder):
    row = {key: CHOICE[key] for key in ("id", "question_type", "question", "choices", "answer")}
    path = write([row | {"video_path": "videos/Art/0.mp4"}], "validation.parquet")
    (question,) = MMVUReader(path, touch(f"{folder}/0.mp4")).read()
    assert question.video.endswith(f"videos/{folder}/0.mp4")
    assert question.metadata["breakdown"]["subject"] == "Art"
    assert question.source == f"{path}:1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_type": "essay"}, "unknown question_type 'essay'"),
        ({"question_type": "open-ended"}, "but there are choices"),
        ({"choices": OPEN["choices"]}, "needs 2 to 26 options, got 0"),
        ({"choices": {"A": "x", "C": "y"}}, "has the letters A, C, expected A, B, C"),
        ({"choices": ["x", "y"]}, "must be an object of letter to text"),
        ({"choices": CHOICE["choices"] | {"B": ""}}, "option B is empty"),
        ({"answer": "F"}, "answer 'F' is none of the letters ABCDE"),
        ({"answer": None}, "'answer' is missing"),
        ({"metadata": {"subject": "Cooking"}}, "unknown subject 'Cooking'"),
        ({"id": "validation_1"}, "already taken by"),
    ],
)
def test_bad_rows_name_file_line_and_fault(write, touch, change, message):
    path = write([CHOICE, CHOICE | {"id": "2"} | change], "rows.jsonl")
    with pytest.raises(InputError) as caught:
        MMVUReader(path, touch("Art/0.mp4")).read()
    assert f"{path}:2: " in str(caught.value)
    assert message in str(caught.value)


def test_real_file(shared, touch):
    path = str(shared / "annotations" / "mmvu_validation.json")
    questions = MMVUReader(path, touch("Art/0.mp4")).read()
    assert Counter(question.metadata["breakdown"]["type"] for question in questions) == {
        "multiple choice": 625, "open": 375,
    }  # fmt: skip
    assert Counter(question.metadata["breakdown"]["discipline"] for question in questions) == {
        "Science": 318, "Engineering": 348, "Healthcare": 193, "Humanities and Social Science": 141,
    }  # fmt: skip
    assert {question.metadata["breakdown"]["subject"] for question in questions} == set(
        DISCIPLINE_OF
    )
    assert {len(question.options) for question in questions if question.options} == {5}
    by_id = {question.id: question for question in questions}
    assert by_id["validation_377"].options[2].startswith("It should be computationally efficient")
    assert by_id["validation_546"].options[2].startswith("T.S. Eliot")
    assert len(MMVUReader(path, touch("Chemistry/0.mp4"), multiple_choice_only=True).read()) == 625
