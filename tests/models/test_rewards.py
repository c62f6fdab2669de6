"""Rewards."""

import doctest
import math

import pytest
import torch

from vrts.models.rewards import (
    AccuracyReward,
    FormatReward,
    FunctionReward,
    LengthReward,
    Reward,
    RewardError,
    SoftOverlongPenalty,
    accuracy,
)
from vrts.models.rewards.accuracy import accuracy_score
from vrts.models.rewards.base import as_reward, total_reward
from vrts.types import Completion, InputError, ProblemType, Question

COLOUR = Question("c", "Which?", "a.mp4", options=("red", "brown car", "blue"), gold="B")
LENGTH = Question("n", "How long?", "a.mp4", ProblemType.NUMERICAL, gold="13")
TECHNIQUE = Question("f", "What?", "a.mp4", ProblemType.FREE_FORM, gold="Dolly Zoom")


def wrap(answer):
    return f"<think>So.</think><answer>{answer}</answer>"


def completions(*texts):
    return [Completion(text, num_tokens=len(text), max_new_tokens=99) for text in texts]


class Scripted(Reward):
    """A user's reward that returns given scores."""

    def __init__(self, scores, weight=1.0, name="scripted"):
        super().__init__(weight)
        self.scores = scores
        self._name = name

    @property
    def name(self):
        return self._name

    def score(self, completions, questions):
        if isinstance(self.scores, Exception):
            raise self.scores
        return self.scores


@pytest.mark.parametrize(
    ("question", "completion", "score"),
    [
        (COLOUR, wrap("B"), 1.0),
        (COLOUR, wrap("**B**"), 1.0),
        (COLOUR, wrap("(B)"), 1.0),
        (COLOUR, wrap("B."), 1.0),
        (COLOUR, wrap("Brown car"), 1.0),
        (COLOUR, wrap("Brown"), 0.0),
        (COLOUR, wrap("A or B"), 0.0),
        (COLOUR, wrap("C"), 0.0),
        (COLOUR, "", 0.0),
        (LENGTH, wrap("13 seconds"), 1.0),
        (LENGTH, wrap("14"), 0.0),
        (TECHNIQUE, wrap("the dolly zoom"), 1.0),
        (TECHNIQUE, wrap("pan"), 0.0),
    ],
)
def test_accuracy(question, completion, score):
    assert AccuracyReward().score(completions(completion), [question]) == [score]


def test_accuracy_takes_its_tolerance():
    assert AccuracyReward(tolerance=2).score(completions(wrap("14")), [LENGTH]) == [1.0]


def test_format():
    rows = completions(wrap("B"), "Well. " + wrap("B"), "B")
    assert FormatReward().score(rows, [COLOUR] * 3) == [1.0, 0.0, 0.0]
    assert FormatReward(strict=False).score(rows, [COLOUR] * 3) == [1.0, 1.0, 0.0]


def test_total_is_the_weighted_sum_and_parts_are_without_weight():
    rows = completions(wrap("B"), wrap("C"), "B", "")
    rewards = [AccuracyReward(weight=2.0), FormatReward(weight=0.5)]
    total, parts = total_reward(rewards, rows, [COLOUR] * 4)
    assert total.dtype == torch.float32
    assert total.tolist() == [2.5, 0.5, 2.0, 0.0]
    assert {name: part.tolist() for name, part in parts.items()} == {
        "accuracy": [1.0, 0.0, 1.0, 0.0],
        "format": [1.0, 1.0, 0.0, 0.0],
    }


def test_each_completion_goes_with_its_own_question():
    rows = completions(wrap("B"), wrap("13"), wrap("dolly zoom"), wrap("13"))
    questions = [COLOUR, LENGTH, TECHNIQUE, COLOUR]
    total, _ = total_reward([AccuracyReward()], rows, questions)
    assert total.tolist() == [1.0, 1.0, 1.0, 0.0]


def test_weight_zero_is_only_logged():
    total, parts = total_reward([Scripted([3.0], weight=0.0)], ["x"], [COLOUR])
    assert total.tolist() == [0.0]
    assert parts["scripted"].tolist() == [3.0]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (Scripted([1.0]), "Scripted gave 1 scores for 2 completions"),
        (Scripted([1.0, 1.0, 1.0]), "Scripted gave 3 scores for 2 completions"),
        (Scripted([1.0, math.nan]), "Scripted gave nan .* completion 1 of 2, question n"),
        (Scripted([-math.inf, 1.0]), "Scripted gave -inf .* completion 0 of 2, question c"),
        (Scripted([1e300, 1.0]), "must be finite"),
        (Scripted([1e30, 1.0], weight=1e30), "must be finite"),
        (Scripted(KeyError("colour")), "Scripted raised KeyError: 'colour'"),
        (
            Scripted([1.0, None]),
            r"Scripted gave \[1.0, None\]; score\(\) must return one number",
        ),
        (Scripted(None), "Scripted gave None; .* a list of 2\n  in .*test_rewards.py:"),
        (Scripted(1.0), "Scripted gave 1.0; .* a list of 2\n  in .*test_rewards.py:"),
    ],
)
def test_an_unusable_reward_is_named(reward, message):
    with pytest.raises(RewardError, match=message):
        total_reward([AccuracyReward(), reward], completions("x", "y"), [COLOUR, LENGTH])


