import pytest

from vrts.data.readers.plain import PlainReader
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
    assert first.metadata["note"] == "mine"
    assert first.metadata["breakdown"] == {"category": "colours"}
    assert first.metadata["max_frames"] is None
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
        ({"fps": 0}, "fps is 0; give frames per second"),
        ({"answer": "1"}, "answer '1' is none of the letters AB nor an option; if it is an index"),
        ({"answer": None, "answer_id": 2}, "answer_id is '2'; give an index from 0 to 1"),
        ({"answer": "red", "correct_idx": 1}, "answer 'red' is A, but answer_id is B"),
        (
            {"A": None, "B": None, "choices": ["x", "y"], "options": ["x", "y"]},
            "both 'options' and",
        ),
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


@pytest.mark.parametrize("array", [False, True])
def test_a_field_that_is_there_twice_is_named(write, touch, array):
    good = '{"video": "one.mp4", "question": "What?"}'
    bad = '{"video": "one.mp4", "question": "Who?",\n"video": "two.mp4"}'
    text = f"[{good},\n{bad}]" if array else f"{good}\n{bad.replace(chr(10), '')}"
    path = write(text, "rows.json" if array else "rows.txt")
    with pytest.raises(InputError) as caught:
        PlainReader(path, touch("one.mp4")).read()
    place = f"{path}: item 2" if array else f"{path}:2"
    assert f"{place}: field 'video' appears twice" in str(caught.value)


STAR = {
    "question_id": "Interaction_T1_0", "question": "Which was tidied up?", "video_id": "6H78U",
    "start": 11.1, "end": 19.6, "answer": "The clothes.",
    "choices": [
        {"choice_id": 0, "choice": "The closet."}, {"choice_id": 1, "choice": "The clothes."},
    ],
}  # fmt: skip
MLVU = {
    "video": "movie101_66.mp4", "duration": 480.0, "question": "What colour is it?",
    "candidates": ["Yellow", "Red", "Green"], "answer": "Red", "question_type": "plotQA",
}  # fmt: skip
EGO = {
    "q_uid": "0074f737", "google_drive_id": "1Wzk", "question": "Summarize.",
    **{f"option {i}": f"c does {i}" for i in range(5)},
}  # fmt: skip
PERCEPTION = {
    "video_8241": {
        "metadata": {"split": "valid", "video_id": "video_8241"}, "object_tracking": [{"id": 0}],
        "mc_question": [
            {"id": 0, "question": "Is it moving?", "options": ["no", "yes", "both"], "answer_id": 1,
             "area": "physics", "reasoning": "descriptive", "tag": ["motion"]},
            {"id": 1, "question": "How many?", "options": ["1", "2", "3"], "answer_id": 2},
        ],
    },
    "video_1": {"mc_question": [
        {"id": 0, "question": "Where?", "options": ["in", "out", "on"], "answer_id": 0},
    ]},
}  # fmt: skip
NEXT_QA = """video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4
4010069381,369,640,480,how do the two man play,0,6,CH,roll the handle,tap feet,strum,hit,pat
4010069381,369,640,480,how many men are there,2,1,DC,0,1,3,2,4
"""


def test_published_files_are_read_as_downloaded(write, touch):
    videos = touch(
        "6H78U.mp4", "movie101_66.mp4", "0074f737.mp4", "video_8241.mp4", "video_1.mp4",
        "4010069381.mkv",
    )  # fmt: skip
    (star,) = PlainReader(write([STAR], "star.json"), videos).read()
    assert (star.options, star.gold) == (("The closet.", "The clothes."), "B")
    assert star.video == f"{videos}/6H78U.mp4"
    (mlvu,) = PlainReader(write([MLVU], "mlvu.json"), videos).read()
    assert (mlvu.options, mlvu.gold) == (("Yellow", "Red", "Green"), "B")
    assert mlvu.metadata["question_type"] == "plotQA"
    (ego,) = PlainReader(write([EGO], "questions.json"), videos).read()
    assert (ego.options[0], len(ego.options), ego.gold) == ("c does 0", 5, None)
    assert ego.video == f"{videos}/0074f737.mp4"
    path = write(PERCEPTION, "mc_question_valid.json")
    first, second, third = PlainReader(path, videos).read()
    assert [q.gold for q in (first, second, third)] == ["B", "C", "A"]
    assert first.options == ("no", "yes", "both")
    assert first.video == second.video == f"{videos}/video_8241.mp4"
    assert third.video == f"{videos}/video_1.mp4"
    play, count = PlainReader(write(NEXT_QA, "val.csv"), videos).read()
    assert (play.gold, play.options[0]) == ("A", "roll the handle")
    # an index, not the text of the option "2"
    assert (count.gold, count.options) == ("C", ("0", "1", "3", "2", "4"))
    assert play.metadata["breakdown"] == {"type": "CH"}
    assert play.video == f"{videos}/4010069381.mkv"
    assert {q.problem_type for q in (star, mlvu, ego, first, play)} == {ProblemType.MULTIPLE_CHOICE}


