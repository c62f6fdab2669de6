"""The numbers of metrics.json against values computed by hand."""

import math

import pytest
from rich.console import Console

from vrts.callbacks.summary import metrics_table, summarise


def line(id, correct, *rounds, prediction="A", failed=False):
    """A line; rounds are pairs of frames and agreement."""
    return {
        "id": id,
        "answer": None if correct is None else "A",
        "prediction": prediction,
        "correct": correct,
        "num_frames": rounds[-1][0] if rounds else 0,
        "rounds": [{"num_frames": T, "agreement": share} for T, share in rounds],
        "status": "failed" if failed else "ok",
        "error": "damaged" if failed else None,
    }


LINES = [
    line("right", True, (4, 1.0)),
    line("confident", False, (4, 0.5), (8, 1.0), prediction="B"),
    line("majority", True, (4, 0.5), (8, 0.5), (16, 0.75)),
    line("unscored", None, (4, 0.5), (8, 0.5), (16, 1.0)),
    line("silent", False, (4, 0.25), (6, 0.0), prediction=None),
    line("damaged", False, prediction=None, failed=True),
    line("damaged later", False, (4, 0.75), prediction=None, failed=True),
    line("damaged, unscored", None, prediction=None, failed=True),
]


def test_every_number_by_hand():
    assert summarise(LINES, [4, 8, 16]) == {
        "num_questions": 8,
        "num_scored": 6,
        "accuracy": 2 / 6,  # of right, confident, majority, silent, damaged, damaged later
        "accuracy_stderr": pytest.approx(math.sqrt(2 / 6 * 4 / 6 / 6)),
        "unanimous_and_wrong": 1 / 6,  # confident
        "mean_frames": (4 + 8 + 16 + 16 + 6) / 5,
        "mean_frames_total": (4 + 12 + 28 + 28 + 10) / 5,
        "decided_at": {"4": 1 / 8, "8": 2 / 8, "16": 2 / 8},  # three failed
        "num_without_answer": 1,
        "num_failed": 3,
        "failed": ["damaged", "damaged later", "damaged, unscored"],
    }


def test_the_standard_error_of_four_in_five():
    lines = [line(str(i), i > 0, (4, 1.0)) for i in range(5)]
    metrics = summarise(lines, [4])
    assert metrics["accuracy"] == 0.8
    assert metrics["accuracy_stderr"] == pytest.approx(0.178885438)


def test_nothing_is_known_of_no_questions():
    metrics = summarise([], [4, 8])
    assert metrics["num_questions"] == metrics["num_scored"] == metrics["num_failed"] == 0
    assert metrics["decided_at"] == {"4": None, "8": None}
    for name in ("accuracy", "accuracy_stderr", "unanimous_and_wrong", "mean_frames"):
        assert metrics[name] is None


def shown(metrics) -> list[list[str]]:
    """Words of the table's rows."""
    console = Console(width=80)
    with console.capture() as capture:
        console.print(metrics_table(metrics))
    rows = [line for line in capture.get().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]


def test_the_table_shows_percent():
    assert shown(summarise(LINES, [4, 8, 16])) == [
        ["questions", "8"],
        ["accuracy of 6", "33.3 ± 19.2 %"],
        ["unanimous and wrong", "16.7 %"],
        ["frames, deciding round", "10.0"],
        ["frames, all rounds", "16.4"],
        ["decided at 4 frames", "12.5 %"],
        ["decided at 8 frames", "25.0 %"],
        ["decided at 16 frames", "25.0 %"],
        ["without an answer", "1"],
        ["failed", "3"],
        *(["", name] for name in summarise(LINES, [4])["failed"]),
    ]


def test_the_table_leaves_out_what_is_not_known():
    assert shown(summarise([], [4])) == [
        ["questions", "0"],
        ["without an answer", "0"],
        ["failed", "0"],
    ]
    assert ["decided at 4 frames", "0.0 %"] in shown(summarise([LINES[-1]], [4]))
