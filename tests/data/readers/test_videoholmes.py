import pytest

from vrts.data.readers.videoholmes import TASKS, VideoHolmesReader
from vrts.types import InputError

ROW = {
    "video ID": "abc",
    "Question ID": 1,
    "Question Type": "SR",
    "Question": "Who?",
    "Options": {"A": "he", "B": "she", "C": "they"},
    "Answer": "B",
    "Explanation": "…",
}


@pytest.mark.parametrize("folder", ["", "videos_cropped/", "videos/videos_cropped/"])
def test_rows(write, touch, folder):
    videos = touch(f"{folder}abc.mp4")
    (question,) = VideoHolmesReader(write([ROW]), videos).read()
    assert (question.id, question.text, question.gold) == ("abc-1", "Who?", "B")
    assert question.options == ("he", "she", "they")
    assert question.video == f"{videos}/{folder}abc.mp4"
    assert question.metadata["breakdown"] == {"task": "SR"}
    assert question.metadata["max_frames"] == 128
    assert question.metadata["Explanation"] == "…"


def test_parquet_gives_every_row_the_letters_of_all(write, touch):
    six = ROW | {"Question ID": 2, "Options": dict(zip("ABCDEF", "uvwxyz", strict=True))}
    questions = VideoHolmesReader(write([ROW, six], "test.parquet"), touch("abc.mp4")).read()
    assert [len(question.options) for question in questions] == [3, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Question Type": "XYZ"}, "unknown Question Type 'XYZ'; one of SR, IMC"),
        ({"Answer": "D"}, "answer 'D' is none of the letters ABC"),
        ({"Options": {"A": "he"}}, "needs 2 to 26 options, got 1"),
        ({"Options": None}, "'Options' must be an object"),
        ({"video ID": None}, "'video ID' is missing"),
        ({}, "id 'abc-1' is already taken"),
    ],
)
def test_bad_rows_name_file_line_and_fault(write, touch, change, message):
    path = write([ROW, ROW | change], "rows.jsonl")
    with pytest.raises(InputError) as caught:
        VideoHolmesReader(path, touch("abc.mp4")).read()
    assert f"{path}:2: " in str(caught.value)
    assert message in str(caught.value)


def test_real_file(shared, touch):
    path = str(shared / "annotations" / "videoholmes_RSmjqss0XKQ.json")
    questions = VideoHolmesReader(path, touch("RSmjqss0XKQ.mp4")).read()
    assert len(questions) == 8
    assert [question.gold for question in questions] == list("ABCABACF")
    assert {question.metadata["breakdown"]["task"] for question in questions} == set(TASKS)
    assert {len(question.options) for question in questions} == {6}
