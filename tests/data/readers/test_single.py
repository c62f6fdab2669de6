"""One question from the command line."""

import re

import pytest

from vrts.data.datamodule import VideoQADataModule
from vrts.data.readers.single import SingleQuestionReader
from vrts.types import InputError, ProblemType


def test_options_make_a_multiple_choice(tmp_path):
    video = tmp_path / "a clip.mp4"
    video.touch()
    (question,) = SingleQuestionReader(str(video), " Why? ", ["A. red", "B. blue"]).read()
    assert (question.id, question.text, question.video) == ("a clip.mp4", "Why?", str(video))
    assert (question.problem_type, question.options) == ("multiple choice", ("red", "blue"))
    assert question.gold is None
    (question,) = SingleQuestionReader(str(video), "Why?").read()
    assert (question.problem_type, question.options) == (ProblemType.FREE_FORM, ())


def test_the_fingerprint_tells_the_content(tmp_path):
    """And of a long film not all is read for it."""
    video = tmp_path / "clip.mp4"
    video.write_bytes(b"one")
    reader = SingleQuestionReader(str(video), "Why?", ["red", "blue"])
    before = reader.fingerprint()
    assert before["options"] == ["red", "blue"]
    video.write_bytes(b"two")
    assert reader.fingerprint()["video"] != before["video"]
    assert reader.fingerprint()["question"] == before["question"]
    with video.open("wb") as file:
        file.truncate(2**40)
    assert reader.fingerprint()["video"].startswith("clip.mp4 ")
    folder = SingleQuestionReader(str(tmp_path), "Why?")
    assert folder.fingerprint()["video"] == str(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"video": "none.mp4"}, "data.video: none.mp4: no such file"),
        ({"video": "x" * 300}, "xxx: no such file"),
        ({"question": " "}, "data.question is empty"),
        ({"options": ["one"]}, "data.options: a multiple choice needs 2 to 26 options"),
        ({"options": ["A. x", "C. y"]}, "data.options: options are lettered AC"),
    ],
)
def test_mistakes_are_named(options, message):
    asked = {"video": __file__, "question": "Why?"} | options
    with pytest.raises(InputError, match=re.escape(message)):
        SingleQuestionReader(**asked).read()


def test_a_question_longer_than_any_file_name_has_a_fingerprint():
    question = "Why? " * 20_000
    assert SingleQuestionReader(__file__, question).fingerprint()["question"] == question


@pytest.mark.parametrize(
    "options",
    [
        {"video": __file__},
        {"question": "Why?"},
        {"options": ["a", "b"]},
        {"video": __file__, "question": "?", "predict": SingleQuestionReader(__file__, "?")},
    ],
)
def test_what_does_not_go_together_is_refused(options):
    with pytest.raises(InputError, match=r"data\.video and data\.question are one question"):
        VideoQADataModule(**options)


def test_the_data_module_asks_it():
    data = VideoQADataModule(video=__file__, question="Why?", options=["a", "b"])
    data.setup("predict")
    assert [question.text for question in data.questions("predict")] == ["Why?"]
    with pytest.raises(InputError, match=r"predict needs data\.predict.*data\.video"):
        VideoQADataModule().setup("predict")
