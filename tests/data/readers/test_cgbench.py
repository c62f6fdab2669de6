import json

import pytest

from vrts.data.readers.cgbench import CGBenchReader
from vrts.types import InputError

ROW = {
    "qid": 16,
    "video_uid": "BV1",
    "question": "What colour?",
    "choices": ["yellow", "green", "orange"],
    "answer": "orange",
    "right_answer": "C",
    "duration": 1200.5,
    "clue_intervals": [[1.0, 2.5], [7.0, 9.0]],
    "domain": "Life Record",
    "sub_category": "Object Attribute",
}


@pytest.mark.parametrize("folder", ["", "cg_videos_720p/"])
def test_full_and_mini(write, touch, folder):
    bare = {key: ROW[key] for key in ("qid", "video_uid", "question", "choices", "right_answer")}
    videos = touch(f"{folder}BV1.mp4")
    first, second = CGBenchReader(write([ROW, bare | {"qid": 17}]), videos).read()
    assert (first.id, first.text, first.gold) == ("16", "What colour?", "C")
    assert first.options == ("yellow", "green", "orange")
    assert first.video == second.video == f"{videos}/{folder}BV1.mp4"
    assert first.metadata["breakdown"] == {
        "domain": "Life Record", "sub_category": "Object Attribute",
    }  # fmt: skip
    assert first.metadata["max_frames"] == 128
    assert first.metadata["clue_intervals"] == [[1.0, 2.5], [7.0, 9.0]]
    assert (second.gold, second.metadata["breakdown"]) == ("C", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right_answer": "A"}, "answer 'A. orange' has the letter A and the text of C"),
        ({"right_answer": "D"}, "answer 'D. orange' is none of the letters ABC"),
        ({"right_answer": None}, "'right_answer' is missing"),
        ({"choices": ["yellow"]}, "needs 2 to 26 options, got 1"),
        ({"choices": [["yellow"], []]}, "'choices' must be a list of texts"),
        ({"video_uid": ""}, "'video_uid' is empty"),
        ({"qid": 16}, "id '16' is already taken"),
    ],
)
def test_bad_rows_name_file_line_and_fault(write, touch, change, message):
    path = write([ROW, ROW | {"qid": 17} | change], "rows.jsonl")
    with pytest.raises(InputError) as caught:
        CGBenchReader(path, touch("BV1.mp4")).read()
    assert f"{path}:2: " in str(caught.value)
    assert message in str(caught.value)


def test_an_answer_in_other_words_or_twice_among_the_options_is_no_contradiction(write, touch):
    rows = [
        ROW | {"answer": "It is orange."},
        ROW | {"qid": 17, "choices": ["Orange", "red", "orange"]},
    ]
    questions = CGBenchReader(write(rows), touch("BV1.mp4")).read()
    assert [question.gold for question in questions] == ["C", "C"]


@pytest.mark.slow
def test_rows_made_of_real_ones(shared, write, touch):
    file = shared / "annotations" / "cgbench_selected_training_samples.jsonl"
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        question, *options = row["problem"].strip().split("\n")
        rows.append(
            {
                "qid": len(rows),
                "video_uid": "BV1",
                "question": question,
                "choices": [option[3:] for option in options],
                "answer": row["original_answer"],
                "right_answer": row["solution"][8],
            }
        )
    questions = CGBenchReader(write(rows), touch("BV1.mp4")).read()
    assert len(questions) == 8136
    assert all(q.metadata["answer"] == q.options["ABCDEFGH".index(q.gold)] for q in questions)
