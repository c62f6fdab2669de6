"""Questions match their scene, and options hide which one is right."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from vrts.demo.questions import (
    FIRST,
    FLASH,
    LAST,
    MOTION,
    NUM_OPTIONS,
    OBJECT,
    draw_options,
    question_row,
)
from vrts.demo.scenes import COLOURS, random_scene

SCENE = random_scene(np.random.default_rng(0))
CHANGING = random_scene(np.random.default_rng(0), changes=True)


@pytest.mark.parametrize(
    ("kind", "scene", "answer"),
    [
        (OBJECT, SCENE, SCENE.colour),
        (FLASH, SCENE, SCENE.flash_colour),
        (MOTION, SCENE, SCENE.direction),
        (FIRST, CHANGING, CHANGING.colour),
        (LAST, CHANGING, CHANGING.later_colour),
    ],
)
def test_answers(kind, scene, answer):
    question = kind.question(scene)
    assert kind.suits(scene)
    assert question.answer == answer
    assert answer in kind.choices
    if kind is not FLASH:
        assert question.evidence is None
        assert scene.shape in question.text


def test_only_the_flash_has_frames_of_evidence():
    assert FLASH.question(SCENE).evidence == SCENE.flash_frames


def test_first_and_last_need_a_change_and_the_plain_colour_none():
    assert not FIRST.suits(SCENE)
    assert not LAST.suits(SCENE)
    assert not OBJECT.suits(CHANGING)
    assert FLASH.suits(SCENE)
    assert FLASH.suits(CHANGING)


def test_shuffled_options_put_the_answer_anywhere():
    rng = np.random.default_rng(0)
    drawn = [draw_options(OBJECT, "red", True, rng) for _ in range(400)]
    assert all(len(set(options)) == NUM_OPTIONS and "red" in options for options in drawn)
    places = Counter(options.index("red") for options in drawn)
    assert set(places) == set(range(NUM_OPTIONS))
    # 100 each expected, standard deviation 8.7
    assert min(places.values()) > 65
    assert {o for options in drawn for o in options} == set(COLOURS)


def test_unshuffled_options_keep_the_order_of_their_kind():
    rng = np.random.default_rng(0)
    for _ in range(50):
        options = draw_options(OBJECT, "green", False, rng)
        assert options == sorted(options, key=list(COLOURS).index)
    assert draw_options(MOTION, "up", False, rng) == list(MOTION.choices)


def test_row():
    question = FLASH.question(SCENE)
    options = draw_options(FLASH, question.answer, True, np.random.default_rng(5))
    row = question_row(7, FLASH, question, options, "videos/00007.mp4")
    letter = row["solution"].removeprefix("<answer>").removesuffix("</answer>")
    assert row["options"]["ABCD".index(letter)] == f"{letter}. {question.answer}"
    assert row["evidence_frames"] == list(SCENE.flash_frames)
    assert (row["problem_id"], row["kind"], row["path"]) == (7, "flash", "videos/00007.mp4")


def test_an_answer_that_is_no_option_is_an_error():
    question = dataclasses.replace(OBJECT.question(SCENE), answer="white")
    with pytest.raises(ValueError, match="white"):
        question_row(0, OBJECT, question, ["red", "green"], "a.mp4")
