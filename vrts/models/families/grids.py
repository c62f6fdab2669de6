"""What Qwen's families share: vision towers that read grids of patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vrts.models.families.family import Family
from vrts.models.families.prompt import GridPatcher
from vrts.types import Sample


class GridFamily(Family):
    """See `Family`."""

    def __init__(self, config: Any, processor: Any) -> None:
        super().__init__(config, processor)
        self._of_images = GridPatcher.of(processor.image_processor)
        self._of_videos = GridPatcher.of(processor.video_processor)

    def patcher(self, sample: Sample) -> GridPatcher:
        """See `Family.patcher`."""
        assert sample.clip is not None
        return self._of_images if sample.clip.is_image else self._of_videos

    def features(
        self, model: Any, patches: torch.Tensor, grids: Sequence[tuple[int, int, int]]
    ) -> torch.Tensor:
        """See `Family.features`: those of the last block, then those for decoder layers in order.

        F is D times one more than there are such layers (DeepStack, Meng et al., 2024, arXiv
        2406.04334).
        """
        visual = self.visual(model)
        grid = torch.tensor(list(grids), device=patches.device)
        out = visual(patches.to(visual.patch_embed.proj.weight.dtype), grid_thw=grid)
        deeper = getattr(out, "deepstack_features", None) or []
        own: torch.Tensor = out.pooler_output
        return torch.cat([own, *deeper], -1) if deeper else own
