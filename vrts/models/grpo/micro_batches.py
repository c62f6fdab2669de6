"""Micro-batches: the groups of one forward and backward, as the objective's tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.utils.rnn import pad_sequence

from vrts.models.grpo.functional import importance_weights
from vrts.models.grpo.objectives import LossInputs
from vrts.models.grpo.rollouts import Group
from vrts.models.policy import Prompt
from vrts.types import Completion, InputError


@dataclass(frozen=True, slots=True)
class ImportanceCorrection:
    """Truncated importance sampling, for an engine whose log-probs differ from the policy's.

    A token's policy loss, under any objective and before the KL penalty is added, is multiplied by
    ``w = min(exp(old_logprob - sampling_logprob), cap)``, where ``old`` is the policy at the start
    of the update and ``sampling`` the engine. ``w`` has no gradient and is the same in all updates
    of a rollout: how far they have moved the policy is in the objective's own ratio,
    ``exp(logprob - old_logprob)``, which alone is clipped. Source: Yao et al., 2025, "Your
    Efficient RL Framework Secretly Brings You Off-Policy RL Training",
    https://fengyao.notion.site/off-policy-rl; for sequences, TRL's ``sequence_truncate``.
    """

    cap: float = 2.0
    """No weight is larger; 1 or more."""
    level: Literal["token", "sequence"] = "token"
    """``token``: each has a weight of its own. ``sequence``: all tokens of a completion have the
    weight of the complete text, from the sum of their differences; it also corrects for how likely
    the tokens before were, and varies the more the longer completions are."""

    def __post_init__(self) -> None:
        """Raise `InputError` for a cap below the weight of log-probs that agree."""
        if not self.cap >= 1:
            raise InputError(
                f"importance_correction.cap must be 1 or more, got {self.cap}: where log-probs "
                "agree, the weight is 1"
            )


class MicroBatch:
    """Some groups of a step, N completions in all; it serves all updates of the rollout.

    Args:
        groups: at least one.
        device: of the tensors that are made.
        mask_truncated: leave completions that were cut off out of the loss.
        correction: of the difference between engine and policy, if any.

    Raises:
        InputError: there is a correction, and the engine's log-probs are not known.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        device: torch.device,
        mask_truncated: bool,
        correction: ImportanceCorrection | None = None,
    ) -> None:
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
        self.sampling_sums: dict[str, torch.Tensor] = {}
        """How far engine and policy differ: sums over tokens by metric, from `inputs` on."""
        self._old_logprobs: torch.Tensor | None = None  # [N, L]
        self._correction = correction
        self._importance_weights: torch.Tensor | None = None  # [N, L]
        if correction is not None and any(c.logprobs is None for c in rows):
            raise InputError(
                "model.importance_correction needs the log-probs of the tokens that model.engine "
                "samples, and it gives none; set it to null, or take another engine"
            )
        unknown = torch.full((1,), math.nan, device="cpu")
        sampled = [unknown.expand(c.num_tokens) if c.logprobs is None else c.logprobs for c in rows]
        sampled = [logprobs.to(device, torch.float32) for logprobs in sampled]
        self._sampling_logprobs = pad_sequence(sampled, batch_first=True)  # [N, L]

    def inputs(self, logprobs: torch.Tensor, max_new_tokens: int) -> LossInputs:
        """Inputs of the objective, from the policy's log-probs ``[N, L]`` with gradient.

        The first update's own log-probs become the old ones: no weight moves between a rollout and
        its first update, so the policy that sampled needs no pass of its own, and later updates
        compare with what the same kernels gave, to the bit in any precision. Log-probs recorded by
        the engine would be as free, but differ by rounding in 16 bits, which clipping would take
        for a policy that has moved; `ImportanceCorrection` is for that difference. (Dropout, off by
        default, would make every pass another one.)
        """
        if self._old_logprobs is None:
            self._old_logprobs = logprobs.detach()
            self._compare_with_engine(self._old_logprobs)
        return LossInputs(
            logprobs,
            self._old_logprobs,
            self.reference_logprobs,
            self.advantages,
            self.mask,
            max_new_tokens,
            self._importance_weights,
        )

    def _compare_with_engine(self, old_logprobs: torch.Tensor) -> None:
        """Make the weights of the correction, and sums for the log."""
        log_ratios = old_logprobs - self._sampling_logprobs  # [N, L]
        diff = log_ratios.abs().where(self.mask, 0.0).sum()
        self.sampling_sums = {"sampling/logprob_diff": diff}
        if self._correction is not None:
            cap, level = self._correction.cap, self._correction.level
            weights, capped = importance_weights(log_ratios, self.mask, cap, level)
            self._importance_weights = weights
            self.sampling_sums |= {
                "sampling/importance_ratio_mean": weights.where(self.mask, 0.0).sum(),
                "sampling/importance_ratio_capped": (capped & self.mask).sum().float(),
            }
