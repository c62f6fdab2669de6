"""Objectives: which policy-gradient loss is minimised. Plug-in point ``model.objective``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jsonargparse.typing import NonNegativeFloat

from vrts.models.grpo import clipped_surrogate, group_advantages, kl_k3, masked_mean


@dataclass(frozen=True, slots=True)
class LossTerms:
    """A loss and what it is made of, the latter for the log and without gradient."""

    loss: torch.Tensor
    """Scalar with gradient."""
    kl: torch.Tensor
    """Mean KL estimate a token; 0 without a reference."""
    clip_share: torch.Tensor
    """Share of tokens whose gradient clipping holds back."""

    def metrics(self) -> dict[str, float | torch.Tensor]:
        """The terms as numbers to log."""
        return {"loss": self.loss.detach(), "kl": self.kl, "clip_share": self.clip_share}


@dataclass(frozen=True, slots=True)
class Completions:
    """What an objective is computed from, N rows of up to L tokens."""

    logprobs: torch.Tensor
    """``[N, L]``, of the policy, with gradient."""
    old_logprobs: torch.Tensor
    """``[N, L]``, of the policy that sampled."""
    reference_logprobs: torch.Tensor | None
    """``[N, L]``, or None where beta is 0."""
    advantages: torch.Tensor
    """``[N]``."""
    mask: torch.Tensor
    """bool ``[N, L]``, True for completion tokens."""
    max_new_tokens: int
    """The most tokens a completion could have had."""


Reduce = Callable[[torch.Tensor], torch.Tensor]
"""Mean of a number over the processes that train together."""


class Objective(ABC):
    """A policy-gradient objective with a KL penalty.

    Subclasses say how tokens are weighted and over what the sum is divided.

    Args:
        beta: weight of the KL penalty; 0 means no reference model at all.
        clip_low: the probability ratio counts down to ``1 - clip_low``.
        clip_high: the probability ratio counts up to ``1 + clip_high``.
    """

    scale_advantages = True
    """Whether advantages are divided by the standard deviation of their group."""

    def __init__(
        self,
        beta: NonNegativeFloat = 0.04,
        clip_low: NonNegativeFloat = 0.2,
        clip_high: NonNegativeFloat = 0.2,
    ) -> None:
        self.beta = float(beta)
        self.clip_low = float(clip_low)
        self.clip_high = float(clip_high)

    @abstractmethod
    def token_weights(
        self, mask: torch.Tensor, max_new_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights ``[N, L]`` of the tokens, and the scalar that their sum is divided by.

        Args:
            mask: bool ``[N, L]``.
            max_new_tokens: the most tokens a completion could have had.
        """

    def advantages(self, rewards: torch.Tensor, num_generations: int) -> torch.Tensor:
        """Advantages ``[N]`` of rewards ``[N]``, G a question."""
        return group_advantages(rewards, num_generations, scale=self.scale_advantages)

    def __call__(self, completions: Completions, reduce: Reduce) -> LossTerms:
        """Compute the loss.

        Args:
            completions: N completions.
            reduce: averages the divisor over processes, so that the mean of their gradients is
                the gradient of the whole batch, however its tokens fall on them.
        """
        c = completions
        losses, clipped = clipped_surrogate(
            c.logprobs, c.old_logprobs, c.advantages, self.clip_low, self.clip_high
        )
        kl = torch.zeros_like(losses)
        if self.beta > 0:
            assert c.reference_logprobs is not None
            kl = kl_k3(c.logprobs, c.reference_logprobs)
        weights, divisor = self.token_weights(c.mask, c.max_new_tokens)
        per_token = (losses + self.beta * kl).where(c.mask, 0.0)
        return LossTerms(
            loss=(per_token * weights).sum() / reduce(divisor).clamp(min=1e-9),
            kl=masked_mean(kl.detach(), c.mask),
            clip_share=masked_mean(clipped.float(), c.mask),
        )


class GRPO(Objective):
    """Mean over each completion's tokens, then over completions (DeepSeekMath eq. 3)."""

    def token_weights(
        self, mask: torch.Tensor, max_new_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Objective.token_weights`."""
        lengths = mask.sum(1, keepdim=True).clamp(min=1)
        return mask.float() / lengths, mask.new_tensor(len(mask), dtype=torch.float32)


class DrGRPO(Objective):
    """A constant divisor instead of lengths, and advantages that are only centred.

    Removes GRPO's bias towards long wrong completions and towards questions that are too easy or
    too hard (Dr. GRPO, Liu et al., 2025, arXiv 2503.20783).
    """

    scale_advantages = False

    def token_weights(
        self, mask: torch.Tensor, max_new_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Objective.token_weights`."""
        return mask.float(), mask.new_tensor(len(mask) * max_new_tokens, dtype=torch.float32)


class DAPO(Objective):
    """Mean over all tokens of the batch, and a wider upper clip.

    Long completions count as much a token as short ones (DAPO, Yu et al., 2025, arXiv 2503.14476,
    sections 3.1 and 3.3).
    """

    def __init__(
        self,
        beta: NonNegativeFloat = 0.0,
        clip_low: NonNegativeFloat = 0.2,
        clip_high: NonNegativeFloat = 0.28,
    ) -> None:
        super().__init__(beta, clip_low, clip_high)

    def token_weights(
        self, mask: torch.Tensor, max_new_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Objective.token_weights`."""
        return mask.float(), mask.sum().float()
