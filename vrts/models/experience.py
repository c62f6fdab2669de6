"""What a GRPO update is made from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vrts.models.groups import Groups
from vrts.models.grpo import masked_mean
from vrts.models.objectives import Completions
from vrts.models.policy import Prompts
from vrts.models.record import RolloutRecord


@dataclass(slots=True)
class Experience:
    """Rewarded groups of completions, kept for all updates that are made from them."""

    groups: Groups
    prompts: Prompts
    advantages: torch.Tensor
    """``[N]``."""
    mask: torch.Tensor
    """bool ``[N, L]``, True for tokens that count in the loss."""
    reference_logprobs: torch.Tensor | None
    """``[N, L]``, or None without a KL penalty."""
    metrics: dict[str, float | torch.Tensor]
    """Numbers to log."""
    old_logprobs: torch.Tensor | None = None
    """``[N, L]`` of the policy that sampled; the first update fills it in."""

    def completions(self, logprobs: torch.Tensor, max_new_tokens: int) -> Completions:
        """What the objective is computed from; the first call's log-probs are the old ones.

        The policy that sampled needs no pass of its own. Between a rollout and its first update
        no weight moves, also where gradients of several batches accumulate, so the first update
        computes the old log-probs anyway: in the same kernels as those they are compared with
        later, to the bit in any precision. (Dropout, which `Lora` has off by default, would make
        every pass another one.) Further updates compare with the first one's.

        Log-probs recorded while sampling would be as free, but in 16 bits they differ from the
        update's by rounding, and their ratio would not be 1 at the start. They are only compared:
        ``rollout_logprob_gap`` is the mean absolute difference over tokens that count. In float32
        it is about 1e-6; much more than bfloat16's rounding (some 0.01) means that rollout and
        update do not compute the same model.

        Args:
            logprobs: ``[N, L]``, of the policy, with gradient.
            max_new_tokens: the most tokens a completion could have had.
        """
        if self.old_logprobs is None:
            self.old_logprobs = logprobs.detach()
            gap = (self.old_logprobs - self.groups.rollout.logprobs).abs()
            self.metrics["rollout_logprob_gap"] = masked_mean(gap, self.mask)
        return Completions(
            logprobs,
            self.old_logprobs,
            self.reference_logprobs,
            self.advantages,
            self.mask,
            max_new_tokens,
        )

    def record(self) -> RolloutRecord:
        """The same for people to read."""
        G = self.groups.num_generations
        questions = [s.question for s in self.groups.samples for _ in range(G)]
        return RolloutRecord(
            questions, self.groups.rollout.texts, self.groups.rewards, self.advantages
        )
