"""Canonical answers and whether they are right."""

# ruff: noqa: RUF001 - full-width and look-alike characters are what is tested

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrts.answers import is_correct, normalise_text, parse_answer
from vrts.types import InputError, ProblemType, Question


def question(gold=None, problem_type=ProblemType.MULTIPLE_CHOICE, options=(), source=""):
    if problem_type is ProblemType.MULTIPLE_CHOICE and not options:
        options = ("red", "green", "blue")
    return Question("q1", "Which?", "a.mp4", problem_type, options, gold, source)


NUMERICAL, FREE_FORM = ProblemType.NUMERICAL, ProblemType.FREE_FORM


@pytest.mark.parametrize(
    ("texts", "problem_type", "answer"),
    [
        (["B", "(b)", "<answer>B.</answer>", "Green", "B. green"], "multiple choice", "B"),
        (["", "A or B", "No answer found"], "multiple choice", None),
        (["13", "13.0", "13 s", "The answer is 13.", "1.3e1", "26/2"], "numerical", "13"),
        (["1/2", "0.5", ".50"], "numerical", "0.5"),
        (["about right", "12 or 13"], "numerical", None),
        (
            ["Dolly zoom", " the  dolly-zoom. ", "<answer>DOLLY ZOOM</answer>",
             "The answer is: dolly zoom", "\\boxed{dolly zoom}", "**Dolly zoom**"],
            "free-form",
            "dolly zoom",
        ),
        (["", "...", "<answer></answer>", "<think>dolly"], "free-form", None),
    ],
)  # fmt: skip
def test_equal_answers_have_equal_strings(texts, problem_type, answer):
    asked = question(problem_type=ProblemType(problem_type))
    assert [parse_answer(text, asked) for text in texts] == [answer] * len(texts)


@given(st.text(), st.sampled_from(list(ProblemType)))
def test_parsing_an_answer_again_changes_nothing(text, problem_type):
    asked = question(problem_type=problem_type)
    answer = parse_answer(text, asked)
    if answer is not None and problem_type is not FREE_FORM:
        assert parse_answer(answer, asked) == answer


@given(st.text())
def test_normal_text_stays(text):
    normal = normalise_text(text)
    assert normal is None or normalise_text(normal) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat!", "cat"),
        ("Faraday's", "faradays"),
        ("third-person", "third person"),
        ("-5", "-5"),
        ("-5.25 V", "-5.25 v"),
        ("1,000", "1000"),
        ("C++", "c++"),
        ("50%", "50%"),
        ("El Niño", "el niño"),
        ("A", "a"),
        ("×", "×"),
        ("?!", None),
        ("上海", "上海"),
    ],
)
def test_normalise_text(text, normal):
    assert normalise_text(text) == normal


@pytest.mark.parametrize(
    ("answer", "gold", "problem_type", "right"),
    [
        ("B", "B", "multiple choice", True),
        ("B", " b ", "multiple choice", True),
        ("A", "B", "multiple choice", False),
        (None, "B", "multiple choice", False),
        ("B", None, "multiple choice", None),
        (None, None, "free-form", None),
        ("13", "13", "numerical", True),
        ("13", "13.0 s", "numerical", True),
        ("13.005", "13", "numerical", True),
        ("13.1", "13", "numerical", False),
        (None, "13", "numerical", False),
        ("50", "50%", "numerical", True),
        ("0.5", "50%", "numerical", True),
        ("50", "50", "numerical", True),
        ("1250", "1,250", "numerical", True),
        ("dolly zoom", "The Dolly Zoom", "free-form", True),
        ("zoom", "Dolly Zoom", "free-form", False),
        (None, "Dolly Zoom", "free-form", False),
    ],
)
def test_is_correct(answer, gold, problem_type, right):
    assert is_correct(answer, question(gold, ProblemType(problem_type))) is right


def test_tolerance_is_taken():
    assert is_correct("13.4", question("13", NUMERICAL), tolerance=0.5)
    assert not is_correct("13.005", question("13", NUMERICAL), tolerance=0)


@pytest.mark.parametrize("letter", ["G", "AB", "", "red"])
def test_a_gold_letter_of_no_option_is_named(letter):
    with pytest.raises(InputError, match=r"train\.json:7.*not one of the option letters ABC"):
        is_correct("A", question(letter, source="train.json:7"))


@pytest.mark.parametrize("answer", ["5", None])
def test_a_gold_value_that_is_no_number_is_named(answer):
    with pytest.raises(InputError, match=r"question q1.*'a few'.*free-form"):
        is_correct(answer, question("a few", NUMERICAL))


def test_a_right_completion_is_right_in_every_form():
    templates = ["{}", "<think>It is red, A.</think><answer>{}</answer>", "<answer>{}"]
    for template, form in product(templates, ["C", "(C)", "**c**", "blue", "C. blue"]):
        asked = question("C")
        assert is_correct(parse_answer(template.format(form), asked), asked)