def test_a_question_without_gold_answer_is_named():
    unknown = Question("u", "Which?", "a.mp4", options=("x", "y"), source="train.json:9")
    with pytest.raises(InputError, match=r"train\.json:9: no gold answer"):
        accuracy_score("A", unknown)
    with pytest.raises(RewardError, match=r"AccuracyReward raised InputError: train\.json:9"):
        total_reward([AccuracyReward()], completions("A"), [unknown])


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_weights_are_finite(weight):
    with pytest.raises(InputError, match="FormatReward: weight must be finite"):
        FormatReward(weight=weight)


@pytest.mark.parametrize("tolerance", [-0.1, math.nan, math.inf])
def test_tolerance_is_checked(tolerance):
    with pytest.raises(InputError, match="tolerance must be 0 or more"):
        AccuracyReward(tolerance=tolerance)


GRADED = [
    (Question("r", "How far?", "a.mp4", ProblemType.REGRESSION, gold="8"), "6", 0.75),
    (Question("o", "Read.", "a.mp4", ProblemType.OCR, gold="No entry today"), "no entry", 2 / 3),
    (Question("g", "When?", "a.mp4", ProblemType.TEMPORAL_GROUNDING, gold="2-6"), "2-5", 0.75),
]


@pytest.mark.parametrize(("question", "answer", "score"), GRADED)
def test_accuracy_is_graded_unless_it_shall_not_be(question, answer, score):
    rows = completions(wrap(answer))
    assert AccuracyReward().score(rows, [question]) == [pytest.approx(score)]
    right = question.problem_type is ProblemType.TEMPORAL_GROUNDING
    assert AccuracyReward(graded=False).score(rows, [question]) == [float(right)]


def test_length_counts_for_right_answers_in_its_range():
    lengths = [319, 320, 512, 513, 400]
    rows = [Completion(wrap("B"), n, 768) for n in lengths[:4]]
    rows.append(Completion(wrap("A"), 400, 768))
    assert LengthReward().score(rows, [COLOUR] * 5) == [0, 1, 1, 0, 0]
    assert LengthReward().weight == 0.2
    with pytest.raises(InputError, match=r"min_tokens \(9\) is above max_tokens \(8\)"):
        LengthReward(min_tokens=9, max_tokens=8)


@pytest.mark.parametrize(("limit", "share"), [(100, 0.2), (768, 0.25), (7, 1.0), (20480, 0.2)])
def test_overlong_penalty_is_daposs_equation(limit, share):
    buffer = share * limit
    lengths = [1, limit // 3, *range(max(limit - 40, 1), limit + 1)]
    rows = [Completion("", n, limit, n < limit) for n in lengths]
    got = SoftOverlongPenalty(buffer_share=share).score(rows, [COLOUR] * len(rows))
    for n, value in zip(lengths, got, strict=True):
        if n <= limit - buffer:
            assert value == 0
        else:
            assert value == pytest.approx(((limit - buffer) - n) / buffer)
    assert got[-1] == -1


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, math.nan])
def test_overlong_buffer_is_checked(share):
    with pytest.raises(InputError, match="buffer_share must be above 0"):
        SoftOverlongPenalty(buffer_share=share)


def test_no_completions_give_empty_tensors():
    total, parts = total_reward([FormatReward()], [], [])
    assert total.shape == (0,)
    assert parts["format"].shape == (0,)


def test_examples_in_docstrings():
    result = doctest.testmod(accuracy)
    assert result.attempted > 0
    assert result.failed == 0


class TestFunctions:
    def test_a_function_is_a_reward_of_its_name(self):
        def brevity(completions, questions):
            return [1 / completion.num_tokens for completion in completions]

        reward = as_reward(brevity)
        total, parts = total_reward([reward], completions("a", "four"), [COLOUR, COLOUR])
        assert reward.name == "brevity"
        assert total.tolist() == parts["brevity"].tolist() == [1.0, 0.25]

    def test_a_reward_stays_what_it_is(self):
        reward = FormatReward()
        assert as_reward(reward) is reward

    def test_other_things_are_refused(self):
        with pytest.raises(InputError, match=r"model\.rewards: 'no' is neither a Reward nor a fun"):
            as_reward("no")

    def test_what_it_gives_is_checked_as_of_any_reward(self):
        with pytest.raises(RewardError, match="one number for each completion: a list of 1"):
            total_reward([FunctionReward(lambda c, q: 1.0)], completions("a"), [COLOUR])
