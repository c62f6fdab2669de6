import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vrts.data.readers.fields import gold_answer, strip_letters
from vrts.data.readers.plain import PlainReader
from vrts.data.readers.video_rts import VideoR1Reader, VideoRTSReader
from vrts.types import InputError, ProblemType, letters

R1 = {
    "problem_id": 7,
    "problem": "What?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. red", "B. C. elegans"],
    "solution": "<answer>B</answer>",
    "path": "clip.mp4",
    "data_source": "mine",
}
RTS = {
    "problem": "What colour\nis it?\nA. yellow\nB. green\nC. red\n",
    "solution": "<answer>C.</answer>",
    "video": "/foreign/folder/abc.mp4",
    "qid": 3,
    "original_answer": "red",
}


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("clip.mp4", "abc.mp4"):
        (folder / name).write_bytes(b"not looked into by readers")
    return str(folder)


def write(tmp_path, rows, array=False, name="questions.json"):
    path = tmp_path / name
    text = json.dumps(rows, indent=1) if array else "\n".join(json.dumps(row) for row in rows)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("array", [True, False])
def test_video_r1_rows(tmp_path, videos, array):
    numerical = R1 | {
        "problem_id": 8, "problem_type": "regression", "options": [],
        "solution": "<answer> 13.5 </answer>", "path": "./clip.mp4",
    }  # fmt: skip
    free = R1 | {
        "problem_id": "x", "problem_type": "OCR", "options": None,
        "solution": None, "path": "/foreign/clip.mp4",
    }  # fmt: skip
    path = write(tmp_path, [R1, numerical, free], array)
    first, second, third = VideoR1Reader(path, videos).read()
    assert (first.id, first.text, first.gold) == ("7", "What?", "B")
    assert first.options == ("red", "C. elegans")
    assert first.video == second.video == third.video == f"{videos}/clip.mp4"
    assert first.metadata["data_source"] == "mine"
    assert first.source == (f"{path}: item 1" if array else f"{path}:1")
    assert second.source == (f"{path}: item 2" if array else f"{path}:2")
    assert (second.problem_type, second.gold) == (ProblemType.REGRESSION, "13.5")
    assert second.metadata["problem_type"] == "regression"
    assert (third.problem_type, third.gold) == (ProblemType.OCR, None)
    assert len(VideoR1Reader(path, videos, limit=2).read()) == 2


def test_video_r1_paths_start_at_the_annotation_file(tmp_path, videos):
    path = write(tmp_path, [R1 | {"path": "videos/clip.mp4"}])
    assert VideoR1Reader(path).read()[0].video == f"{videos}/clip.mp4"


def test_video_r1_windows(tmp_path, videos):
    path = write(tmp_path, [R1, R1 | {"problem_id": "second", "start_s": 2, "end_s": 4.5}])
    first, second = VideoR1Reader(path, videos).read()
    assert (first.start_s, first.end_s) == (0.0, None)
    assert (second.start_s, second.end_s) == (2.0, 4.5)


def test_images_are_marked_or_left_out(tmp_path, videos):
    rows = [R1, R1 | {"problem_id": 9, "data_type": "image", "path": "a.png"}]
    path = write(tmp_path, rows)
    video, image = VideoR1Reader(path, videos).read()
    assert (video.is_image, image.is_image) == (False, True)
    assert image.video == f"{videos}/a.png"
    other = write(tmp_path, [R1 | {"data_type": "audio"}], name="other.json")
    with pytest.raises(InputError, match="data_type is 'audio'; only 'video' and 'image'"):
        VideoR1Reader(other, videos).read()
    assert len(VideoR1Reader(path, videos, skip_images=True).read()) == 1


def test_video_rts_rows(tmp_path, videos):
    path = write(tmp_path, [RTS])
    (question,) = VideoRTSReader(path, videos).read()
    assert question.id == "abc-3"
    assert question.text == "What colour\nis it?"
    assert question.options == ("yellow", "green", "red")
    assert question.gold == "C"
    assert question.video == f"{videos}/abc.mp4"
    assert question.metadata["original_answer"] == "red"