@pytest.mark.parametrize("options", ["candidates", "choices", "options", "option"])
@pytest.mark.parametrize("answer", ["answer_id", "answer_idx", "correct_idx", "answer_index"])
def test_known_names_of_options_and_answers(write, touch, options, answer):
    row = {"video": "one.mp4", "question": "What?", options: ["red", "blue"], answer: 1}
    (question,) = PlainReader(write([row], "rows.jsonl"), touch("one.mp4")).read()
    assert (question.options, question.gold) == (("red", "blue"), "B")
    row = {"video": "one.mp4", "question": "What?", options: {"A": "red", "B": "blue"}, answer: "0"}
    (question,) = PlainReader(write([row], "rows.jsonl"), touch("one.mp4")).read()
    assert (question.options, question.gold) == (("red", "blue"), "A")


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_columns_name_others(write, touch, name):
    rows = [
        {"clip": "one.mp4", "query": "What?", "x": "red", "y": "blue", "gold": "y", "from": 1.5},
        {"clip": "one.mp4", "query": "Who?", "x": "him", "y": "her", "gold": "her"},
        {"clip": "one.mp4", "query": "Why?"},
    ]  # fmt: skip
    rows[0]["gold"] = "blue"
    text = "clip,query,x,y,gold,from\n" + "".join(
        ",".join(str(row.get(k, "")) for k in ("clip", "query", "x", "y", "gold", "from")) + "\n"
        for row in rows
    )
    columns = {
        "video": "clip", "question": "query", "options": ["x", "y"], "answer": "gold",
        "start_s": "from",
    }  # fmt: skip
    path = write(text if name.endswith("csv") else rows, name)
    first, second, third = PlainReader(path, touch("one.mp4"), columns=columns).read()
    assert (first.options, first.gold, first.start_s) == (("red", "blue"), "B", 1.5)
    assert (second.options, second.gold) == (("him", "her"), "B")
    assert third.problem_type is ProblemType.FREE_FORM
    with pytest.raises(
        InputError, match=r"columns names 'golden', which no row has; .*clip, query"
    ):
        PlainReader(path, touch("one.mp4"), columns=columns | {"answer": "golden"}).read()
    for wrong in ({"solution": "gold"}, {"answer": ["a", "b"]}):
        with pytest.raises(InputError, match=r"columns: .* is not understood; give a name"):
            PlainReader(path, columns=wrong)


@pytest.mark.parametrize(
    "fields",
    [
        {"mc_options": "red / blue"},
        {"distractors": ["red", "green"], "answer": "blue"},
        {"pool": ["red", "blue"], "answer": "blue"},
        {"ans_1": "red", "ans_2": "blue"},
        {"alternatives": {"A": "red", "B": "blue"}},
        {"picks": {"A": "red", "B": "blue"}},
        {"answer_idx": 1},
    ],
)
def test_what_looks_like_options_is_never_read_as_free_text(write, touch, fields):
    row = {"video": "one.mp4", "question": "What?"} | fields
    path = write([row], "rows.jsonl")
    key = next(iter(fields))
    with pytest.raises(InputError, match=f":1: has no options, but '?{key}'?.*columns: "):
        PlainReader(path, touch("one.mp4")).read()
    if key != "answer_idx":
        path = write([row | {"type": "free-form"}], "rows.jsonl")
        assert PlainReader(path, touch("one.mp4")).read()[0].problem_type is ProblemType.FREE_FORM


def test_other_fields_do_not_look_like_options(write, touch):
    row = {
        "video": "one.mp4", "question": "What?", "answer": "a cup", "tags": ["home", "day"],
        "num_options": 4, "caption_1": "x", "clip_intervals": [[0, 1], [2, 3]], "note": "b",
    }  # fmt: skip
    (question,) = PlainReader(write([row], "rows.jsonl"), touch("one.mp4")).read()
    assert question.problem_type is ProblemType.FREE_FORM
    assert question.metadata["tags"] == ["home", "day"]


def test_a_type_that_is_none_is_a_category(write, touch):
    rows = [
        ROW | {"type": "Causal"},
        {**ROW, "type": "numerical", "A": None, "B": None, "answer": 3},
    ]
    first, second = PlainReader(write(rows, "rows.jsonl"), touch("one.mp4")).read()
    assert first.problem_type is ProblemType.MULTIPLE_CHOICE
    assert first.metadata["breakdown"] == {"type": "Causal"}
    assert (second.problem_type, second.gold) == (ProblemType.NUMERICAL, "3")


def test_a_missing_column_names_those_that_are_there_and_the_reader(write, touch):
    row = {"problem_id": 1, "problem": "What?", "problem_type": "free-form", "solution": "x",
           "path": "one.mp4"}  # fmt: skip
    with pytest.raises(InputError) as caught:
        PlainReader(write([row], "rows.jsonl"), touch("one.mp4")).read()
    text = str(caught.value)
    assert "field 'question' is missing; the row has problem_id, problem, problem_type" in text
    assert "or read the file with VideoR1Reader" in text
    with pytest.raises(InputError, match=r"field 'question' is missing; the row has video, ask$"):
        PlainReader(write("video,ask\none.mp4,What?\n", "mine.csv"), touch("one.mp4")).read()
