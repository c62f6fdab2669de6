"""Rewards of completions: what GRPO learns from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from vrts.prompts import DEFAULT_TOLERANCE, has_format, is_correct, parse_answer
from vrts.types import InputError, Question


class RewardError(RuntimeError):
    """A reward that failed or gave something unusable. The message names its class."""


class Reward(ABC):
    """One kind of reward: plug-in of ``model.rewards``.

    Args:
        weight: Factor of this reward in the total; finite, 0 only logs it.

    Raises:
        InputError: the weight is not finite.
    """

    def __init__(self, weight: float = 1.0) -> None:
        if not math.isfinite(weight):
            raise InputError(f"{type(self).__name__}: weight must be finite, got {weight}")
        self.weight = weight

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name, unique among the rewards of a run; logged as ``train/reward/<name>``."""

    @abstractmethod
    def score(self, completions: Sequence[str], questions: Sequence[Question]) -> list[float]:
        """Score completions, before the weight.

        Args:
            completions: N texts.
            questions: N questions, the one that each completion answers.

        Returns:
            N finite numbers.
        """


class AccuracyReward(Reward):
    """1 for a right answer, 0 for a wrong one or none; every problem type.

    Args:
        weight: Factor in the total.
        tolerance: Of numerical answers, see :func:`vrts.numbers.numbers_match`.

    Raises:
        InputError: the tolerance is negative or not finite.
    """

    def __init__(self, weight: float = 1.0, tolerance: float = DEFAULT_TOLERANCE) -> None:
        super().__init__(weight)
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise InputError(f"AccuracyReward: tolerance must be 0 or more, got {tolerance}")
        self.tolerance = tolerance

    @property
    def name(self) -> str:
        """``accuracy``."""
        return "accuracy"

    def score(self, completions: Sequence[str], questions: Sequence[Question]) -> list[float]:
        """Score completions with :func:`accuracy_score`."""
        return [
            accuracy_score(completion, question, self.tolerance)
            for completion, question in zip(completions, questions, strict=True)
        ]


class FormatReward(Reward):
    """1 for a completion with the think/answer template, else 0.

    Args:
        weight: Factor in the total.
        strict: The template must be the whole completion, as in Video-R1; otherwise its four tags
            in order are enough.
    """

    def __init__(self, weight: float = 1.0, strict: bool = True) -> None:
        super().__init__(weight)
        self.strict = strict

    @property
    def name(self) -> str:
        """``format``."""
        return "format"

    def score(self, completions: Sequence[str], questions: Sequence[Question]) -> list[float]:
        """Score completions with :func:`format_score`."""
        return [format_score(completion, self.strict) for completion in completions]


def accuracy_score(
    completion: str, question: Question, tolerance: float = DEFAULT_TOLERANCE
) -> float:
    """Score the answer of a completion: 1 if right, else 0.

    Raises:
        InputError: the question has no gold answer, or one that cannot be one.

    Example:
        >>> question = Question("1", "Which?", "a.mp4", options=("red", "blue"), answer="B")
        >>> accuracy_score("<think>It is blue.</think><answer>(B)</answer>", question)
        1.0
        >>> accuracy_score("A or B", question)
        0.0
    """
    correct = is_correct(parse_answer(completion, question), question, tolerance)
    if correct is None:
        raise InputError(
            f"{question.source or f'question {question.id}'}: no gold answer, so there is nothing "
            "to reward; train on questions that have one"
        )
    return float(correct)


def format_score(completion: str, strict: bool = True) -> float:
    """Score the form of a completion: 1 if it has the think/answer template, else 0.

    Example:
        >>> format_score("<think>It is blue.</think><answer>B</answer>"), format_score("B")
        (1.0, 0.0)
    """
    return float(has_format(completion, strict))


def total_reward(
    rewards: Sequence[Reward], completions: Sequence[str], questions: Sequence[Question]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Add up the rewards of completions.

    Args:
        rewards: At least one, with different names.
        completions: N texts.
        questions: N questions, the one that each completion answers.

    Returns:
        The weighted sum, float32 ``[N]``, and by name each reward before its weight, float32
        ``[N]``. Both are on the CPU.

    Raises:
        InputError: no rewards, two of one name, or not one question per completion.
        RewardError: a reward raised, or gave another number of scores than completions or a score
            that is not finite.
    """
    if not rewards:
        raise InputError("no rewards; list at least one under model.rewards")
    if len(completions) != len(questions):
        raise InputError(f"{len(completions)} completions, but {len(questions)} questions")
    total = torch.zeros(len(completions), dtype=torch.float32)
    parts: dict[str, torch.Tensor] = {}
    for reward in rewards:
        if reward.name in parts:
            raise InputError(
                f"two rewards have the name {reward.name!r}, the second is "
                f"{type(reward).__name__}; give each a name of its own"
            )
        scores = _checked_scores(reward, completions, questions)
        parts[reward.name] = scores
        total = total + reward.weight * scores
    return total, parts


def _checked_scores(
    reward: Reward, completions: Sequence[str], questions: Sequence[Question]
) -> torch.Tensor:
    """Scores of one reward, float32 ``[N]``, known to be N and finite."""
    kind = type(reward).__name__
    try:
        values = [float(value) for value in reward.score(completions, questions)]
    except Exception as error:
        raise RewardError(f"{kind} raised {type(error).__name__}: {error}") from error
    if len(values) != len(completions):
        raise RewardError(f"{kind} gave {len(values)} scores for {len(completions)} completions")
    scores = torch.tensor(values, dtype=torch.float32)
    usable = torch.isfinite(scores * reward.weight)
    if not usable.all():
        row = int((~usable).nonzero()[0])
        raise RewardError(
            f"{kind} gave {values[row]} (weight {reward.weight}) for completion {row} of "
            f"{len(values)}, question {questions[row].id}; scores must be finite"
        )
    return scores
