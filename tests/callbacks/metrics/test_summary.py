"""The numbers of metrics.json against values computed by hand and plain computations."""

import math
import random
import statistics

import pytest
import torch

from vrts.callbacks.metrics.summary import (
    MOST_CHARACTERS,
    MOST_REASONS,
    accuracy,
    breakdown,
    check_answered,
    clustered_stderr,
    failure_reasons,
    gain,
    mean,
    summarise,
)
from vrts.types import InputError, Prediction, Question, Round


def predicted(id, correct, *rounds, answer="A", error=None, video=None, damaged=0, **breakdown):
    """A prediction; rounds are pairs of frames and agreement; a video of its own unless given."""
    gold = None if correct is None else "A"
    metadata = {"breakdown": breakdown}
    return Prediction(
        Question(id, "", video or f"{id}.mp4", gold=gold, metadata=metadata),
        tuple(Round(T, (), (), share, num_damaged=damaged) for T, share in rounds),
        answer,
        error,
        correct,
    )


PREDICTIONS = [
    predicted("right", True, (4, 1.0), video="a.mp4", kind="easy", length="short"),
    predicted("confident", False, (4, 0.5), (8, 1.0), answer="B", video="a.mp4", kind="easy"),
    predicted(
        "majority", True, (4, 0.5), (8, 0.5), (16, 0.75), video="b.mp4", damaged=2, kind="hard"
    ),
    predicted("unscored", None, (4, 0.5), (8, 0.5), (16, 1.0), video="c.mp4", kind="hard"),
    predicted("silent", False, (4, 0.25), (6, 0.0), answer=None, video="b.mp4", kind="hard"),
    predicted("damaged", False, answer=None, error="damaged", video="d.mp4", kind="hard"),
    predicted("damaged later", False, (4, 0.75), answer=None, error="damaged", video="e.mp4"),
    predicted("damaged, unscored", None, answer=None, error="damaged", video="d.mp4"),
]


