"""Rewards of completions: what GRPO learns from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from vrts.prompts import DEFAULT_TOLERANCE, answer_score, has_format, is_correct, parse_answer
from vrts.types import Completion, InputError, Question

MIN_SCORE = 0.1
"""An answer that scores more counts as right for further rewards, as in Video-R1's code."""


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

    def check(self, question: Question) -> None:  # noqa: B027 most rewards score anything
        """Find out before training whether completions of a question can be scored.

        Raises:
            InputError: they cannot. The message names the question's source.
        """

    @abstractmethod
    def score(
        self, completions: Sequence[Completion], questions: Sequence[Question]
    ) -> list[float]:
        """Score completions, before the weight.

        Args:
            completions: N completions: text, tokens, whether it was cut off.
            questions: N questions, the one that each completion answers.

        Returns:
            N finite numbers.
        """


class AccuracyReward(Reward):
    """How good the answer is, by the measure of its problem type; 0 for none.

    A choice or number is right or wrong. A regression answer gets 1 minus its relative error, OCR
    1 minus its word error rate, a free-form text its mean ROUGE, a time span its intersection over
    union: see :mod:`vrts.scores`.

    Args:
        weight: Factor in the total.
        tolerance: Of numerical answers, see :func:`vrts.numbers.numbers_match`.
        graded: False makes every answer right or wrong, as :func:`vrts.answers.is_correct` has it.

    Raises:
        InputError: the tolerance is negative or not finite.
    """

    def __init__(
        self, weight: float = 1.0, tolerance: float = DEFAULT_TOLERANCE, graded: bool = True
    ) -> None:
        super().__init__(weight)
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise InputError(f"AccuracyReward: tolerance must be 0 or more, got {tolerance}")
        self.tolerance = tolerance
        self.graded = graded

    @property
    def name(self) -> str:
        """``accuracy``."""
        return "accuracy"

    def check(self, question: Question) -> None:
        """See `Reward.check`: there is a gold answer, and it can be one."""
        accuracy_score("", question, self.tolerance, self.graded)

    def score(
        self, completions: Sequence[Completion], questions: Sequence[Question]
    ) -> list[float]:
        """Score completions with :func:`accuracy_score`."""
        return [
            accuracy_score(completion.text, question, self.tolerance, self.graded)
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

    def score(
        self, completions: Sequence[Completion], questions: Sequence[Question]
    ) -> list[float]:
        """Score completions with :func:`format_score`."""
        return [format_score(completion.text, self.strict) for completion in completions]


class LengthReward(Reward):
    """1 for a right answer of a length within a range, else 0 (Video-R1, arXiv 2503.21776).

    Right is a score of :func:`accuracy_score` above 0.1, as in Video-R1's code.

    Args:
        weight: Factor in the total; Video-R1's.
        min_tokens: Shortest completion that is rewarded.
        max_tokens: Longest completion that is rewarded.

    Raises:
        InputError: the range is empty.
    """

    def __init__(self, weight: float = 0.2, min_tokens: int = 320, max_tokens: int = 512) -> None:
        super().__init__(weight)
        if min_tokens > max_tokens:
            raise InputError(
                f"LengthReward: min_tokens ({min_tokens}) is above max_tokens ({max_tokens})"
            )
        self.min_tokens = min_tokens
        self.max_tokens = max_tokens

    @property
    def name(self) -> str:
        """``length``."""
        return "length"

    def score(
        self, completions: Sequence[Completion], questions: Sequence[Question]
    ) -> list[float]:
        """See the class."""
        return [
            float(
                self.min_tokens <= completion.num_tokens <= self.max_tokens
                and accuracy_score(completion.text, question) > MIN_SCORE
            )
            for completion, question in zip(completions, questions, strict=True)
        ]


class SoftOverlongPenalty(Reward):
    """0, but falls to -1 over the last tokens that a completion may have.

    Source: DAPO (Yu et al., 2025, arXiv 2503.14476), eq. 13. A completion that the limit cut off
    gets -1.

    Args:
        weight: Factor in the total.
        buffer_share: Share of ``max_new_tokens`` over which the penalty grows; the paper's is 4096
            of 20480 tokens.

    Raises:
        InputError: the share is not above 0 and at most 1.
    """

    def __init__(self, weight: float = 1.0, buffer_share: float = 0.2) -> None:
        super().__init__(weight)
        if not 0 < buffer_share <= 1:
            raise InputError(
                f"SoftOverlongPenalty: buffer_share must be above 0 and at most 1, got "
                f"{buffer_share}"
            )
        self.buffer_share = buffer_share

    @property
    def name(self) -> str:
        """``overlong``."""
        return "overlong"

    def score(
        self, completions: Sequence[Completion], questions: Sequence[Question]
    ) -> list[float]:
        """Score completions with :func:`overlong_penalty`."""
        return [
            overlong_penalty(c.num_tokens, c.max_new_tokens, self.buffer_share) for c in completions
        ]


def overlong_penalty(num_tokens: int, max_new_tokens: int, buffer_share: float) -> float:
    """Give DAPO's length penalty (eq. 13): 0 before the buffer, then linear down to -1.

    Example:
        >>> [overlong_penalty(n, 100, 0.2) for n in (80, 90, 100)]
        [0.0, -0.5, -1.0]
    """
    buffer = buffer_share * max_new_tokens
    return -min(max((num_tokens - (max_new_tokens - buffer)) / buffer, 0.0), 1.0) + 0.0


def accuracy_score(
    completion: str,
    question: Question,
    tolerance: float = DEFAULT_TOLERANCE,
    graded: bool = True,
) -> float:
    """Score the answer of a completion, from 0 to 1.

    Raises:
        InputError: the question has no gold answer, or one that cannot be one.

    Example:
        >>> question = Question("1", "Which?", "a.mp4", options=("red", "blue"), answer="B")
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


def format_score(completion: str, strict: bool = True) -> float:
    """Score the form of a completion: 1 if it has the think/answer template, else 0.

    Example:
        >>> format_score("<think>It is blue.</think><answer>B</answer>"), format_score("B")
        (1.0, 0.0)
    """
    return float(has_format(completion, strict))


def check_all(rewards: Sequence[Reward], questions: Sequence[Question]) -> None:
    """Check all questions against all rewards, before anything long begins.

    Raises:
        InputError: some completions could not be scored; the first one is named and all counted.
    """
    problems: list[str] = []
    for question in questions:
        try:
            for reward in rewards:
                reward.check(question)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError(
            f"{len(problems)} of {len(questions)} training questions cannot be rewarded; "
            f"the first: {problems[0]}"
        )


def total_reward(
    rewards: Sequence[Reward], completions: Sequence[Completion], questions: Sequence[Question]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Add up the rewards of completions.

    Args:
        rewards: At least one, with different names.
        completions: N completions: text, tokens, whether it was cut off.
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
    reward: Reward, completions: Sequence[Completion], questions: Sequence[Question]
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
