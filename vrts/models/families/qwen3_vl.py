"""Qwen3-VL: temporal patches after their timestamps, and features for the first decoder layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from vrts.models.families.family import Vision, vision_matrices
from vrts.models.families.flops import Matrices, attention_flops, frame_pairs
from vrts.models.families.grids import GridFamily
from vrts.models.families.positions import VideoGrid, prompt_positions
from vrts.models.families.prompt import patch_times_s
from vrts.types import FrameSizes, Sample


class Qwen3VL(GridFamily):
    """See `Family`. Dense models, Instruct and Thinking."""

    title: ClassVar[str] = "Qwen3-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl",)
    processors: ClassVar[tuple[str, ...]] = ("Qwen3VLProcessor",)

    @classmethod
    def frame_sizes(cls, config: Any) -> FrameSizes:
        """See `Family.frame_sizes`: the budgets of the checkpoints' video processor."""
        vision = config.vision_config
        side = vision.patch_size * vision.spatial_merge_size
        token = side**2
        return FrameSizes("clip", side, 0, 768 * token, 24576 * token)

    def expand(self, chat: str, sample: Sample, num_patches: int) -> str:
        """See `Family.expand`: ``<12.3 seconds>``, and the patch in vision tokens of its own.

        These take the place of the chat's vision tokens, as in transformers 4.57, which the weights
        were published with. transformers 5.24 leaves those around the whole video as well.
        """
        assert sample.clip is not None
        if sample.clip.is_image:
            return chat
        own = self.processor
        patch = f"{own.vision_start_token}{own.video_token}{own.vision_end_token}"
        times = patch_times_s(sample.clip, self.patcher(sample).temporal_patch_size)
        assert len(times) == num_patches
        expanded = "".join(f"<{time_s:.1f} seconds>{patch}" for time_s in times)
        placeholder = patch if patch in chat else own.video_token
        return chat.replace(placeholder, expanded, 1)

    def positions(
        self,
        is_vision: torch.Tensor,
        grid: tuple[int, int, int],
        sample: Sample,
    ) -> tuple[torch.Tensor, int]:
        """See `Family.positions`: every temporal patch is a grid of its own."""
        t, h, w = grid
        patch = VideoGrid(1, h, w, seconds_per_grid=1.0, tokens_per_second=None)
        return prompt_positions(is_vision, [patch] * t, self.patcher(sample).merge_size)

    def vision_inputs(self, vision: Vision, ids: torch.Tensor) -> dict[str, Any]:
        """See `Family.vision_inputs`: a decoder layer adds its features at the vision tokens."""
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[0, vision.places] = True
        D = self.config.text_config.hidden_size
        return {
            "visual_pos_masks": mask,
            "deepstack_visual_embeds": list(vision.features.split(D, -1)),
        }

    def vision_work(
        self, model: Any, grids: Sequence[tuple[int, int, int]]
    ) -> tuple[Matrices, float]:
        """See `Family.vision_work`; every block attends within a temporal patch."""
        visual = self.visual(model)
        config, merge = visual.config, visual.config.spatial_merge_size**2
        mergers = torch.nn.ModuleList([visual.merger])
        mergers.extend(getattr(visual, "deepstack_merger_list", []))
        matrices = vision_matrices(visual.blocks, visual.patch_embed, mergers, merge)
        pairs = config.depth * sum(frame_pairs(grid) for grid in grids)
        return matrices, attention_flops(config.hidden_size, pairs)
