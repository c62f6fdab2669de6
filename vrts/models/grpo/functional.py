"""The mathematics of group-relative policy optimisation, as pure functions.

Sources: GRPO, DeepSeekMath (Shao et al., 2024, arXiv 2402.03300), eq. 3 and 4; Dr. GRPO (Liu et
al., 2025, arXiv 2503.20783); DAPO (Yu et al., 2025, arXiv 2503.14476); GSPO (Zheng et al., 2025,
arXiv 2507.18071); CISPO, MiniMax-M1 (2025, arXiv 2506.13585); the k3 estimator of the KL divergence
(Schulman, 2020, "Approximating KL divergence").
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Reduce = Callable[[torch.Tensor], torch.Tensor]
"""Mean of a tensor over the processes that train together."""

ADVANTAGE_EPS = 1e-4
"""Added to the standard deviation of a group's rewards, as in Open-R1-Video and TRL."""

MAX_LOG_RATIO = 20.0
"""Log-ratios of two policies count up to this far from 0: ``compute_policy_loss_vanilla`` and
``kl_penalty`` of verl (``trainer/ppo/core_algos.py``) clamp to it, and so does TRL's VESPO loss
(``trl/trainer/grpo_trainer.py``). Beyond 88 their exponential is infinite in float32."""

MAX_KL = 10.0
"""A token's KL estimate counts up to this, as in verl's ``kl_penalty``: 20 nats would be 5e8."""


def bounded(log_ratios: torch.Tensor) -> torch.Tensor:
    """Log-ratios within ``MAX_LOG_RATIO``; a token that is beyond it has no gradient."""
    return log_ratios.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def rewards_differ(rewards: torch.Tensor, num_generations: int) -> torch.Tensor:
    """Which groups teach something: those whose rewards are not all equal.

    Args:
        rewards: ``[N]``, question-major.
        num_generations: G.

    Returns:
        bool ``[B]``.
    """
    groups = rewards.view(len(rewards) // num_generations, num_generations)
    return (groups != groups[:, :1]).any(1)


def centred(rewards: torch.Tensor, num_generations: int) -> torch.Tensor:
    """Reward minus the mean of the completions of the same question.

    Args:
        rewards: ``[N]``, question-major.
        num_generations: G.

    Returns:
        ``[N]``; exact zeros for a group whose rewards are all equal.
    """
    groups = rewards.view(len(rewards) // num_generations, num_generations)
    # A mean of equal floats may be off by rounding, which scaling would blow up.
    uneven = rewards_differ(rewards, num_generations)
    return torch.where(uneven[:, None], groups - groups.mean(1, keepdim=True), 0.0).flatten()


def group_advantages(rewards: torch.Tensor, num_generations: int) -> torch.Tensor:
    """Reward relative to the other completions of the same question (DeepSeekMath 4.1.2).

    Args:
        rewards: ``[N]``, question-major.
        num_generations: G, at least 2.

    Returns:
        ``[N]``; exact zeros for a group whose rewards are all equal.
    """
    if not len(rewards):
        return rewards  # of a process without a usable sample, where std() would warn
    groups = rewards.view(len(rewards) // num_generations, num_generations)
    std = groups.std(1).repeat_interleave(num_generations)
    return centred(rewards, num_generations) / (std + ADVANTAGE_EPS)


def clipped_surrogate(
    log_ratios: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped objective of each token, as a loss (DeepSeekMath eq. 3; PPO).

    Args:
        log_ratios: ``[N, L]``, log-probs of the policy that is trained minus those of the policy
            that sampled; with gradient.
        advantages: ``[N]``.
        clip_low: the ratio counts down to ``1 - clip_low``.
        clip_high: the ratio counts up to ``1 + clip_high``.

    Returns:
        ``[N, L]`` losses, and bool ``[N, L]``, True where clipping holds back the gradient.
    """
    ratio = bounded(log_ratios).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    free, bound = ratio * advantages[:, None], clipped * advantages[:, None]
    return -torch.minimum(free, bound), bound < free


def clipped_reinforce(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """REINFORCE with a clipped importance weight that carries no gradient (CISPO eq. 4 and 5).

    Unlike under PPO's clipping, every token keeps a gradient.

    Args:
        logprobs: ``[N, L]``, of the policy that is trained, with gradient.
        old_logprobs: ``[N, L]``, of the policy that sampled.
        advantages: ``[N]``.
        clip_low: the weight is at least ``1 - clip_low``; 1 or more sets no lower limit.
        clip_high: the weight is at most ``1 + clip_high``.

    Returns:
        ``[N, L]`` losses, and bool ``[N, L]``, True where the weight is clipped.
    """
    ratio = bounded(logprobs.detach() - old_logprobs).exp()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -weight * advantages[:, None] * logprobs, weight != ratio


def sequence_log_ratios(log_ratios: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log of GSPO's length-normalised likelihood ratio of each completion (eq. 7).

    Args:
        log_ratios: ``[N, L]``, of each token.
        mask: bool ``[N, L]``, True for completion tokens.

    Returns:
        ``[N, L]``: the mean over a completion's tokens, at each of them.
    """
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    log_ratios = bounded(log_ratios)
    return (log_ratios.where(mask, 0.0).sum(1, keepdim=True) / lengths).expand_as(log_ratios)


def kl_k3(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """Unbiased, never negative estimate of KL(policy || reference) (DeepSeekMath eq. 4).

    Args:
        logprobs: ``[N, L]``, of the policy.
        reference_logprobs: ``[N, L]``.

    Returns:
        ``[N, L]``: ``exp(d) - d - 1`` with ``d = reference - policy``, at most ``MAX_KL``.
    """
    difference = bounded(reference_logprobs - logprobs)
    return (difference.exp() - difference - 1).clamp(max=MAX_KL)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the values that count; 0 where none does.

    Args:
        values: any shape.
        mask: bool, same shape.
    """
    return values.where(mask, 0.0).sum() / mask.sum().clamp(min=1)
