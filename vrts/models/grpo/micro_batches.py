"""Micro-batches: the groups of one forward and backward, as the objective's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch.nn.utils.rnn import pad_sequence

from vrts.models.grpo.objectives import LossInputs
from vrts.models.grpo.rollouts import Group
from vrts.models.policy import Prompt
from vrts.types import Completion


class MicroBatch:
    """Some groups of a step, N completions in all.

    Args:
        groups: at least one.
        device: of the tensors that are made.
        mask_truncated: leave completions that were cut off out of the loss.
    """

    def __init__(self, groups: Sequence[Group], device: torch.device, mask_truncated: bool) -> None:
        self._groups = groups
        self._device = device
        self.prompts: list[Prompt] = [group.prompt for group in groups]
        self.completions: list[tuple[Completion, ...]] = [group.completions for group in groups]
        self.mask = self._stack([group.mask for group in groups])
        """Bool ``[N, L]``, tokens that count in the loss."""
        if mask_truncated:
            finished = [c.finished for group in groups for c in group.completions]
            self.mask &= torch.tensor(finished, device=device)[:, None]

    def set_reference_logprobs(self, logprobs: torch.Tensor) -> None:
        """Keep the reference's log-probs ``[N, L]``."""
        for group, own in zip(self._groups, self._split(logprobs), strict=True):
            group.reference_logprobs = own

    def inputs(self, logprobs: torch.Tensor, max_new_tokens: int) -> LossInputs:
        """Inputs of the objective, from the policy's log-probs ``[N, L]`` with gradient.

        The first update's own log-probs become the old ones: no weight moves between a rollout and
        its first update, so the policy that sampled needs no pass of its own, and later updates
        compare with what the same kernels gave, to the bit in any precision. Log-probs recorded by
        the engine would be as free, but differ by rounding in 16 bits. (Dropout, off by default,
        would make every pass another one.)
        """
        if self._groups[0].old_logprobs is None:
            for group, own in zip(self._groups, self._split(logprobs), strict=True):
                group.old_logprobs = own
        reference = None
        if self._groups[0].reference_logprobs is not None:
            reference = self._stack([g.reference_logprobs for g in self._groups])
        return LossInputs(
            logprobs,
            self._stack([g.old_logprobs for g in self._groups]),
            reference,
            torch.cat([g.advantages for g in self._groups]).to(self._device),
            self.mask,
            max_new_tokens,
        )

    def sampling_logprob_diff(self, old_logprobs: torch.Tensor) -> torch.Tensor:
        """Sum over tokens of how far the log-probs ``[N, L]`` of policy and engine are apart."""
        sampled = self._stack([group.sampling_logprobs for group in self._groups])
        return (old_logprobs - sampled).abs().where(self.mask, 0.0).sum()

    def _stack(self, parts: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """One ``[N, L]`` of the groups' ``[G, L]``, padded with zeros."""
        rows = [row for part in cast(Sequence[torch.Tensor], parts) for row in part]
        return pad_sequence(rows, batch_first=True).to(self._device)

    def _split(self, logprobs: torch.Tensor) -> list[torch.Tensor]:
        """The groups' ``[G, L]`` of one ``[N, L]``, without padding and gradient."""
        parts = logprobs.detach().split([len(own) for own in self.completions])
        lengths = [max(c.num_tokens for c in own) for own in self.completions]
        return [part[:, :length] for part, length in zip(parts, lengths, strict=True)]
