"""Accuracy by level, against counting by hand."""

import random
from dataclasses import replace
from statistics import mean

import pytest

from tests.callbacks.report.predictions import decided, failed, make_round, question
from vrts.callbacks.report.accuracies import level_accuracies
from vrts.callbacks.report.items import report_item
from vrts.voting import VotingRule, agreement, decide


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
    assert (sparse.lowest, sparse.highest, sparse.num_scored) == (3 / 4, 3 / 4, 4)
    assert sparse.mean_frames == 4
    assert (dense.lowest, dense.highest) == (2 / 4, 2 / 4)
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
    assert levels[-1].lowest == levels[-1].highest == right / 200
    assert [level.level for level in levels] == ["4", "8", "16"]


def test_nothing_to_score_has_no_accuracies():
    asked = question("q", answer=None)
    unscored = [report_item(decided(asked, f4="AAA"), 10)]
    assert level_accuracies(unscored, ["4"]) == []
    assert level_accuracies([], ["4"]) == []


LEVELS = (4, 8, 16)


def stopped_early(asked, votes, rule, order):
    """The same question with the completions cancelled that the rule cancels."""
    rounds = []
    for level, letters in zip(LEVELS, votes, strict=True):
        is_last = level == LEVELS[-1]
        whole = make_round(asked, level, letters)
        done = [False] * len(letters)
        for place in order:
            done[place] = True
            known = [a if d else None for a, d in zip(whole.answers, done, strict=True)]
            if rule.may_stop(known, [], done, is_last=is_last):
                break
        cancelled = tuple(not d for d in done)
        cut = replace(whole, answers=tuple(known), agreement=agreement(known), cancelled=cancelled)
        rounds.append(cut if rule.early_stop else whole)
        if rule.is_settled(rounds[-1]):
            break
    return report_item(decide(asked, rounds, rule), 10)


@pytest.mark.parametrize("consensus", [None, 3])
def test_what_an_early_stop_gives_up_is_between_the_bounds(consensus):
    """Run the same votes with and without one: levels that can be known are, and no other."""
    rng = random.Random(7)
    bounds, truth = [], []
    rules = [VotingRule(consensus=consensus, early_stop=stop) for stop in (True, False)]
    for i in range(300):
        asked = question(f"q{i}")
        votes = ["".join(rng.choices("AABC-", k=5)) for _ in LEVELS]
        order = rng.sample(range(5), 5)
        for rule, items in zip(rules, (bounds, truth), strict=True):
            items.append(stopped_early(asked, votes, rule, order))
    names = [str(level) for level in LEVELS]
    for got, want in zip(
        level_accuracies(bounds, names), level_accuracies(truth, names), strict=True
    ):
        assert want.lowest == want.highest
        assert got.lowest <= want.lowest <= got.highest
        assert got.mean_frames == want.mean_frames
        assert (got.lowest < got.highest) == (got.level != "16")


@pytest.mark.parametrize(
    ("letters", "given_up", "right"),
    [
        ("AB___", 3, None),
        ("AAB_", 1, True),  # a second B would be a tie, which A leads since it came first
        ("_BA", 1, None),
        ("AAB__", 2, None),
        ("AABB_", 1, None),
        ("BCB__", 2, False),  # two A come to a tie, and behind
        ("__BCB", 2, None),
        ("BBC_", 1, False),  # no A can catch up, whichever of the others leads
        ("AAAB_", 1, True),
        ("_____", 5, None),
    ],
)
def test_whether_a_round_is_right_is_known_or_not(letters, given_up, right):
    asked = question("q")
    whole = make_round(asked, 4, letters.replace("_", "-"))
    gone = tuple(letter == "_" for letter in letters)
    assert sum(gone) == given_up
    item = report_item(decide(asked, [replace(whole, cancelled=gone), whole]), 10)
    assert item["rounds"][0]["right"] is right
