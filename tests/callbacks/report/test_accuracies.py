"""Accuracy by level, against counting by hand."""

import random
from statistics import mean

import pytest

from tests.callbacks.report.predictions import decided, failed, question
from vrts.callbacks.report.accuracies import level_accuracies
from vrts.callbacks.report.items import report_item


def items():
    q = [question(f"q{i}") for i in range(4)]
    unknown = question("unknown", answer=None)
    found = [
        decided(q[0], f4="AAA"),  # right at once
        decided(q[1], f4="ABB", f8="AAA"),  # wrong at 4, right at 8
        decided(q[2], f4="AAB", f8="BBA"),  # right at 4, wrong at 8
        failed(q[3], f4="AAB"),  # right at 4, fails at 8
        decided(unknown, f4="AAA"),
    ]
    return [report_item(prediction, 100) for prediction in found]


def test_stopping_at_a_level_gives_that_level_s_majority():
    sparse, dense = level_accuracies(items(), ["4", "8"])
    assert (sparse.accuracy, sparse.num_scored) == (3 / 4, 4)
    assert sparse.mean_frames == 4
    assert dense.accuracy == 2 / 4
    assert dense.mean_frames == mean([4, 12, 12, 4])
    assert sparse.stderr == pytest.approx((0.75 * 0.25 / 4) ** 0.5)


def test_the_last_level_has_the_accuracy_of_the_run():
    rng = random.Random(3)
    found, right = [], 0
    for i in range(200):
        asked = question(f"q{i}")
        fails = rng.random() < 0.1  # in place of a further round
        rounds = rng.randint(0, 2) if fails else rng.randint(1, 3)
        votes = {f"f{4 << k}": "".join(rng.choices("ABC-", k=3)) for k in range(rounds)}
        prediction = failed(asked, **votes) if fails else decided(asked, **votes)
        right += prediction.correct
        found.append(report_item(prediction, 10))
    levels = level_accuracies(found, ["4", "8", "16"])
    assert levels[-1].accuracy == right / 200
    assert [level.level for level in levels] == ["4", "8", "16"]


def test_nothing_to_score_has_no_accuracies():
    asked = question("q", answer=None)
    unscored = [report_item(decided(asked, f4="AAA"), 10)]
    assert level_accuracies(unscored, ["4"]) == []
    assert level_accuracies([], ["4"]) == []