def test_video_map_replaces_videos(tmp_path, videos):
    rows = [RTS | {"video": f"/x/{name}.mp4"} for name in ("one", "two", "three")]
    path = write(tmp_path, rows)
    mapping = {"one": "clip.mp4", "two.mp4": f"{videos}/abc.mp4", "*": "other.mp4"}
    saved = tmp_path / "map.json"
    saved.write_text(json.dumps(mapping))
    expected = [f"{videos}/{name}.mp4" for name in ("clip", "abc", "other")]
    for video_map in (mapping, str(saved)):
        questions = VideoRTSReader(path, videos, video_map).read()
        assert [question.video for question in questions] == expected
    saved.write_text("[1]")
    with pytest.raises(InputError, match="must be a JSON object"):
        VideoRTSReader(path, videos, str(saved)).read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solution": "<answer>D</answer>"}, "answer 'D' is none of the letters AB"),
        ({"solution": "red"}, "answer 'red' is none"),
        ({"solution": "<answer></answer>"}, "'solution' is empty"),
        ({"options": []}, "needs 2 to 26 options, got 0"),
        ({"options": None}, "needs 2 to 26 options, got 0"),
        ({"options": ["A. x"]}, "needs 2 to 26 options, got 1"),
        ({"options": ["A. x", "C. y"]}, "lettered AC, expected AB"),
        ({"options": ["A. x", "y"]}, "lettered A-, expected AB"),
        ({"options": ["A. x", "B. "]}, "option B is empty"),
        ({"options": "A. x"}, "must be a list of texts"),
        ({"problem_type": "essay"}, "unknown problem_type 'essay'"),
        ({"problem": ""}, "'problem' is empty"),
        ({"path": None}, "'path' is missing"),
        ({"problem_id": [1]}, "'problem_id' must be text, got list"),
        ({"problem_type": "numerical", "solution": "3"}, "is 'numerical', but there are options"),
        ({"start_s": 9, "end_s": 2.5}, "the window from start_s 9 to end_s 2.5 is empty"),
        ({"start_s": True}, "field 'start_s' must be a number"),
        ({"data_type": "image", "end_s": 4}, "data_type is 'image', but start_s or end_s is given"),
        ({"solution": "A. C. elegans"}, "has the letter A and the text of B"),
        ({"solution": {"B": "<answer>B</answer>"}}, "field 'solution' must be text, got dict"),
        ({"problem": True}, "field 'problem' must be text, got True"),
        ({"problem_id": float("nan")}, "field 'problem_id' is missing"),
        ({"fps": "fast"}, "field 'fps' must be a number, got 'fast'"),
        ({"problem": "What \ud800?"}, "text that is not valid Unicode"),
        ({"data_source": "half \ud800"}, "text that is not valid Unicode"),
        ({"note": "half \ud800"}, "text that is not valid Unicode"),
    ],
)
def test_bad_video_r1_rows_name_file_line_and_fault(tmp_path, videos, change, message):
    path = write(tmp_path, [R1, R1 | {"problem_id": "second"} | change])
    with pytest.raises(InputError) as caught:
        VideoR1Reader(path, videos).read()
    assert f"{path}:2: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem": "What?"}, "has no options"),
        ({"problem": "A. x\nB. y"}, "no question before its options"),
        ({"problem": "What?\nA. x\nB. y\nand more"}, "'and more' among its options"),
        ({"solution": "<answer>H.</answer>"}, "answer 'H.' is none of the letters ABC"),
        ({"qid": None}, "'qid' is missing"),
        ({"video": ""}, "'video' is empty"),
    ],
)
def test_bad_video_rts_rows_name_file_line_and_fault(tmp_path, videos, change, message):
    path = write(tmp_path, [RTS, RTS | {"qid": 4} | change])
    with pytest.raises(InputError) as caught:
        VideoRTSReader(path, videos).read()
    assert f"{path}:2: " in str(caught.value)
    assert message in str(caught.value)


def test_options_without_letters(tmp_path, videos):
    path = write(tmp_path, [R1 | {"options": ["C. elegans", "E. coli", "yeast"]}])
    (question,) = VideoR1Reader(path, videos).read()
    assert question.options == ("C. elegans", "E. coli", "yeast")


def test_missing_solution_field(tmp_path, videos):
    for reader, row in ((VideoR1Reader, R1), (VideoRTSReader, RTS)):
        path = write(tmp_path, [{key: row[key] for key in row if key != "solution"}])
        with pytest.raises(InputError, match="'solution' is missing"):
            reader(path, videos).read()


def test_all_bad_rows_are_reported_together(tmp_path, videos):
    rows = [R1 | {"problem_id": i, "solution": "Z"} for i in range(7)]
    path = write(tmp_path, [*rows, R1 | {"problem_id": 8}, R1 | {"problem_id": 8}])
    with pytest.raises(InputError) as caught:
        VideoR1Reader(path, videos).read()
    text = str(caught.value)
    assert "8 bad rows" in text
    assert "and 3 more" in text
    assert [f"{path}:{line}: " in text for line in range(1, 7)] == [True] * 5 + [False]


