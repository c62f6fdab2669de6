"""Votes against the rules of the issue: earliest of the leaders, no answer is no vote."""

import dataclasses
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrts.types import ProblemType, Question, Round
from vrts.voting import agreement, decide, fail, majority, make_round

ANSWERS = st.lists(st.sampled_from(["A", "B", "C", None]), max_size=9)
QUESTION = Question("q", "Which?", "v.mp4", options=("red", "green", "blue"), gold="B")


def rounds(*answers: str | None, num_frames: int = 4) -> Round:
    return Round(num_frames, tuple("" for _ in answers), answers, agreement(answers))


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        ("BBA", "B"),
        ("ABBA", "A"),  # two leaders: the one that came first
        ("BAAB", "B"),
        ("CABAB", "A"),  # the earliest answer is not among the leaders
        ("C-A", "C"),
        ("--A", "A"),  # a missing answer is no vote, however often it comes
        ("--AB-", "A"),
        ("---", None),
        ("", None),
    ],
)
def test_majority(answers, winner):
    assert majority([None if a == "-" else a for a in answers]) == winner


@pytest.mark.parametrize(
    ("answers", "expected"),
    [("AAA", True), ("A", True), ("AAB", False), ("AA-", False), ("---", False), ("", False)],
)
def test_unanimity_needs_an_answer_from_everyone(answers, expected):
    assert (agreement([None if a == "-" else a for a in answers]) == 1) is expected


@pytest.mark.parametrize(
    ("answers", "share"), [("AAA", 1), ("AAB", 2 / 3), ("AA--", 0.5), ("-A", 0.5), ("--", 0)]
)
def test_agreement_is_a_share_of_all_completions(answers, share):
    assert agreement([None if a == "-" else a for a in answers]) == share


@given(ANSWERS)
def test_the_winner_leads_and_comes_before_other_leaders(answers):
    winner = majority(answers)
    votes = Counter(a for a in answers if a is not None)
    if not votes:
        assert winner is None
        return
    leaders = {a for a, n in votes.items() if n == max(votes.values())}
    assert winner == next(a for a in answers if a in leaders)


@given(ANSWERS, st.randoms())
def test_order_matters_to_ties_alone(answers, random):
    votes = Counter(a for a in answers if a is not None).most_common()
    shuffled = random.sample(answers, len(answers))
    if len(votes) < 2 or votes[0][1] > votes[1][1]:
        assert majority(shuffled) == majority(answers)
    assert agreement(shuffled) == agreement(answers)


@given(ANSWERS, st.integers(0, 9))
def test_a_missing_answer_changes_no_winner_but_ends_unanimity(answers, place):
    more = [*answers[:place], None, *answers[place:]]
    assert majority(more) == majority(answers)
    assert agreement(more) < 1
    assert agreement(more) <= agreement(answers)


def test_a_round_votes_on_normalised_answers():
    texts = ["<answer>B</answer>", "<answer>(b)</answer>", "**B**", "<answer>green</answer>", "Hm?"]
    made = make_round(texts, QUESTION, 6)
    assert made.answers == ("B", "B", "B", "B", None)
    assert made.completions == tuple(texts)
    assert (made.agreement, made.num_frames) == (0.8, 6)


def test_error_texts_do_not_vote():
    made = make_round(["No answer found"] * 3, QUESTION, 4)
    assert made.answers == (None,) * 3
    assert made.agreement < 1


def test_numbers_vote_by_value():
    question = Question("n", "How long?", "v.mp4", ProblemType.NUMERICAL, gold="1.5")
    made = make_round(["<answer>1.50 s</answer>", "<answer>3/2</answer>"], question, 4)
    assert made.agreement == 1
    assert decide(question, [made]).correct is True


def test_the_last_round_decides_and_all_are_kept():
    made = [rounds("A", "A", "C"), rounds("B", "B", "A", num_frames=8)]
    decided = decide(QUESTION, made)
    assert (decided.answer, decided.correct, decided.num_frames) == ("B", True, 8)
    assert decided.rounds == tuple(made)
    assert decided.error is None


@pytest.mark.parametrize("mean", [math.nan, math.inf, -math.inf])
def test_a_model_without_numbers_fails_by_name(mean):
    damaged = dataclasses.replace(rounds("B", "B", num_frames=8), mean_logprobs=(-0.5, mean))
    decided = decide(QUESTION, [rounds("A", "B"), damaged])
    assert (decided.answer, decided.correct, decided.num_frames) == (None, False, 4)
    assert "at 8 frames the model's log-probs are not finite" in decided.error


def test_no_answer_at_all_is_wrong():
    decided = decide(QUESTION, [rounds(None, None)])
    assert (decided.answer, decided.correct, decided.error) == (None, False, None)


def test_an_unknown_right_answer_is_neither_right_nor_wrong():
    unknown = Question("q", "Which?", "v.mp4", options=("red", "green"))
    assert decide(unknown, [rounds("B", "B")]).correct is None
    assert decide(unknown, [rounds(None)]).correct is None
    assert fail(unknown, "damaged").correct is None


def test_a_failure_is_wrong_and_keeps_its_rounds():
    failed = fail(QUESTION, "damaged", [rounds("B", "A")])
    assert (failed.answer, failed.correct, failed.error) == (None, False, "damaged")
    assert failed.num_frames == 4
    assert fail(QUESTION, "damaged").num_frames == 0
