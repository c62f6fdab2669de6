"""SmolVLM2: each frame is an image after its timestamp as text, and positions count tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self, cast

import torch
from torch import nn
from transformers.modeling_utils import local_torch_dtype

from vrts.models.families.family import Family, vision_matrices
from vrts.models.families.flops import Matrices, attention_flops, frame_pairs
from vrts.models.families.prompt import (
    Patcher,
    VideoPrompt,
    frame_times_s,
    pixel_statistics,
)
from vrts.types import FrameSizes, Sample


@dataclass(frozen=True, slots=True)
class FramePatcher:
    """Normalised frames: a vision tower that takes whole images cuts them itself.

    The result is bit for bit that of transformers' processors. See `GridPatcher` for why it is
    made on the device.
    """

    mean: torch.Tensor
    """float32 ``[C, 1, 1]``, of pixels from 0 to 255."""
    std: torch.Tensor
    """float32 ``[C, 1, 1]``."""
    patch_size: int
    merge_size: int
    temporal_patch_size: int = 1

    @classmethod
    def of(cls, processor: Any, config: Any) -> Self:
        """What one of transformers' image or video processors does to frames of the right size.

        Raises:
            InputError: it does not normalise pixels.
        """
        mean, std = (values[:, None, None] for values in pixel_statistics(processor))
        return cls(mean, std, config.vision_config.patch_size, config.scale_factor)

    def fill(self, frames: torch.Tensor) -> torch.Tensor:
        """See `Patcher.fill`."""
        return frames

    def grid(self, frames: torch.Tensor) -> tuple[int, int, int]:
        """See `Patcher.grid`; pixels beyond the last whole patch are not seen."""
        T, _, H, W = frames.shape
        return T, H // self.patch_size, W // self.patch_size

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Normalised pixels, float32 ``[T, C, H, W]`` as `frames`."""
        mean, std = self.mean.to(frames.device), self.std.to(frames.device)
        return frames.to(torch.float32).sub_(mean).div_(std)


class SmolVLM2(Family):
    """See `Family`.

    Frames are squares of one size. They are resized once, bicubic, as they are decoded, where
    transformers' processor resizes twice by Lanczos' filter, first to the longest edge. An image is
    one square too: image splitting, which adds squares of its parts, is off.

    Where there is a video, transformers' processor renders a chat template of its own in place of
    the checkpoint's.
    """

    title: ClassVar[str] = "SmolVLM2"
    model_types: ClassVar[tuple[str, ...]] = ("smolvlm",)
    processors: ClassVar[tuple[str, ...]] = ("SmolVLMProcessor",)
    position_axes: ClassVar[int] = 1
    batches_windows: ClassVar[bool] = False

    def __init__(self, config: Any, processor: Any) -> None:
        super().__init__(config, processor)
        self._of_images = FramePatcher.of(processor.image_processor, config)
        self._of_videos = FramePatcher.of(processor.video_processor, config)

    @classmethod
    def frame_sizes(cls, config: Any) -> FrameSizes:
        """See `Family.frame_sizes`: the size that the vision tower was trained with."""
        vision = config.vision_config
        side, pixels = vision.patch_size * config.scale_factor, vision.image_size**2
        return FrameSizes("square", side, pixels, pixels, math.inf)

    # ---- parts of the transformers model

    def visual(self, model: Any) -> nn.ModuleList:
        """See `Family.visual`."""
        return nn.ModuleList([model.model.vision_model, model.model.connector])

    def language(self, model: Any) -> Any:
        """See `Family.language`."""
        return model.model.text_model

    def vision_layers(self, model: Any) -> list[nn.Module]:
        """See `Family.vision_layers`."""
        return list(model.model.vision_model.encoder.layers)

    def patch_projection(self, model: Any) -> None:
        """See `Family.patch_projection`: its input is an image."""

    # ---- a question as tokens, positions and patches

    def patcher(self, sample: Sample) -> Patcher:
        """See `Family.patcher`."""
        assert sample.clip is not None
        return self._of_images if sample.clip.is_image else self._of_videos

    def expand(self, chat: str, sample: Sample, num_patches: int) -> str:
        """See `Family.expand`: ``Frame from 01:05:`` and the frame's own tokens, for each frame.

        Before the first one stand their number in words and how long the video is.
        """
        from num2words import num2words  # takes a fifth of a second, which others need not wait

        assert sample.clip is not None
        own, clip = self.processor, sample.clip
        frame = f"{own.fake_image_token}{own.global_image_token}{own.image_token}"
        frame += own.fake_image_token
        if clip.is_image:
            return chat.replace(own.image_token, frame, 1)
        times = frame_times_s(clip)
        assert len(times) == num_patches
        # of a time window, frames are later than it is long
        length = timedelta(seconds=int(max(clip.num_source_frames / clip.fps, times[-1])))
        expanded = (
            f"You are provided the following series of {num2words(num_patches)} frames from a "
            f"{length} [H:MM:SS] video.\n"
        )
        for time_s in times:
            expanded += f"\nFrame from {int(time_s // 60):02d}:{int(time_s % 60):02d}:{frame}"
        return chat.replace(own.video_token, f"{expanded}\n\n", 1)

    def positions(
        self, is_vision: torch.Tensor, grid: tuple[int, int, int], sample: Sample
    ) -> tuple[torch.Tensor, int]:
        """See `Family.positions`."""
        return torch.arange(len(is_vision), device="cpu")[None], len(is_vision)

    def model_inputs(self, model: Any, prompt: VideoPrompt) -> dict[str, torch.Tensor]:
        """See `Family.model_inputs`."""
        return {
            "input_ids": prompt.input_ids[None],
            "position_ids": prompt.positions,
            "pixel_values": prompt.patches(model.device).to(model.dtype)[None],
        }

    def vision_ids(self) -> list[int]:
        """See `Family.vision_ids`: one for both images and frames."""
        return [self.config.image_token_id]

    def suppressed_ids(self) -> list[int]:
        """See `Family.suppressed_ids`."""
        own = self.processor
        around = [own.fake_image_token, own.global_image_token]
        return [*self.vision_ids(), *own.tokenizer.convert_tokens_to_ids(around)]

    # ---- passes

    def features(
        self, model: Any, patches: torch.Tensor, grids: Sequence[tuple[int, int, int]]
    ) -> torch.Tensor:
        """See `Family.features`; F is D."""
        tower = model.model.vision_model
        pixels = patches.to(tower.embeddings.patch_embedding.weight.dtype)
        with local_torch_dtype(torch.float32):  # it finds the places of patches in the default one
            hidden = tower(pixel_values=pixels).last_hidden_state
        return cast(torch.Tensor, model.model.connector(hidden).flatten(0, 1))

    # ---- counts

    def vision_work(
        self, model: Any, grids: Sequence[tuple[int, int, int]]
    ) -> tuple[Matrices, float]:
        """See `Family.vision_work`; every block attends within a frame."""
        tower, config = model.model.vision_model, self.config.vision_config
        matrices = vision_matrices(
            tower.encoder.layers,
            tower.embeddings.patch_embedding,
            model.model.connector,
            self.config.scale_factor**2,
        )
        pairs = config.num_hidden_layers * sum(frame_pairs(grid) for grid in grids)
        return matrices, attention_flops(config.hidden_size, pairs)
