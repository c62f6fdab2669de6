"""The mathematics of group-relative policy optimisation, as pure functions.

Sources: GRPO, DeepSeekMath (Shao et al., 2024, arXiv 2402.03300), eq. 3 and 4; Dr. GRPO (Liu et
al., 2025, arXiv 2503.20783); DAPO (Yu et al., 2025, arXiv 2503.14476); GSPO (Zheng et al., 2025,
arXiv 2507.18071); CISPO, MiniMax-M1 (2025, arXiv 2506.13585); the k3 estimator of the KL divergence
(Schulman, 2020, "Approximating KL divergence"); truncated importance sampling (Yao et al., 2025,
"Your Efficient RL Framework Secretly Brings You Off-Policy RL Training",
https://fengyao.notion.site/off-policy-rl).

Log-probs, log-ratios, losses and masks are ``[N, L]``, advantages ``[N]``. Masks are boolean, True
for completion tokens.
"""

from __future__ import annotations

from typing import Literal

import torch

MAX_LOG_RATIO = 20.0
"""Log-ratios of two policies count up to this far from 0: ``compute_policy_loss_vanilla`` and
``kl_penalty`` of verl (``trainer/ppo/core_algos.py``) clamp to it, and so does TRL's VESPO loss
(``trl/trainer/grpo_trainer.py``). Beyond 88 their exponential is infinite in float32."""

MAX_KL = 10.0
"""A token's KL estimate counts up to this, as in verl's ``kl_penalty``: 20 nats would be 5e8."""


def bounded(log_ratios: torch.Tensor) -> torch.Tensor:
    """Log-ratios within ``MAX_LOG_RATIO``; a token that is beyond it has no gradient."""
    return log_ratios.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def clipped_surrogate(
    log_ratios: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped loss of each token (DeepSeekMath eq. 3).

    Args:
        log_ratios: trained policy's log-probs minus the sampling policy's, with gradient.
        advantages: of the completions.
        clip_low: the ratio counts down to ``1 - clip_low``.
        clip_high: the ratio counts up to ``1 + clip_high``.

    Returns:
        Losses, and a bool mask of the tokens whose gradient clipping stops.
    """
    ratio = bounded(log_ratios).exp()
    unclipped = ratio * advantages[:, None]  # [N, L]
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages[:, None]
    # The lower of the two: clipping never makes a step look better than it is.
    return -torch.minimum(unclipped, clipped), clipped < unclipped


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
        logprobs: of the trained policy, with gradient.
        old_logprobs: of the sampling policy.
        advantages: of the completions.
        clip_low: the weight is at least ``1 - clip_low``; 1 or more sets no lower limit.
        clip_high: the weight is at most ``1 + clip_high``.

    Returns:
        Losses, and a bool mask of the tokens whose weight is clipped.
    """
    ratio = bounded(logprobs.detach() - old_logprobs).exp()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -weight * advantages[:, None] * logprobs, weight != ratio


def sequence_log_ratios(log_ratios: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """GSPO's log-ratios (eq. 7): the mean over a completion's tokens, at each of them."""
    lengths = mask.sum(1, keepdim=True).clamp(min=1)  # [N, 1]
    means = bounded(log_ratios).where(mask, 0.0).sum(1, keepdim=True) / lengths
    return means.expand_as(log_ratios)


def importance_weights(
    log_ratios: torch.Tensor, mask: torch.Tensor, cap: float, level: Literal["token", "sequence"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Truncated importance weights ``min(exp(log_ratio), cap)``, without gradient.

    Args:
        log_ratios: policy's log-probs at the start of the update minus the engine's.
        mask: of the tokens that count.
        cap: no weight is larger.
        level: ``sequence`` takes the sum of a completion's log-ratios for each of its tokens.

    Returns:
        Weights, and a bool mask of the tokens whose weight is capped.
    """
    log_ratios = log_ratios.detach().where(mask, 0.0)
    if level == "sequence":
        log_ratios = log_ratios.sum(1, keepdim=True).expand_as(log_ratios)
    ratios = log_ratios.exp()
    return ratios.clamp(max=cap), ratios > cap


def kl_k3(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """Unbiased, never negative estimate of KL(policy || reference) (DeepSeekMath eq. 4).

    It is ``exp(d) - d - 1`` with ``d = reference - policy``, at most ``MAX_KL``.
    """
    difference = bounded(reference_logprobs - logprobs)
    return (difference.exp() - difference - 1).clamp(max=MAX_KL)
