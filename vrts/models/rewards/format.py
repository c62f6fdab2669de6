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
        strict: The template must be the entire completion, as in Video-R1; otherwise its four tags
            in order are enough.
    """

    name = "format"

    def __init__(self, weight: float = 1.0, strict: bool = True) -> None:
        super().__init__(weight)
        self.strict = strict

    def score(
        self, completions: Sequence[Completion], questions: Sequence[Question]
    ) -> list[float]:
        """See `Reward.score`."""
        return [float(has_format(completion.text, self.strict)) for completion in completions]
