"""Reasons of failures, grouped."""

import random

import pytest

from tests.callbacks.test_summary import line
from vrts.callbacks.failures import (
    MOST_CHARACTERS,
    MOST_REASONS,
    check_answered,
    failure_reasons,
)
from vrts.callbacks.summary import summarise
from vrts.types import InputError


def failed(id, error, video=None):
    return line(id, False, prediction=None, failed=True, video=video) | {"error": error}


def test_a_cause_of_many_failures_is_one_reason():
    lines = [
        failed("1", "v/a.mp4: no such file", "v/a.mp4"),
        line("right", True, (4, 1.0)),
        failed("2", "v/(b) [x].mp4: no such file", "v/(b) [x].mp4"),
        failed("3", "f/0003.jpg: cannot be read as a picture (bad)", "f"),
        failed("4", "g/12.jpg: cannot be read as a picture (bad)", "g"),
        failed("5", "question 5: 5120 prompt tokens exceed 4096", "a.mp4"),
        failed("51", "question 51: 9999 prompt tokens exceed 4096", "a.mp4"),
        failed("6", "A: [Errno 36] File name too long: 'é\\n.mp4'", "é\\n.mp4"),
        failed("7", "a: no frame within 60 s", "a"),
        failed("8", None),
    ]
    want = [
        ("cannot be read as a picture (bad)", 2),
        ("no such file", 2),
        ("question: # prompt tokens exceed #", 2),
        ("A: [Errno 36] File name too long: 'é\\n.mp4'", 1),
        ("no frame within 60 s", 1),
        ("not recorded", 1),
    ]
    assert [(f["reason"], f["num_questions"]) for f in failure_reasons(lines)] == want
    random.Random(0).shuffle(lines)
    assert [(f["reason"], f["num_questions"]) for f in failure_reasons(lines)] == want


def test_reasons_and_their_number_are_bounded():
    lines = [failed(f"{c}", f"v: {c * 100_000}", "v") for c in "abcdefghijklmnopqrst"]
    found = failure_reasons([*lines, failed("x", "v: frequent", "v"), failed("y", "frequent")])
    assert len(found) == MOST_REASONS
    assert found[0] == {"reason": "frequent", "num_questions": 2}
    assert all(len(group["reason"]) < MOST_CHARACTERS + 50 for group in found)


def test_a_run_without_any_answer_is_named_with_its_commonest_reason():
    lines = [failed("1", "v: gone", "v"), failed("2", "v: gone", "v"), failed("3", "v: empty", "v")]
    with pytest.raises(
        InputError, match=r"all 3 failed, for 2 of them because: gone; .*delete p\.jsonl"
    ):
        check_answered(summarise(lines, [4]), "p.jsonl")
    with pytest.raises(InputError, match=r"all 2 failed, because: gone; "):
        check_answered(summarise(lines[:2], [4]), "p.jsonl")
    silent = line("4", False, (4, 0.0), prediction=None)
    check_answered(summarise([*lines, silent], [4]), "p.jsonl")
    check_answered(summarise([], [4]), "p.jsonl")
