"""What a reward is. Plug-in point ``model.rewards``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from vrts.types import Completion, InputError, Question


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
