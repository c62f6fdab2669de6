"""What a reward is, and how those of a run add up. Plug-in point ``model.rewards``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from vrts.terminal import shorten
from vrts.types import Completion, InputError, Question

RewardFunction = Callable[[Sequence[Completion], Sequence[Question]], list[float]]
"""From N completions and the question that each of them answers to N finite numbers."""


class RewardError(RuntimeError):
    """A reward that failed or gave something unusable. The message names its class."""


class Reward(ABC):
    """One kind of reward.

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


class FunctionReward(Reward):
    """A plain function as a reward, of the function's name.

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
        """The function's name."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def score(
        self, completions: Sequence[Completion], questions: Sequence[Question]
    ) -> list[float]:
        """Call it."""
        return self.function(completions, questions)


def as_reward(reward: Reward | RewardFunction) -> Reward:
    """Return a reward as it is, and a function as one."""
    return reward if isinstance(reward, Reward) else FunctionReward(reward)


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
    """Add up the rewards of N completions, each with the question that it answers.

    Returns:
        The weighted sum, and by name each reward before its weight: float32 ``[N]`` on the CPU.

    Raises:
        RewardError: a reward raised, or gave another number of scores than completions or a score
            that is not finite.
    """
    parts = {r.name: _checked_scores(r, completions, questions) for r in rewards}
    total = torch.zeros(len(completions), dtype=torch.float32, device="cpu")
    for reward in rewards:
        total = total + reward.weight * parts[reward.name]
    return total, parts


def _checked_scores(
    reward: Reward, completions: Sequence[Completion], questions: Sequence[Question]
) -> torch.Tensor:
    """Scores of one reward, float32 ``[N]``, known to be N and finite."""
    kind = type(reward).__name__
    try:
        given = reward.score(completions, questions)
    except Exception as error:
        raise RewardError(f"{kind} raised {type(error).__name__}: {error}") from error
    remedy = f"score() must return one number for each completion: a list of {len(completions)}"
    code = getattr(type(reward).score, "__code__", None)  # none where it is no Python function
    where = f"\n  in {code.co_filename}:{code.co_firstlineno}" if code else ""
    try:
        values = [float(value) for value in given]
    except (TypeError, ValueError):
        raise RewardError(f"{kind} gave {shorten(repr(given), 100)}; {remedy}{where}") from None
    if len(values) != len(completions):
        raise RewardError(
            f"{kind} gave {len(values)} scores for {len(completions)} completions; {remedy}{where}"
        )
    scores = torch.tensor(values, dtype=torch.float32, device="cpu")
    usable = torch.isfinite(scores * reward.weight)
    if not usable.all():
        row = int((~usable).nonzero()[0])
        raise RewardError(
            f"{kind} gave {values[row]} (weight {reward.weight}) for completion {row} of "
            f"{len(values)}, question {questions[row].id}; scores must be finite"
        )
    return scores
