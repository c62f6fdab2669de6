"""The numbers of metrics.json against values computed by hand."""

import math

import pytest

from vrts.callbacks.summary import summarise


def line(id, correct, *rounds, prediction="A", failed=False, video=None, damaged=0, **breakdown):
    """A line; rounds are pairs of frames and agreement; a video of its own unless given."""
    return {
        "id": id,
        "answer": None if correct is None else "A",
        "prediction": prediction,
        "correct": correct,
        "num_frames": rounds[-1][0] if rounds else 0,
        "damaged": damaged,
        "rounds": [{"num_frames": T, "agreement": share} for T, share in rounds],
        "status": "failed" if failed else "ok",
        "error": "damaged" if failed else None,
        "video": video or f"{id}.mp4",
        "breakdown": breakdown,
    }


LINES = [
    line("right", True, (4, 1.0), video="a.mp4", kind="easy", length="short"),
    line("confident", False, (4, 0.5), (8, 1.0), prediction="B", video="a.mp4", kind="easy"),
    line("majority", True, (4, 0.5), (8, 0.5), (16, 0.75), video="b.mp4", damaged=2, kind="hard"),
    line("unscored", None, (4, 0.5), (8, 0.5), (16, 1.0), video="c.mp4", kind="hard"),
    line("silent", False, (4, 0.25), (6, 0.0), prediction=None, video="b.mp4", kind="hard"),
    line("damaged", False, prediction=None, failed=True, video="d.mp4", kind="hard"),
    line("damaged later", False, (4, 0.75), prediction=None, failed=True, video="e.mp4"),
    line("damaged, unscored", None, prediction=None, failed=True, video="d.mp4"),
]


def test_every_number_by_hand():
    # residuals: a.mp4 2/3 - 1/3, b.mp4 2/3 - 1/3, d.mp4 -1/3, e.mp4 -1/3
    stderr = math.sqrt(4 / 3 * 4 * (1 / 3) ** 2) / 6
    # two videos with questions that are scored: 2/3 - 1/3 and -1/3
    hard = math.sqrt(2 / 1 * (1 / 3) ** 2 * 2) / 3
    assert summarise(LINES, [4, 8, 16]) == {
        "num_questions": 8,
        "num_scored": 6,
        "num_videos": 4,
        "accuracy": 2 / 6,  # of right, confident, majority, silent, damaged, damaged later
        "accuracy_stderr": pytest.approx(stderr),
        "unanimous_and_wrong": 1 / 6,  # confident
        "agreement": (1 + 1 + 0.75 + 1 + 0) / 5,
        "num_abandoned": 0,
        "mean_frames": (4 + 8 + 16 + 16 + 6) / 5,
        "mean_frames_total": (4 + 12 + 28 + 28 + 10) / 5,
        "decided_at": {"4": 1 / 8, "8": 2 / 8, "16": 2 / 8},  # three failed
        "num_without_answer": 1,
        "num_failed": 3,
        "failed": ["damaged", "damaged later", "damaged, unscored"],
        "failures": [{"reason": "damaged", "num_questions": 3}],
        "num_damaged": 1,
        "damaged": ["majority"],
        "breakdown": {
            "kind": {
                "easy": {
                    "num_questions": 2,
                    "num_failed": 0,
                    "num_scored": 2,
                    "num_videos": 1,
                    "accuracy": 0.5,
                    "accuracy_stderr": None,
                },
                "hard": {
                    "num_questions": 4,
                    "num_failed": 1,
                    "num_scored": 3,
                    "num_videos": 2,
                    "accuracy": 1 / 3,
                    "accuracy_stderr": pytest.approx(hard),
                },
            },
            "length": {
                "short": {
                    "num_questions": 1,
                    "num_failed": 0,
                    "num_scored": 1,
                    "num_videos": 1,
                    "accuracy": 1.0,
                    "accuracy_stderr": None,
                }
            },
        },
        "gain": None,
    }


def test_nothing_is_known_of_no_questions():
    metrics = summarise([], [4, 8])
    assert metrics["num_questions"] == metrics["num_scored"] == metrics["num_failed"] == 0
    assert metrics["decided_at"] == {"4": None, "8": None}
    assert metrics["breakdown"] == {}
    assert metrics["failures"] == []
    for name in (
        "accuracy", "accuracy_stderr", "unanimous_and_wrong", "agreement", "mean_frames",
    ):  # fmt: skip
        assert metrics[name] is None


def test_the_gain_is_over_the_run_before():
    before = {"right": False, "confident": False, "majority": True, "silent": False, "other": True}
    assert summarise(LINES, [4, 8, 16], before)["gain"] == {
        "num_scored": 4,
        "accuracy_before": 1 / 4,
        "accuracy_after": 2 / 4,
        "gain": pytest.approx(1 / 3),
    }
