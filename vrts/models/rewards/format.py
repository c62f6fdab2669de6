"""Whether a completion has the think/answer template."""

from __future__ import annotations

from collections.abc import Sequence

from vrts.answers import has_format
from vrts.models.rewards.base import Reward
from vrts.types import Completion, Question


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


def format_score(completion: str, strict: bool = True) -> float:
    """Score the form of a completion: 1 if it has the think/answer template, else 0.

    Example:
        >>> format_score("<think>It is blue.</think><answer>B</answer>"), format_score("B")
        (1.0, 0.0)
    """
    return float(has_format(completion, strict))
