"""How good the answer of a completion is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vrts.answers import DEFAULT_TOLERANCE, answer_score, is_correct, parse_answer
from vrts.models.rewards.base import Reward
from vrts.types import Completion, InputError, Question

MIN_SCORE = 0.1
"""An answer that scores more counts as right for further rewards, as in Video-R1's code."""


class AccuracyReward(Reward):
    """How good the answer is, by the measure of its problem type; 0 for none.

    A choice or number is right or wrong. A regression answer gets 1 minus its relative error, OCR
    1 minus its word error rate, a free-form text its mean ROUGE, a time span its intersection over
    union: see :mod:`vrts.answers.grading`.

    Args:
        weight: Factor in the total.
        tolerance: Of numerical answers, see :func:`vrts.answers.numbers.numbers_match`.
        graded: False makes every answer right or wrong, as :func:`vrts.answers.is_correct` has it.

    Raises:
        InputError: the tolerance is negative or not finite.
    """

    name = "accuracy"

    def __init__(
        self, weight: float = 1.0, tolerance: float = DEFAULT_TOLERANCE, graded: bool = True
    ) -> None:
        super().__init__(weight)
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise InputError(f"AccuracyReward: tolerance must be 0 or more, got {tolerance}")
        self.tolerance = tolerance
        self.graded = graded

    def check(self, question: Question) -> None:
        """See `Reward.check`: there is a gold answer, and it fits the problem type."""
        accuracy_score("", question, self.tolerance, self.graded)

    def score(
        self, completions: Sequence[Completion], questions: Sequence[Question]
    ) -> list[float]:
        """See `Reward.score`."""
        return [
            accuracy_score(completion.text, question, self.tolerance, self.graded)
            for completion, question in zip(completions, questions, strict=True)
        ]


def accuracy_score(
    completion: str, question: Question, tolerance: float = DEFAULT_TOLERANCE, graded: bool = True
) -> float:
    """Score the answer of a completion, from 0 to 1.

    Raises:
        InputError: the question has no gold answer, or one that does not fit its problem type.

    Example:
        >>> question = Question("1", "Which?", "a.mp4", options=("red", "blue"), gold="B")
        >>> accuracy_score("<think>It is blue.</think><answer>(B)</answer>", question)
        1.0
        >>> accuracy_score("A or B", question)
        0.0
    """
    measure = answer_score if graded else is_correct
    score = measure(parse_answer(completion, question), question, tolerance)
    if score is None:
        raise InputError(
            f"{question.source or f'question {question.id}'}: no gold answer, so there is nothing "
            "to reward; train on questions that have one"
        )
    return float(score)
