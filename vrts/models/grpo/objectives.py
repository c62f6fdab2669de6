"""Objectives: which policy-gradient loss is minimised. Plug-in point ``model.objective``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jsonargparse.typing import NonNegativeFloat

from vrts.models.grpo.advantages import Advantages, Centred, GroupScaled, LeaveOneOut
from vrts.models.grpo.functional import (
    MAX_KL,
    MAX_LOG_RATIO,
    clipped_reinforce,
    clipped_surrogate,
    kl_k3,
    sequence_log_ratios,
)

WeightsAndDivisor = tuple[torch.Tensor, torch.Tensor]
"""Weights ``[N, L]`` of tokens, and the scalar that the weighted sum is divided by."""


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What an objective is computed from, N completions of up to L tokens."""

    logprobs: torch.Tensor  # [N, L], of the trained policy, with gradient
    old_logprobs: torch.Tensor  # [N, L], of the policy that sampled
    reference_logprobs: torch.Tensor | None  # [N, L], or None where beta is 0
    advantages: torch.Tensor  # [N]
    mask: torch.Tensor  # bool [N, L], True for completion tokens
    max_new_tokens: int  # the most tokens a completion could have had
    importance_weights: torch.Tensor | None = None  # [N, L], of `ImportanceCorrection`


@dataclass(slots=True)
class LossTerms:
    """A loss and its statistics, all scalars; those of micro-batches add up to the step's."""

    loss: torch.Tensor  # with gradient where it is of one micro-batch
    kl: torch.Tensor  # sum of the tokens' KL estimates; 0 without a reference
    clipped: torch.Tensor  # number of tokens on whose gradient clipping acts
    clamped: torch.Tensor  # number of tokens whose log-ratio or KL estimate is beyond what counts
    num_tokens: torch.Tensor

    def add(self, other: LossTerms) -> None:
        """Add those of another micro-batch."""
        self.loss = self.loss.detach() + other.loss.detach()
        self.kl = self.kl + other.kl
        self.clipped = self.clipped + other.clipped
        self.clamped = self.clamped + other.clamped
        self.num_tokens = self.num_tokens + other.num_tokens

    def metrics(self) -> dict[str, float | torch.Tensor]:
        """The loss, and means over tokens, as numbers to log."""
        count = self.num_tokens.clamp(min=1)
        return {
            "loss": self.loss.detach(),
            "kl": self.kl / count,
            "clip_ratio": self.clipped / count,
            "clamp_ratio": self.clamped / count,
        }


