from collections import Counter

import pytest

from vrts.answers import is_correct, parse_answer
from vrts.data.readers.videommmu import ADAPTATION_PROMPT, TRACKS, VideoMMMUReader
from vrts.types import InputError, ProblemType

ROW = {
    "id": "validation_Art_Theory_3",
    "link_selected": "https://www.youtube.com/watch?v=x",
    "question": "<image 1> Which one?",
    "options": ["one", "two"],
    "answer": "B",
    "question_type": "multiple-choice",
}
OPEN = ROW | {"id": "dev_Math_15", "question_type": "open", "options": [], "answer": "12.97"}


def tracks(track, *rows):
    return {track: {str(i): row for i, row in enumerate(rows)}}


def test_adaptation(write, touch):
    absent = {key: OPEN[key] for key in OPEN if key != "options"} | {"id": "dev_Math_16"}
    videos = touch("Art/validation_Art_Theory_3.mp4", "dev_Math_15.mp4")
    path = write(tracks("Adaptation", ROW, OPEN, absent))
    first, second, third = VideoMMMUReader(path, videos).read()
    assert first.id == "adaptation-validation_Art_Theory_3"
    assert first.text == (
        "You should watch and learn the video content. Then apply what you learned to answer the "
        "following multi-choice question. The image for this question is at the end of the video."
        "\n<image 1> Which one?"
    )
    assert (first.options, first.gold) == (("one", "two"), "B")
    assert first.video == f"{videos}/Art/validation_Art_Theory_3.mp4"
    assert first.source == f"{path}: Adaptation 0"
    assert first.metadata["max_frames"] == 64
    assert first.metadata["breakdown"] == {
        "track": "adaptation", "discipline": "Art", "subject": "Art_Theory",
        "type": "multiple choice",
        "track x discipline": "adaptation x Art",
    }  # fmt: skip
    assert second.video == f"{videos}/dev_Math_15.mp4"
    assert third.video == f"{videos}/Science/dev_Math_16.mp4"
    for question in (second, third):
        assert (question.problem_type, question.gold) == (ProblemType.NUMERICAL, "12.97")
        assert question.text.startswith(ADAPTATION_PROMPT.format(kind="open-ended"))
        assert question.options == ()


def test_perception_has_no_words_before_the_question(write, touch):
    row = {key: ROW[key] for key in ROW if key != "question_type"} | {"question": "What?"}
    path = write(tracks("Perception", row))
    (question,) = VideoMMMUReader(path, touch("Art/validation_Art_Theory_3.mp4")).read()
    assert (question.text, question.gold) == ("What?", "B")
    assert question.metadata["breakdown"]["track"] == "perception"


def test_the_type_follows_the_options_where_it_is_missing(write, touch):
    path = write(tracks("Adaptation", ROW | {"question_type": None}))
    (question,) = VideoMMMUReader(path, touch("Art/validation_Art_Theory_3.mp4")).read()
    assert (question.problem_type, question.gold) == (ProblemType.MULTIPLE_CHOICE, "B")


@pytest.mark.parametrize(
    ("answer", "problem_type", "right", "wrong"),
    [
        ("['24/7', '3.429', '3.43]", ProblemType.NUMERICAL, ["3.43", "24/7", "3.429"], ["3.5"]),
        ("7243000", ProblemType.NUMERICAL, ["$7,243,000", "7243000.0"], ["7243001"]),
        ("0.286", ProblemType.NUMERICAL, ["0.286", "0.2857"], ["0.3"]),
        ("A", ProblemType.FREE_FORM, ["A", "a."], ["B"]),
        ("Dolly Zoom", ProblemType.FREE_FORM, ["the dolly zoom"], ["zoom"]),
    ],
)
def test_open_answers(write, touch, answer, problem_type, right, wrong):
    path = write(tracks("Adaptation", OPEN | {"answer": answer}))
    (question,) = VideoMMMUReader(path, touch("dev_Math_15.mp4")).read()
    assert question.problem_type is problem_type
    for texts, expected in ((right, True), (wrong, False)):
        for text in texts:
            answer = parse_answer(f"<answer>{text}</answer>", question)
            assert is_correct(answer, question) is expected, text


def test_options_that_begin_with_a_letter_as_text(write, touch):
    videos = touch("Art/validation_Art_Theory_3.mp4")
    for options, expected in (
        (["A. (Q, P)", "B. (P, Q)"], ("(Q, P)", "(P, Q)")),
        (["M: $57; N: $4", "M: $60; N: $5"], ("M: $57; N: $4", "M: $60; N: $5")),
        (["A: $3, B: $4", "A: $3, B: $5"], ("A: $3, B: $4", "A: $3, B: $5")),
        (["2.46", "H.54"], ("2.46", "H.54")),
        (["same", "same"], ("same", "same")),
    ):
        path = write(tracks("Perception", ROW | {"options": options}))
        assert VideoMMMUReader(path, videos).read()[0].options == expected


