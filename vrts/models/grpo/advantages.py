"""Advantages: what a completion's reward is measured against. Part of an objective.

Plug-in point ``model.objective.init_args.advantages``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

AllReduceMean = Callable[[torch.Tensor], torch.Tensor]
"""Mean of a tensor over the ranks."""

ADVANTAGE_EPS = 1e-4
"""Added to the standard deviation of rewards, as in Open-R1-Video and TRL."""


class Advantages(ABC):
    """Turns rewards into advantages."""

    @abstractmethod
    def __call__(self, rewards: torch.Tensor, all_reduce_mean: AllReduceMean) -> torch.Tensor:
        """Compute advantages ``[B, G]``; zeros for a group whose rewards are all equal.

        Args:
            rewards: ``[B, G]``, G at least 2; B is 0 on a rank without a usable sample.
            all_reduce_mean: mean over the ranks. Every rank has to call it equally often, whatever
                its rewards are.
        """


class GroupScaled(Advantages):
    """Centred on the group's mean, divided by the group's standard deviation (GRPO).

    Source: DeepSeekMath (Shao et al., 2024, arXiv 2402.03300), section 4.1.2.
    """

    def __call__(self, rewards: torch.Tensor, all_reduce_mean: AllReduceMean) -> torch.Tensor:
        """See `Advantages.__call__`."""
        if not len(rewards):
            return rewards  # std() would warn
        return centred(rewards) / (rewards.std(1, keepdim=True) + ADVANTAGE_EPS)


class BatchScaled(Advantages):
    """Centred on the group's mean, divided by the standard deviation of all rewards of the step.

    The step is that of all ranks. Groups that nearly agree are not blown up as they are by their
    own small deviation (Liu et al., 2025, "Part I: Tricks or Traps?", arXiv 2508.08221).
    """

    def __call__(self, rewards: torch.Tensor, all_reduce_mean: AllReduceMean) -> torch.Tensor:
        """See `Advantages.__call__`."""
        # Two passes: a sum of squares loses the digits in which rewards of one level differ.
        count = rewards.new_tensor(float(rewards.numel()))
        count, total = all_reduce_mean(torch.stack([count, rewards.sum()]))
        count = count.clamp(min=1e-9)
        variance = all_reduce_mean((rewards - total / count).square().sum()) / count
        scaled: torch.Tensor = centred(rewards) / (variance.sqrt() + ADVANTAGE_EPS)
        return scaled


class Centred(Advantages):
    """Centred on the group's mean and not scaled (Dr. GRPO, Liu et al., 2025, arXiv 2503.20783)."""

    def __call__(self, rewards: torch.Tensor, all_reduce_mean: AllReduceMean) -> torch.Tensor:
        """See `Advantages.__call__`."""
        return centred(rewards)


class LeaveOneOut(Advantages):
    """Reward minus the mean of the group's other rewards.

    Source: RLOO (Ahmadian et al., 2024, "Back to Basics", arXiv 2402.14740).
    """

    def __call__(self, rewards: torch.Tensor, all_reduce_mean: AllReduceMean) -> torch.Tensor:
        """See `Advantages.__call__`."""
        # r_i - mean of the others = G / (G - 1) * (r_i - mean of all)
        G = rewards.shape[1]
        return centred(rewards) * (G / (G - 1))


def centred(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards ``[B, G]`` minus their group's mean; exact zeros where a group's are all equal."""
    differ = (rewards != rewards[:, :1]).any(1, keepdim=True)  # [B, 1]
    # The mean of equal floats may be off by rounding, which a tiny deviation would blow up.
    return torch.where(differ, rewards - rewards.mean(1, keepdim=True), 0.0)