def test_duplicate_ids_name_both_lines(tmp_path, videos):
    path = write(tmp_path, [R1, R1])
    with pytest.raises(InputError, match=r":2: id '7' is already taken by .*:1"):
        VideoR1Reader(path, videos).read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"a": 1}\n{"a":', r":2: not valid JSON"),
        (b'[{"a": 1},\n\n {"a" 2}]', r"not valid JSON \(.*line 3"),
        (b'[{"a": 1}\n {"a": 2}]', r"not valid JSON \(.*line 2"),
        (b'[{"a": 1},\n', r"not valid JSON \(.*line 2"),
        (b"[3]", ": item 1: expected a JSON object, got int"),
        (b'{"a": 1}\n' + b"[" * 100_000, "not valid JSON"),
        (b'{"a": 1}\n{"problem_id": "\\ud800", "problem": "?"}', ":2: .*field"),
        (b"[]", "holds no video question"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    path = tmp_path / "damaged.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        VideoR1Reader(str(path)).read()


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("shape", ["list", "by id", "one row"])
def test_one_object_is_read_where_it_has_rows(tmp_path, videos, indent, shape):
    rows = [R1, R1 | {"problem_id": 8}]
    value = {
        "list": {"info": {"version": 1}, "annotations": rows, "n": [1]},
        "by id": {str(row["problem_id"]): row for row in rows},
        "one row": R1,
    }[shape]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(value, indent=indent))
    questions = VideoR1Reader(str(path), videos).read()
    assert [question.id for question in questions] == (["7"] if shape == "one row" else ["7", "8"])
    place = ":1" if shape == "one row" else ": item 1"
    assert questions[0].source == f"{path}{place}"


def test_the_key_of_a_row_is_its_id(tmp_path, videos):
    row = {"video": "clip.mp4", "question": "Why?"}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"first": row, "second": row | {"id": "own"}}, indent=2))
    assert [q.id for q in PlainReader(str(path), videos).read()] == ["first", "own"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"videos": 3,\n "info": {"version": 1}}',
            "the file is one JSON object with the keys videos, info, in which there are no "
            "rows; expected an array of rows",
        ),
        ('{"a": [{"x": 1}],\n "b": [{"y": 1}]}', "the file is one JSON object with the keys a"),
        ('{\n "annotations": [\n  {"problem_id": 1,\n', r"not valid JSON \(.*line 4"),
        ('{"annotations": []}', "with the keys annotations, in which there are no rows"),
    ],
)  # fmt: skip
def test_one_object_without_rows_is_named_as_what_it_is(tmp_path, text, message):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        VideoR1Reader(str(path)).read()
    assert "1 bad row" in str(caught.value)


def test_missing_files_and_folders(tmp_path, videos):
    path = write(tmp_path, [R1])
    with pytest.raises(InputError, match=r"nowhere\.json: no such file"):
        VideoR1Reader(str(tmp_path / "nowhere.json")).read()
    with pytest.raises(InputError, match="is not a file"):
        VideoR1Reader(str(tmp_path)).read()
    with pytest.raises(InputError, match="no such folder; set video_root"):
        VideoR1Reader(path, str(tmp_path / "nowhere")).read()


def test_no_video_at_all_is_an_error_and_some_missing_is_not(tmp_path, videos):
    rows = [R1 | {"path": "gone.mp4"}]
    with pytest.raises(InputError, match=r"none of its 1 videos.*gone\.mp4.*video_root"):
        VideoR1Reader(write(tmp_path, rows), videos).read()
    rows.append(R1 | {"problem_id": 8})
    assert len(VideoR1Reader(write(tmp_path, rows), videos).read()) == 2


@given(st.lists(st.text("abc xyz.()B", min_size=1).filter(str.strip), min_size=2, max_size=26))
def test_lettered_options_come_back_without_their_letters(texts):
    forms = ["{}. {}", "{}) {}", "({}) {}", "{}: {}"]
    for form in forms:
        lettered = [form.format(*pair) for pair in zip(letters(texts), texts, strict=True)]
        assert strip_letters(lettered) == tuple(text.strip() for text in texts)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from("ABCDEFGH"), st.sampled_from(["{}", "{}.", "({})", "{})", "{}. text", " {} "])
)
def test_gold_letters(letter, form):
    options = tuple("12345678")
    for text in (form.format(letter), f"<answer>{form.format(letter.lower())}</answer>"):
        assert gold_answer(text, ProblemType.MULTIPLE_CHOICE, options) == letter


@pytest.mark.slow
def test_real_files(shared):
    annotations, videos = shared / "annotations", str(shared / "videos")
    path = str(annotations / "cgbench_selected_training_samples.jsonl")
    questions = VideoRTSReader(path, videos, {"*": "nasa_13013.mp4"}).read()
    assert len(questions) == 8136
    assert {len(question.options) for question in questions} == {5, 6, 7, 8}
    assert questions[0].gold == "G"
    assert questions[0].options[6] == "orange"
    with pytest.raises(InputError, match="none of its 1218 videos"):
        VideoRTSReader(path, videos).read()
    real = VideoR1Reader(str(annotations / "real_videos.jsonl"), videos).read()
    assert [question.gold for question in real] == ["B", "A", "B", "C", "C", "13"]
