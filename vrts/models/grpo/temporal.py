"""T-GRPO's temporal reward: right answers count more where the order of the frames helps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveInt

from vrts.models.rewards.accuracy import MIN_SCORE
from vrts.types import Sample


@dataclass(frozen=True, slots=True)
class TemporalReward:
    """A bonus for right answers of groups that do better than on shuffled frames.

    Each question is also sampled on its frames in random order. The bonus goes to the right
    completions of a group whose mean accuracy is at least `mu` times that on the shuffled frames
    (T-GRPO, Video-R1, Feng et al., 2025, arXiv 2503.21776). Images get none. Logged as
    ``train/reward/temporal``.
    """

    alpha: NonNegativeFloat = 0.3
    """The bonus."""
    mu: NonNegativeFloat = 0.8
    """Share of the shuffled frames' accuracy that must be reached; may be above 1."""
    num_generations: PositiveInt | None = None
    """Completions on the shuffled frames; null samples half as many as in order."""

    name = "temporal"

    def bonus(self, scores: torch.Tensor, shuffled_scores: torch.Tensor) -> torch.Tensor:
        """Bonus of each completion, from accuracies.

        Args:
            scores: ``[..., G]``, on the frames in order.
            shuffled_scores: ``[..., G']``, on the shuffled frames.

        Returns:
            ``[..., G]``.
        """
        alpha, mu = float(self.alpha), float(self.mu)
        order_helps = scores.mean(-1, keepdim=True) >= mu * shuffled_scores.mean(-1, keepdim=True)
        return alpha * (order_helps & (scores > MIN_SCORE)).float()


def shuffle_frames(sample: Sample, seed: int) -> Sample:
    """A sample that has a clip, with its frames in random order; their times stay."""
    assert sample.clip is not None
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(sample.clip.num_frames, generator=generator, device="cpu")
    return replace(sample, clip=replace(sample.clip, frames=sample.clip.frames[order]))
