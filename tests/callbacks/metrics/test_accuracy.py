"""Standard errors and gains against plain computations."""

import math
import random
import statistics

import pytest
import torch

from tests.callbacks.metrics.test_summary import predicted
from vrts.callbacks.metrics.accuracy import accuracy, breakdown, clustered_stderr, gain, mean


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
