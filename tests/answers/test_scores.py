"""Graded scores against plain readings of their definitions, and what counts as right."""

import doctest
import random

import pytest

import vrts.answers.grading
from vrts.answers import answer_score, is_correct, parse_answer
from vrts.types import InputError, ProblemType, Question


def ask(problem_type: ProblemType, answer: str | None) -> Question:
    options = ("red", "blue") if problem_type is ProblemType.MULTIPLE_CHOICE else ()
    return Question("q", "What?", "a.mp4", problem_type, options, answer, "x.json:3")


def score(text: str, problem_type: ProblemType, gold: str) -> float | None:
    question = ask(problem_type, gold)
    return answer_score(parse_answer(text, question), question)


def words(rng: random.Random, count: int) -> list[str]:
    return rng.choices("red blue green stop sign exit road".split(), k=count)


def edit_distance(a: list[str], b: list[str]) -> int:
    """Recursion of the definition, no table."""
    if not a or not b:
        return len(a) + len(b)
    change = edit_distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(change, edit_distance(a[1:], b) + 1, edit_distance(a, b[1:]) + 1)


def test_ocr_is_one_minus_the_word_error_rate():
    rng = random.Random(1)
    for _ in range(60):
        gold, answer = words(rng, rng.randint(1, 5)), words(rng, rng.randint(1, 6))
        want = max(0.0, 1 - edit_distance(answer, gold) / len(gold))
        got = score(" ".join(answer), ProblemType.OCR, " ".join(gold))
        assert got == pytest.approx(want, abs=1e-6)


def ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def f_measure(common: int, answer: int, gold: int) -> float:
    if common == 0:
        return 0.0
    precision, recall = common / answer, common / gold
    return 2 * precision * recall / (precision + recall)


def plain_rouge(answer: list[str], gold: list[str]) -> float:
    values = []
    for n in (1, 2):
        a, b = ngrams(answer, n), ngrams(gold, n)
        common = sum(min(a.count(gram), b.count(gram)) for gram in set(a))
        values.append(f_measure(common, len(a), len(b)))

    def longest(a: list[str], b: list[str]) -> int:
        if not a or not b:
            return 0
        if a[0] == b[0]:
            return 1 + longest(a[1:], b[1:])
        return max(longest(a[1:], b), longest(a, b[1:]))

    values.append(f_measure(longest(answer, gold), len(answer), len(gold)))
    return sum(values) / 3


def test_free_form_is_the_mean_of_rouge_1_2_and_l():
    rng = random.Random(2)
    for _ in range(60):
        gold, answer = words(rng, rng.randint(2, 6)), words(rng, rng.randint(1, 7))
        want = 1.0 if answer == gold else plain_rouge(answer, gold)
        got = score(" ".join(answer), ProblemType.FREE_FORM, " ".join(gold))
        assert got == pytest.approx(want, abs=1e-6)


def test_regression_is_one_minus_the_relative_error():
    rng = random.Random(3)
    for _ in range(100):
        gold, answer = round(rng.uniform(-9, 9), 2), round(rng.uniform(-9, 9), 2)
        relative = min((abs(answer - gold) + 1e-9) / (abs(gold) + 1e-9), 1)
        got = score(str(answer), ProblemType.REGRESSION, str(gold))
        assert got == pytest.approx(1 - relative, abs=1e-9)


@pytest.mark.parametrize(
    ("problem_type", "gold", "text", "value", "correct"),
    [
        (ProblemType.MULTIPLE_CHOICE, "B", "(b)", 1, True),
        (ProblemType.MULTIPLE_CHOICE, "B", "A", 0, False),
        (ProblemType.NUMERICAL, "13", "13.0 s", 1, True),
        (ProblemType.NUMERICAL, "13", "14", 0, False),
        (ProblemType.REGRESSION, "100", "104.9", 0.951, True),
        (ProblemType.REGRESSION, "100", "105", 0.95, False),
        (ProblemType.REGRESSION, "100", "300", 0, False),
        (ProblemType.REGRESSION, "50%", "0.5", 1, True),
        (ProblemType.REGRESSION, "100", "far", 0, False),
        (ProblemType.REGRESSION, "0", "0", 1, True),
        (ProblemType.REGRESSION, "0", "-0.0", 1, True),
        (ProblemType.REGRESSION, "0 m", "0.5", 0, False),
        (ProblemType.OCR, "Stop the car!", "STOP THE CAR", 1, True),
        (ProblemType.OCR, "Stop the car!", "Stop car", 2 / 3, False),
        (ProblemType.OCR, "出口", "出口", 1, True),
        (ProblemType.OCR, "出口", "出 口", 1, True),
        (ProblemType.OCR, "禁止停车", "禁止停车场", 0.75, False),
        (ProblemType.OCR, "禁止停车", "停车", 0.5, False),
        (ProblemType.OCR, "Gate 5 出口", "gate 5 入口", 0.75, False),
        (ProblemType.FREE_FORM, "推拉", "推动", (0.5 + 0 + 0.5) / 3, False),
        (ProblemType.FREE_FORM, "Dolly zoom", "the dolly-zoom.", 1, True),
        (ProblemType.FREE_FORM, "Zoom", "zoom", 1, True),
        (ProblemType.FREE_FORM, "推拉变焦", "推拉变焦", 1, True),
        (ProblemType.FREE_FORM, "Dolly zoom", "pan", 0, False),
        (ProblemType.FREE_FORM, "Dolly zoom", "", 0, False),
        (ProblemType.TEMPORAL_GROUNDING, "10 to 20", "from 10 to 20 s", 1, True),
        (ProblemType.TEMPORAL_GROUNDING, "10 to 20", "00:10-00:15", 0.5, True),
        (ProblemType.TEMPORAL_GROUNDING, "10 to 20", "10 to 14", 0.4, False),
        (ProblemType.TEMPORAL_GROUNDING, "10 to 20", "12", 0, False),
    ],
)
def test_scores_and_what_is_right(problem_type, gold, text, value, correct):
    question = ask(problem_type, gold)
    answer = parse_answer(f"<think>So 7.</think><answer>{text}</answer>", question)
    assert answer_score(answer, question) == pytest.approx(value, abs=1e-6)
    assert is_correct(answer, question) is correct


@pytest.mark.parametrize("problem_type", list(ProblemType))
def test_no_answer_scores_nothing_and_no_gold_answer_gives_no_score(problem_type):
    gold = {ProblemType.MULTIPLE_CHOICE: "A", ProblemType.TEMPORAL_GROUNDING: "1 to 2"}
    assert answer_score(None, ask(problem_type, gold.get(problem_type, "1"))) == 0
    assert answer_score("1", ask(problem_type, None)) is None


@pytest.mark.parametrize(
    ("problem_type", "gold", "message"),
    [
        (ProblemType.REGRESSION, "far", r"x\.json:3.*'far'.*regression.*not one number"),
        (ProblemType.OCR, "...", r"x\.json:3.*'\.\.\.'.*OCR"),
        (ProblemType.TEMPORAL_GROUNDING, "soon", r"x\.json:3.*'soon'.*start and an end"),
    ],
)
def test_a_bad_gold_answer_is_named(problem_type, gold, message):
    for measure in (answer_score, is_correct):
        if problem_type is ProblemType.OCR and measure is is_correct:
            continue
        with pytest.raises(InputError, match=message):
            measure("1", ask(problem_type, gold))


def test_examples_in_docstrings():
    assert doctest.testmod(vrts.answers.grading).failed == 0
