"""How long a completion is."""

from __future__ import annotations

from collections.abc import Sequence

from vrts.models.rewards.accuracy import MIN_SCORE, accuracy_score
from vrts.models.rewards.base import Reward
from vrts.types import Completion, InputError, Question


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

    name = "length"

    def __init__(self, weight: float = 0.2, min_tokens: int = 320, max_tokens: int = 512) -> None:
        super().__init__(weight)
        if min_tokens > max_tokens:
            raise InputError(
                f"LengthReward: min_tokens ({min_tokens}) is above max_tokens ({max_tokens})"
            )
        self.min_tokens = min_tokens
        self.max_tokens = max_tokens

    def score(
        self, completions: Sequence[Completion], questions: Sequence[Question]
    ) -> list[float]:
        """See `Reward.score`."""
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

    name = "overlong"

    def __init__(self, weight: float = 1.0, buffer_share: float = 0.2) -> None:
        super().__init__(weight)
        if not 0 < buffer_share <= 1:
            raise InputError(
                f"SoftOverlongPenalty: buffer_share must be above 0 and at most 1, got "
                f"{buffer_share}"
            )
        self.buffer_share = buffer_share

    def score(
        self, completions: Sequence[Completion], questions: Sequence[Question]
    ) -> list[float]:
        """See `Reward.score`."""
        return [self._penalty(c.num_tokens, c.max_new_tokens) for c in completions]

    def _penalty(self, num_tokens: int, max_new_tokens: int) -> float:
        buffer = self.buffer_share * max_new_tokens
        used = (num_tokens - (max_new_tokens - buffer)) / buffer  # share of the buffer
        return -min(max(used, 0.0), 1.0) + 0.0  # not -0.0