def test_every_number_by_hand():
    # residuals: a.mp4 2/3 - 1/3, b.mp4 2/3 - 1/3, d.mp4 -1/3, e.mp4 -1/3
    stderr = math.sqrt(4 / 3 * 4 * (1 / 3) ** 2) / 6
    # two videos with questions that are scored: 2/3 - 1/3 and -1/3
    hard = math.sqrt(2 / 1 * (1 / 3) ** 2 * 2) / 3
    assert summarise(PREDICTIONS, [4, 8, 16]) == {
        "num_questions": 8,
        "num_scored": 6,
        "num_videos": 4,
        "accuracy": 2 / 6,  # of right, confident, majority, silent, damaged, damaged later
        "accuracy_stderr": pytest.approx(stderr),
        "unanimous_and_wrong": 1 / 6,  # confident
        "agreement": (1 + 1 + 0.75 + 1 + 0) / 5,
        "num_cancelled": 0,
        "mean_frames": (4 + 8 + 16 + 16 + 6) / 5,
        "mean_frames_total": (4 + 12 + 28 + 28 + 10) / 5,
        "decided_at": {"4": 1 / 8, "8": 2 / 8, "16": 2 / 8},  # three failed
        "num_without_answer": 1,
        "num_failed": 3,
        "failed": ["damaged", "damaged later", "damaged, unscored"],
        "failures": [
            {"reason": "damaged", "num_questions": 3, "example": "question damaged: damaged"}
        ],
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


def test_the_gain_is_over_the_baseline():
    baseline = {
        "right": False,
        "confident": False,
        "majority": True,
        "silent": False,
        "other": True,
    }
    assert summarise(PREDICTIONS, [4, 8, 16], baseline)["gain"] == {
        "num_scored": 4,
        "accuracy_before": 1 / 4,
        "accuracy_after": 2 / 4,
        "gain": pytest.approx(1 / 3),
    }


def failed(id, error, video=None):
    return predicted(id, False, answer=None, error=error, video=video)


def test_a_cause_of_many_failures_is_one_reason():
    predictions = [
        failed("1", "v/a.mp4: no such file", "v/a.mp4"),
        predicted("right", True, (4, 1.0)),
        failed("2", "v/(b) [x].mp4: no such file", "v/(b) [x].mp4"),
        failed("3", "f/0003.jpg: cannot be read as an image (bad)", "f"),
        failed("4", "g/12.jpg: cannot be read as an image (bad)", "g"),
        failed("5", "5120 prompt tokens exceed 4096", "a.mp4"),
        failed("51", "9999 prompt tokens exceed 4096", "a.mp4"),
        failed("6", "A: [Errno 36] File name too long: 'é\\n.mp4'", "é\\n.mp4"),
        failed("7", "a: no frame within 60 s", "a"),
    ]
    want = [
        ("# prompt tokens exceed #", 2),
        ("cannot be read as an image (bad)", 2),
        ("no such file", 2),
        ("A: [Errno 36] File name too long: 'é\\n.mp4'", 1),
        ("no frame within 60 s", 1),
    ]
    assert [(f["reason"], f["num_questions"]) for f in failure_reasons(predictions)] == want
    examples = [group["example"] for group in failure_reasons(predictions)]
    assert examples[0] == "question 5: 5120 prompt tokens exceed 4096", "it has the numbers"
    assert examples[1] == "f/0003.jpg: cannot be read as an image (bad)"
    random.Random(0).shuffle(predictions)
    assert [(f["reason"], f["num_questions"]) for f in failure_reasons(predictions)] == want


def test_reasons_and_their_number_are_bounded():
    predictions = [failed(f"{c}", f"v: {c * 100_000}", "v") for c in "abcdefghijklmnopqrst"]
    found = failure_reasons(
        [*predictions, failed("x", "v: frequent", "v"), failed("y", "frequent")]
    )
    assert len(found) == MOST_REASONS
    assert found[0] == {"reason": "frequent", "num_questions": 2, "example": "v: frequent"}
    assert all(len(group["reason"]) < MOST_CHARACTERS + 50 for group in found)


def test_a_run_without_any_answer_is_named_with_its_commonest_reason():
    predictions = [
        failed("1", "v: gone", "v"),
        failed("2", "v: gone", "v"),
        failed("3", "v: empty", "v"),
    ]
    with pytest.raises(
        InputError,
        match=r"failed, 2 of them because: gone \(such as v: gone\); .*delete p\.jsonl",
    ):
        check_answered(summarise(predictions, [4]), "p.jsonl")
    with pytest.raises(InputError, match=r"all 2 failed, 2 of them because: gone \(such as"):
        check_answered(summarise(predictions[:2], [4]), "p.jsonl")
    silent = predicted("4", False, (4, 0.0), answer=None)
    check_answered(summarise([*predictions, silent], [4]), "p.jsonl")
    check_answered(summarise([], [4]), "p.jsonl")


def test_the_mean_is_that_of_python_floats():
    values = [1 / 3] * 3 + [0.0] * 7
    assert mean(values) == sum(values) / 10
    assert mean([]) is None
    torch.set_default_dtype(torch.bfloat16)  # as Lightning's bf16-true does
    try:
        assert mean([1.0] * 2 + [0.0] * 4) == 2 / 6
    finally:
        torch.set_default_dtype(torch.float32)


def test_one_question_a_video_gives_the_usual_standard_error():
    rng = random.Random(0)
    values = [float(rng.random() < 0.7) for _ in range(101)]
    videos = [str(i) for i in range(101)]
    usual = statistics.stdev(values) / math.sqrt(101)
    assert clustered_stderr(values, videos) == pytest.approx(usual)


def test_copies_of_a_question_tell_no_more_than_one():
    values, videos = [1.0, 0.0, 1.0, 1.0], list("abcd")
    once = clustered_stderr(values, videos)
    assert clustered_stderr(values * 7, videos * 7) == pytest.approx(once)
    as_if_independent = clustered_stderr(values * 7, [str(i) for i in range(28)])
    assert as_if_independent < once / 2


def test_it_is_the_sandwich_of_a_regression_on_a_constant():
    """(X'X)^-1 (sum over clusters of X_c' r_c r_c' X_c) (X'X)^-1 with X of ones, times C/(C-1)."""
    rng = random.Random(1)
    videos = [f"v{rng.randrange(9)}" for _ in range(60)]
    rate = {video: rng.random() for video in videos}
    values = [float(rng.random() < rate[video]) for video in videos]
    X, y = torch.ones(60, 1, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    bread = torch.linalg.inv(X.T @ X)
    residuals = y - (X @ bread @ X.T @ y)
    meat = torch.zeros(1, 1, dtype=torch.float64)
    for video in set(videos):
        rows = torch.tensor([other == video for other in videos])
        score = X[rows].T @ residuals[rows]
        meat += score[:, None] * score
    C = len(set(videos))
    want = (C / (C - 1) * bread @ meat @ bread).sqrt().item()
    assert clustered_stderr(values, videos) == pytest.approx(want)


def test_it_covers_the_truth_as_often_as_it_should():
    """95% intervals of means of 40 clusters of 5 questions each, half of them alike."""
    rng = random.Random(2)
    covered = 0
    for _ in range(400):
        values, videos = [], []
        for cluster in range(40):
            rate = rng.choice([0.2, 0.8])
            values += [float(rng.random() < rate) for _ in range(5)]
            videos += [str(cluster)] * 5
        error = clustered_stderr(values, videos)
        covered += abs(statistics.mean(values) - 0.5) <= 1.96 * error
    assert 0.91 <= covered / 400 <= 0.98


@pytest.mark.parametrize(("values", "videos"), [([], []), ([1.0], ["a"]), ([1.0, 0.0], ["a", "a"])])
def test_one_video_tells_nothing_of_how_videos_differ(values, videos):
    assert clustered_stderr(values, videos) is None


def test_questions_without_a_right_answer_do_not_count():
    predictions = [
        predicted("a", True),
        predicted("b", None),
        predicted("c", False),
        predicted("d", None, video="a.mp4"),
    ]
    found = accuracy(predictions)
    assert (found["num_scored"], found["num_videos"], found["accuracy"]) == (2, 2, 0.5)


def test_categories_are_sorted_and_names_come_as_they_first_come():
    predictions = [
        predicted("a", True, task="b", kind="x"),
        predicted("b", False, task="a"),
        predicted("c", None, task="a", length="long"),
    ]
    found = breakdown(predictions)
    assert list(found) == ["task", "kind", "length"]
    assert list(found["task"]) == ["a", "b"]
    assert found["task"]["a"]["num_questions"] == 2
    assert found["task"]["a"]["num_scored"] == 1
    assert found["length"]["long"]["accuracy"] is None


def test_every_question_is_in_one_category_of_each_name():
    rng = random.Random(3)
    predictions = [
        predicted(
            str(i), rng.random() < 0.5, duration=rng.choice("sml"), domain=rng.choice("abcdef")
        )
        for i in range(200)
    ]
    found = breakdown(predictions)
    for name in ("duration", "domain"):
        assert sum(c["num_questions"] for c in found[name].values()) == 200
        right = sum(c["accuracy"] * c["num_scored"] for c in found[name].values())
        assert right == pytest.approx(sum(one.correct for one in predictions))


def test_the_gain_of_videommmu():
    """From 46% to 61.6% of 500: (61.6 - 46) / (100 - 46) = 28.9%."""
    predictions = [predicted(str(i), i < 308) for i in range(500)]
    before = {str(i): i < 230 for i in range(500)}
    assert gain(predictions, before)["gain"] == pytest.approx(0.156 / 0.54)
    worse = gain(predictions, {str(i): i < 400 for i in range(500)})
    assert worse["gain"] == pytest.approx((0.616 - 0.8) / 0.2)


def test_no_gain_where_all_was_right_or_nothing_is_in_common():
    predictions = [predicted("a", True), predicted("b", None)]
    assert gain(predictions, {"a": True})["gain"] is None
    assert gain(predictions, {"c": False, "b": False}) == {
        "num_scored": 0, "accuracy_before": None, "accuracy_after": None, "gain": None,
    }  # fmt: skip
