"""Advantages: what a completion's reward is measured against. Part of an objective.

Plug-in point ``model.objective.init_args.advantages``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from vrts.models.grpo.functional import ADVANTAGE_EPS, Reduce, centred, group_advantages


class Advantages(ABC):
    """Makes advantages of rewards."""

    @abstractmethod
    def __call__(self, rewards: torch.Tensor, num_generations: int, reduce: Reduce) -> torch.Tensor:
        """Compute advantages.

        Args:
            rewards: ``[N]``, question-major.
            num_generations: G, at least 2.
            reduce: averages a tensor over the processes that train together. Every process has
                to call it as often, whatever its rewards are.

        Returns:
            ``[N]``; zeros for a group whose rewards are all equal.
        """


class GroupScaled(Advantages):
    """Centred on the group's mean, divided by the group's standard deviation (GRPO).

    Source: DeepSeekMath (Shao et al., 2024, arXiv 2402.03300), section 4.1.2.
    """

    def __call__(self, rewards: torch.Tensor, num_generations: int, reduce: Reduce) -> torch.Tensor:
        """See `Advantages.__call__`."""
        return group_advantages(rewards, num_generations)


class BatchScaled(Advantages):
    """Centred on the group's mean, divided by the standard deviation of all rewards of the batch.

    The batch is that of one training step on all processes. Groups that nearly agree are not
    blown up as they are by their own small deviation (Liu et al., 2025, "Part I: Tricks or
    Traps?", arXiv 2508.08221).
    """

    def __call__(self, rewards: torch.Tensor, num_generations: int, reduce: Reduce) -> torch.Tensor:
        """See `Advantages.__call__`."""
        # Two passes, since a sum of squares loses the digits that rewards of one level differ in.
        count = torch.tensor(float(len(rewards)), dtype=rewards.dtype, device=rewards.device)
        count, total = reduce(torch.stack([count, rewards.sum()]))
        squares = reduce(((rewards - total / count.clamp(min=1e-9)) ** 2).sum())
        std = (squares / count.clamp(min=1e-9)).sqrt()
        scaled: torch.Tensor = centred(rewards, num_generations) / (std + ADVANTAGE_EPS)
        return scaled


class Centred(Advantages):
    """Centred on the group's mean and not scaled (Dr. GRPO, Liu et al., 2025, arXiv 2503.20783)."""

    def __call__(self, rewards: torch.Tensor, num_generations: int, reduce: Reduce) -> torch.Tensor:
        """See `Advantages.__call__`."""
        return centred(rewards, num_generations)


class LeaveOneOut(Advantages):
    """Reward minus the mean of the group's other rewards.

    Source: RLOO (Ahmadian et al., 2024, "Back to Basics", arXiv 2402.14740).
    """

    def __call__(self, rewards: torch.Tensor, num_generations: int, reduce: Reduce) -> torch.Tensor:
        """See `Advantages.__call__`."""
        # r_i - mean of the others = G / (G - 1) * (r_i - mean of all)
        return centred(rewards, num_generations) * (num_generations / (num_generations - 1))
