import pytest

from vrts.data.benchmarks.plain import PlainReader
from vrts.types import InputError, ProblemType

CSV = """video,question,A,B,C,answer,category,note
one.mp4,"Which, of ""these""?",red,blue,,b,colours,mine

sub/two.mp4,"How
many?",,,,,,
"""


def test_csv(write, touch):
    path, videos = write(CSV, "mine.csv"), touch("one.mp4", "sub/two.mp4")
    first, second = PlainReader(path, videos).read()
    assert (first.id, first.text, first.gold) == ("1", 'Which, of "these"?', "B")
    assert (first.options, first.video) == (("red", "blue"), f"{videos}/one.mp4")
    assert first.metadata == {
        "note": "mine", "category": "colours", "max_frames": None,
        "breakdown": {"category": "colours"},
    }  # fmt: skip
    assert first.source == f"{path}:2"
    assert (second.id, second.text, second.gold) == ("2", "How\nmany?", None)
    assert second.problem_type is ProblemType.FREE_FORM
    assert (second.options, second.video) == ((), f"{videos}/sub/two.mp4")
    assert second.source == f"{path}:4"


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("A,B", "a cup,a book"),
        ("option_a,option_b", "a cup,a book"),
        ("Option 1,Option 2", "a cup,a book"),
        ("options", "a cup|a book"),
        ("options", "A. a cup|B. a book"),
        ("options", '"[""a cup"", ""a book""]"'),
    ],
)
@pytest.mark.parametrize("answer", ["B", "b", "B.", "A book"])
def test_options_and_answers(write, touch, header, row, answer):
    text = f"video,question,answer,{header}\none.mp4,What?,{answer},{row}\n"
    (question,) = PlainReader(write(text, "mine.csv"), touch("one.mp4")).read()
    assert question.options == ("a cup", "a book")
    assert (question.problem_type, question.gold) == (ProblemType.MULTIPLE_CHOICE, "B")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_line_ends_and_byte_order_mark(write, touch, delimiter):
    rows = [["video", "question", "answer"], ["one.mp4", "What?", "x"], ["one.mp4", "Où?", "y"]]
    text = "\ufeff" + "\r\n".join(delimiter.join(row) for row in rows)
    questions = PlainReader(write(text, "mine.tsv"), touch("one.mp4")).read()
    assert [question.text for question in questions] == ["What?", "Où?"]


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.json", "mine.parquet"])
def test_other_formats(write, touch, name):
    rows = [
        {"id": "x", "video": "one.mp4", "question": "What?", "options": ["1", "2"], "answer": "2"},
        {"id": "y", "video": "one.mp4", "question": "How long?", "answer": "3.5",
         "type": "numerical"},
        {"id": "z", "video": "one.mp4", "question": "Why?"},
    ]  # fmt: skip
    first, second, third = PlainReader(write(rows, name), touch("one.mp4")).read()
    assert (first.id, first.options, first.gold) == ("x", ("1", "2"), "B")
    assert (second.problem_type, second.gold) == (ProblemType.NUMERICAL, "3.5")
    assert (third.problem_type, third.gold) == (ProblemType.FREE_FORM, None)


def test_videos_start_at_the_table(write, touch):
    videos = touch("one.mp4")
    path = write([{"video": "videos/one.mp4", "question": "What?"}])
    assert PlainReader(path).read()[0].video == f"{videos}/one.mp4"
    path = write([{"video": f"{videos}/one.mp4", "question": "What?"}])
    assert PlainReader(path).read()[0].video == f"{videos}/one.mp4"


ROW = {"video": "one.mp4", "question": "What?", "A": "red", "B": "blue", "answer": "A"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": None}, "'video' is missing"),
        ({"question": ""}, "'question' is empty"),
        ({"answer": "C"}, "answer 'C' is none of the letters AB"),
        ({"answer": "green"}, "answer 'green' is none of the letters AB"),
        ({"B": None, "C": "blue"}, "options are in A, C, expected A, B, C"),
        ({"B": None}, "needs 2 to 26 options, got 1"),
        ({"options": "red|blue"}, "both 'options' and 'A' are given"),
        ({"option_a": "red"}, "options are in A, B, option_a, expected"),
        ({"type": "essay"}, "unknown type 'essay'; one of multiple choice, numerical"),
        ({"type": "numerical"}, "type is 'numerical', but there are options"),
        ({"A": None, "B": None, "type": "multiple choice"}, "but there are no options"),
        ({"A": None, "B": None, "options": "[1,"}, "'options' is not a valid JSON list"),
        ({"A": "B", "B": "A"}, "answer 'A' names more than one option"),
        ({"A": "red", "B": "Red", "answer": "red"}, "answer 'red' names more than one option"),
        ({"id": "1"}, "id '1' is already taken"),
        ({"start_s": 5, "end_s": 5}, "the window from start_s 5 to end_s 5 is empty"),
        ({"start_s": "7.5", "end_s": "3"}, "the window from start_s 7.5 to end_s 3 is empty"),
        ({"end_s": 0}, "the window from start_s 0 to end_s 0 is empty"),
        ({"start_s": -1}, "start_s is -1; give seconds from the video's start"),
        ({"start_s": "soon"}, "field 'start_s' must be a number, got 'soon'"),
        ({"end_s": "nan"}, "field 'end_s' must be a number, got 'nan'"),
        ({"fps": 0}, "fps is 0; give frames a second"),
    ],
)
def test_bad_rows_name_file_line_and_fault(write, touch, change, message):
    path = write([ROW, ROW | change], "rows.jsonl")
    with pytest.raises(InputError) as caught:
        PlainReader(path, touch("one.mp4")).read()
    assert f"{path}:2: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["mine.csv", "mine.jsonl", "mine.parquet"])
def test_windows(write, touch, name):
    rows = "video,question,start_s,end_s\none.mp4,Who?,1.5,20\none.mp4,Why?,3,\none.mp4,How?,,\n"
    if not name.endswith("csv"):
        rows = [
            {"video": "one.mp4", "question": "Who?", "start_s": 1.5, "end_s": 20.0},
            {"video": "one.mp4", "question": "Why?", "start_s": 3.0},
            {"video": "one.mp4", "question": "How?"},
        ]
    questions = PlainReader(write(rows, name), touch("one.mp4")).read()
    assert [(q.start_s, q.end_s) for q in questions] == [(1.5, 20.0), (3.0, None), (0.0, None)]
    assert all("start_s" not in question.metadata for question in questions)


@pytest.mark.parametrize("array", [False, True])
def test_a_field_that_is_there_twice_is_named(write, touch, array):
    good = '{"video": "one.mp4", "question": "What?"}'
    bad = '{"video": "one.mp4", "question": "Who?",\n"video": "two.mp4"}'
    text = f"[{good},\n{bad}]" if array else f"{good}\n{bad.replace(chr(10), '')}"
    path = write(text, "rows.json" if array else "rows.txt")
    with pytest.raises(InputError) as caught:
        PlainReader(path, touch("one.mp4")).read()
    assert f"{path}:2: field 'video' is there twice" in str(caught.value)
