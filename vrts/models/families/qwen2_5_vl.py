"""Qwen2.5-VL and Qwen2-VL: a video is one grid of patches, time is in the positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from vrts.models.families.family import vision_matrices
from vrts.models.families.flops import Matrices, attention_flops, frame_pairs, window_pairs
from vrts.models.families.grids import GridFamily
from vrts.models.families.positions import VideoGrid, prompt_positions
from vrts.types import FrameSizes, Sample


class Qwen2_5VL(GridFamily):  # noqa: N801 its name
    """See `Family`. Qwen2-VL differs in its vision tower, and in that it counts no seconds."""

    title: ClassVar[str] = "Qwen2.5-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl", "qwen2_vl")
    processors: ClassVar[tuple[str, ...]] = ("Qwen2_5_VLProcessor", "Qwen2VLProcessor")

    @classmethod
    def frame_sizes(cls, config: Any) -> FrameSizes:
        """See `Family.frame_sizes`: the budgets of qwen_vl_utils 0.0.14."""
        vision = config.vision_config
        side = vision.patch_size * vision.spatial_merge_size
        token = side**2
        return FrameSizes("frame", side, 128 * token, 768 * token, 128000 * token * 0.9)

    def expand(self, chat: str, sample: Sample, num_patches: int) -> str:
        """See `Family.expand`."""
        for name in ("image_token", "video_token"):
            token = getattr(self.processor, name)
            chat = chat.replace(token, token * num_patches, 1)
        return chat

    def positions(
        self, is_vision: torch.Tensor, grid: tuple[int, int, int], sample: Sample
    ) -> tuple[torch.Tensor, int]:
        """See `Family.positions`."""
        assert sample.clip is not None
        patcher = self.patcher(sample)
        video_grid = VideoGrid(
            *grid,
            seconds_per_grid=patcher.temporal_patch_size / sample.clip.sampled_fps,
            # Qwen2-VL has no such value and counts temporal patches
            tokens_per_second=getattr(self.config.vision_config, "tokens_per_second", None),
        )
        return prompt_positions(is_vision, [video_grid], patcher.merge_size)

    def vision_work(
        self, model: Any, grids: Sequence[tuple[int, int, int]]
    ) -> tuple[Matrices, float]:
        """See `Family.vision_work`; most blocks attend within windows."""
        visual = self.visual(model)
        config = visual.config
        merge = config.spatial_merge_size**2
        matrices = vision_matrices(visual.blocks, visual.patch_embed, visual.merger, merge)
        full = sum(frame_pairs(grid) for grid in grids)
        if not hasattr(config, "window_size"):  # Qwen2-VL
            return matrices, attention_flops(config.embed_dim * config.depth, full)
        window = config.window_size // config.patch_size
        windowed = sum(window_pairs(grid, window) for grid in grids)
        num_full = len(config.fullatt_block_indexes)
        pairs = num_full * full + (config.depth - num_full) * windowed
        return matrices, attention_flops(config.hidden_size, pairs)
