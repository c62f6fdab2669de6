"""What `QwenPolicy` knows of prompts that it has encoded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vrts.models.pairs import PairKey
from vrts.models.policy import Prompts
from vrts.models.qwen_inputs import EncodedPrompt


@dataclass(frozen=True, slots=True)
class QwenPrompts(Prompts):
    """B prompts with their video features."""

    encoded: tuple[EncodedPrompt, ...]
    features: torch.Tensor
    """``[video tokens, D]``, without gradient; valid while the vision tower stays as it is."""
    pairs: tuple[tuple[PairKey, ...], ...]
    """Of each video, which pairs of frames the features are of, in order."""

    def by_pair(self) -> dict[PairKey, torch.Tensor]:
        """Features ``[tokens of a pair, D]`` by pair."""
        num_patches = sum(t * h * w for t, h, w in (prompt.grid for prompt in self.encoded))
        patches_per_token = num_patches // len(self.features)
        named = [
            (name, prompt.grid[1] * prompt.grid[2] // patches_per_token)
            for prompt, names in zip(self.encoded, self.pairs, strict=True)
            for name in names
        ]
        parts = self.features.split([num_tokens for _, num_tokens in named])
        return {name: part for (name, _), part in zip(named, parts, strict=True)}
