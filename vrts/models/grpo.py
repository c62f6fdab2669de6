"""The mathematics of group-relative policy optimisation, as pure functions.

Sources: GRPO, DeepSeekMath (Shao et al., 2024, arXiv 2402.03300), eq. 3 and 4; Dr. GRPO (Liu et
al., 2025, arXiv 2503.20783); DAPO (Yu et al., 2025, arXiv 2503.14476); the k3 estimator of the KL
divergence (Schulman, 2020, "Approximating KL divergence").
"""

from __future__ import annotations

import torch

ADVANTAGE_EPS = 1e-4
"""Added to the standard deviation of a group's rewards, as in Open-R1-Video and TRL."""


def group_advantages(
    rewards: torch.Tensor, num_generations: int, *, scale: bool = True
) -> torch.Tensor:
    """Reward relative to the other completions of the same question.

    Args:
        rewards: ``[N]``, question-major.
        num_generations: G, at least 2.
        scale: divide by the group's standard deviation (GRPO); False only centres (Dr. GRPO).

    Returns:
        ``[N]``; zeros for a group whose rewards are all equal.
    """
    groups = rewards.view(-1, num_generations)
    centred = groups - groups.mean(1, keepdim=True)
    if scale:
        centred = centred / (groups.std(1, keepdim=True) + ADVANTAGE_EPS)
    return centred.flatten()


def clipped_surrogate(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped objective of each token, as a loss (DeepSeekMath eq. 3; PPO).

    Args:
        logprobs: ``[N, L]``, of the policy that is trained.
        old_logprobs: ``[N, L]``, of the policy that sampled.
        advantages: ``[N]``.
        clip_low: the ratio counts down to ``1 - clip_low``.
        clip_high: the ratio counts up to ``1 + clip_high``.

    Returns:
        ``[N, L]`` losses, and bool ``[N, L]``, True where clipping holds back the gradient.
    """
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    free, bound = ratio * advantages[:, None], clipped * advantages[:, None]
    return -torch.minimum(free, bound), bound < free


def kl_k3(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """Unbiased, never negative estimate of KL(policy || reference) (DeepSeekMath eq. 4).

    Args:
        logprobs: ``[N, L]``, of the policy.
        reference_logprobs: ``[N, L]``.

    Returns:
        ``[N, L]``: ``exp(d) - d - 1`` with ``d = reference - policy``.
    """
    difference = reference_logprobs - logprobs
    return difference.exp() - difference - 1


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the values that count; 0 where none does.

    Args:
        values: any shape.
        mask: bool, same shape.
    """
    return values.where(mask, 0.0).sum() / mask.sum().clamp(min=1)