def test_three_tracks_in_one_run_and_parquet(write, touch):
    videos = touch("Art/validation_Art_Theory_3.mp4")
    paths = [
        write(tracks("Perception", ROW), "perception_video.json"),
        write([ROW | {"image": {"bytes": b"\x00", "path": "x.png"}}], "Comprehension/t-0.parquet"),
        write([ROW], "Adaptation/test-00000-of-00001.parquet"),
    ]
    questions = VideoMMMUReader(paths, videos).read()
    assert [question.metadata["breakdown"]["track"] for question in questions] == list(TRACKS)
    assert {question.video for question in questions} == {
        f"{videos}/Art/validation_Art_Theory_3.mp4"
    }
    assert "image" not in questions[1].metadata
    assert questions[1].source == f"{paths[1]}:1"
    other = ROW | {"id": "dev_Art_1"}
    paths[0] = write(tracks("Perception", other, ROW), "perception_video.json")
    assert [question.id for question in VideoMMMUReader(paths, videos).read()] == [
        "perception-dev_Art_1",
        *(f"{track}-validation_Art_Theory_3" for track in TRACKS),
    ]
    with pytest.raises(InputError, match="its track is not known"):
        VideoMMMUReader(write([ROW], "rows.parquet"), videos).read()
    with pytest.raises(InputError, match="path is empty"):
        VideoMMMUReader([], videos)


def test_question_only_has_the_ids_of_adaptation(write, touch):
    path = write(tracks("Adaptation", ROW))
    videos = touch("question_only/validation_Art_Theory_3_image.mp4")
    (question,) = VideoMMMUReader(path, videos, question_only=True).read()
    assert question.id == "adaptation-validation_Art_Theory_3"
    assert question.text == ROW["question"]
    assert question.video == f"{videos}/question_only/validation_Art_Theory_3_image.mp4"
    assert question.metadata["breakdown"]["track"] == "question_only"
    with pytest.raises(InputError, match="question_only is for adaptation only"):
        VideoMMMUReader(write(tracks("Perception", ROW)), videos, question_only=True).read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "validation_Cooking_3"}, "names no known subject"),
        ({"question_type": "essay"}, "unknown question_type 'essay'"),
        ({"question_type": "open"}, "question_type is 'open', but there are options"),
        ({"options": []}, "question_type is 'multiple-choice', but there are no options"),
        ({"options": "one"}, "'options' must be a list of texts"),
        ({"answer": "C"}, "answer 'C' is none of the letters AB"),
        ({"answer": None}, "'answer' is missing"),
        ({"question_type": "open", "options": [], "answer": "['1', '2']"}, "different answers"),
        ({"question": " "}, "'question' is empty"),
        ({}, "already taken by"),
    ],
)
def test_bad_rows_name_file_line_and_fault(write, touch, change, message):
    path = write(tracks("Adaptation", ROW, ROW | change))
    with pytest.raises(InputError) as caught:
        VideoMMMUReader(path, touch("Art/validation_Art_Theory_3.mp4")).read()
    assert f"{path}: Adaptation 1: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"Adaptation": {"0": {"id": 1},\n', r"not valid JSON \(.*line 2"),
        ('{"Adaptation":\n {"0" 1}}', r"not valid JSON \(.*line 2"),
        ('{"Adaptation": 3}', r"expected \{"),
        ('{"Adaptation": {"0": 3}}', ": Adaptation 0: expected a JSON object, got int"),
        ('{"Rows": {"0": {"id": "x"}}}', "unknown track 'rows'"),
        ('[{"id": 1}]', r"expected \{"),
        ("{}", "holds no video question"),
    ],
)
def test_damaged_json(write, text, message):
    with pytest.raises(InputError, match=message):
        VideoMMMUReader(write(text)).read()


def test_real_files(shared, touch):
    paths = [str(shared / "annotations" / f"videommmu_{track}_video.json") for track in TRACKS]
    questions = VideoMMMUReader(paths, touch("Science/dev_Biology_3.mp4")).read()
    assert len(questions) == 900
    for track in TRACKS:
        rows = [q for q in questions if q.metadata["breakdown"]["track"] == track]
        assert len(rows) == 300
        assert Counter(q.metadata["breakdown"]["discipline"] for q in rows) == {
            "Engineering": 113, "Science": 44, "Medicine": 43, "Business": 44, "Humanities": 35,
            "Art": 21,
        }  # fmt: skip
    assert {len(q.options) for q in questions} == {0, *range(2, 12), 14}
    assert all(len({q.video for q in questions[i : i + 3]}) == 1 for i in range(0, 900, 3))
    types = Counter(q.problem_type for q in questions[2::3])
    assert types == {"multiple choice": 280, "numerical": 18, "free-form": 2}
    by_id = {q.id: q for q in questions}
    assert by_id["adaptation-validation_Accounting_13"].gold == "C"
    assert by_id["adaptation-validation_Math_15"].gold == "24/7"
    assert all(is_correct(parse_answer(q.gold, q), q) for q in questions)
