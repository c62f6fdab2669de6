"""A plain function as a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vrts.models.rewards.base import Reward
from vrts.types import Completion, InputError, Question

RewardFunction = Callable[[Sequence[Completion], Sequence[Question]], list[float]]
"""From N completions and the question that each of them answers to N finite numbers."""


class FunctionReward(Reward):
    """What a function gives.

    Args:
        function: The function, in YAML as ``my_module.my_function``.
        weight: Factor in the total.

    Raises:
        InputError: it cannot be called.
    """

    def __init__(self, function: RewardFunction, weight: float = 1.0) -> None:
        super().__init__(weight)
        if not callable(function):
            raise InputError(f"model.rewards: {function!r} is neither a Reward nor a function")
        self.function = function

    @property
    def name(self) -> str:
        """That of the function."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def score(
        self, completions: Sequence[Completion], questions: Sequence[Question]
    ) -> list[float]:
        """Call it."""
        return self.function(completions, questions)


def as_reward(reward: Reward | RewardFunction) -> Reward:
    """Return a reward as it is, and a function as one."""
    return reward if isinstance(reward, Reward) else FunctionReward(reward)