class Objective(ABC):
    """A policy-gradient objective with a KL penalty.

    Subclasses define how tokens are weighted, and what the sum is divided by.

    Args:
        beta: weight of the KL penalty; 0 needs no reference model.
        clip_low: the probability ratio counts down to ``1 - clip_low``.
        clip_high: the probability ratio counts up to ``1 + clip_high``.
        advantages: how rewards become advantages; null for the objective's own way.
    """

    default_advantages: type[Advantages] = GroupScaled
    """The paper's advantages."""

    def __init__(
        self,
        beta: NonNegativeFloat = 0.04,
        clip_low: NonNegativeFloat = 0.2,
        clip_high: NonNegativeFloat = 0.2,
        advantages: Advantages | None = None,
    ) -> None:
        self.beta = float(beta)
        self.clip_low = float(clip_low)
        self.clip_high = float(clip_high)
        self.advantages = advantages or self.default_advantages()

    @abstractmethod
    def token_weights(self, mask: torch.Tensor, max_new_tokens: int) -> WeightsAndDivisor:
        """Weights ``[N, L]`` of the tokens, and the scalar that their weighted sum is divided by.

        The divisors of the parts of a step add up to that of the step.

        Args:
            mask: bool ``[N, L]``, True for completion tokens.
            max_new_tokens: the most tokens a completion could have had.
        """

    def surrogate(self, inputs: LossInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Policy loss ``[N, L]`` of each token, and bool ``[N, L]`` where clipping acts on it.

        PPO's clipped loss unless a subclass differs.
        """
        log_ratios = inputs.logprobs - inputs.old_logprobs
        return clipped_surrogate(log_ratios, inputs.advantages, self.clip_low, self.clip_high)

    def divisor(self, mask: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
        """The divisor of `token_weights`."""
        return self.token_weights(mask, max_new_tokens)[1]

    def __call__(self, inputs: LossInputs, divisor: torch.Tensor) -> LossTerms:
        """Compute the loss of a micro-batch.

        Args:
            inputs: of its N completions.
            divisor: of the step: the sum of `divisor` over its micro-batches, averaged over the
                ranks. The sum of the micro-batches' gradients, averaged over the ranks, is then the
                gradient of the step, however its completions are divided.
        """
        mask = inputs.mask
        losses, clipped = self.surrogate(inputs)  # [N, L]
        if inputs.importance_weights is not None:
            losses = losses * inputs.importance_weights
        kl = torch.zeros_like(losses)
        clamped = (inputs.logprobs - inputs.old_logprobs).detach().abs() > MAX_LOG_RATIO
        if self.beta > 0:
            assert inputs.reference_logprobs is not None
            kl = kl_k3(inputs.logprobs, inputs.reference_logprobs)
            clamped |= kl.detach() >= MAX_KL
        weights, _ = self.token_weights(mask, inputs.max_new_tokens)
        per_token = (losses + self.beta * kl).where(mask, 0.0)
        return LossTerms(
            loss=(per_token * weights).sum() / divisor.clamp(min=1e-9),
            kl=kl.detach().where(mask, 0.0).sum(),
            clipped=(clipped & mask).sum().float(),
            clamped=(clamped & mask).sum().float(),
            num_tokens=mask.sum().float(),
        )


class GRPO(Objective):
    """Mean over each completion's tokens, then over completions (DeepSeekMath eq. 3)."""

    def token_weights(self, mask: torch.Tensor, max_new_tokens: int) -> WeightsAndDivisor:
        """See `Objective.token_weights`."""
        lengths = mask.sum(1, keepdim=True).clamp(min=1)  # [N, 1]
        return mask.float() / lengths, mask.new_tensor(len(mask), dtype=torch.float32)


class DrGRPO(Objective):
    """A constant divisor instead of lengths, and advantages that are only centred.

    Removes GRPO's bias towards long wrong completions and towards questions that are too easy or
    too hard (Dr. GRPO, Liu et al., 2025, arXiv 2503.20783).
    """

    default_advantages = Centred

    def token_weights(self, mask: torch.Tensor, max_new_tokens: int) -> WeightsAndDivisor:
        """See `Objective.token_weights`."""
        return mask.float(), mask.new_tensor(len(mask) * max_new_tokens, dtype=torch.float32)


class DAPO(Objective):
    """Mean over all tokens of the step, and a wider upper clip.

    A token counts as much in a long completion as in a short one (DAPO, Yu et al., 2025, arXiv
    2503.14476, sections 3.1 and 3.3).
    """

    def __init__(
        self, beta: NonNegativeFloat = 0.0, clip_high: NonNegativeFloat = 0.28, **kwargs: Any
    ) -> None:
        super().__init__(beta=beta, clip_high=clip_high, **kwargs)

    def token_weights(self, mask: torch.Tensor, max_new_tokens: int) -> WeightsAndDivisor:
        """See `Objective.token_weights`."""
        return mask.float(), mask.sum().float()


class GSPO(GRPO):
    """One ratio for a complete sequence, clipped very narrowly.

    The ratio is the geometric mean of the tokens' ratios (GSPO, Zheng et al., 2025,
    arXiv 2507.18071, eq. 5 to 7; clip ranges of section 5.1).
    """

    def __init__(
        self,
        beta: NonNegativeFloat = 0.0,
        clip_low: NonNegativeFloat = 3e-4,
        clip_high: NonNegativeFloat = 4e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(beta=beta, clip_low=clip_low, clip_high=clip_high, **kwargs)

    def surrogate(self, inputs: LossInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Objective.surrogate`."""
        log_ratios = sequence_log_ratios(inputs.logprobs - inputs.old_logprobs, inputs.mask)
        return clipped_surrogate(log_ratios, inputs.advantages, self.clip_low, self.clip_high)


class CISPO(DAPO):
    """REINFORCE with clipped importance weights, mean over all tokens of the step.

    Clipping limits a token's weight and never drops its gradient (CISPO, MiniMax-M1, 2025,
    arXiv 2506.13585, eq. 4 and 5). The paper sets no lower limit and does not give its upper one;
    a weight of at most 5 is that of ScaleRL (Khatri et al., 2025, arXiv 2510.13786).
    """

    def __init__(
        self, clip_low: NonNegativeFloat = 1.0, clip_high: NonNegativeFloat = 4.0, **kwargs: Any
    ) -> None:
        super().__init__(clip_low=clip_low, clip_high=clip_high, **kwargs)

    def surrogate(self, inputs: LossInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Objective.surrogate`."""
        return clipped_reinforce(
            inputs.logprobs, inputs.old_logprobs, inputs.advantages, self.clip_low, self.clip_high
        )


class RLOO(Objective):
    """Sum over each completion's tokens, mean over completions; leave-one-out baseline.

    The gradient of a rollout's first update is REINFORCE's (RLOO, Ahmadian et al., 2024,
    arXiv 2402.14740); in further ones, which the paper does not make, ratios are clipped as in PPO.
    The KL penalty is in the loss, not in the reward.
    """

    default_advantages = LeaveOneOut

    def token_weights(self, mask: torch.Tensor, max_new_tokens: int) -> WeightsAndDivisor:
        """See `Objective.token_weights`."""
        return mask.float(), mask.new_tensor(len(mask), dtype=torch.float32)
