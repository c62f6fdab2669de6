"""The text of prompts."""

import doctest
import importlib
from dataclasses import FrozenInstanceError

import pytest

from vrts.answers import extract_choice
from vrts.prompts import R1_PREAMBLE, PromptTemplate
from vrts.types import InputError, ProblemType, Question

ASKED = Question("1", " Which colour? ", "a.mp4", options=("red", "blue {0}"))


def test_default_prompt_has_preamble_options_and_instruction():
    lines = PromptTemplate().render(ASKED).split("\n")
    assert lines[:4] == [R1_PREAMBLE, "Which colour?", "A. red", "B. blue {0}"]
    assert len(lines) == 5
    assert "letter" in lines[4]
    assert "<answer>" in lines[4]


def test_preamble_shows_the_template_once_in_order():
    tags = ["<think>", "</think>", "<answer>", "</answer>"]
    example = R1_PREAMBLE[R1_PREAMBLE.index("like this") :]
    assert [example.count(tag) for tag in tags] == [1, 1, 1, 1]
    assert sorted(tags, key=example.index) == tags
    assert R1_PREAMBLE.startswith("A conversation between User and Assistant")


@pytest.mark.parametrize(
    ("problem_type", "word"),
    [
        (ProblemType.NUMERICAL, "number"),
        (ProblemType.REGRESSION, "number"),
        (ProblemType.OCR, "written"),
        (ProblemType.FREE_FORM, "text"),
        (ProblemType.TEMPORAL_GROUNDING, "start and the end in seconds"),
    ],
)
def test_each_problem_type_has_its_instruction(problem_type, word):
    asked = Question("1", "How many?", "a.mp4", problem_type)
    first, question, instruction = PromptTemplate().render(asked).split("\n")
    assert (first, question) == (R1_PREAMBLE, "How many?")
    assert word in instruction


def test_every_part_can_be_empty():
    bare = PromptTemplate(preamble="", multiple_choice="", numerical="N", free_form="")
    assert bare.render(ASKED) == "Which colour?\nA. red\nB. blue {0}"
    assert bare.render(Question("1", "Q", "v", ProblemType.NUMERICAL)) == "Q\nN"
    assert bare.render(Question("1", "Q", "v", ProblemType.FREE_FORM)) == "Q"


def test_template_is_frozen():
    with pytest.raises(FrozenInstanceError):
        PromptTemplate().preamble = "x"  # type: ignore[misc]


def test_more_options_than_letters_is_named():
    asked = Question("1", "Q", "v", options=tuple(map(str, range(27))), source="x.json:3")
    with pytest.raises(InputError, match=r"x\.json:3: 27 options"):
        PromptTemplate().render(asked)


def test_rendered_options_are_read_back():
    lines = tuple(PromptTemplate(preamble="", multiple_choice="").render(ASKED).split("\n")[1:])
    assert extract_choice("Blue {0}", lines) == "B"


ANSWERS = [f"answers.{name}" for name in ("choices", "mentions", "numbers", "numerals", "tags")]


@pytest.mark.parametrize("module", ["prompts", *ANSWERS])
def test_examples_in_docstrings(module):
    result = doctest.testmod(importlib.import_module(f"vrts.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
