"""From a batch of prompts to what a GRPO update needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vrts.models.grpo import have_signal
from vrts.models.objectives import Completions
from vrts.models.policy import Prompts
from vrts.types import Question, Rollout


@dataclass(slots=True)
class Experience:
    """A rollout with its rewards, kept for all updates that are made from it."""

    questions: tuple[Question, ...]
    """N, one for each completion."""
    prompts: Prompts
    rollout: Rollout
    rewards: dict[str, torch.Tensor]
    """``[N]`` for each reward, unweighted."""
    total: torch.Tensor
    """``[N]``, weighted sum of the rewards."""
    advantages: torch.Tensor
    """``[N]``."""
    mask: torch.Tensor
    """bool ``[N, L]``, True for tokens that count in the loss."""
    reference_logprobs: torch.Tensor | None
    """``[N, L]``, or None without a KL penalty."""
    seconds: float
    """What making it took."""
    old_logprobs: torch.Tensor | None = None
    """``[N, L]`` of the policy that sampled; the first update fills it in."""

    def completions(self, logprobs: torch.Tensor, max_new_tokens: int) -> Completions:
        """What the objective is computed from; the first call's log-probs are the old ones.

        Args:
            logprobs: ``[N, L]``, of the policy, with gradient.
            max_new_tokens: the most tokens a completion could have had.
        """
        if self.old_logprobs is None:
            self.old_logprobs = logprobs.detach()
        return Completions(
            logprobs,
            self.old_logprobs,
            self.reference_logprobs,
            self.advantages,
            self.mask,
            max_new_tokens,
        )

    def metrics(self) -> dict[str, float | torch.Tensor]:
        """What a rollout tells about the state of training, as numbers to log."""
        G = len(self.questions) // len(self.prompts.questions)
        std = self.total.view(-1, G).std(1)
        tokens = self.rollout.lengths.float()
        return {
            **{f"reward/{name}": float(values.mean()) for name, values in self.rewards.items()},
            "reward/total": float(self.total.mean()),
            "reward_std": float(std.mean()),
            "zero_advantage_groups": float((~have_signal(self.total, G)).float().mean()),
            "completion_length": float(tokens.mean()),
            "truncated": float((~self.rollout.finished).float().mean()),
            "rollout_s": self.seconds,
            "tokens_per_s": float(tokens.sum()) / max(self.seconds, 1e-9),
        }
