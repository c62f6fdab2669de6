"""Micro-batches: the groups of one forward and backward, as the objective's tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from vrts.models.grpo.objectives import LossInputs
from vrts.models.grpo.rollouts import Group
from vrts.models.policy import Prompt
from vrts.types import Completion


class MicroBatch:
    """Some groups of a step, N completions in all; it serves all updates of the rollout.

    Args:
        groups: at least one.
        device: of the tensors that are made.
        mask_truncated: leave completions that were cut off out of the loss.
    """

    def __init__(self, groups: Sequence[Group], device: torch.device, mask_truncated: bool) -> None:
        self.prompts: list[Prompt] = [group.prompt for group in groups]
        self.completions: list[tuple[Completion, ...]] = [group.completions for group in groups]
        rows = [c for group in groups for c in group.completions]  # N of them
        lengths = torch.tensor([c.num_tokens for c in rows], device=device)
        self.mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
        """Bool ``[N, L]``, tokens that count in the loss."""
        if mask_truncated:
            self.mask &= torch.tensor([c.finished for c in rows], device=device)[:, None]
        self.advantages = torch.cat([group.advantages for group in groups]).to(device)  # [N]
        self.reference_logprobs: torch.Tensor | None = None  # [N, L]
        self._old_logprobs: torch.Tensor | None = None  # [N, L]
        sampled = [
            torch.zeros(c.num_tokens, device="cpu") if c.logprobs is None else c.logprobs
            for c in rows
        ]
        sampled = [logprobs.to(device, torch.float32) for logprobs in sampled]
        self._sampling_logprobs = pad_sequence(sampled, batch_first=True)  # [N, L]

    def inputs(self, logprobs: torch.Tensor, max_new_tokens: int) -> LossInputs:
        """Inputs of the objective, from the policy's log-probs ``[N, L]`` with gradient.

        The first update's own log-probs become the old ones: no weight moves between a rollout and
        its first update, so the policy that sampled needs no pass of its own, and later updates
        compare with what the same kernels gave, to the bit in any precision. Log-probs recorded by
        the engine would be as free, but differ by rounding in 16 bits. (Dropout, off by default,
        would make every pass another one.)
        """
        if self._old_logprobs is None:
            self._old_logprobs = logprobs.detach()
        return LossInputs(
            logprobs,
            self._old_logprobs,
            self.reference_logprobs,
            self.advantages,
            self.mask,
            max_new_tokens,
        )

    def sampling_logprob_diff(self, old_logprobs: torch.Tensor) -> torch.Tensor:
        """Sum over tokens of how far the log-probs ``[N, L]`` of policy and engine are apart."""
        return (old_logprobs - self._sampling_logprobs).abs().where(self.mask, 0.0).sum()
