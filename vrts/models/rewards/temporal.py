"""T-GRPO's temporal reward: right answers count more where the order of the frames helps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveInt

from vrts.types import Sample


@dataclass(frozen=True, slots=True)
class TemporalReward:
    """A bonus for right answers of groups that do better than on shuffled frames.

    Each question is asked again on its frames in random order. The bonus goes to the right
    completions of a group whose mean accuracy is at least `mu` times that on the shuffled frames
    (T-GRPO, Video-R1, Feng et al., 2025, arXiv 2503.21776). Images get none. Logged as
    ``train/reward/temporal``.
    """

    alpha: NonNegativeFloat = 0.3
    """The bonus."""
    mu: NonNegativeFloat = 0.8
    """How much of the shuffled frames' accuracy must be reached; above 1 asks for more."""
    num_generations: PositiveInt | None = None
    """Completions on the shuffled frames; null samples half as many as in order."""

    name = "temporal"


def temporal_bonus(
    scores: torch.Tensor, shuffled_scores: torch.Tensor, alpha: float, mu: float, min_score: float
) -> torch.Tensor:
    """T-GRPO's bonus for each completion.

    Args:
        scores: ``[B, G]``, accuracy on the frames in order.
        shuffled_scores: ``[B, G']``, accuracy on the shuffled frames.
        alpha: the bonus.
        mu: share of the shuffled accuracy that must be reached.
        min_score: a completion that scores more is right.

    Returns:
        ``[B, G]``.
    """
    helps = scores.mean(1) >= mu * shuffled_scores.mean(1)
    return alpha * (helps[:, None] & (scores > min_score)).float()


def shuffle_frames(sample: Sample, seed: int) -> Sample:
    """The same sample with its frames in random order; where and when they are from stays.

    Args:
        sample: with a clip.
        seed: of the order.
    """
    assert sample.clip is not None
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(sample.clip.num_frames, generator=generator, device="cpu")
    return replace(sample, clip=replace(sample.clip, frames=sample.clip.frames[order]))
